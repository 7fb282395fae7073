"""For each video the nearest others, best first, ties by id; itself and what was removed are in no list.

The vectors are those of the index, which holds them exactly. Beside its list each video keeps a hash of the vector that
the list was made for. So the next generation knows by itself what is new, changed or gone, and searches only for that,
and for those that listed what has changed or gone; the others may *gain* what is new. Where the search is exact, so is
this: the file equals, byte for byte, one computed anew. With lists an old video gains a new one if it is among the
`BREADTH` nearest that the new one's own search finds; what is missed by that is measured, and too much of it means
computing anew. With lists each video also has `RESERVE` more than are asked for: one that goes is in the lists of some
twenty others, and they would all have to search for one to take its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.canonical import digest
from dailies.catalog.index_file import About, Contents, Probed, contents, is_lists, load_index, search_keys
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
    best,
    keys,
    recall,
    sample,
    unkeyed,
)
from dailies.errors import BadInput
from dailies.failpoints import failpoint

log = logging.getLogger("dailies.catalog")

BATCH, PIECE, OFFERED = 8192, 16_384, 1024
BREADTH, RESERVE, SPARSE = 160, 8, 16
# Many questions against everything are one product of matrices, several times as fast for each vector as a look into
# lists: where text is so varied that more than this part of the lists is looked into, lists are the slower way.
EXACT_FASTER = 6
RECALL_FLOOR = 0.95

Progress = Callable[[float], None]
Rows = NDArray[np.int64]


def find_neighbours(
    index: str | Path,
    out: str | Path,
    k: int = NEIGHBOURS,
    previous: str | Path | None = None,
    progress: Progress = lambda part: None,
    *,
    batch: int = BATCH,
    breadth: int = BREADTH,
) -> dict[str, Any]:
    """Of what `index` holds. `previous` is the similar.db of the generation before."""
    if k < 1:
        raise BadInput(f"{k} neighbours were asked for: ask for one or more")
    about = About.of(Path(index))
    work = _Work(_catalogue(load_index(Path(index), mapped=True), about.probed), k, batch, breadth, progress)
    dim, total = work.all.index.d, len(work.all.ids)
    facts = {"centres": work.all.centres, "dim": dim, "k": k, "model": about.model, "width": work.width}
    old = read_similar(Path(previous), facts) if previous is not None else None
    found = (old and work.updated(old)) or work.anew()
    write_similar(Path(out), facts, Similar(work.all.ids, work.all.hashes, found.lists))
    progress(1.0)
    log.info("action=similar total=%d searched=%d gained=%d", total, found.searched, found.gained)
    return {
        "exact": not is_lists(work.all.index),
        "gained": found.gained,
        "k": k,
        "recall": round(found.recall, 4),
        "searched": found.searched,
        "total": total,
        "updated": found.updated,
    }


@dataclass(frozen=True)
class _Catalogue:
    """`index` is what is asked, and `held` what the file holds."""

    index: Any
    held: Contents
    hashes: Hashes
    centres: str
    probed: Probed

    @property
    def ids(self) -> Ids:
        return self.held.ids

    def matrix(self, rows: Rows) -> Matrix:
        return self.held.matrix(rows)

    def rows(self, ids: Ids) -> Rows:
        return np.searchsorted(self.ids, ids) if self.row_of is None else self.row_of[ids]

    @cached_property
    def row_of(self) -> Rows | None:
        """By id. None where ids are so far apart that such a table would be large."""
        if not len(self.ids) or self.ids[-1] > SPARSE * len(self.ids):
            return None
        table = np.zeros(self.ids[-1] + 1, dtype=np.int64)
        table[self.ids] = np.arange(len(self.ids))
        return table


def _catalogue(index: Any, probed: Probed) -> _Catalogue:
    held = contents(index)
    asked = index
    if is_lists(index) and index.nprobe * EXACT_FASTER >= index.nlist:
        asked = faiss.IndexIDMap2(faiss.IndexFlatIP(index.d))
        for ids, matrix in held.blocks():
            asked.add_with_ids(matrix, ids)
    return _Catalogue(asked, held, held.hashes(), _centres(asked), probed)


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

    def updated(self, old: Iterator[Similar]) -> _Found | None:
        """None where so much has changed that it is no more work to search for all."""
        now = self.all
        lists = np.empty((len(now.ids), self.width), dtype=np.int64)
        fresh, gone = np.ones(len(now.ids), dtype=bool), [np.zeros(0, dtype=np.int64)]
        for part in old:
            place = np.minimum(np.searchsorted(now.ids, part.ids), max(0, len(now.ids) - 1))
            same = (now.ids[place] == part.ids) & (now.hashes[place] == part.hashes) if len(now.ids) else place < 0
            lists[place[same]] = part.lists[same]
            fresh[place[same]] = False
            gone.append(part.ids[~same])
        if fresh.all():
            return None
        lists[fresh] = NOBODY
        known = self._known(lists)
        lost = _strike(lists, np.concatenate(gone))
        if int(fresh.sum()) + len(self._short(lists, lost)) > len(now.ids) // 2:
            return None
        gained = self._offered(lists, np.flatnonzero(fresh), known)
        short = self._short(lists, lost)
        for rows, found in self._searched(short, self.width):
            lists[rows] = found
        measured = self._recall(lists)
        if measured < RECALL_FLOOR:
            log.warning("action=similar_anew recall=%.4f", measured)
            return None
        return _Found(lists, int(fresh.sum()) + len(short), gained, measured, True)

    def _short(self, lists: Ids, rows: Rows) -> Rows:
        """Those of them that have fewer than are asked for."""
        lacking: NDArray[np.bool_] = lists[rows, self.k - 1] == NOBODY
        return rows[lacking]

    def _known(self, lists: Ids) -> Ids:
        """The least key for which a list is known to miss nobody: its last. An exact list that is not full has all
        there are. Before anybody is struck off: what is left then is whole down to the same key."""
        last = lists[:, -1].copy()
        if is_lists(self.all.index):
            short = np.flatnonzero(last == NOBODY)
            last[short] = np.where(lists[short] == NOBODY, np.iinfo(np.int64).max, lists[short]).min(axis=1)
        return last

    def _offered(self, lists: Ids, fresh: Rows, known: Ids) -> int:
        """The new ones search, and offer themselves to the others."""
        known[fresh] = np.iinfo(np.int64).max
        gained = np.zeros(len(lists), dtype=bool)
        for rows, found in self._searched(fresh, max(self.width, self.breadth if is_lists(self.all.index) else 0)):
            lists[rows] = found[:, : self.width]
            near = is_lists(self.all.index)
            for to, keyed in [self._offers(rows, found, known)] if near else self._all_offers(rows, known):
                gained[_gain(lists, to, keyed, self.k)] = True
        return int(gained.sum())

    def _searched(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Ids]]:
        """In the order of the lists: those that look into the same ones find them in the processor's cache."""
        rows = rows[np.argsort(self.all.held.lists[rows], kind="stable")]
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
                here = np.arange(at, min(at + PIECE, len(last)))
                by, to = np.nonzero((scores := asked @ self.all.matrix(here).T) >= least[here])
                keyed = keys(scores[by, to], self.all.ids[some[by]])
                wanted = keyed > last[here[to]]
                yield here[to[wanted]], keyed[wanted]

    def _recall(self, lists: Ids) -> float:
        if not is_lists(self.all.index):
            return 1.0
        if self.k <= NEIGHBOURS:  # the index has measured with the same ones
            rows, found = self.all.rows(np.array(self.all.probed.ids)), np.array(self.all.probed.keys)[:, : self.k]
            return recall(lists[rows, : self.k], found)
        rows = sample(self.all.ids, PROBED, PROBE_SEED)
        exact = Exact(self.all.matrix(rows), self.all.ids[rows], self.k)
        for ids, matrix in self.all.held.blocks():
            exact.see(ids, matrix)
        return recall(lists[rows, : self.k], exact.found)


