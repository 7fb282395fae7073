"""What can be seen of a generation from outside: each function looks at files alone, and none asks the product."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.canonical import digest
from tasks.smoke_rows import KEYS, SHOWN, Tables, opened, tables

DAY_MS, MONTH_DAYS, UNKNOWN_DAYS = 86_400_000, 30, 3650
SLACK = 0.01  # how far a stored popularity may be from the exact one: see rank.py
RECALL = 0.95
PART = 1024
NOBODY = -(2**63)
Neighbours = Mapping[int, Sequence[tuple[int, float]]]


def row_counts(path: Path) -> dict[str, int]:
    with opened(path) as database:
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in KEYS}


def duplicates(path: Path) -> dict[str, int]:
    """By table, groups of rows with one key. From the rows: a damaged index of the database must not hide them."""
    with opened(path) as database:
        return {
            table: database.execute(
                f"""SELECT count(*) FROM (SELECT 1 FROM {table} NOT INDEXED
                    GROUP BY {", ".join(f"+{key}" for key in keys)} HAVING count(*) > 1)"""
            ).fetchone()[0]
            for table, keys in KEYS.items()
        }


def integrity(path: Path) -> str:
    with opened(path) as database:
        said = [row[0] for row in database.execute("PRAGMA integrity_check")]
        orphans = database.execute("PRAGMA foreign_key_check").fetchall()
    return "; ".join([*said, *(f"a row of {row[0]} without its parent" for row in orphans[:SHOWN])])


def totals(folder: Path, meta: Mapping[str, Any]) -> dict[str, int]:
    """How many vectors each file says that there are, the index by the library's own word."""
    with opened(folder / "catalog.db") as database, opened(folder / "similar.db") as similar:
        return {
            "meta": int(meta["total"]),
            "embeddings": database.execute("SELECT count(*) FROM video_embeddings").fetchone()[0],
            "living": database.execute("SELECT count(*) FROM videos WHERE removed_at IS NULL").fetchone()[0],
            "index": int(faiss.read_index(str(folder / "index.faiss")).ntotal),
            "similar": similar.execute("SELECT sum(length(ids)) / 8 FROM similar").fetchone()[0] or 0,
        }


def id_faults(before: Path, after: Path) -> dict[str, list[Any]]:
    """The id of a video is its name in the index: it never changes, and is never another's."""
    old, new = ids(before), ids(after)
    highest = max(old.values(), default=0)
    found: dict[str, list[Any]] = {
        "changed": [key for key, number in old.items() if new.get(key) != number],
        "of another before": [key for key, number in new.items() if key not in old and number <= highest],
    }
    with opened(after) as database:
        found["of another in the index"] = [
            tuple(row)
            for row in database.execute(
                """SELECT e.id, e.video_id, e.instance_domain
                   FROM video_embeddings AS e LEFT JOIN videos AS v USING (id)
                   WHERE (v.video_id, v.instance_domain) IS NOT (e.video_id, e.instance_domain)"""
            )
        ]
    return {what: keys[:SHOWN] for what, keys in found.items() if keys}


def ids(path: Path) -> dict[tuple[str, str], int]:
    with opened(path) as database:
        rows = database.execute("SELECT video_id, instance_domain, id FROM videos ORDER BY id")
        return {(row[0], row[1]): row[2] for row in rows}


# ── popularity ────────────────────────────────────────────────────────────────────────────────────────────────────────


def popularity_faults(path: Path, as_of: int) -> list[Any]:
    """(views + 2 likes) / (1 + age in days / 30) of each living video, within the slack that rank.py promises."""
    with opened(path) as database:
        ranked = [row[0] for row in database.execute("SELECT as_of FROM ranked")]
        rows = database.execute("SELECT * FROM videos WHERE removed_at IS NULL ORDER BY id").fetchall()
    wrong: list[Any] = [] if ranked == [as_of] else [("ranked", ranked, as_of)]
    for row in rows:
        exact = popular(row, as_of)
        made_now = row["popularity_as_of"] == as_of
        if abs(row["popularity"] - exact) > (1e-9 if made_now else SLACK) * exact or row["popularity_as_of"] is None:
            wrong.append((row["id"], row["popularity"], exact))
    return wrong[:SHOWN]


def popular(row: sqlite3.Row, as_of: int) -> float:
    published = row["published_at"]
    days = UNKNOWN_DAYS if published is None else max(0, as_of - published) / DAY_MS
    return (max(0, row["views"] or 0) + 2 * max(0, row["likes"] or 0)) / (1 + days / MONTH_DAYS)


