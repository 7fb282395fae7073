"""caption_frame_extents.db: which samples show the same line, and for each neighbouring pair how they compare."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from dailies.canonical import write_atomically
from dailies.captions.databases.file import Rows, built, opened
from dailies.captions.extents import Dropped, Extent
from dailies.captions.ocr import Box

RATE = Fraction(10)
# Raised whenever the same film would give other extents.
MODEL_VERSION = "line-templates-1"
LABELS = ("same", "different", "empty_empty", "empty_valid", "valid_empty")

SCHEMA = """
CREATE TABLE run_metadata (model_version TEXT NOT NULL, total_pairs INTEGER NOT NULL, frame_rate TEXT NOT NULL);
CREATE TABLE pair_results (
    region INTEGER NOT NULL, frame1_index INTEGER NOT NULL, frame2_index INTEGER NOT NULL,
    label TEXT NOT NULL CHECK (label IN ('same', 'different', 'empty_empty', 'empty_valid', 'valid_empty')),
    PRIMARY KEY (region, frame1_index)
) WITHOUT ROWID;
CREATE TABLE extents (
    id INTEGER PRIMARY KEY, region INTEGER NOT NULL, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL,
    start_index INTEGER NOT NULL, end_index INTEGER NOT NULL, text TEXT NOT NULL, confidence REAL NOT NULL,
    "left" INTEGER NOT NULL, top INTEGER NOT NULL, "right" INTEGER NOT NULL, bottom INTEGER NOT NULL
);
CREATE TABLE dropped (
    id INTEGER PRIMARY KEY, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, text TEXT NOT NULL,
    confidence REAL NOT NULL, reason TEXT NOT NULL
);
"""
TABLES = ("run_metadata", "pair_results", "extents", "dropped")


@dataclass(frozen=True)
class Pair:
    region: int
    before: int
    after: int
    label: str


@dataclass(frozen=True)
class ExtentRow:
    """Samples from `start_index` up to, not including, `end_index` show the line."""

    id: int
    region: int
    start_us: int
    end_us: int
    start_index: int
    end_index: int
    text: str
    confidence: float
    box: Box


@dataclass(frozen=True)
class Extents:
    model_version: str
    rate: Fraction
    pairs: tuple[Pair, ...]
    extents: tuple[ExtentRow, ...]
    dropped: tuple[Dropped, ...]


def sample_index(us: int, rate: Fraction = RATE) -> int:
    """The number of the first sample at or after a time. A frame that a sample shows has that sample's number.

    The last frame of a film has one too, although its sample would come just after the end.
    """
    return -(-us * rate // 1_000_000)


def write_extents(
    path: Path,
    extents: Sequence[Extent],
    dropped: Sequence[Dropped],
    samples_us: Sequence[int],
    *,
    regions: int,
    rate: Fraction = RATE,
    model_version: str = MODEL_VERSION,
) -> dict[str, int]:
    """`samples_us`: the time of each frame that was a sample. Returns how many pairs have each label."""
    samples = {sample_index(us, rate): us for us in samples_us}
    indexes, times = list(samples), list(samples.values())
    ordered = sorted(extents, key=lambda one: (one.start_us, one.region, one.box.top, one.box.left, one.text))
    pairs = [pair for region in range(regions) for pair in _pairs(region, ordered, indexes, times)]
    tables: dict[str, Rows] = {
        "run_metadata": [(model_version, len(pairs), str(rate))],
        "pair_results": [(pair.region, pair.before, pair.after, pair.label) for pair in pairs],
        "extents": [_row(number, one, indexes, times) for number, one in enumerate(ordered, 1)],
        "dropped": dropped_rows(dropped),
    }
    write_atomically(path, [built(SCHEMA, tables)])
    counts = Counter(pair.label for pair in pairs)
    return {label: counts[label] for label in LABELS}


def read_extents(source: Path | bytes) -> Extents:
    with opened(source, "caption_frame_extents.db", TABLES) as database:
        ((version, total, rate),) = database.execute("SELECT model_version, total_pairs, frame_rate FROM run_metadata")
        pairs = tuple(Pair(*row) for row in database.execute("SELECT * FROM pair_results ORDER BY 1, 2"))
        if len(pairs) != total:
            raise ValueError(f"{len(pairs)} pairs of {total}")
        extents = tuple(_extent(*row) for row in database.execute("SELECT * FROM extents ORDER BY id"))
        return Extents(version, Fraction(rate), pairs, extents, stored_drops(database))


def dropped_rows(dropped: Sequence[Dropped]) -> list[tuple[Any, ...]]:
    return [
        (number, one.start_us, one.end_us, one.text, one.confidence, one.reason)
        for number, one in enumerate(dropped, 1)
    ]


def stored_drops(database: Any) -> tuple[Dropped, ...]:
    query = "SELECT start_us, end_us, text, confidence, reason FROM dropped ORDER BY id"
    return tuple(Dropped(*row) for row in database.execute(query))


def _pairs(region: int, extents: Sequence[Extent], indexes: Sequence[int], times: Sequence[int]) -> Iterator[Pair]:
    shown: list[set[int]] = [set() for _ in times]
    for number, extent in enumerate(extents):
        if extent.region == region:
            for place in range(bisect_left(times, extent.start_us), bisect_left(times, extent.end_us)):
                shown[place].add(number)
    for (before, now), (after, then) in pairwise(zip(indexes, shown, strict=True)):
        yield Pair(region, before, after, _label(now, then))


def _label(now: set[int], then: set[int]) -> str:
    if now and then:
        return "same" if now == then else "different"
    return f"{'valid' if now else 'empty'}_{'valid' if then else 'empty'}"


def _extent(*values: Any) -> ExtentRow:
    number, region, start, end, first, after, text, confidence, *corners = values
    return ExtentRow(number, region, start, end, first, after, text, confidence, Box(*corners))


def _row(number: int, extent: Extent, indexes: Sequence[int], times: Sequence[int]) -> tuple[Any, ...]:
    def index_at(us: int) -> int:
        place = bisect_left(times, us)
        return indexes[place] if place < len(indexes) else (indexes[-1] + 1 if indexes else 0)

    box = extent.box
    shown = (extent.start_us, extent.end_us, index_at(extent.start_us), index_at(extent.end_us))
    return (number, extent.region, *shown, extent.text, extent.confidence, box.left, box.top, box.right, box.bottom)
