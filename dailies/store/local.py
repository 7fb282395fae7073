"""Objects as files below one folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dailies.canonical import CHUNK, Digested, digest, file_digest, write_atomically
from dailies.errors import Missing, NotConfigured
from dailies.store.interface import Artifact, Stored
from dailies.store.keys import check_key


class LocalFolder:
    """A file appears complete or not at all, and survives a power cut once ``put`` has returned."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotConfigured(f"the folder {self.root} cannot be used: {error.strerror}") from error

    def put(self, key: str, data: bytes) -> Artifact:
        write_atomically(self._path(key), [data])
        return Artifact(key, digest(data), len(data))

    def put_file(self, key: str, path: Path) -> Artifact:
        with path.open("rb") as file:
            return self.put_stream(key, file)

    def put_stream(self, key: str, file: BinaryIO) -> Artifact:
        passing = Digested(iter(lambda: file.read(CHUNK), b""))
        write_atomically(self._path(key), passing)
        return Artifact(key, passing.sha256, passing.size)

    def get(self, key: str) -> bytes:
        with self.local(key) as path:
            return path.read_bytes()

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        if not path.is_file():
            raise Missing(f"there is no object {key} in {self.root}")
        yield path

    def stat(self, key: str) -> Stored | None:
        path = self._path(key)
        return self._stored(path) if path.is_file() else None

    def list(self, prefix: str) -> Iterator[Stored]:
        folder = self._path(prefix)
        files = (
            [folder] if folder.is_file() else sorted(folder.rglob("*"), key=Path.as_posix) if folder.is_dir() else []
        )
        return (self._stored(path) for path in files if path.is_file() and not path.name.startswith("."))

    def delete(self, prefix: str) -> int:
        found = list(self.list(prefix))
        for stored in found:
            self._path(stored.key).unlink(missing_ok=True)
        for left in self._path(prefix).rglob(".*.tmp"):  # of a writer that was killed there
            left.unlink(missing_ok=True)
        for folder in sorted(self._path(prefix).rglob("*"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return len(found)

    def clean(self, older_than: float) -> int:
        removed = 0
        for path in list(self.root.rglob(".*.tmp")):
            with suppress(FileNotFoundError):  # its writer has just finished
                if time.time() - path.stat().st_mtime > older_than:
                    path.unlink()
                    removed += 1
        return removed

    def holds(self, artifact: Artifact) -> bool:
        path = self._path(artifact.key)
        return path.is_file() and path.stat().st_size == artifact.size and file_digest(path) == artifact.sha256

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*check_key(key).split("/"))

    def _stored(self, path: Path) -> Stored:
        found = path.stat()
        key = path.relative_to(self.root).as_posix()
        return Stored(key, found.st_size, f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}")
