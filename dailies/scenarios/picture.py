"""The run of a scenario as a picture: who did what, when, and where the faults struck."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont
from PIL.ImageFont import ImageFont as BitmapFont

from dailies.scenarios.journal import FAULT_LANE, Journal, Mark

# Drawn large and halved at the end: the drawing routines know no smooth edges.
FINE = 2
WIDTH, MARGIN, HEADER, FOOTER = 1400 * FINE, 28 * FINE, 78 * FINE, 58 * FINE
ROW, PAD, DOT, GAP = 30 * FINE, 9 * FINE, 6 * FINE, 12 * FINE
LANE_WIDTH, LABEL_WIDTH = 240 * FINE, 380 * FINE
TEXT_SIZE, TITLE_SIZE = 16 * FINE, 24 * FINE
MAX_ROWS = 8

PAPER, BAND, INK, FAINT, GRID = "#ffffff", "#f5f6f8", "#1c2430", "#667080", "#dde1e7"
RED, PALE_RED = "#c8102e", "#f3b6c0"
LANE_COLOURS = ("#1f5fa8", "#2b7a4b", "#8a5a00", "#6a4c9c", "#0f7378", "#a3476b")
STATUS_COLOURS = {"passed": "#2b7a4b", "violated": RED, "error": RED, "inconclusive": "#8a5a00", "skipped": FAINT}

Font = FreeTypeFont | BitmapFont


@dataclass
class _Item:
    """A mark and where it goes; one without a label had no room for it."""

    mark: Mark
    start: float
    end: float
    label: str = ""
    label_x: float = 0.0
    inside: bool = False
    row: int = 0


@dataclass
class _Lane:
    name: str
    colour: str
    items: list[_Item]
    top: float = 0.0

    @property
    def height(self) -> float:
        return 2 * PAD + ROW * (1 + max(item.row for item in self.items))


def timeline_png(journal: Journal) -> bytes:
    """The same journal gives the same bytes: nothing is drawn from the clock, the screen or the system's fonts."""
    return _Picture(journal).png()


