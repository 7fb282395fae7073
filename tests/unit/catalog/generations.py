"""Generations that are whole, or spoilt in one way, with a clock to let leases run out by."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dailies.catalog import generation
from dailies.catalog.generation import complete, name_of, prepare, publish
from dailies.catalog.similar_file import Similar, write_similar
from dailies.catalog.vectors import keys
from dailies.ledger.records import Lease
from dailies.ledger.sqlite import SqliteLedger
from tests.unit.catalog.rows import DIM, T0, add, database, embedding, instance, video

RESOURCE = "catalog:films"
ABOUT = {"as_of": T0, "base": "", "index": {"total": 3, "dim": DIM, "model": "m", "nlist": 0}}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk: what is synced, and in which order, has a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(generation, "create", database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(tmp_path / "ledger.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def prod(tmp_path: Path) -> Path:
    return tmp_path / "prod"


def index(path: Path, total: int = 3, dim: int = DIM) -> None:
    path.write_bytes(struct.pack("<4siq", b"IxM2", dim, total) + bytes(100))


def similar(path: Path, total: int = 3) -> None:
    ids = np.arange(1, total + 1)
    others = np.array([[n for n in ids if n != number] for number in ids]).reshape(total, -1)
    lists = keys((1 / 2**others).astype("f4"), others)
    write_similar(path, {"k": total, "width": lists.shape[1]}, Similar(ids, ids.astype("u8"), lists))


def fill(folder: Path, total: int = 3) -> None:
    path = folder / "catalog.db"
    add(path, "instances", instance())
    for number in range(1, total + 1):
        add(path, "videos", video(f"v{number}", id=number, title=folder.name))
        add(path, "video_embeddings", embedding(f"v{number}", id=number))
    index(folder / "index.faiss", total)
    similar(folder / "similar.db", total)


def built(prod: Path, name: str) -> Path:
    folder = prepare(prod, name, None)
    fill(folder)
    complete(folder, ABOUT)
    return folder


def lease_of(ledger: SqliteLedger, clock: Clock, fence: int) -> Lease:
    """The lease of this fence; the ones before it ran out."""
    while True:
        clock.now += 100
        lease = ledger.leases.acquire(RESOURCE, f"run-{clock.now}", 10)
        if lease.fence >= fence:
            assert lease.fence == fence
            return lease


def published(ledger: SqliteLedger, clock: Clock, prod: Path, *fences: int) -> None:
    for fence in fences:
        lease = lease_of(ledger, clock, fence)
        built(prod, name_of(fence))
        publish(ledger, lease, prod, name_of(fence))


def names(prod: Path) -> list[str]:
    return sorted(path.name for path in prod.iterdir())


def spoil_pages(folder: Path) -> None:
    data = (folder / "catalog.db").read_bytes()
    (folder / "catalog.db").write_bytes(data[:8192] + b"\x55" * (len(data) - 8192))


def spoil_key(folder: Path) -> None:
    """A key of a vector, in the index alone that the table of vectors has of its own."""
    path = folder / "catalog.db"
    with closing(sqlite3.connect(path)) as db:
        where = "name = 'sqlite_autoindex_video_embeddings_1'"
        (page,) = db.execute(f"SELECT rootpage FROM sqlite_master WHERE {where}").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    at = data.index(b"v2", (page - 1) * size, page * size)
    data[at : at + 2] = b"v9"
    path.write_bytes(data)


def spoil_index(folder: Path) -> None:
    """A video that one of the indexes of the table does not know: nothing but a check of both finds it."""
    path, name = folder / "catalog.db", "videos_popularity"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        row = db.execute("SELECT * FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        db.execute("DELETE FROM sqlite_master WHERE name = ?", (name,))
    add(path, "videos", video("unlisted"))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)


def spoil_vector(folder: Path) -> None:
    """To SQLite it is as good as any."""
    with closing(sqlite3.connect(folder / "catalog.db")) as db, db:
        db.execute("UPDATE video_embeddings SET embedding = zeroblob(length(embedding)) WHERE id = 3")


def spoil_order(folder: Path) -> None:
    """An id of a vector that is larger than the one behind it."""
    path = folder / "catalog.db"
    with closing(sqlite3.connect(path)) as db:
        (vector,) = db.execute("SELECT embedding FROM video_embeddings WHERE id = 2").fetchone()
    data = bytearray(path.read_bytes())
    at = data.index(vector)
    data[data.rindex(b"\x02\x09\x00", at - 200, at)] = 100  # the id, the length of the header, and no id in the row
    path.write_bytes(data)


def spoil_parents(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "catalog.db")) as db, db:
        db.execute("DELETE FROM instances")


SPOILT: dict[str, tuple[Any, str]] = {
    "a damaged page": (spoil_pages, "damaged"),
    "a row that an index lacks": (spoil_index, "missing from index videos_popularity"),
    "a key that a row has not": (spoil_key, "missing from index sqlite_autoindex_video_embeddings_1"),
    "rows without a parent": (spoil_parents, "3 rows without their parent"),
    "an index of more": (lambda f: index(f / "index.faiss", 4), "says total 3, and index.faiss says 4"),
    "an index of another dimension": (lambda f: index(f / "index.faiss", 3, 8), "says dim 4, and index.faiss says 8"),
    "no index at all": (lambda f: (f / "index.faiss").write_bytes(b""), "is no index"),
    "neighbours of fewer": (
        lambda f: [(f / "similar.db").unlink(), similar(f / "similar.db", 2)],
        "says total 3, and similar.db says 2",
    ),
    "a stranger": (lambda f: (f / "notes.txt").write_text("x"), "notes.txt is no part of a generation"),
}


def held_open(folder: Path) -> bool:
    """Whether this process still has a file of it open."""
    links = [str(handle.readlink()) for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
    return any(link.startswith(str(folder)) for link in links)
