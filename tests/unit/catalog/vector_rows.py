"""Small databases with vectors of which it is known what lies near what."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np

from dailies.catalog.schema import create
from dailies.catalog.similar_file import neighbours_of
from dailies.catalog.vectors import Matrix, on_grid


def clustered(count: int, dim: int = 32, seed: int = 0, groups: int = 40) -> Matrix:
    """As text is: many to a subject, and each a little different."""
    draw = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(groups, dim))
    return on_grid((middles[draw.integers(0, groups, count)] + 0.5 * draw.normal(size=(count, dim))).astype("f4"))


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        create(Path(folder) / "db", "production")
        return (Path(folder) / "db").read_bytes()


def production(path: Path, vectors: dict[int, np.ndarray], model: str = "ngrams-1") -> Path:
    path.write_bytes(_empty())
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("INSERT INTO instances (host) VALUES ('a.example')")
        for number, vector in sorted(vectors.items()):
            row = (number, f"v{number}")
            database.execute(
                "INSERT INTO videos (id, video_id, instance_domain, last_checked_at) VALUES (?, ?, 'a.example', 0)", row
            )
            database.execute(
                "INSERT INTO video_embeddings VALUES (?, ?, 'a.example', 'd', ?, ?, ?, 0)",
                (*row, model, len(vector), np.asarray(vector, dtype="<f4").tobytes()),
            )
        database.commit()
    return path


def tell(path: Path, before: dict[int, np.ndarray], after: dict[int, np.ndarray]) -> None:
    """As a merge writes down what it did."""
    what = dict.fromkeys(before.keys() - after.keys(), "removed")
    what |= dict.fromkeys(after.keys() - before.keys(), "new")
    same = before.keys() & after.keys()
    what |= {number: "changed" for number in same if not np.array_equal(before[number], after[number])}
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany("INSERT INTO changed_embeddings VALUES (?, ?)", what.items())


def numbered(matrix: Matrix, first: int = 1, step: int = 3) -> dict[int, np.ndarray]:
    return {first + step * place: vector for place, vector in enumerate(matrix)}


def nearest_by_hand(vectors: dict[int, np.ndarray], count: int) -> dict[int, list[tuple[int, float]]]:
    """In whole numbers, everything with everything: what the fast ways must come to."""
    ids = sorted(vectors)
    if not ids:
        return {}
    whole = np.array([np.rint(vectors[number] * 2048) for number in ids])
    products = whole @ whole.T
    np.fill_diagonal(products, -np.inf)
    order = np.argsort(-products, axis=1, kind="stable")[:, : min(count, len(ids) - 1)]
    return {
        number: [(ids[at], float(products[row, at]) / 2048**2) for at in order[row]] for row, number in enumerate(ids)
    }


def lists_in(path: Path) -> dict[int, list[tuple[int, float]]]:
    with closing(sqlite3.connect(path)) as database:
        parts = database.execute("SELECT ids FROM similar ORDER BY first").fetchall()
        ids = [number for (part,) in parts for number in np.frombuffer(part, "<i8").tolist()]
        return {number: neighbours_of(database, number) for number in ids}
