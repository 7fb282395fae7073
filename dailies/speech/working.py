"""What a transcription has heard so far, on disk, so that one which was killed goes on where it was.

    with working(out, name) as work:
        work.words(key)             # None: nobody listened yet, or what was written is damaged
        work.keep(key, words)
        work.publish(files)
        work.remove()

Everything lies in `out/.transcribe/NAME`, a file for each chunk, and one process at a time may write there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, digest, write_atomically
from dailies.errors import BadInput, Conflict
from dailies.speech.engine import Word
from dailies.speech.words import words_from_json

# The last one says all that the others do, and is the sign that they are whole.
FILES = ("transcript.srt", "transcript.vtt", "transcript.json")
FOLDER = ".transcribe"
ATTEMPTS = 100
# Whoever comes back later than this starts anew.
KEPT_S = 7 * 24 * 3600.0


class Working:
    def __init__(self, out: Path, name: str) -> None:
        self.out = out
        self.folder = out / FOLDER / name

    def words(self, key: str) -> list[Word] | None:
        try:
            record = json.loads((self.folder / f"{key}.json").read_bytes())
            heard = record["heard"]
            if record["sha256"] != digest(heard) or heard["chunk"] != key:
                return None
            return words_from_json(heard["words"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, key: str, words: list[dict[str, Any]]) -> None:
        """On disk when this returns, so that nobody listens to it again."""
        heard = {"chunk": key, "words": words}
        with _writing(self.out):
            write_atomically(
                self.folder / f"{key}.json", [canonical_json({"heard": heard, "sha256": digest(heard)}) + b"\n"]
            )

    def publish(self, files: Mapping[str, bytes]) -> None:
        """At no moment is a file of another transcript beside `transcript.json`."""
        with _writing(self.out):
            for name in reversed(FILES):
                if name == FILES[-1] or name not in files:
                    (self.out / name).unlink(missing_ok=True)
            for name in FILES:
                if name in files:
                    write_atomically(self.out / name, [files[name]])

    def published(self, name: str) -> bool:
        return (self.out / name).exists()

    def remove(self) -> None:
        with _writing(self.out):
            shutil.rmtree(self.folder)

    def tidy(self) -> None:
        """Drafts of whoever was killed, and what nobody came back for."""
        drafts = [*self.out.glob(".transcript.*.tmp"), *self.folder.glob(".*.tmp")]
        for draft in drafts:
            draft.unlink(missing_ok=True)
        for other in self.folder.parent.iterdir():
            mine = other == self.folder or not re.fullmatch("[0-9a-f]{64}", other.name)
            if not mine and time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other, ignore_errors=True)


@contextmanager
def working(out: Path, name: str) -> Iterator[Working]:
    """Leaves no empty folder behind, whatever happened."""
    work = Working(out, name)
    lock = work.folder.parent / "lock"
    with _writing(out):
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        door = _locked(lock)
    try:
        with _writing(out):
            work.tidy()
            work.folder.mkdir(exist_ok=True)
        yield work
    finally:
        with suppress(OSError):
            work.folder.rmdir()
        with suppress(OSError):
            lock.unlink()
        for folder in (lock.parent, *made):
            with suppress(OSError):
                folder.rmdir()
        os.close(door)


def _locked(lock: Path) -> int:
    """Whoever had it before removes the file and its folder, also in the midst of this."""
    for left in reversed(range(ATTEMPTS)):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return _taken(lock)
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def _taken(lock: Path) -> int:
    """The file that was opened may be gone by now: locking that keeps nobody out."""
    door = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(door), lock.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except BlockingIOError:
        os.close(door)
        out = spelt(lock.parent.parent)
        raise Conflict(f"another transcription writes to {out}: wait for it, or name another folder") from None
    except OSError:
        os.close(door)
        raise
    return door


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BadInput(f"cannot write to {spelt(out)}: {why}: name another folder") from error


def spelt(path: Path) -> str:
    """In one line that can be printed, whatever bytes are in it."""
    return " ".join(os.fsencode(path).decode(errors="replace").split())
