"""The vectors of a production database, in the order of their ids, and exact arithmetic on them.

Every vector is rounded to a grid of 1/2048. The product of two of its numbers is then a whole multiple of 2**-22, and
a sum of such products below 4 fits the 24 bits of a float32: inner products come out exact, the same to the last bit in
any order of summation, in any block, on any machine. Nearest neighbours, ties between them included, are therefore
facts, and what is computed a part at a time equals what is computed whole. The numbers also fit float16 without loss.
Our embedders write such vectors; others are rounded when they are read, by 1/4096 at most in each dimension.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.catalog.schema import connect
from dailies.errors import BadInput, Damaged

Matrix = NDArray[np.float32]
Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Block = tuple[Ids, Matrix]

GRID = 2048
BLOCK = 16_384
# What is measured: how many neighbours, of how many videos.
NEIGHBOURS, PROBED, PROBE_SEED = 20, 256, 2
# How far from one the square of a length may be: rounding alone makes a thousandth of it.
OFF_LENGTH = 0.02
# A neighbour is one number, so that sorting numbers sorts them: the score in steps of 2**-22, then the smaller id.
SCORE_STEPS, ID_BITS = 1 << 22, 39
ID_MASK = (1 << ID_BITS) - 1
NOBODY = np.iinfo(np.int64).min


def on_grid(sums: Matrix) -> Matrix:
    """Of length one, but for the rounding. Whole numbers are measured exactly, whatever their order."""
    wide = sums.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide, optimize=False))
    return snapped(wide / np.maximum(lengths, np.finfo(np.float64).tiny)[:, None])


def snapped(matrix: NDArray[np.floating]) -> Matrix:
    # Adding zero makes a plain zero of a negative one, which has other bytes.
    return np.asarray(np.rint(matrix * np.float32(GRID)) / np.float32(GRID) + np.float32(0), dtype=np.float32)


@dataclass(frozen=True)
class Vectors:
    """Those of one database. Removed videos have none."""

    db: Path
    model: str
    dim: int
    total: int

    def blocks(self, size: int = BLOCK) -> Iterator[Block]:
        with closing(connect(self.db, "production")) as database:
            rows = database.execute("SELECT id, model_name, embedding_dim, embedding FROM video_embeddings ORDER BY id")
            while batch := rows.fetchmany(size):
                ids = np.array([row[0] for row in batch], dtype=np.int64)
                yield ids, self._matrix(batch)

    def ids(self) -> Ids:
        with closing(connect(self.db, "production")) as database:  # without an order: so it reads the smallest index
            told = database.execute("SELECT group_concat(id) FROM video_embeddings").fetchone()[0]
        return np.sort(np.fromstring(told or "", dtype=np.int64, sep=","))

    def changes(self) -> dict[str, Ids]:
        """The ids of those that the merge says are ``new``, ``changed`` or ``removed``."""
        with closing(connect(self.db, "production")) as database:
            rows = database.execute("SELECT id, what FROM changed_embeddings ORDER BY id").fetchall()
        return {
            what: np.array([number for number, this in rows if this == what], dtype=np.int64)
            for what in ("new", "changed", "removed")
        }

    def some(self, ids: Ids) -> Matrix:
        """Rows in the order of `ids`, which ascend."""
        statement = (
            "SELECT id, model_name, embedding_dim, embedding FROM video_embeddings "
            "WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        )
        parts = [np.empty((0, self.dim), dtype=np.float32)]
        with closing(connect(self.db, "production")) as database:
            for at in range(0, len(ids), BLOCK):
                rows = database.execute(statement, [json.dumps(ids[at : at + BLOCK].tolist())]).fetchall()
                parts.append(self._matrix(rows))
        return np.concatenate(parts)

    def _matrix(self, rows: list[tuple[int, str, int, bytes]]) -> Matrix:
        strange = {row[1:3] for row in rows} - {(self.model, self.dim)}
        if strange or any(len(row[3]) != 4 * self.dim for row in rows):
            raise BadInput(
                f"{self.db.name} has embeddings that are not all of {self.model} with {self.dim} dimensions: "
                "run the embeddings and the merge again"
            )
        read = np.frombuffer(b"".join(row[3] for row in rows), dtype="<f4").reshape(len(rows), self.dim)
        lengths = np.einsum("ij,ij->i", read, read)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) <= OFF_LENGTH))  # so put, what is no number is wrong as well
        if len(wrong):
            raise Damaged(
                f"the embedding of video {rows[wrong[0]][0]} in {self.db.name} is not of length one: "
                "delete it there, and run the embeddings again"
            )
        return snapped(read)


def vectors_of(db: Path) -> Vectors:
    with closing(connect(db, "production")) as database:
        first = "SELECT model_name, embedding_dim FROM video_embeddings ORDER BY id LIMIT 1"
        model, dim = database.execute(first).fetchone() or ("", 0)
        total = database.execute("SELECT count(*) FROM video_embeddings").fetchone()[0]
        largest = database.execute("SELECT max(id) FROM video_embeddings").fetchone()[0] or 0
    if largest > ID_MASK:
        raise BadInput(f"{db.name} has the id {largest}, and ids end at {ID_MASK}")
    return Vectors(db, model, dim, total)


def vector(database: sqlite3.Connection, video: int) -> Matrix | None:
    """One row, for a reader that asks with a video; None where it has none."""
    found = database.execute("SELECT embedding FROM video_embeddings WHERE id = ?", [video]).fetchone()
    return None if found is None else snapped(np.frombuffer(found[0], dtype="<f4")).reshape(1, -1)


def hashes(matrix: NDArray[np.floating]) -> Hashes:
    """64 bits for each row: whether a vector is still the one that it was."""
    halves = matrix.astype("<f2", copy=False).view("<u2")
    if left := -halves.shape[1] % 4:
        halves = np.pad(halves, ((0, 0), (0, left)))
    words = np.ascontiguousarray(halves).view("<u8").astype(np.uint64)
    return scattered((scattered(words) * odd_numbers(words.shape[1])).sum(axis=1, dtype=np.uint64))


def odd_numbers(count: int) -> Hashes:
    return scattered(np.arange(1, count + 1, dtype=np.uint64)) | np.uint64(1)


def scattered(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sample(ids: Ids, size: int, seed: int) -> NDArray[np.int64]:
    """Places of a part of them: chosen by a hash of the id, the same on every machine."""
    if size >= len(ids):
        return np.arange(len(ids))
    return np.sort(np.argpartition(drawn(ids, seed), size)[:size])  # no two ids have the same hash


def drawn(ids: Ids, seed: int) -> Hashes:
    return scattered(ids.astype(np.uint64) + np.uint64(seed << 40))


def keys(scores: Matrix, ids: Ids) -> Ids:
    """The better, the larger; of equal scores the smaller id. An id of -1 is nobody."""
    steps = np.rint(np.where(ids < 0, 0, scores).astype(np.float64) * SCORE_STEPS).astype(np.int64)
    return np.where(ids < 0, NOBODY, (steps << ID_BITS) + (ID_MASK - ids))


def unkeyed(keyed: Ids) -> tuple[Ids, Matrix]:
    """Ids and scores again; -1 and minus infinity for nobody."""
    nobody = keyed == NOBODY
    ids = np.where(nobody, -1, ID_MASK - (keyed & ID_MASK))
    scores = np.where(nobody, -np.inf, (keyed >> ID_BITS) / SCORE_STEPS)
    return ids, scores.astype(np.float32)


def without(keyed: Ids, own: Ids) -> Ids:
    """Nobody is his own neighbour."""
    self_too = (keyed & ID_MASK) == (ID_MASK - own)[:, None]
    return np.where(self_too, NOBODY, keyed)


def best(keyed: Ids, count: int) -> Ids:
    """The largest of each row, best first."""
    if keyed.shape[1] > 4 * count:
        keyed = np.partition(keyed, keyed.shape[1] - count, axis=1)[:, -count:]
    return np.sort(keyed, axis=1)[:, ::-1][:, :count]


class Exact:
    """The best of all for each row of `asked`, itself left out, as blocks pass: what a search is measured against."""

    def __init__(self, asked: Matrix, own: Ids, count: int) -> None:
        self.asked, self.own, self.count = asked, own, count
        self.found = np.full((len(asked), count), NOBODY, dtype=np.int64)

    def see(self, ids: Ids, matrix: Matrix) -> None:
        """Where more are tied than were asked for, the smallest ids among them are looked for."""
        wide = min(self.count + 1, len(ids))
        scores, places = faiss.knn(self.asked, matrix, wide, metric=faiss.METRIC_INNER_PRODUCT)
        before = self.found.copy()
        self._take(slice(None), before, keys(scores, ids[places]))
        last = unkeyed(self.found[:, -1])[1]
        for row in np.flatnonzero(scores[:, -1] >= last) if wide < len(ids) else ():
            scores_of_all = (matrix @ self.asked[row])[None]
            self._take(slice(row, row + 1), before[row : row + 1], keys(scores_of_all, ids[None]))

    def _take(self, rows: slice, before: Ids, keyed: Ids) -> None:
        keyed = without(keyed, self.own[rows])
        self.found[rows] = best(np.concatenate([before, keyed], axis=1), self.count)


def probe(vectors: Vectors, ids: Ids) -> Exact:
    """A few of them to measure by: always the same ones."""
    asked = ids[sample(ids, PROBED, PROBE_SEED)]
    return Exact(vectors.some(asked), asked, NEIGHBOURS)


def recall(found: Ids, exact: Ids) -> float:
    """The part of what should be found that is. As good as the last that should be is good enough: which one of
    several equal videos is found says nothing."""
    should = exact != NOBODY
    if not should.any():
        return 1.0
    last = np.where(should, exact >> ID_BITS, np.iinfo(np.int64).max).min(axis=1)
    hits = ((found != NOBODY) & ((found >> ID_BITS) >= last[:, None])).sum(axis=1)
    return float(np.minimum(hits, should.sum(axis=1)).sum() / should.sum())


# How FAISS says that a file cannot be written: it has one kind of error for everything.
UNWRITTEN = re.compile(r"write error in|could not open .* for writing")


@contextmanager
def made_whole(out: Path) -> Iterator[Path]:
    """A name to write to; the file has its own name once it is on the disk. Only the holder of the update's lease
    writes in a generation's folder, so that what a killed one left has the same name and goes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temp = out.with_name(f".{out.name}.tmp")
    temp.unlink(missing_ok=True)
    try:
        yield temp
        _synced(temp)
        temp.replace(out)
    except (OSError, RuntimeError) as error:
        temp.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and not UNWRITTEN.search(str(error)):
            raise
        raise BadInput(f"{out} could not be written (full, over a limit, or failing): free some space") from error
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    _synced(out.parent)


def _synced(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
