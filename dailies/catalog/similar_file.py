"""The file of neighbours: always written whole and in the order of the ids, so that the same lists are the same bytes,
however they came about.

A row holds `AT_ONCE` videos, for a million rows of their own would take longer to write than their lists to find.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dailies.catalog.schema import refusals
from dailies.catalog.vectors import Hashes, Ids, made_whole, unkeyed
from dailies.errors import BadInput, Missing

SCHEMA = """
    PRAGMA page_size = 16384;
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- `first` is the first of the `ids`. For each of them: a hash of the vector that its list was made for, and the
    -- list, as wide as meta has it: keys (see vectors.py), best first. The first `k` are for readers, what is behind
    -- them for the next update. All are 64 bits, little-endian.
    CREATE TABLE similar (
        first INTEGER PRIMARY KEY, ids BLOB NOT NULL, vectors BLOB NOT NULL, lists BLOB NOT NULL
    ) STRICT;
"""
AT_ONCE, ROWS = 64, 256
FORMAT = "2"


@dataclass(frozen=True)
class Similar:
    """Each row of `lists` holds keys (see vectors.py), best first."""

    ids: Ids
    hashes: Hashes
    lists: Ids


def write_similar(out: Path, facts: Mapping[str, Any], similar: Similar) -> None:
    about = {**facts, "format": FORMAT, "total": len(similar.ids)}
    told = sorted((key, str(value)) for key, value in about.items())
    with made_whole(out) as temp, closing(sqlite3.connect(temp, isolation_level=None)) as database, refusals(out):
        database.executescript(SCHEMA)
        database.execute("BEGIN")
        database.executemany("INSERT INTO meta VALUES (?, ?)", told)
        database.executemany("INSERT INTO similar VALUES (?, ?, ?, ?)", _rows(similar))
        database.execute("COMMIT")


def _rows(similar: Similar) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    for at in range(0, len(similar.ids), AT_ONCE):
        here = slice(at, at + AT_ONCE)
        ids, hashed, lists = similar.ids[here], similar.hashes[here], similar.lists[here]
        yield int(ids[0]), ids.astype("<i8").tobytes(), hashed.astype("<u8").tobytes(), lists.astype("<i8").tobytes()


def read_similar(path: Path, facts: Mapping[str, Any]) -> Iterator[Similar] | None:
    """Some at a time, in the order of their ids. None where there is none, or one of another making: what it says is of
    no use then."""
    if not path.is_file():
        return None
    with refusals(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        told = dict(database.execute("SELECT key, value FROM meta"))
    fits = all(told.get(key) == str(value) for key, value in {**facts, "format": FORMAT}.items())
    return _parts(path, int(told["width"])) if fits else None


def _parts(path: Path, width: int) -> Iterator[Similar]:
    with refusals(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT ids, vectors, lists FROM similar ORDER BY first")
        while some := rows.fetchmany(ROWS):
            ids, hashed, lists = (b"".join(row[column] for row in some) for column in range(3))
            lists_of = np.frombuffer(lists, dtype="<i8").reshape(-1, width)
            yield Similar(np.frombuffer(ids, dtype="<i8"), np.frombuffer(hashed, dtype="<u8"), lists_of)


def open_similar(path: Path) -> sqlite3.Connection:
    """Of a published generation, to which nobody writes any more."""
    if not path.is_file():
        raise Missing(f"there is no {path.name} in {path.parent}")
    with refusals(path):
        database = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            if database.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() != (FORMAT,):
                raise BadInput(f"{path} was made by another version of this program: run an update")
        except BaseException:
            database.close()
            raise
    return database


def neighbours_of(database: sqlite3.Connection, number: int) -> list[tuple[int, float]]:
    """Ids and scores, best first; none for a video that has no list."""
    found = database.execute(
        "SELECT ids, lists FROM similar WHERE first <= ? ORDER BY first DESC LIMIT 1", (number,)
    ).fetchone()
    row = np.flatnonzero(np.frombuffer(found[0] if found else b"", dtype="<i8") == number)
    if found is None or not len(row):
        return []
    ((count,),) = database.execute("SELECT value FROM meta WHERE key = 'k'")
    keyed = np.frombuffer(found[1], dtype="<i8").reshape(len(found[0]) // 8, -1)[row[0], : int(count)]
    ids, scores = unkeyed(keyed)
    return [(other, score) for other, score in zip(ids.tolist(), scores.tolist(), strict=True) if other >= 0]


def listed(database: sqlite3.Connection) -> int:
    """How many videos have a list, be it an empty one."""
    found: int = database.execute("SELECT ifnull(sum(length(ids)), 0) / 8 FROM similar").fetchone()[0]
    return found
