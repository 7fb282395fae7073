"""One caption read again, from the samples that show it.

    reading = read_caption(samples, engine(), line_height=34, within=caption.box.moved(-crop.left, -crop.top))

The median over time has no moving background left to misread, and usually that is all. An empty, short or unsure
reading is not believed before single frames were asked too: it may be one unlucky blur, or scenery that looks like
letters.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dailies.captions.glyphs import Template
from dailies.captions.ocr import Box, Engine, Gray, Line
from dailies.captions.spacing import spaced
from dailies.errors import Missing, Unreadable

SURE, READABLE = 0.8, 0.6
SHORT = 3
ALIKE = 0.8
# The median of more frames says no more, and a caption may stand for an hour.
MOST_FRAMES = 32


@dataclass(frozen=True)
class Reading:
    """`median_index` is the place in the samples of the frame nearest to their median; `tries` counts the readings."""

    text: str
    confidence: float
    frame_count: int
    median_index: int
    tries: int


@dataclass(frozen=True)
class _Said:
    text: str
    confidence: float

    @property
    def letters(self) -> int:
        return sum(letter.isalnum() for letter in self.text)

    @property
    def doubtful(self) -> bool:
        return self.letters <= SHORT or self.confidence < SURE


def read_caption(
    samples: Iterable[Gray], engine: Engine, line_height: float | None = None, within: Box | None = None
) -> Reading:
    """`within` is in the samples' pixels; what stands outside, or is not about as high as a line, is scenery.

    Given an iterator it holds a few of the samples at a time, however many there are.
    """
    count, kept = _kept(samples)
    if not kept:
        raise Missing("no sample shows the caption: it lies between two of them")
    median = np.median(np.stack(list(kept.values())), axis=0).astype(np.uint8)
    nearest = min(kept, key=lambda place: _distance(kept[place], median, within))
    said: list[_Said] = []
    for picture in _pictures(kept, median, nearest):
        said.append(_read(picture, engine, line_height, within))
        if not said[0].doubtful:
            break
    best = _vote(said)
    if best is None:
        frames = f"{count} frame{'' if count == 1 else 's'}"
        raise Unreadable(f"no text can be read on the {frames} of the caption: look at it yourself")
    return Reading(best.text, round(best.confidence, 4), count, nearest, len(said))


def _kept(samples: Iterable[Gray]) -> tuple[int, dict[int, Gray]]:
    """(how many there are, at most `MOST_FRAMES` of them by their place, spread evenly)."""
    kept: dict[int, Gray] = {}
    count = 0
    stride = 1
    for place, sample in enumerate(samples):
        count += 1
        if place % stride == 0:
            kept[place] = sample
        if len(kept) > MOST_FRAMES:
            stride *= 2
            kept = {place: sample for place, sample in kept.items() if place % stride == 0}
    return count, kept


def _pictures(kept: Mapping[int, Gray], median: Gray, nearest: int) -> Iterator[Gray]:
    """The median, then the frame that is most like it, then one early and one late; each frame once."""
    yield median
    places = list(kept)
    if len(places) > 1:
        early, late = places[len(places) // 4], places[len(places) * 3 // 4]
        yield from (kept[place] for place in dict.fromkeys((nearest, early, late)))


def _read(picture: Gray, engine: Engine, line_height: float | None, within: Box | None) -> _Said:
    rows = [row for row in engine.find(picture) if _belongs(row, line_height, within)]
    if not rows and within and line_height and within.height <= 1.7 * line_height:
        # The place of a single line is known: the recogniser may see what the detector does not.
        rows = [_inside(within, picture)]
    lines = [line for line in engine.read_lines(picture, rows) if line.text]
    if not lines:
        return _Said("", 0.0)
    text = "\n".join(" ".join(_spaced(line, picture) for line in row) for row in _in_rows(lines))
    return _Said(text, min(line.confidence for line in lines))


def _belongs(row: Box, line_height: float | None, within: Box | None) -> bool:
    if line_height and not 0.55 * line_height <= row.height <= 1.7 * line_height:
        return False
    if within is None:
        return True
    shared = min(row.right, within.right) - max(row.left, within.left)
    return within.top <= row.middle[1] < within.bottom and shared >= 0.5 * min(row.width, within.width)


def _in_rows(lines: Sequence[Line]) -> list[list[Line]]:
    """Top to bottom, and from left to right what stands in one row with a wide space between."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.box.middle[1]):
        if rows and rows[-1][0].box.same_row(line.box):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=lambda line: line.box.left) for row in rows]


def _spaced(line: Line, picture: Gray) -> str:
    return spaced(line.text, Template(picture, line.box).ink)


def _vote(said: Sequence[_Said]) -> _Said | None:
    """The text with the most confidence behind it, if another reading bears it out or it is long and sure.

    Where there was but one frame to read there is nobody else to ask.
    """
    readings = [one for one in said if one.letters and one.confidence >= READABLE]
    weights: dict[str, float] = {}
    for one in readings:
        weights[one.text] = weights.get(one.text, 0.0) + (one.confidence - READABLE / 2) ** 2
    for text in sorted(weights, key=lambda text: (weights[text], text), reverse=True):
        best = max((one for one in readings if one.text == text), key=lambda one: one.confidence)
        if len(said) == 1 or not best.doubtful or sum(_alike(best, other) for other in readings) > 1:
            return best
    return None


def _alike(one: _Said, other: _Said) -> bool:
    """Of three letters that means every one."""
    return difflib.SequenceMatcher(None, _plain(one.text), _plain(other.text), autojunk=False).ratio() >= ALIKE


def _plain(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _distance(sample: Gray, median: Gray, within: Box | None) -> float:
    box = _inside(within, median) if within else Box(0, 0, median.shape[1], median.shape[0])
    return float(cv2.absdiff(box.cut(sample), box.cut(median)).mean())


def _inside(box: Box, picture: Gray) -> Box:
    """The part that is in the picture; all of it where nothing is."""
    height, width = picture.shape
    cut = Box(max(0, box.left), max(0, box.top), min(width, box.right), min(height, box.bottom))
    return cut if cut.width > 0 and cut.height > 0 else Box(0, 0, width, height)
