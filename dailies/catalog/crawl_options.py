"""How a crawl behaves: plain values, so that a child process can be given them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dailies.errors import BadInput

LARGEST_PAGE = 100


@dataclass(frozen=True)
class Crawl:
    concurrency: int = 4
    """Hosts at once. For one host there are never more than two requests at once."""
    timeout_s: float = 5.0
    """To connect, and for each next piece of an answer; a whole answer may take four times as long."""
    attempts: int = 4
    page: int = 50
    stop_after_pages: int = 2
    """Pages in a row without news after which a channel's older videos are left alone; 0 reads every page."""
    max_channels: int = 0
    """Of one host; 0 for all."""
    max_videos_pages: int = 0
    """Of one channel; 0 for all."""
    allow_private: bool = False
    schemes: tuple[str, ...] = ("https", "http")
    host_budget_s: float = 1800.0
    """What one host may cost in one stage; what is left over is done by the next call."""
    longest_wait_s: float = 30.0
    """A host that asks to be left alone for longer is left alone for the rest of the stage."""
    give_up_after: int = 3
    """Requests of one host that failed in a row, each with all its attempts."""
    no_network_after: int = 25
    """Hosts that could not be reached, before any has answered, that make it our own network's fault."""
    longest_list: int = 1000
    """Pages of one list: some lists never end."""
    first_wait_s: float = 0.5

    def __post_init__(self) -> None:
        _within("page", self.page, 2, LARGEST_PAGE)
        for name in ("concurrency", "attempts", "give_up_after", "no_network_after", "longest_list"):
            _within(name, getattr(self, name), 1, 100_000)
        for name in ("stop_after_pages", "max_channels", "max_videos_pages"):
            _within(name, getattr(self, name), 0, 10_000_000)
        for name in ("timeout_s", "host_budget_s"):
            _within(name, getattr(self, name), 0.001, 1e6)
        for name in ("longest_wait_s", "first_wait_s"):
            _within(name, getattr(self, name), 0, 1e6)
        if not self.schemes or not set(self.schemes) <= {"https", "http"}:
            raise BadInput(f"schemes cannot be {self.schemes!r}: it holds https, http or both")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "schemes": list(self.schemes)}

    @classmethod
    def from_json(cls, given: Crawl | Mapping[str, Any] | None) -> Crawl:
        if isinstance(given, Crawl):
            return given
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given or {}) - known):
            raise BadInput(f"a crawl has no option {', '.join(unknown)}: it has {', '.join(sorted(known))}")
        values = dict(given or {})
        if "schemes" in values:
            values["schemes"] = tuple(values["schemes"])
        return cls(**values)


def _within(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadInput(f"{name} cannot be {value!r}: it is a number from {least:g} to {most:g}")
