"""Where captions were found, as a picture for the human who approves it.

The frame is dark but for the regions. Every piece of text that was read on any frame has a thin box: coloured where it
belongs to a region, grey where it does not. A region shows its number, the line through the middles of its lines with
their spread as a band, and dashes along what the lines are aligned by. The same layout gives the same bytes.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from dailies.captions.databases.layout import labels
from dailies.captions.databases.raw_ocr import RawOcr
from dailies.captions.layout import Layout, Region
from dailies.captions.ocr import Box
from dailies.errors import Unreadable

WIDEST, HIGHEST = 1280, 760
MARGIN, HEADER, ROW = 20, 52, 26
# A narrow picture has its facts beside it, a wide one below.
BESIDE, FACTS_WIDTH = 960, 380
PAPER, INK, FAINT, GREY = (18, 20, 24), (232, 234, 237), (140, 147, 158), (170, 176, 186)
COLOURS = ((64, 196, 255), (255, 179, 64), (128, 222, 110), (240, 128, 200), (190, 160, 255), (255, 236, 110))
DIM, CLEAR = 0.34, 0.8
DASH, NEAR = 7, 4
ALIGNED = {"left": "aligned left", "center": "centred", "right": "aligned right"}
NOTES = ("band: where the lines sit, and their spread", "dashes: what they are aligned by", "thin boxes: text read")
STRANGE = "thin boxes: text read, none of it captions"


def layout_picture(frame: bytes | None, layout: Layout, raw: RawOcr) -> bytes:
    """A PNG. `frame`: one whole frame as JPEG, of any size with the layout's proportions."""
    picture = _Overlay(_frame(frame, layout), layout)
    picture.paint_texts(raw)
    for number, region in enumerate(layout.regions):
        picture.paint_region(number, region)
    for number, region in enumerate(layout.regions):
        picture.paint_number(number, region)
    if not layout.regions:
        picture.paint_nothing()
    png = io.BytesIO()
    _sheet(picture.image, layout, raw).save(png, "PNG", compress_level=6)
    return png.getvalue()


def _frame(frame: bytes | None, layout: Layout) -> Image.Image:
    scale = min(WIDEST / layout.width, HIGHEST / layout.height)
    size = max(1, round(layout.width * scale)), max(1, round(layout.height * scale))
    if frame is None:
        return Image.new("RGB", size, (70, 74, 82))
    try:
        return Image.open(io.BytesIO(frame)).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError) as error:
        raise Unreadable("the frame to show the layout on is no picture: extract the frames again") from error


