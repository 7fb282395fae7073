"""The index of a generation: exact while the catalogue is small, inverted lists above.

The lists hold float16, which the grid of vectors.py fits without loss: every score that a search returns is the exact
one, and there is nothing to rank again. What can be missed is only what lies in a list that is not looked into; how
many are, is found by measuring against exact search, and an index that misses too much is refused.

Where little has changed, the lists of the generation before are kept and only those entries move that are other now: as
the merge wrote down, if that leads to the ids that the database has, and else as a comparison of all finds. What exact
search answered for the sample is kept with the index, and asked anew only where something changed. Each list is in the
order of its ids, so that an index tells nothing of how many updates it took.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.catalog import clusters
from dailies.catalog.index_file import (
    FLAT,
    LISTS,
    About,
    Codes,
    Contents,
    Probed,
    contents,
    entries,
    is_lists,
    load_index,
    search,
    search_keys,
    write_lists,
    write_nprobe,
)
from dailies.catalog.vectors import (
    ID_MASK,
    NEIGHBOURS,
    NOBODY,
    PROBE_SEED,
    PROBED,
    Exact,
    Ids,
    Matrix,
    Vectors,
    drawn,
    hashes,
    made_whole,
    probe,
    recall,
    sample,
    vectors_of,
)
from dailies.errors import BadInput, DailiesError
from dailies.failpoints import failpoint

__all__ = ["build_index", "load_index", "search"]

log = logging.getLogger("dailies.catalog")

FLAT_BELOW = 50_000
# FAISS itself warns below this many points for a centre; more than that is trained with, where there are more.
FEWEST_POINTS, POINTS = 39, 50
RECALL_FLOOR, RECALL_AIM = 0.95, 0.97
NPROBES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TRAINING_SEED = 1

Progress = Callable[[float], None]


def build_index(
    db: str | Path,
    out: str | Path,
    nlist: int = 0,
    device: str = "cpu",
    previous: str | Path | None = None,
    progress: Progress = lambda part: None,
    *,
    told: bool = False,
    flat_below: int = FLAT_BELOW,
    recall_floor: float = RECALL_FLOOR,
) -> dict[str, Any]:
    """`previous` is the index of the generation before; `told` that this one went out from that generation, so that
    ``changed_embeddings`` tells what is other."""
    if nlist < 0 or device not in ("cpu", "gpu"):
        raise BadInput(f"nlist {nlist} on the device {device!r}: ask for 0 (chosen) or more, on cpu or gpu")
    build = _Build(vectors_of(Path(db)), nlist, clusters.assigner(device), told, recall_floor, progress)
    log.info("action=index mode=%s total=%d", device, build.vectors.total)
    with made_whole(Path(out)) as temp:
        if build.vectors.total < flat_below:
            probed, facts = build.flat(temp)
        else:
            probed, facts = (previous and build.updated(Path(previous), temp)) or build.anew(temp)
        About(build.vectors.model, facts["trained_on"], nlist, facts["note"], probed).append_to(temp)
    progress(1.0)
    meta = {"dim": build.vectors.dim, "mode": device, "model": build.vectors.model, "total": build.vectors.total}
    log.info("action=indexed mode=%s type=%s nlist=%s nprobe=%s recall=%s", device, *(facts[name] for name in SAID))
    return {**meta, **facts}


SAID = ("type", "nlist", "nprobe", "recall")

Made = tuple[Probed, dict[str, Any]]


@dataclass
class _Build:
    vectors: Vectors
    nlist: int
    assigner: clusters.Assigner
    told: bool
    recall_floor: float
    progress: Progress

    def flat(self, out: Path) -> Made:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(max(1, self.vectors.dim)))
        failpoint("catalog.during_ann_build")
        for ids, matrix in self.vectors.blocks():
            index.add_with_ids(matrix, ids)
            self.progress(index.ntotal / self.vectors.total)
        faiss.write_index(index, str(out))
        return Probed(), _facts(FLAT, 0, 0, 1.0, 0, added=self.vectors.total)

    def anew(self, out: Path) -> Made:
        ids = self.vectors.ids()
        nlist, note = self._lists()
        chosen = ids[sample(ids, nlist * POINTS, TRAINING_SEED)]
        points = self.vectors.some(chosen)
        # Into the order of the hash that chose them: by id, the first would all be old.
        points = points[np.argsort(drawn(chosen, TRAINING_SEED), kind="stable")]
        centres = clusters.train(points, nlist, self.assigner, lambda part: self.progress(0.6 * part))
        del points
        index, nearest = _empty(centres), self.assigner(centres)
        failpoint("catalog.during_ann_build")
        exact = probe(self.vectors, ids)
        for some, matrix in self.vectors.blocks():
            _add(index, some, matrix, nearest(matrix))
            exact.see(some, matrix)
            self.progress(0.6 + 0.35 * index.ntotal / len(ids))
        nprobe, measured = _probes(index, exact)
        if measured < self.recall_floor:
            raise BadInput(
                f"the index finds {measured:.3f} of the {NEIGHBOURS} nearest, and {self.recall_floor:g} is asked, with "
                f"{nprobe} of its {nlist} lists looked into: ask for fewer lists (nlist), or for none (flat_below)"
            )
        faiss.write_index(index, str(out))
        return Probed.of(exact), _facts(LISTS, nlist, nprobe, measured, len(ids), added=len(ids), note=note)

    def updated(self, previous: Path, out: Path) -> Made | None:
        """None where the index before does not fit any more, or never did. Of neither is more than a list at a time in
        memory: what was written is asked as it lies there."""
        try:
            about, before = About.of(previous), load_index(previous, mapped=True)
        except (DailiesError, OSError) as error:
            log.warning("action=index_anew reason=%s", error)
            return None
        if not self._fits(about, before):
            return None
        held, ids = contents(before), self.vectors.ids()
        if (held.ids[1:] == held.ids[:-1]).any():
            log.warning("action=index_anew reason=an id is twice in %s", previous)
            return None
        changes = (self._as_told(held, ids) if self.told else None) or self._compared(held)
        if len(changes.ids) + len(changes.gone) > self.vectors.total // 2:
            return None
        failpoint("catalog.during_ann_build")
        exact = probe(self.vectors, ids)
        known = _known(about.probed, exact, changes)
        empty = self._write_changed(out, before, changes)
        index = load_index(out, mapped=True)
        exact.found[~known] = _everywhere(index, exact.asked[~known], exact.own[~known])
        nprobe, measured = _probes(index, exact)
        if measured < self.recall_floor:
            return None
        empty.nprobe = nprobe
        write_nprobe(out, empty, self.vectors.total)
        counts = {"added": len(changes.ids), "removed": len(changes.gone)}
        facts = _facts(LISTS, index.nlist, nprobe, measured, about.trained_on, **counts, note=about.note)
        return Probed.of(exact), facts

    def _fits(self, about: About, index: Any) -> bool:
        if not is_lists(index) or (about.model, index.d) != (self.vectors.model, self.vectors.dim):
            return False
        grown = self.vectors.total / about.trained_on
        return about.asked == self.nlist and 0.5 <= grown <= 2

    def _lists(self) -> tuple[int, str]:
        """How many, and why it is not what was asked for."""
        nlist = self.nlist or round(4 * sqrt(self.vectors.total))
        most = max(1, self.vectors.total // FEWEST_POINTS)
        if nlist <= most:
            return nlist, ""
        note = f"nlist {nlist} lowered to {most}: {self.vectors.total} vectors, at least {FEWEST_POINTS} for each list"
        log.warning("action=index note=%s", note)
        return most, note

    def _as_told(self, held: Contents, ids: Ids) -> _Changes | None:
        """What the merge wrote down of itself. None where that does not lead from what the index holds to what the
        database has: by the ids, all of them, and by the vectors of a sample."""
        what = self.vectors.changes()
        fresh = np.sort(np.concatenate([what["new"], what["changed"]]))
        goes = np.isin(held.ids, np.concatenate([what["changed"], what["removed"]]))
        kept = held.ids[~goes]
        if not np.array_equal(np.sort(np.concatenate([kept, fresh]), kind="stable"), ids):
            return None
        rows = np.searchsorted(held.ids, kept[sample(kept, PROBED, PROBE_SEED)])
        if not np.array_equal(held.matrix(rows), self.vectors.some(held.ids[rows])):
            return None
        return _Changes(fresh, self.vectors.some(fresh), held.ids[goes], held.lists[goes])

    def _compared(self, held: Contents) -> _Changes:
        old, still = held.hashes(), np.zeros(len(held.ids), dtype=bool)
        new_ids, new_vectors = [np.zeros(0, dtype=np.int64)], [np.zeros((0, self.vectors.dim), dtype=np.float32)]
        seen = 0
        for ids, matrix in self.vectors.blocks():
            place = np.minimum(np.searchsorted(held.ids, ids), len(held.ids) - 1)
            same = (held.ids[place] == ids) & (old[place] == hashes(matrix))
            still[place[same]] = True
            new_ids.append(ids[~same])
            new_vectors.append(matrix[~same])
            seen += len(ids)
            self.progress(0.8 * seen / self.vectors.total)
        return _Changes(np.concatenate(new_ids), np.concatenate(new_vectors), held.ids[~still], held.lists[~still])

    def _write_changed(self, out: Path, before: Any, changes: _Changes) -> Any:
        """The lists of `before` as they are now; returns the index without them."""
        centres = faiss.downcast_index(before.quantizer).reconstruct_n(0, before.nlist)
        into = self.assigner(centres)(changes.vectors) if len(changes.ids) else np.zeros(0, dtype=np.int64)
        sizes = np.array([before.invlists.list_size(number) for number in range(before.nlist)])
        sizes += np.bincount(into, minlength=len(sizes)) - np.bincount(changes.gone_from, minlength=len(sizes))
        empty = _empty(centres)
        write_lists(out, empty, sizes, _changed_lists(before, changes, into))
        return empty


@dataclass(frozen=True)
class _Changes:
    """What is other is both: ``gone`` and new."""

    ids: Ids
    vectors: Matrix
    gone: Ids
    gone_from: NDArray[np.int64]


def _changed_lists(before: Any, changes: _Changes, into: Ids) -> Iterator[tuple[Ids, Codes]]:
    codes = changes.vectors.astype("<f2")
    come, gone = _rows_of_lists(into, before.nlist), _rows_of_lists(changes.gone_from, before.nlist)
    for number in range(before.nlist):
        ids, old = entries(before, number)
        if len(come[number]) or len(gone[number]):
            keep = ~np.isin(ids, changes.gone[gone[number]])
            ids = np.concatenate([ids[keep], changes.ids[come[number]]])
            order = np.argsort(ids, kind="stable")
            ids, old = ids[order], np.concatenate([old[keep], codes[come[number]]])[order]
        yield ids, old


def _rows_of_lists(lists: Ids, nlist: int) -> list[NDArray[np.int64]]:
    order = np.argsort(lists, kind="stable")
    return np.split(order, np.searchsorted(lists[order], np.arange(1, nlist)))


def _known(probed: Probed, exact: Exact, changes: _Changes) -> NDArray[np.bool_]:
    """Give `exact` what was measured before, and what is new to that; for which rows this is all.

    It is where the vector is the same, and nobody is gone from those that were its nearest: then only what is new can
    be nearer.
    """
    before = {number: place for place, number in enumerate(probed.ids)}
    places = np.array([before.get(number, -1) for number in exact.own.tolist()])
    known: NDArray[np.bool_] = (places >= 0) & (np.array(probed.hashes, dtype=np.uint64)[places] == hashes(exact.asked))
    nearest = np.array(probed.keys, dtype=np.int64)[places]
    known &= ~(np.isin(ID_MASK - (nearest & ID_MASK), changes.gone) & (nearest != NOBODY)).any(axis=1)
    exact.found[known] = nearest[known]
    if len(changes.ids):
        exact.see(changes.ids, changes.vectors)
    return known


def _everywhere(index: Any, asked: Matrix, own: Ids) -> Ids:
    """What a look into all lists finds: as exact as any."""
    index.nprobe = index.nlist
    return search_keys(index, asked, NEIGHBOURS, own)


def _facts(
    kind: str,
    nlist: int,
    nprobe: int,
    measured: float,
    trained_on: int,
    *,
    added: int,
    removed: int = 0,
    note: str = "",
) -> dict[str, Any]:
    return {
        "added": added,
        "nlist": nlist,
        "note": note,
        "nprobe": nprobe,
        "recall": round(measured, 4),
        "removed": removed,
        "trained_on": trained_on,
        "type": kind,
    }


def _empty(centres: Matrix) -> Any:
    """Plain, not by what is left over from the centre: only so is float16 without loss."""
    nlist, dim = centres.shape
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centres)
    fp16 = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, nlist, fp16, faiss.METRIC_INNER_PRODUCT, False)
    index.train(centres)
    return index


def _add(index: Any, ids: Ids, matrix: Matrix, lists: Ids) -> None:
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    index.add_core(len(ids), faiss.swig_ptr(matrix), faiss.swig_ptr(ids), faiss.swig_ptr(lists))


def _probes(index: Any, exact: Exact) -> tuple[int, float]:
    """So few lists as find what is aimed for, and at most half of them: with more, exact search is no slower."""
    most = max(1, index.nlist // 2)
    measured = 0.0
    for nprobe in [*(tried for tried in NPROBES if tried < most), most]:
        index.nprobe = nprobe
        measured = recall(search_keys(index, exact.asked, exact.count, exact.own), exact.found)
        if measured >= RECALL_AIM:
            break
    return int(index.nprobe), measured
