"""For each video the nearest others, best first, ties by id; itself and what was removed are in no list.

Beside its list each video keeps a hash of the vector that the list was made for. So the next generation knows by itself
what is new, changed or gone, and searches only for that, and for those that listed what has changed or gone; the others
may *gain* what is new. Where the search is exact, so is this: the file equals, byte for byte, one computed anew. With
lists an old video gains a new one if it is among the `BREADTH` nearest that the new one's own search finds; what is
missed by that is measured, and too much of it means computing anew. With lists each video also has `RESERVE` more than
are asked for: one that goes is in the lists of some twenty others, and they would all have to search for one to take
its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.canonical import digest
from dailies.catalog.index_file import contents, is_lists, load_index, search_keys
from dailies.catalog.similar_file import Similar, read_similar, write_similar
from dailies.catalog.vectors import (
    ID_MASK,
    NEIGHBOURS,
    NOBODY,
    PROBE_SEED,
    PROBED,
    Exact,
    Hashes,
    Ids,
    Matrix,
    Vectors,
    best,
    hashes,
    keys,
    recall,
    sample,
    unkeyed,
    vectors_of,
)
from dailies.errors import BadInput
from dailies.failpoints import failpoint

log = logging.getLogger("dailies.catalog")

BATCH, PIECE, OFFERED = 8192, 16_384, 1024
BREADTH, RESERVE = 160, 8
# Many questions against everything are one product of matrices, several times as fast for each vector as a look into
# lists: where text is so varied that more than this part of the lists is looked into, lists are the slower way.
EXACT_FASTER = 6
RECALL_FLOOR = 0.95

Progress = Callable[[float], None]
Rows = NDArray[np.int64]


def find_neighbours(
    db: str | Path,
    index: str | Path,
    out: str | Path,
    k: int = NEIGHBOURS,
    previous: str | Path | None = None,
    progress: Progress = lambda part: None,
    *,
    batch: int = BATCH,
    breadth: int = BREADTH,
) -> dict[str, Any]:
    """`previous` is the similar.db of the generation before."""
    if k < 1:
        raise BadInput(f"{k} neighbours were asked for: ask for one or more")
    vectors = vectors_of(Path(db))
    work = _Work(_catalogue(vectors, load_index(Path(index))), k, batch, breadth, progress)
    facts = {"centres": work.all.centres, "dim": vectors.dim, "k": k, "model": vectors.model, "width": work.width}
    old = read_similar(Path(previous), facts) if previous is not None else None
    found = (old and work.updated(old)) or work.anew()
    write_similar(Path(out), facts, Similar(work.all.ids, work.all.hashes, found.lists))
    progress(1.0)
    log.info("action=similar total=%d searched=%d gained=%d", vectors.total, found.searched, found.gained)
    return {
        "exact": not is_lists(work.all.index),
        "gained": found.gained,
        "k": k,
        "recall": round(found.recall, 4),
        "searched": found.searched,
        "total": vectors.total,
        "updated": found.updated,
    }


@dataclass(frozen=True)
class _Catalogue:
    """All vectors in the order of their ids, in the two bytes that each number needs."""

    index: Any
    ids: Ids
    hashes: Hashes
    lists: Rows
    halves: NDArray[np.float16]
    centres: str

    def matrix(self, rows: Rows | slice) -> Matrix:
        return self.halves[rows].astype(np.float32)

    def blocks(self) -> Iterator[tuple[Ids, Matrix]]:
        for at in range(0, len(self.ids), PIECE):
            yield self.ids[at : at + PIECE], self.matrix(slice(at, at + PIECE))

    def rows(self, ids: Ids) -> Rows:
        return np.searchsorted(self.ids, ids)


def _catalogue(vectors: Vectors, index: Any) -> _Catalogue:
    ids = np.empty(vectors.total, dtype=np.int64)
    hashed, halves = np.empty(vectors.total, dtype=np.uint64), np.empty((vectors.total, vectors.dim), dtype=np.float16)
    at = 0
    for some, matrix in vectors.blocks():
        here = slice(at, at + len(some))
        ids[here], hashed[here], halves[here] = some, hashes(matrix), matrix
        at += len(some)
    held = contents(index)
    if not (np.array_equal(held.ids, ids) and np.array_equal(held.hashes, hashed)):
        raise BadInput(f"the index does not hold the vectors of {vectors.db}: build it again")
    if is_lists(index) and index.nprobe * EXACT_FASTER >= index.nlist:
        index = _exact_index(ids, halves)
    return _Catalogue(index, ids, hashed, held.lists, halves, _centres(index))


def _exact_index(ids: Ids, halves: NDArray[np.float16]) -> Any:
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(halves.shape[1]))
    for at in range(0, len(ids), PIECE):
        index.add_with_ids(halves[at : at + PIECE].astype(np.float32), ids[at : at + PIECE])
    return index


def _centres(index: Any) -> str:
    """Empty for an exact index. Lists with other centres find others: what they found is then found anew."""
    if not is_lists(index):
        return ""
    return digest(faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist).tobytes())


@dataclass(frozen=True)
class _Found:
    lists: Ids
    searched: int
    gained: int
    recall: float
    updated: bool


@dataclass
class _Work:
    all: _Catalogue
    k: int
    batch: int
    breadth: int
    progress: Progress

    @property
    def width(self) -> int:
        return self.k + (RESERVE if is_lists(self.all.index) else 0)

    def anew(self) -> _Found:
        lists = np.full((len(self.all.ids), self.width), NOBODY, dtype=np.int64)
        for rows, found in self._searched(np.arange(len(lists)), self.width):
            lists[rows] = found
        return _Found(lists, len(lists), 0, self._recall(lists), False)

    def updated(self, old: Similar) -> _Found | None:
        """None where so much has changed that it is no more work to search for all."""
        now = self.all
        place = np.minimum(np.searchsorted(now.ids, old.ids), max(0, len(now.ids) - 1))
        same = (now.ids[place] == old.ids) & (now.hashes[place] == old.hashes) if len(now.ids) else np.zeros(0, bool)
        if not same.any():
            return None
        lists = np.full((len(now.ids), self.width), NOBODY, dtype=np.int64)
        lists[place[same]] = old.lists[same]
        fresh = np.ones(len(now.ids), dtype=bool)
        fresh[place[same]] = False
        known = self._known(lists)
        lost = _strike(lists, old.ids[~same])
        if int(fresh.sum() + (_lengths(lists)[lost] < self.k).sum()) > len(now.ids) // 2:
            return None
        gained = self._offered(lists, np.flatnonzero(fresh), known)
        short = lost[_lengths(lists)[lost] < self.k]
        for rows, found in self._searched(short, self.width):
            lists[rows] = found
        measured = self._recall(lists)
        if measured < RECALL_FLOOR:
            log.warning("action=similar_anew recall=%.4f", measured)
            return None
        return _Found(lists, int(fresh.sum()) + len(short), gained, measured, True)

    def _known(self, lists: Ids) -> Ids:
        """The least key for which a list is known to miss nobody: its last. An exact list that is not full has all
        there are. Before anybody is struck off: what is left then is whole down to the same key."""
        last = np.where(lists == NOBODY, np.iinfo(np.int64).max, lists).min(axis=1)
        return last if is_lists(self.all.index) else np.where(lists[:, -1] == NOBODY, NOBODY, last)

    def _offered(self, lists: Ids, fresh: Rows, known: Ids) -> int:
        """The new ones search, and offer themselves to the others."""
        offers: list[tuple[Rows, Ids]] = []
        known[fresh] = np.iinfo(np.int64).max
        for rows, found in self._searched(fresh, max(self.width, self.breadth if is_lists(self.all.index) else 0)):
            lists[rows] = found[:, : self.width]
            offers += [self._offers(rows, found, known)] if is_lists(self.all.index) else self._all_offers(rows, known)
        to = np.concatenate([np.zeros(0, dtype=np.int64), *(rows for rows, _ in offers)])
        keyed = np.concatenate([np.zeros(0, dtype=np.int64), *(keyed for _, keyed in offers)])
        return _gain(lists, to, keyed, self.k)

    def _searched(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Ids]]:
        """In the order of the lists: those that look into the same ones find them in the processor's cache."""
        rows = rows[np.argsort(self.all.lists[rows], kind="stable")]
        for at in range(0, len(rows), self.batch):
            some = rows[at : at + self.batch]
            yield some, search_keys(self.all.index, self.all.matrix(some), count, self.all.ids[some])
            failpoint("catalog.similar")
            self.progress(min(1.0, 0.9 * (at + len(some)) / len(rows)))

    def _offers(self, rows: Rows, found: Ids, last: Ids) -> tuple[Rows, Ids]:
        """Whoever is found by a new one is as near to it as it is to him."""
        ids, scores = unkeyed(found)
        to = self.all.rows(np.maximum(ids, self.all.ids[0]))
        by = np.broadcast_to(self.all.ids[rows][:, None], ids.shape)
        offered = keys(scores, np.where(ids < 0, -1, by))
        wanted = offered > last[to]
        return to[wanted], offered[wanted]

    def _all_offers(self, rows: Rows, last: Ids) -> Iterator[tuple[Rows, Ids]]:
        least = unkeyed(last)[1]
        least[last == np.iinfo(np.int64).max] = np.inf
        for some in np.array_split(rows, -(-len(rows) // OFFERED)):
            asked = self.all.matrix(some)
            for at in range(0, len(last), PIECE):
                here = slice(at, at + PIECE)
                by, to = np.nonzero((scores := asked @ self.all.matrix(here).T) >= least[here])
                keyed = keys(scores[by, to], self.all.ids[some[by]])
                wanted = keyed > last[here][to]
                yield to[wanted] + at, keyed[wanted]

    def _recall(self, lists: Ids) -> float:
        if not is_lists(self.all.index):
            return 1.0
        rows = sample(self.all.ids, PROBED, PROBE_SEED)
        exact = Exact(self.all.matrix(rows), self.all.ids[rows], self.k)
        for ids, matrix in self.all.blocks():
            exact.see(ids, matrix)
        return recall(lists[rows, : self.k], exact.found)


def _lengths(lists: Ids) -> Rows:
    return np.asarray((lists != NOBODY).sum(axis=1), dtype=np.int64)


def _strike(lists: Ids, gone: Ids) -> Rows:
    """Take them out of all lists; the rows that lost somebody."""
    places = np.isin(lists & ID_MASK, ID_MASK - gone) & (lists != NOBODY)
    rows = np.flatnonzero(places.any(axis=1))
    lists[rows] = best(np.where(places[rows], NOBODY, lists[rows]), lists.shape[1])
    return rows


def _gain(lists: Ids, to: Rows, keyed: Ids, k: int) -> int:
    """Put each key into the list of its row; says how many lists became others, as far as they are shown."""
    rows, at = np.unique(to, return_inverse=True)
    count = lists.shape[1]
    of = np.concatenate([np.repeat(np.arange(len(rows)), count), at])
    every = np.concatenate([lists[rows].ravel(), keyed])
    order = np.lexsort((~every, of))  # turned round without overflow: the least has no negative
    of, every = of[order], every[order]
    rank = np.arange(len(of)) - np.searchsorted(of, np.arange(len(rows)))[of]
    before = lists[rows, :k]
    lists[rows] = every[rank < count].reshape(len(rows), count)
    return int((lists[rows, :k] != before).any(axis=1).sum())