# ── neighbours ────────────────────────────────────────────────────────────────────────────────────────────────────────


def listed(path: Path) -> Neighbours:
    """As similar.db says of itself: 64 videos to a row, and a neighbour in 64 bits, its score before its id."""
    with opened(path) as database:
        shown = int(dict(database.execute("SELECT key, value FROM meta"))["k"])
        rows = database.execute("SELECT ids, lists FROM similar").fetchall()
    found: dict[int, Sequence[tuple[int, float]]] = {}
    for row in rows:
        ids = np.frombuffer(row["ids"], "<i8").tolist()
        keys = np.frombuffer(row["lists"], "<i8").reshape(len(ids), -1)[:, :shown]
        others, scores = (2**39 - 1 - keys % 2**39).tolist(), ((keys >> 39) / 2**22).tolist()
        for number, near, values, held in zip(ids, others, scores, keys != NOBODY, strict=True):
            found[number] = list(zip(near, values, strict=True))[: held.sum()]
    return found


def neighbour_faults(folder: Path, count: int, exact: bool) -> list[Any]:
    """Each list against all inner products, best first and ties by id. Of an index that may miss some, so many."""
    with opened(folder / "catalog.db") as database:
        rows = database.execute(
            """SELECT e.id, e.embedding FROM video_embeddings AS e JOIN videos AS v USING (id)
               WHERE v.removed_at IS NULL ORDER BY e.id"""
        ).fetchall()
    numbers = np.array([row[0] for row in rows], dtype=np.int64)
    matrix = np.stack([np.frombuffer(row[1], "<f4") for row in rows]).astype(np.float64)
    found = listed(folder / "similar.db")
    strange = sorted(found.keys() ^ set(numbers.tolist()))
    wrong: list[Any] = [("listed, or not, and should not be, or be", strange[:SHOWN])] if strange else []
    hits, asked = 0, 0
    for at in range(0, len(rows), PART):
        scores = matrix[at : at + PART] @ matrix.T
        scores[np.arange(len(scores)), np.arange(at, at + len(scores))] = -np.inf
        order = best_first(scores, min(count, len(rows) - 1))
        for row, best in enumerate(order):
            number, wanted = int(numbers[at + row]), numbers[best].tolist()
            said = found.get(number, [])
            hits, asked = hits + len(set(wanted) & {other for other, _ in said}), asked + len(wanted)
            close = len(said) == len(best) and np.allclose([score for _, score in said], scores[row, best], atol=1e-6)
            if exact and ([other for other, _ in said] != wanted or not close):
                wrong.append((number, [other for other, _ in said], wanted))
    if hits < RECALL * asked:
        wrong.append(("recall", hits, asked))
    return wrong[:SHOWN]


def best_first(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The places of the largest of each row; of equal ones the first. Our vectors' products are whole multiples of
    2**-22, so that a place fits in behind them."""
    keyed = np.rint(scores * 2.0**22) * scores.shape[1] - np.arange(scores.shape[1])
    best = np.argpartition(-keyed, count - 1, axis=1)[:, :count] if count < scores.shape[1] else np.argsort(-keyed)
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(keyed, best, axis=1), axis=1), axis=1)


# ── what is the same ──────────────────────────────────────────────────────────────────────────────────────────────────


def row_digests(path: Path) -> dict[str, str]:
    """Of every row that a reader can be shown, in the order of the keys."""
    return {table: digest(plain_rows(rows)) for table, rows in sorted(read(path).items())}


def read(path: Path) -> Tables:
    return tables(path)


def plain_rows(rows: Mapping[Any, Mapping[str, Any]]) -> list[Any]:
    return [
        [value.hex() if isinstance(value, bytes) else value for value in row.values()]
        for _, row in sorted(rows.items(), key=lambda pair: str(pair[0]))
    ]


def left_behind(prod: Path, kept: Sequence[str]) -> list[str]:
    """Whatever lies in a catalogue's folder and nobody needs any more."""
    files = {"catalog.db", "index.faiss", "similar.db", "meta.json"}
    found = {path.name for path in prod.iterdir()} - {"catalog.json", "published.json", *kept}
    inner = {
        f"{path.parent.name}/{path.name}"
        for path in prod.glob("gen-*/*")
        if path.name not in files and not path.name.endswith("-shm")
    }
    return sorted(found | inner)
