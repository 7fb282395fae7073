"""The one place where object keys are built.

    {tenant}/client/videos/{video}/…    what the tenant may read
    {tenant}/server/videos/{video}/…    the rest

A key that leaves here lies under its prefix, whatever came in: every part is checked, none is repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dailies.errors import BadInput

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,254}")


@dataclass(frozen=True)
class MediaKey:
    """An upload. No derived key can be the upload's own or lie beneath it."""

    tenant: str
    video: str
    name: str

    def __post_init__(self) -> None:
        _check("tenant", self.tenant, PART)
        _check("video id", self.video, PART)
        _check("file name", self.name, FILE_NAME)

    @classmethod
    def parse(cls, tenant: str, key: str) -> MediaKey:
        parts = key.split("/") if isinstance(key, str) else []
        if len(parts) != 5 or parts[1:3] != ["client", "videos"]:
            raise BadInput(f"not an upload key: {_shown(key)}; expected <tenant>/client/videos/<video>/<file name>")
        parsed = cls(parts[0], parts[3], parts[4])
        if parsed.tenant != tenant:
            raise BadInput(f"the key {_shown(key)} does not belong to tenant {_shown(tenant)}")
        return parsed

    def __str__(self) -> str:
        return f"{self.tenant}/client/videos/{self.video}/{self.name}"

    def client(self, *parts: str) -> str:
        """A derived object that the tenant may read."""
        if parts[:1] == (self.name,):
            raise BadInput(f"{_shown(self.name)} is the upload itself; a derived object needs a name of its own")
        return self._derived("client", parts)

    def server(self, *parts: str) -> str:
        """A derived object that only the services read."""
        return self._derived("server", parts)

    def _derived(self, side: str, parts: tuple[str, ...]) -> str:
        if not parts:
            raise BadInput("a derived object needs a name")
        for part in parts:
            _check("object name", part, PART)
        return "/".join((self.tenant, side, "videos", self.video, *parts))


def catalog_subject(tenant: str, name: str) -> str:
    """What an update of a catalogue works on; no video has a subject like it."""
    _check("tenant", tenant, PART)
    _check("catalogue name", name, PART)
    return f"{tenant}/catalogs/{name}"


def _check(what: str, value: str, allowed: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not allowed.fullmatch(value):
        spaces = ", spaces" if allowed is FILE_NAME else ""
        length = 255 if allowed is FILE_NAME else 128
        raise BadInput(
            f"{what} {_shown(value)} is refused: a letter or digit, then letters, digits, '.', '_', '-'{spaces}, "
            f"at most {length} in all"
        )


def _shown(value: object) -> str:
    """One printable line of bounded length: what came in may hold anything."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
