"""The file of neighbours: one row for each video, always written whole and in the order of the ids, so that the same
lists are the same bytes, however they came about."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dailies.catalog.schema import refusals
from dailies.catalog.vectors import NOBODY, Hashes, Ids, keys, made_whole, unkeyed

SCHEMA = """
    PRAGMA page_size = 4096;
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- Little-endian int64 and float32, best first. `vector` is a hash of the vector that the list was made for.
    -- `reserve` goes on where `neighbours` end, as keys (see vectors.py): for the next update, and for no reader.
    CREATE TABLE similar (
        id INTEGER PRIMARY KEY, neighbours BLOB NOT NULL, scores BLOB NOT NULL, vector INTEGER NOT NULL,
        reserve BLOB NOT NULL
    ) STRICT;
"""
AT_ONCE = 16_384
NOTHING = NOBODY.to_bytes(8, "little", signed=True)


@dataclass(frozen=True)
class Similar:
    """Each row of `lists` holds keys (see vectors.py), best first."""

    ids: Ids
    hashes: Hashes
    lists: Ids


def write_similar(out: Path, facts: Mapping[str, Any], similar: Similar) -> None:
    told = sorted((key, str(value)) for key, value in {**facts, "total": len(similar.ids)}.items())
    with made_whole(out) as temp, closing(sqlite3.connect(temp, isolation_level=None)) as database, refusals(out):
        database.executescript(SCHEMA)
        database.execute("BEGIN")
        database.executemany("INSERT INTO meta VALUES (?, ?)", told)
        database.executemany("INSERT INTO similar VALUES (?, ?, ?, ?, ?)", _rows(similar, int(facts["k"])))
        database.execute("COMMIT")


def read_similar(path: Path, facts: Mapping[str, Any]) -> Similar | None:
    """None where there is none, or one of another making: what it says is of no use then."""
    if not path.is_file():
        return None
    with refusals(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        told = dict(database.execute("SELECT key, value FROM meta"))
        if any(told.get(key) != str(value) for key, value in facts.items()):
            return None
        count, width = int(facts["k"]), int(facts["width"])
        similar = Similar(
            np.empty(int(told["total"]), dtype=np.int64),
            np.empty(int(told["total"]), dtype=np.uint64),
            np.empty((int(told["total"]), width), dtype=np.int64),
        )
        rows = database.execute("SELECT id, neighbours, scores, vector, reserve FROM similar ORDER BY id")
        at = 0
        while batch := rows.fetchmany(AT_ONCE):
            here = slice(at, at + len(batch))
            similar.ids[here] = [row[0] for row in batch]
            similar.hashes[here] = np.array([row[3] for row in batch], dtype=np.int64).view(np.uint64)
            ids = np.frombuffer(b"".join(row[1].ljust(8 * count, b"\xff") for row in batch), dtype="<i8")
            scores = np.frombuffer(b"".join(row[2].ljust(4 * count, b"\0") for row in batch), dtype="<f4")
            similar.lists[here, :count] = keys(scores.reshape(-1, count), ids.reshape(-1, count))
            more = b"".join(row[4] + NOTHING * (width - count - len(row[4]) // 8) for row in batch)
            similar.lists[here, count:] = np.frombuffer(more, dtype="<i8").reshape(len(batch), width - count)
            at += len(batch)
    return similar


def _rows(similar: Similar, count: int) -> Iterator[tuple[int, bytes, bytes, int, bytes]]:
    for at in range(0, len(similar.ids), AT_ONCE):
        here = slice(at, at + AT_ONCE)
        ids, scores = unkeyed(similar.lists[here, :count])
        lengths = (ids >= 0).sum(axis=1).tolist()
        some = ids.astype("<i8").tobytes(), scores.astype("<f4").tobytes()
        more = similar.lists[here, count:].astype("<i8")
        left, size = (more != NOBODY).sum(axis=1).tolist(), 8 * more.shape[1]
        numbers, hashed = similar.ids[here].tolist(), similar.hashes[here].view(np.int64).tolist()
        reserve = more.tobytes()
        for row, (number, length, vector, kept) in enumerate(zip(numbers, lengths, hashed, left, strict=True)):
            first = row * count
            yield (
                number,
                some[0][8 * first : 8 * (first + length)],
                some[1][4 * first : 4 * (first + length)],
                vector,
                reserve[size * row : size * row + 8 * kept],
            )
