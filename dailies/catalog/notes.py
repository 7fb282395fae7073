"""What an attempt at a generation has finished, noted beside the generations; and what a later one takes over of it.

An attempt notes each file of its folder when it is made: what it was made for (its key), what came of it, and once it
is finished its digest. Taken over is a copy, and never the file itself: who is only frozen may still write to his.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, digest, write_atomically
from dailies.catalog.generation import clone, fence_of, no_room
from dailies.errors import Conflict, Damaged

Facts = dict[str, Any]
FOLDER = "made"
FORMAT = 2  # of the files: what an older program made of them is not taken over


@dataclass(frozen=True)
class Notes:
    """Those of one attempt, whose folder has that name."""

    prod: Path
    name: str

    def path(self, file: str) -> Path:
        return self.prod / FOLDER / f"{self.name}.{file}.json"

    def of(self, file: str) -> Facts:
        path = self.path(file)
        found: Facts = json.loads(path.read_bytes()) if path.is_file() else {}
        return found

    def known(self, file: str) -> Facts:
        """What must have been noted by now: where it is gone, a later attempt took it away."""
        found = self.of(file)
        if not found:
            raise Conflict(f"{self.name} is out of date: a later attempt found that its {file} is damaged")
        return found

    def write(self, file: str, what: Mapping[str, Any]) -> None:
        write(self.path(file), what)

    def amend(self, file: str, **more: Any) -> None:
        self.write(file, {**self.known(file), **more})

    def made(self, file: str, asked: Callable[[], list[Any]], make: Callable[[], Facts]) -> Facts:
        """What is known of the file: of this attempt's own, of one that was taken over, or of what is made now.

        What it is made for is not ``asked`` before somebody has made one: to answer may take as long as to make it.
        """
        key = key_of(asked) if self.of_all(file) else ""
        if not key or (self.of(file).get("key") != key and not self.take_over(file, key)):
            facts = make()
            self.write(file, {"facts": facts, "key": key or key_of(asked)})
        return dict(self.of(file)["facts"])

    def take_over(self, file: str, key: str) -> bool:
        folder = self.prod / self.name
        for path in self.of_all(file):
            try:
                theirs = json.loads(path.read_bytes())
            except FileNotFoundError:  # whoever is only frozen takes his back before he ranks
                continue
            if theirs["key"] != key or "sha256" not in theirs:
                continue
            folder.mkdir(exist_ok=True)
            for left in folder.glob(".*"):  # half of something, or copied in vain
                left.unlink()
            try:
                clone(self.prod / name_in(path) / file, folder / file, theirs["sha256"])
            except Damaged:
                continue
            self.write(file, theirs)
            return True
        return False

    def forget(self, *files: str) -> None:
        """Nobody takes them over any more: neither this attempt's, nor those that it may have them from. Those of later
        attempts stay, for this one may have been frozen meanwhile."""
        for file in files:
            for path in self.of_all(file):
                if fence_of(name_in(path)) <= fence_of(self.name):
                    path.unlink(missing_ok=True)

    def of_all(self, file: str) -> list[Path]:
        """Of all attempts, the latest first."""
        found = (self.prod / FOLDER).glob(f"gen-*.{file}.json")
        return sorted(found, key=lambda path: fence_of(name_in(path)), reverse=True)


def name_in(path: Path) -> str:
    return path.name.partition(".")[0]


def key_of(asked: Callable[[], list[Any]]) -> str:
    return digest([FORMAT, *asked()])


def write(path: Path, what: Mapping[str, Any]) -> None:
    try:
        write_atomically(path, [canonical_json(what)])
    except OSError as error:
        raise no_room(path, error) from error
