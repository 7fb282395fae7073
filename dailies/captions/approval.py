"""Which regions are read: those that the layout found, or the rectangle that a person drew instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from dailies.captions.databases import RawOcr
from dailies.captions.layout import Layout, Region, find_layout
from dailies.captions.ocr import Box
from dailies.errors import BadInput

SMALLEST = 16
Rectangle = tuple[float, float, float, float]


def approved(layout: Layout, raw: RawOcr, rectangle: Rectangle | None) -> tuple[Region, ...]:
    """``rectangle`` is left, top, right, bottom as shares of the picture; None approves the layout as it is."""
    if rectangle is None:
        if not layout.regions:
            raise BadInput("no captions were found in this video: draw the rectangle that they are in")
        return layout.regions
    return (_region_in(boxed(rectangle, layout.width, layout.height), layout, raw),)


def boxed(rectangle: Rectangle, width: int, height: int) -> Box:
    left, top, right, bottom = rectangle
    box = Box(round(left * width), round(top * height), round(right * width), round(bottom * height))
    if box.width < SMALLEST or box.height < SMALLEST:
        raise BadInput(
            f"the rectangle is {max(0, box.width)} x {max(0, box.height)} pixels: it must hold a line of text, "
            f"so at least {SMALLEST} x {SMALLEST}"
        )
    return box


def _region_in(crop: Box, layout: Layout, raw: RawOcr) -> Region:
    """Size and alignment of the lines from what was read inside; nothing read there says nothing about them."""
    inside = [replace(frame, lines=tuple(line for line in frame.lines if _holds(crop, line.box))) for frame in raw.seen]
    found = find_layout(inside, layout.width, layout.height).regions
    if not found:
        return unknown(crop, max((frame.us for frame in raw.frames), default=0))
    likeliest = max(found, key=lambda region: region.confidence)
    return replace(likeliest, crop=crop)


def unknown(crop: Box, last_us: int) -> Region:
    """A region of lines of any height anywhere in it."""
    return Region(
        crop=crop,
        centre=crop.middle[1],
        spread=0.0,
        line_height=0.0,
        anchor="left",
        anchor_x=float(crop.left),
        confidence=0.0,
        first_us=0,
        last_us=last_us,
    )


def _holds(crop: Box, box: Box) -> bool:
    x, y = box.middle
    return crop.left <= x < crop.right and crop.top <= y < crop.bottom


def plain(region: Region) -> dict[str, Any]:
    return asdict(region)


def region_of(value: Mapping[str, Any]) -> Region:
    """From what ``plain`` made of it, whatever else was added there."""
    own = {field.name: value[field.name] for field in fields(Region)}
    return Region(**{**own, "crop": Box(**value["crop"])})