def _strike(lists: Ids, gone: Ids) -> Rows:
    """Take them out of all lists; the rows that lost somebody."""
    lost = [np.zeros(0, dtype=np.int64)]
    for at in range(0, len(lists), PIECE):  # such a piece stays in the processor's cache
        piece = lists[at : at + PIECE]
        struck = np.isin(piece & ID_MASK, ID_MASK - gone) & (piece != NOBODY)
        rows = np.flatnonzero(struck.any(axis=1))
        piece[rows] = best(np.where(struck[rows], NOBODY, piece[rows]), piece.shape[1])
        lost.append(rows + at)
    return np.concatenate(lost)


def _gain(lists: Ids, to: Rows, keyed: Ids, k: int) -> Rows:
    """Put each key into the list of its row; says which lists became others, as far as they are shown."""
    order = np.lexsort((~keyed, to))  # turned round without overflow: the least has no negative
    rows, starts, counts = np.unique(to[order], return_index=True, return_counts=True)
    width, rank = lists.shape[1], np.arange(len(order)) - np.repeat(starts, counts)
    offered = np.full((len(rows), min(width, counts.max(initial=0))), NOBODY, dtype=np.int64)
    taken = rank < width
    offered[np.repeat(np.arange(len(rows)), counts)[taken], rank[taken]] = keyed[order][taken]
    before = lists[rows, :k]
    lists[rows] = best(np.concatenate([lists[rows], offered], axis=1), width)
    return np.asarray(rows[(lists[rows, :k] != before).any(axis=1)], dtype=np.int64)