class _Picture:
    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.font: Font = ImageFont.load_default(TEXT_SIZE)
        self.title: Font = ImageFont.load_default(TITLE_SIZE)
        self.faults = {fault.name for fault in journal.faults}
        marks = sorted(journal.timeline, key=lambda mark: (mark.t, mark.lane, mark.what, mark.until or 0.0))
        self.seconds = max([journal.duration_s, 0.001, *(max(mark.t, mark.until or 0.0) for mark in marks)])
        names = sorted(dict.fromkeys(mark.lane for mark in marks), key=lambda name: name != FAULT_LANE)
        self.left = MARGIN + GAP + max([60.0 * FINE, *(self.width(self.clip(name, LANE_WIDTH)) for name in names)])
        self.right = WIDTH - MARGIN - GAP
        self.lanes = [self.lane(number, name, marks) for number, name in enumerate(names)]
        self.bottom = self.stack(self.lanes)
        self.image = Image.new("RGB", (WIDTH, round(self.bottom) + FOOTER), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def lane(self, number: int, name: str, marks: list[Mark]) -> _Lane:
        items = [self.item(mark) for mark in marks if mark.lane == name]
        self.pack(items)
        return _Lane(name, LANE_COLOURS[number % len(LANE_COLOURS)], items)

    def item(self, mark: Mark) -> _Item:
        """Places the label: inside its span when it fits, else to the right, and at the picture's edge to the left."""
        start, end = self.x(mark.t), self.x(mark.t if mark.until is None else mark.until)
        item = _Item(mark, start, end, label=self.clip(mark.what, LABEL_WIDTH))
        width = self.width(item.label)
        item.inside = mark.until is not None and end - start >= width + GAP
        if item.inside:
            item.label_x = start + GAP / 2
        elif end + GAP + width <= self.right + GAP:
            item.label_x = end + GAP
        else:
            item.label_x = start - GAP - width
        return item

    def pack(self, items: list[_Item]) -> None:
        """Each goes to the first row with room for it; what finds none gets no label and the row below all others."""
        rows: list[list[tuple[float, float]]] = [[] for _ in range(MAX_ROWS)]
        for item in items:
            extent = self.extent(item)
            item.row = next((row for row, taken in enumerate(rows) if _is_free(taken, extent)), MAX_ROWS)
            if item.row < MAX_ROWS:
                rows[item.row].append(extent)
            else:
                item.label = ""

    def extent(self, item: _Item) -> tuple[float, float]:
        label_end = item.label_x + self.width(item.label)
        return min(item.start - DOT, item.label_x), max(item.end + DOT, label_end) + GAP

    def stack(self, lanes: list[_Lane]) -> float:
        y = float(HEADER)
        for lane in lanes:
            lane.top = y
            y += lane.height
        return y if lanes else y + ROW

    def x(self, seconds: float) -> float:
        return self.left + (self.right - self.left) * min(max(seconds, 0.0), self.seconds) / self.seconds

    def width(self, text: str) -> float:
        return self.font.getlength(text)

    def clip(self, text: str, limit: float) -> str:
        text = " ".join(text[:200].split())
        if self.width(text) <= limit:
            return text
        while text and self.width(text + "…") > limit:
            text = text[:-1]
        return text.rstrip() + "…"

    def is_fault(self, mark: Mark) -> bool:
        return mark.lane == FAULT_LANE or mark.what in self.faults

    def png(self) -> bytes:
        self.paint_header()
        for number, lane in enumerate(self.lanes):
            self.paint_band(number, lane)
        self.paint_axis()
        self.paint_strikes()
        for lane in self.lanes:
            for item in lane.items:
                self.paint_item(item, lane)
        if not self.lanes:
            self.text(self.left, self.bottom - ROW / 2, "nothing was marked", FAINT)
        file = io.BytesIO()
        self.image.reduce(FINE).save(file, "PNG", optimize=False, compress_level=6)
        return file.getvalue()

    def paint_header(self) -> None:
        status = self.journal.status or "no verdict"
        line, under = HEADER / 3, HEADER * 0.69
        self.draw.text((MARGIN, line), self.journal.scenario, INK, self.title, anchor="lm")
        after = MARGIN + self.title.getlength(self.journal.scenario) + 2 * GAP
        self.draw.text((after, line), status, STATUS_COLOURS.get(status, FAINT), self.title, anchor="lm")
        self.text(MARGIN, under, f"seed {self.journal.seed}   run {self.journal.run_id}   {self.seconds:.2f} s", FAINT)

    def paint_band(self, number: int, lane: _Lane) -> None:
        if number % 2 == 0:
            self.draw.rectangle((0, lane.top, WIDTH, lane.top + lane.height - 1), BAND)
        colour = RED if lane.name == FAULT_LANE else lane.colour
        self.text(MARGIN, lane.top + PAD + ROW / 2, self.clip(lane.name, LANE_WIDTH), colour)
        if crowd := sum(item.row == MAX_ROWS for item in lane.items):
            self.text(MARGIN, lane.top + PAD + ROW * (MAX_ROWS + 0.5), f"and {crowd} more", FAINT)

    def paint_axis(self) -> None:
        for second in _ticks(self.seconds):
            x = self.x(second)
            self.draw.line((x, HEADER, x, self.bottom + DOT), GRID, width=FINE)
            self.text(x, self.bottom + FOOTER / 3, f"{second:g} s", FAINT, anchor="mm")
        self.draw.line((self.left, self.bottom, self.right, self.bottom), FAINT, width=FINE)

    def paint_strikes(self) -> None:
        """A fault's line runs through all lanes, so that one sees what it hit."""
        for item in (item for lane in self.lanes for item in lane.items if self.is_fault(item.mark)):
            self.draw.line((item.start, HEADER, item.start, self.bottom), PALE_RED, width=2 * FINE)

    def paint_item(self, item: _Item, lane: _Lane) -> None:
        fault = self.is_fault(item.mark)
        colour = RED if fault else lane.colour
        x, y = item.start, lane.top + PAD + ROW * (item.row + 0.5)
        if item.mark.until is not None:
            half = ROW * 0.4
            self.draw.rounded_rectangle((x, y - half, max(item.end, x + 2 * FINE), y + half), 4 * FINE, colour)
        elif fault:
            reach = DOT * 1.5
            self.draw.polygon([(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)], RED)
        else:
            self.draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), colour)
        self.text(item.label_x, y, item.label, PAPER if item.inside else RED if fault else INK)

    def text(self, x: float, y: float, text: str, colour: str, anchor: str = "lm") -> None:
        self.draw.text((x, y), text, colour, self.font, anchor=anchor)


def _is_free(taken: list[tuple[float, float]], extent: tuple[float, float]) -> bool:
    return all(extent[1] <= start or end <= extent[0] for start, end in taken)


def _ticks(seconds: float) -> list[float]:
    """Round numbers, about ten of them."""
    step = next(step for step in _steps() if seconds / step <= 10)
    return [round(number * step, 6) for number in range(int(seconds / step + 1e-9) + 1)]


def _steps() -> list[float]:
    return [round(factor * 10.0**power, 6) for power in range(-4, 12) for factor in (1, 2, 5)]
