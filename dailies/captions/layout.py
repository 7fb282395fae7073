"""Where captions sit, from the text found in sparse whole frames.

A region is a band of the picture in which text comes and goes at one height. Text that stands still from the first
frame to the last is a watermark, text that is seen once in a place of its own is scenery; a film without captions has
no region, which is a result. A region that moves is two regions, each with the time in which it was seen.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dailies.captions.ocr import Box, Engine, Line
from dailies.captions.sampling import Film

LEAST_CONFIDENCE = 0.8
FEWEST_FRAMES = 24
SHORTEST_INTERVAL_US, LONGEST_INTERVAL_US = 400_000, 5_000_000
STATIC_SHARE = 0.9
STATIC_LEAST_FRAMES = 12


@dataclass(frozen=True)
class Seen:
    us: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Region:
    """Pixels of the upright picture. `centre` and `spread` are of the lines' middles, `line_height` of one line."""

    crop: Box
    centre: float
    spread: float
    line_height: float
    anchor: str
    anchor_x: float
    confidence: float
    first_us: int
    last_us: int


@dataclass(frozen=True)
class Layout:
    width: int
    height: int
    frames: int
    lines: int
    regions: tuple[Region, ...]


def survey(film: Film, engine: Engine) -> list[Seen]:
    """Text on sparse frames: key frames where there are enough of them, as they cost no decode of the rest."""
    length = film.promised_us or film.end_us or 60_000_000
    interval = min(max(length // FEWEST_FRAMES, SHORTEST_INTERVAL_US), LONGEST_INTERVAL_US)
    keys = [Seen(us, tuple(engine.read(picture))) for us, picture in film.whole(interval, keys_only=True)]
    if len(keys) >= FEWEST_FRAMES * 3 // 4:
        return keys
    return [Seen(us, tuple(engine.read(picture))) for us, picture in film.whole(interval)]


def find_layout(seen: Sequence[Seen], width: int, height: int) -> Layout:
    sure = [
        (frame.us, line)
        for frame in seen
        for line in frame.lines
        if line.confidence >= LEAST_CONFIDENCE and any(letter.isalnum() for letter in line.text)
    ]
    moving = [(us, line) for us, line in sure if not _stands_still(line, sure, len(seen))]
    bands = _bands(moving)
    regions = [_region(band, len(seen), width, height) for band in bands if _is_captions(band, len(seen), width)]
    return Layout(width, height, len(seen), len(sure), _apart(regions))


def _stands_still(line: Line, sure: Sequence[tuple[int, Line]], frames: int) -> bool:
    if frames < STATIC_LEAST_FRAMES:
        return False
    near = {us for us, other in sure if _same_place(line.box, other.box) and other.text[:4] == line.text[:4]}
    return len(near) >= STATIC_SHARE * frames


def _same_place(one: Box, other: Box) -> bool:
    slack = max(4, one.height // 3)
    return abs(one.left - other.left) <= slack and abs(one.top - other.top) <= slack


def _bands(sure: Sequence[tuple[int, Line]]) -> list[list[tuple[int, Line]]]:
    """Lines whose middles are within about two line heights of the next: one and two line captions fall together."""
    bands: list[list[tuple[int, Line]]] = []
    for us, line in sorted(sure, key=lambda pair: pair[1].box.middle[1]):
        last = bands[-1][-1][1].box if bands else None
        if last and line.box.middle[1] - last.middle[1] <= 1.6 * max(last.height, line.box.height):
            bands[-1].append((us, line))
        else:
            bands.append([(us, line)])
    return bands


def _is_captions(band: Sequence[tuple[int, Line]], frames: int, width: int) -> bool:
    """Seen twice, or once where it is centred as captions are: the only caption of a short clip."""
    if len({us for us, _ in band}) >= 2:
        return True
    return any(abs(line.box.middle[0] - width / 2) < 0.05 * width and line.confidence >= 0.9 for _, line in band)


def _region(band: Sequence[tuple[int, Line]], frames: int, width: int, height: int) -> Region:
    boxes = [line.box for _, line in band]
    tall = statistics.median(box.height for box in boxes)
    middles = [box.middle[1] for box in boxes]
    anchor, anchor_x = _anchor(boxes, width)
    # A caption of one more line than those seen grows up or down by a line.
    top = max(0, round(min(box.top for box in boxes) - 1.4 * tall))
    bottom = min(height, round(max(box.bottom for box in boxes) + 1.4 * tall))
    return Region(
        crop=Box(0, top, width, bottom),
        centre=statistics.fmean(middles),
        spread=statistics.pstdev(middles),
        line_height=float(tall),
        anchor=anchor,
        anchor_x=anchor_x,
        confidence=round(statistics.fmean(line.confidence for _, line in band), 4),
        first_us=min(us for us, _ in band),
        last_us=max(us for us, _ in band),
    )


def _anchor(boxes: Sequence[Box], width: int) -> tuple[str, float]:
    """The edge or the middle that varies least is what the captions are aligned by."""
    places = {
        "center": [box.middle[0] for box in boxes],
        "left": [float(box.left) for box in boxes],
        "right": [float(box.right) for box in boxes],
    }
    name = min(places, key=lambda name: _deviation(places[name]) + 0.02 * width * (name != "center"))
    return name, statistics.median(places[name])


def _deviation(places: Sequence[float]) -> float:
    middle = statistics.median(places)
    return statistics.median(abs(place - middle) for place in places)


def _apart(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Crops that overlap are parted half way, so that no line is read twice."""
    ordered = sorted(regions, key=lambda region: region.crop.top)
    parted: list[Region] = []
    for region in ordered:
        if parted and parted[-1].crop.bottom > region.crop.top:
            half = (parted[-1].crop.bottom + region.crop.top) // 2
            parted[-1] = _recropped(parted[-1], parted[-1].crop.top, half)
            region = _recropped(region, half, region.crop.bottom)
        parted.append(region)
    return tuple(parted)


def _recropped(region: Region, top: int, bottom: int) -> Region:
    return Region(**vars(region) | {"crop": Box(region.crop.left, top, region.crop.right, bottom)})
