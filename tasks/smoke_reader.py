"""Somebody who reads a catalogue all the time while it is updated: a mixture of two generations must never be seen."""

from __future__ import annotations

import threading
from typing import Any, Self

import faiss
import numpy as np

from dailies.canonical import digest, file_digest
from dailies.catalog.reader import FILES, INDEX, Catalog
from dailies.errors import DailiesError
from tasks.smoke_catalogs import Catalogue

LOOK_S = 0.1
ASKED = 5
STEP = 37  # other videos at each look
CLOSE = 1e-4


class Reader:
    """``seen`` are generations by the digest of their files, in the order in which they were first met."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.seen: list[str] = []
        self.faults: list[str] = []
        self.looks = 0
        self._catalogue = catalogue
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """After a last look, so that what was published at the end is seen as well."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last = False
        while not last:
            last = self._over.wait(LOOK_S)
            try:
                self._look()
            except (DailiesError, OSError, ValueError, LookupError, RuntimeError) as error:
                self.faults.append(f"{type(error).__name__}: {error}")
        self._catalogue.run.ledger.close()  # this thread's connection

    def _look(self) -> None:
        run = self._catalogue.run
        with Catalog.open(self._catalogue.prod, run.ledger, self._catalogue.resource) as shown:
            self.looks += 1
            name = digest(shown.meta["files"])
            if name not in self.seen:
                self.seen.append(name)
                self.faults += damaged(shown)
            self.faults += mixed(shown, self.looks * STEP)


def damaged(shown: Catalog) -> list[str]:
    """All of it, once: the files are those that were published, and the index is of this database's vectors."""
    told = shown.meta["files"]
    wrong = [
        f"{shown.name}/{file} is not what was published"
        for file in FILES
        if file_digest(shown.folder / file) != told[file]["sha256"]
    ]
    index = faiss.read_index(str(shown.folder / INDEX))
    asked = vectors(shown, ASKED, 0)
    if not asked:
        return [*wrong, f"{shown.name} has no vectors"]
    scores, found = index.search(np.stack(list(asked.values())), ASKED)
    for own, row, said in zip(asked.values(), found.tolist(), scores.tolist(), strict=True):
        wrong += [
            f"the index of {shown.name} says {score} of {number}, which is another video, or none"
            for number, score in zip(row, said, strict=True)
            if number >= 0 and not near(shown, own, number, score)
        ]
    return wrong


def mixed(shown: Catalog, start: int) -> list[str]:
    """A few videos and their neighbours: all of them are there, and as near to each other as is said."""
    wrong = []
    for number, own in vectors(shown, ASKED, start).items():
        if shown.video(number) is None:
            wrong.append(f"{shown.name}: video {number} has a vector and is not there")
        neighbours = shown.neighbours(number)
        if not neighbours:
            wrong.append(f"{shown.name}: video {number} has no neighbours")
        wrong += [
            f"{shown.name}: {other} is no neighbour of {number} with {score}"
            for other, score in neighbours
            if shown.video(other) is None or not near(shown, own, other, score)
        ]
    return wrong


def vectors(shown: Catalog, count: int, start: int) -> dict[int, Any]:
    total = max(1, int(shown.meta["total"]))
    rows = shown.videos.execute(
        "SELECT id, embedding FROM video_embeddings ORDER BY id LIMIT ? OFFSET ?", (count, start % total)
    )
    return {row["id"]: np.frombuffer(row["embedding"], "<f4") for row in rows}


def near(shown: Catalog, own: Any, other: int, score: float) -> bool:
    row = shown.videos.execute("SELECT embedding FROM video_embeddings WHERE id = ?", (other,)).fetchone()
    return row is not None and abs(float(own @ np.frombuffer(row["embedding"], "<f4")) - score) < CLOSE
