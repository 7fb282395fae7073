"""An index that is there: opened, asked, and looked into."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.canonical import canonical_json
from dailies.catalog.vectors import (
    NEIGHBOURS,
    NOBODY,
    Hashes,
    Ids,
    Matrix,
    best,
    hashes,
    keys,
    snapped,
    unkeyed,
    without,
)
from dailies.errors import BadInput, Missing

FLAT, LISTS = "flat", "ivf-fp16"
# Ties are ordered by their ids, so a few more are asked for than are wanted.
MORE = 4
# So many found at once, where many are tied.
FOUND_AT_ONCE = 20_000_000
MARK, LONGEST_ABOUT = b"\ndailies index ", 4096
PIECE = 16_384


@dataclass(frozen=True)
class About:
    """What FAISS has no place for, behind its own bytes, which it does not read: so it cannot be parted from them."""

    model: str
    trained_on: int
    asked: int
    note: str

    def append_to(self, path: Path) -> None:
        with path.open("ab") as file:
            file.write(MARK + canonical_json(asdict(self)))

    @classmethod
    def of(cls, path: Path) -> About:
        if not path.is_file():
            raise Missing(f"there is no index at {path}")
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LONGEST_ABOUT))
            said = file.read().rpartition(MARK)[2]
        try:
            return cls(**json.loads(said))
        except (ValueError, TypeError):
            raise BadInput(f"{path} is no index of the catalogue, or a torn one: build it again") from None


def load_index(path: Path, *, mapped: bool = False) -> Any:
    """`mapped` leaves the lists on the disk until they are looked into: for a reader that asks little."""
    if not path.is_file():
        raise Missing(f"there is no index at {path}")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
    except RuntimeError as error:
        raise BadInput(f"{path} is no index, or a damaged one: build it again") from error


def search(index: Any, asked: Matrix, count: int = NEIGHBOURS, own: Ids | None = None) -> tuple[Ids, Matrix]:
    """Ids and exact scores of the nearest to each row, best first, ties by id; -1 where there are not so many. `own`
    are the ids that ask, which are left out of their own answers."""
    return unkeyed(search_keys(index, asked, count, own))


def search_keys(index: Any, asked: Matrix, count: int, own: Ids | None = None) -> Ids:
    """Where more are tied than were asked for, an exact index is asked for more, until the smallest ids are sure to be
    among them; with lists it is left at those that were found."""
    if asked.shape[1] != index.d:
        raise BadInput(f"the index has {index.d} dimensions and the question {asked.shape[1]}: use the same embedder")
    asked = snapped(asked)
    wide = count + MORE
    found, tied = _ask(index, asked, wide, count, own)
    while wide < index.ntotal and tied.any() and not is_lists(index):
        wide *= 8
        again = np.flatnonzero(tied)
        tied[:] = False
        for some in np.array_split(again, -(-len(again) * wide // FOUND_AT_ONCE)):
            found[some], tied[some] = _ask(index, asked[some], wide, count, None if own is None else own[some])
    return found


def _ask(index: Any, asked: Matrix, wide: int, count: int, own: Ids | None) -> tuple[Ids, NDArray[np.bool_]]:
    """The keys, and where what was cut off may be as good as the last that was kept."""
    scores, ids = index.search(asked, min(wide, max(1, index.ntotal)))
    keyed = keys(scores, ids)
    if own is not None:
        keyed = without(keyed, own)
    kept = best(keyed, count)
    kept = np.pad(kept, ((0, 0), (0, count - kept.shape[1])), constant_values=NOBODY)
    return kept, unkeyed(kept[:, -1])[1] <= scores[:, -1]


def is_lists(index: Any) -> bool:
    return isinstance(index, faiss.IndexIVF)


@dataclass(frozen=True)
class Contents:
    """What an index holds, by id: the hash of each vector, and its list; all are in list 0 of an exact one."""

    ids: Ids
    hashes: Hashes
    lists: NDArray[np.int64]


def contents(index: Any) -> Contents:
    parts = [entries(index, number) for number in range(index.nlist)] if is_lists(index) else [_all(index)]
    ids = np.concatenate([part for part, _ in parts])
    lists = np.repeat(np.arange(len(parts)), [len(part) for part, _ in parts])
    pieces = [hashes(vectors[at : at + PIECE]) for _, vectors in parts for at in range(0, len(vectors), PIECE)]
    order = np.argsort(ids, kind="stable")
    return Contents(ids[order], np.concatenate([np.zeros(0, np.uint64), *pieces])[order], lists[order])


def entries(index: Any, number: int) -> tuple[Ids, NDArray[np.float16]]:
    """A list as it lies in the index: not to be kept beyond a change of it."""
    size = index.invlists.list_size(number)
    if not size:
        return np.zeros(0, dtype=np.int64), np.zeros((0, index.d), dtype="<f2")
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
    return ids, codes.view("<f2").reshape(size, index.d)


def _all(index: Any) -> tuple[Ids, NDArray[np.float16]]:
    if not index.ntotal:
        return np.zeros(0, dtype=np.int64), np.zeros((0, index.d), dtype="<f2")
    flat: Any = faiss.downcast_index(index.index)
    vectors = faiss.rev_swig_ptr(flat.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return np.asarray(faiss.vector_to_array(index.id_map)), vectors.astype("<f2")
