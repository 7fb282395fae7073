"""Where captions sit, from the text found in sparse whole frames.

A region is a band of the picture in which text comes and goes at one height. Text that stands still from the first
frame to the last is a watermark, text that is seen once in a place of its own is scenery; a film without captions has
no region, which is a result. A region that moves is two regions, each with the time in which it was seen.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dailies.captions.ahead import ahead
from dailies.captions.glyphs import Template, appeared, changed
from dailies.captions.ocr import FRAME_SIDE, Box, Engine, Gray, Line, resized
from dailies.captions.sampling import Film

LEAST_CONFIDENCE = 0.8
GLANCE_US, PATROL_US = 250_000, 5_000_000
# A second of film is worth one look, and a busy moment a few at once.
LOOKS_A_SECOND, MOST_LOOKS = 1.0, 4.0
SMALL_LETTER = 12
KNOWN_LINES = 32
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


def survey(film: Film, engine: Engine, tell: Callable[[float], None] = lambda share: None) -> list[Seen]:
    """Text that stands still, on the frames where something like text has just come: all of the film is looked at."""
    seen: list[Seen] = []
    length = max(1, film.promised_us or film.end_us)
    known: deque[tuple[Line, Gray]] = deque(maxlen=KNOWN_LINES)
    looked_at = earlier = None
    allowance, looked_us, again = float(MOST_LOOKS), 0, False
    for us, picture in ahead(film.whole(GLANCE_US), 2):
        small, scale = _small(picture)
        allowance = min(MOST_LOOKS, allowance + LOOKS_A_SECOND * GLANCE_US / 1_000_000)
        if looked_at is None or again or _worth_a_look(looked_at, earlier, small, us - looked_us, allowance):
            rows = engine.find(picture)
            still = [row for row in rows if earlier is None or _stands(row, small, earlier, scale)]
            seen.append(Seen(us, tuple(_read(engine, picture, still, known))))
            # A line that came this very moment stands still the next; what rolls past does not, and is let go.
            again = len(still) < len(rows) and not again
            looked_at, looked_us, allowance = small, us, allowance - 1
        earlier = small
        tell(min(0.99, us / length))
    return seen


def _small(picture: Gray) -> tuple[Gray, float]:
    scale = min(1.0, FRAME_SIDE / max(picture.shape))
    return resized(picture, (round(picture.shape[1] * scale), round(picture.shape[0] * scale))), scale


def _worth_a_look(looked_at: Gray, earlier: Gray | None, now: Gray, since_us: int, allowance: float) -> bool:
    """On real footage something always looks a little like letters: the allowance bounds what that costs."""
    if allowance < 1 or earlier is None:
        return False
    if since_us >= PATROL_US and changed(looked_at, now, []):
        return True
    return appeared(looked_at, earlier, now, SMALL_LETTER, [])


def _stands(row: Box, now: Gray, earlier: Gray, scale: float) -> bool:
    """What rolls past is no caption, and what moves with the scene is none either."""
    box = Box(*(round(side * scale) for side in (row.left, row.top, row.right, row.bottom)))
    if box.width < 3 or box.height < 3:
        return False
    template = Template(now, box)
    return not template.tells or template.match(earlier).there


def _read(engine: Engine, picture: Gray, rows: Sequence[Box], known: deque[tuple[Line, Gray]]) -> list[Line]:
    """Each line once: what stands unchanged where it stood is not read again."""
    lines = []
    for row in rows:
        line = next((line for line, look in known if _same_look(line.box, look, row, picture)), None)
        if line is None:
            line = engine.read_lines(picture, [row])[0]
            known.append((line, row.cut(picture).copy()))
        if line.text:
            lines.append(line)
    return lines


def _same_look(box: Box, look: Gray, row: Box, picture: Gray) -> bool:
    return (
        _same_place(box, row) and abs(box.right - row.right) <= box.height and not changed(look, box.cut(picture), [])
    )


def find_layout(seen: Sequence[Seen], width: int, height: int) -> Layout:
    sure = [
        (frame.us, line)
        for frame in seen
        for line in frame.lines
        if line.confidence >= LEAST_CONFIDENCE and any(letter.isalnum() for letter in line.text)
    ]
    moving = [(us, line) for us, line in sure if not _stands_still(line, sure, len(seen))]
    bands = _bands(moving)
    regions = [_region(band, width, height) for band in bands if _is_captions(band, width)]
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


def _is_captions(band: Sequence[tuple[int, Line]], width: int) -> bool:
    """Two different lines in one band, or one that is centred as captions are: the only caption of a film."""
    distinct: list[Line] = []
    for _, line in band:
        if not any(_same_place(line.box, other.box) and line.text[:4] == other.text[:4] for other in distinct):
            distinct.append(line)
    if len(distinct) >= 2 and len({us for us, _ in band}) >= 2:
        return True
    return any(abs(line.box.middle[0] - width / 2) < 0.05 * width and line.confidence >= 0.9 for line in distinct)


def _region(band: Sequence[tuple[int, Line]], width: int, height: int) -> Region:
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
