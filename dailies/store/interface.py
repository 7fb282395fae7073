"""The store's contract: objects under keys, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True)
class Stored:
    """An object as it is listed. ``version`` changes whenever its bytes do; comparing it needs no reading."""

    key: str
    size: int
    version: str


@dataclass(frozen=True)
class Artifact:
    """A file that a step made: enough to find it and to prove that it is the same."""

    key: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "sha256": self.sha256, "size": self.size}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Artifact:
        return cls(value["key"], value["sha256"], value["size"])


class Store(Protocol):
    def check(self) -> None:
        """``NotConfigured`` unless it answers now: for whoever sets a site up, not for a run."""

    def put(self, key: str, data: bytes) -> Artifact: ...

    def put_file(self, key: str, path: Path) -> Artifact: ...

    def put_stream(self, key: str, file: BinaryIO) -> Artifact:
        """What is left to read of a file object, which need not be able to go back."""

    def get(self, key: str) -> bytes:
        """``Missing`` when there is no such object."""

    def local(self, key: str) -> AbstractContextManager[Path]:
        """The object as a file to read from; ``Missing`` when there is none."""

    def stat(self, key: str) -> Stored | None: ...

    def list(self, prefix: str) -> Iterator[Stored]: ...

    def delete(self, prefix: str) -> int:
        """Delete what lies under the prefix; returns how many objects."""

    def clean(self, older_than: float) -> int:
        """Remove what writers left behind that were killed more than so many seconds ago; returns how much it was."""

    def holds(self, artifact: Artifact) -> bool:
        """Whether the object is there with these very bytes: reads them all."""
