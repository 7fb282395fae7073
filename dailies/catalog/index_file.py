"""An index that is there: opened, asked, and looked into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dailies.canonical import canonical_json
from dailies.catalog.vectors import (
    NEIGHBOURS,
    NOBODY,
    Exact,
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
MARK, LONGEST_ABOUT = b"\ndailies index ", 1 << 18
PIECE = 16_384
# How FAISS tells of its lists: that they are in memory, how many, how long an entry is, and the length of each.
SIZES = Struct("<4sQQ4sQ")
WRITTEN_AT_ONCE = 1 << 20

Codes = NDArray[np.float16]


@dataclass(frozen=True)
class Probed:
    """What exact search says of a few of the vectors: for each its id, its hash, and the keys of its nearest."""

    ids: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    keys: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, exact: Exact) -> Probed:
        return cls(exact.own.tolist(), hashes(exact.asked).tolist(), exact.found.tolist())


@dataclass(frozen=True)
class About:
    """What FAISS has no place for, behind its own bytes, which it does not read: so it cannot be parted from them."""

    model: str
    trained_on: int
    asked: int
    note: str
    probed: Probed

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
            told = json.loads(said)
            return cls(**{**told, "probed": Probed(**told["probed"])})
        except (ValueError, TypeError, KeyError):
            raise BadInput(f"{path} is no index of the catalogue, or a torn one: build it again") from None


def load_index(path: Path, *, mapped: bool = False) -> Any:
    """`mapped` leaves the lists on the disk until they are looked into: for a reader that asks little."""
    if not path.is_file():
        raise Missing(f"there is no index at {path}")
    try:
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0)
    except RuntimeError as error:
        raise BadInput(f"{path} is no index, or a damaged one: build it again") from error
    if mapped and is_lists(index):
        lists: Any = faiss.downcast_InvertedLists(index.invlists)
        lists.prefetch_nthread = 0  # it has 32 threads to read ahead with, and a search takes half as long again
    return index


def write_lists(path: Path, empty: Any, sizes: NDArray[np.int64], lists: Iterable[tuple[Ids, Codes]]) -> None:
    """What FAISS writes of an index that holds these, one list after the other and never all of them in memory.

    `empty` is the same without them: what FAISS makes of it ends with its lists, of which it says that there are none.
    """
    told = SIZES.pack(b"ilar", len(sizes), empty.code_size, b"full", len(sizes)) + sizes.astype("<u8").tobytes()
    with path.open("wb", buffering=WRITTEN_AT_ONCE) as file:
        file.write(_head(empty, int(sizes.sum())) + told)
        for ids, codes in lists:
            file.write(np.ascontiguousarray(codes).data)
            file.write(np.ascontiguousarray(ids).data)


def write_nprobe(path: Path, empty: Any, total: int) -> None:
    """Into a file that was written with another one."""
    with path.open("r+b") as file:
        file.write(_head(empty, total))


def _head(empty: Any, total: int) -> bytes:
    empty.ntotal = total
    head: bytes = faiss.serialize_index(empty).tobytes()
    none = SIZES.pack(b"ilar", empty.nlist, empty.code_size, b"sprs", 0)
    assert head.endswith(none), "FAISS writes its lists another way: this program was made for another version of it"
    return head.removesuffix(none)


def search(index: Any, asked: Matrix, count: int = NEIGHBOURS, own: Ids | None = None) -> tuple[Ids, Matrix]:
    """Ids and exact scores of the nearest to each row, best first, ties by id; -1 where there are not so many. `own`
    are the ids that ask, which are left out of their own answers."""
    return unkeyed(search_keys(index, asked, count, own))


def search_keys(index: Any, asked: Matrix, count: int, own: Ids | None = None) -> Ids:
    """Where more are tied than were asked for, an exact index is asked for more, until the smallest ids are sure to be
    among them; where lists are left out, it is left at those that were found."""
    if asked.shape[1] != index.d:
        raise BadInput(f"the index has {index.d} dimensions and the question {asked.shape[1]}: use the same embedder")
    asked = snapped(asked)
    wide = count + MORE
    found, tied = _ask(index, asked, wide, count, own)
    while wide < index.ntotal and tied.any() and is_exhaustive(index):
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


def is_exhaustive(index: Any) -> bool:
    return not is_lists(index) or index.nprobe >= index.nlist


@dataclass(frozen=True)
class Contents:
    """What an index holds, by id: in which list each vector is, and the how-manyth it is of all, one list after the
    other. All are in list 0 of an exact one. Not to be kept beyond a change of the index."""

    index: Any
    ids: Ids
    lists: NDArray[np.int64]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]

    def hashes(self) -> Hashes:
        pieces = [np.zeros(0, dtype=np.uint64)]
        for number in range(len(self.starts)):
            _, vectors = entries(self.index, number)
            pieces += [hashes(vectors[at : at + PIECE]) for at in range(0, len(vectors), PIECE)]
        return np.concatenate(pieces)[self.places]

    def matrix(self, rows: NDArray[np.int64]) -> Matrix:
        """Quickest where those of one list come together."""
        found = np.empty((len(rows), self.index.d), dtype=np.float32)
        lists = self.lists[rows]
        order = np.argsort(lists, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(lists[order])) + 1) if len(rows) else ():
            number = int(lists[some[0]])
            found[some] = entries(self.index, number)[1][self.places[rows[some]] - self.starts[number]]
        return found

    def blocks(self) -> Iterator[tuple[Ids, Matrix]]:
        """All of them, in the order in which they lie there."""
        order = np.argsort(self.places, kind="stable")
        for at in range(0, len(order), PIECE):
            yield self.ids[order[at : at + PIECE]], self.matrix(order[at : at + PIECE])


def contents(index: Any) -> Contents:
    parts = [entries(index, number)[0] for number in range(index.nlist if is_lists(index) else 1)]
    sizes = [len(part) for part in parts]
    ids, lists = np.concatenate(parts), np.repeat(np.arange(len(parts)), sizes)
    order = np.argsort(ids, kind="stable")
    return Contents(index, ids[order], lists[order], order, np.cumsum([0, *sizes[:-1]]))


def entries(index: Any, number: int) -> tuple[Ids, NDArray[np.floating]]:
    """A list as it lies in the index: not to be kept beyond a change of it."""
    if not is_lists(index):
        return _all(index)
    size = index.invlists.list_size(number)
    if not size:
        return np.zeros(0, dtype=np.int64), np.zeros((0, index.d), dtype="<f2")
    ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
    return ids, codes.view("<f2").reshape(size, index.d)


def _all(index: Any) -> tuple[Ids, Matrix]:
    if not index.ntotal:
        return np.zeros(0, dtype=np.int64), np.zeros((0, index.d), dtype=np.float32)
    flat: Any = faiss.downcast_index(index.index)
    vectors = faiss.rev_swig_ptr(flat.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return np.asarray(faiss.vector_to_array(index.id_map)), vectors