class _Overlay:
    """Draws in the picture's pixels, given what is in the film's."""

    def __init__(self, frame: Image.Image, layout: Layout) -> None:
        self.across, self.along = frame.width / layout.width, frame.height / layout.height
        dark = Image.new("RGB", frame.size, PAPER)
        self.image = Image.blend(dark, frame, DIM)
        clear = Image.blend(dark, frame, CLEAR)
        for region in layout.regions:
            left, top, right, bottom = self.edges(region.crop)
            area = (left, top, right + 1, bottom + 1)
            self.image.paste(clear.crop(area), area)
        self.layout = layout
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def edges(self, box: Box) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), the last two still inside."""
        left, top = round(box.left * self.across), round(box.top * self.along)
        right, bottom = round(box.right * self.across) - 1, round(box.bottom * self.along) - 1
        right, bottom = min(right, self.image.width - 1), min(bottom, self.image.height - 1)
        return left, top, max(left, right), max(top, bottom)

    def paint_texts(self, raw: RawOcr) -> None:
        """Each place once: a watermark of a hundred frames is one box and not a hundred on top of one another."""
        boxes = [line.box for frame in raw.frames for line in frame.lines]
        painted = np.full((len(boxes), 5), -NEAR - 1)
        for number, (box, label) in enumerate(zip(boxes, labels(self.layout, raw), strict=True)):
            region, edges = -1 if label.region is None else label.region, self.edges(box)
            same = painted[:, 0] == region
            if (np.abs(painted[same, 1:] - edges).max(axis=1, initial=0) <= NEAR).any():
                continue
            painted[number] = (region, *edges)
            self.draw.rectangle(edges, outline=(*(GREY if label.region is None else _colour(region)), 140))

    def paint_region(self, number: int, region: Region) -> None:
        colour = _colour(number)
        left, top, right, bottom = self.edges(region.crop)
        middle, reach = round(region.centre * self.along), max(2, round(region.spread * self.along))
        # By hand a rectangle may be drawn past the lines that were seen: the band says where they were.
        middle = min(max(middle, 0), self.image.height - 1)
        self.draw.rectangle((left, middle - reach, right, middle + reach), fill=(*colour, 45))
        self.draw.line((left, middle, right, middle), fill=(*colour, 220))
        x = min(max(round(region.anchor_x * self.across), left), right)
        for y in range(top, bottom, 2 * DASH):
            self.draw.line((x, y, x, min(y + DASH, bottom)), fill=(*colour, 255), width=2)
        self.draw.rectangle((left, top, right, bottom), outline=colour, width=3)

    def paint_number(self, number: int, region: Region) -> None:
        """On the upper edge, half outside where there is room: inside it would hide the captions."""
        left, top, _, bottom = self.edges(region.crop)
        font = _font(18)
        text = f"region {number}"
        width, height = round(font.getlength(text)) + 16, ROW
        above = top - height + 2
        y = above if above >= 0 else min(bottom - 2, self.image.height - height)
        self.draw.rectangle((left, y, left + width, y + height - 1), fill=_colour(number))
        self.draw.text((left + 8, y + height // 2), text, fill=PAPER, font=font, anchor="lm")

    def paint_nothing(self) -> None:
        text, font = "no captions found", _font(max(18, min(34, self.image.width // 14)))
        half = (font.getlength(text) / 2 + 24, font.size * 0.9)
        x, y = self.image.width / 2, self.image.height / 2
        self.draw.rounded_rectangle((x - half[0], y - half[1], x + half[0], y + half[1]), 8, fill=(*PAPER, 225))
        self.draw.text((x, y), text, fill=INK, font=font, anchor="mm")


def _sheet(picture: Image.Image, layout: Layout, raw: RawOcr) -> Image.Image:
    beside = picture.width < BESIDE
    facts = [_facts(number, region, layout) for number, region in enumerate(layout.regions)]
    rows = sum(len(lines) + 1 for lines in facts) if beside else sum(1 + (len(lines) > 2) for lines in facts)
    notes = _notes(layout, raw, beside)
    room = (rows + len(notes)) * ROW
    width = 2 * MARGIN + picture.width + (MARGIN + FACTS_WIDTH if beside else 0)
    height = HEADER + (max(picture.height, room) if beside else picture.height + MARGIN // 2 + room) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(picture, (MARGIN, HEADER))
    draw = ImageDraw.Draw(sheet)
    _title(draw, layout, raw, width)
    x, y = (2 * MARGIN + picture.width, HEADER) if beside else (MARGIN, HEADER + picture.height + MARGIN // 2)
    for number, lines in enumerate(facts):
        y = _column(draw, x, y, number, lines) if beside else _rows(draw, x, y, number, lines)
    for note in notes:
        draw.text((x, y + ROW // 2), note, fill=FAINT, font=_font(14), anchor="lm")
        y += ROW
    return sheet


def _notes(layout: Layout, raw: RawOcr, beside: bool) -> list[str]:
    if layout.regions:
        return list(NOTES) if beside else ["   ·   ".join(NOTES)]
    return [STRANGE] if any(frame.lines for frame in raw.frames) else []


def _title(draw: ImageDraw.ImageDraw, layout: Layout, raw: RawOcr, width: int) -> None:
    count = len(layout.regions)
    head = (
        "No captions found" if not count else "Captions in 1 region" if count == 1 else f"Captions in {count} regions"
    )
    draw.text((MARGIN, HEADER // 2), head, fill=INK, font=_font(22), anchor="lm")
    texts = sum(len(frame.lines) for frame in raw.frames)
    said = [f"{layout.width} x {layout.height}", f"{texts} texts on {len(raw.frames)} frames"]
    if raw.failed:
        said.append(f"{raw.failed} unread")
    right, room = width - MARGIN, width - 3 * MARGIN - _font(22).getlength(head)
    while said and _font(16).getlength("   ·   ".join(said)) > room:
        said.pop(0)
    draw.text((right, HEADER // 2), "   ·   ".join(said), fill=FAINT, font=_font(16), anchor="rm")


def _facts(number: int, region: Region, layout: Layout) -> list[str]:
    crop = region.crop
    return [
        f"region {number}: {crop.width} x {crop.height} at {crop.left}, {crop.top}",
        f"confidence {region.confidence:.3f}",
        f"lines at {region.centre / layout.height:.1%} ± {region.spread / layout.height:.1%} of the height",
        f"{ALIGNED[region.anchor]} at {region.anchor_x / layout.width:.1%} of the width",
        f"lines {region.line_height:.0f} high",
        f"seen {_clock(region.first_us)} to {_clock(region.last_us)}",
    ]


def _column(draw: ImageDraw.ImageDraw, x: int, y: int, number: int, lines: list[str]) -> int:
    for place, line in enumerate(lines):
        _fact(draw, x, y, number if place == 0 else None, line)
        y += ROW
    return y + ROW


def _rows(draw: ImageDraw.ImageDraw, x: int, y: int, number: int, lines: list[str]) -> int:
    _fact(draw, x, y, number, "   ·   ".join(lines[:2]))
    _fact(draw, x, y + ROW, None, "   ·   ".join(lines[2:]))
    return y + 2 * ROW


def _fact(draw: ImageDraw.ImageDraw, x: int, y: int, number: int | None, text: str) -> None:
    if number is not None:
        draw.rectangle((x, y + 6, x + 14, y + 20), fill=_colour(number))
    draw.text((x + 24, y + ROW // 2), text, fill=FAINT if number is None else INK, font=_font(16), anchor="lm")


def _colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def _clock(us: int) -> str:
    seconds, tenths = divmod(us // 100_000, 10)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{tenths}"


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
