"""Lines into captions: what is on show together is one caption, its lines from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise

from dailies.captions.extents import Extent
from dailies.captions.ocr import Box
from dailies.captions.subtitles import Caption

# Two lines of one caption appear within a frame or two of one another, as measured; two captions do not.
TOGETHER_US = 90_000


def compose(extents: Sequence[Extent]) -> list[Caption]:
    """Whenever the set of lines changes a new caption begins; in each region on its own."""
    captions: list[Caption] = []
    for region in sorted({extent.region for extent in extents}):
        captions.extend(_of_region(_snapped([extent for extent in extents if extent.region == region])))
    return sorted(captions, key=lambda caption: (caption.start_us, caption.region))


def _of_region(extents: Sequence[Extent]) -> list[Caption]:
    edges = sorted({edge for extent in extents for edge in (extent.start_us, extent.end_us)})
    captions = []
    for start, end in pairwise(edges):
        shown = [extent for extent in extents if extent.start_us <= start and extent.end_us >= end]
        if shown:
            lines = sorted(shown, key=lambda extent: (extent.box.top, extent.box.left))
            text = "\n".join(line.text for line in lines)
            confidence = min(line.confidence for line in lines)
            box = reduce(Box.union, (line.box for line in lines))
            captions.append(Caption(start, end, text, confidence, lines[0].region, box))
    return captions


def _snapped(extents: Sequence[Extent]) -> list[Extent]:
    """Lines that come together start with the earliest of them, lines that go together end with the latest."""
    snapped = []
    for extent in extents:
        mates = [other for other in extents if _mates(extent, other)]
        starts = [one.start_us for one in mates if abs(one.start_us - extent.start_us) <= TOGETHER_US]
        ends = [one.end_us for one in mates if abs(one.end_us - extent.end_us) <= TOGETHER_US]
        snapped.append(replace(extent, start_us=min(starts), end_us=max(ends)))
    return snapped


def _mates(one: Extent, other: Extent) -> bool:
    shared = min(one.end_us, other.end_us) - max(one.start_us, other.start_us)
    return one is other or (shared > 0 and not one.box.same_row(other.box))
