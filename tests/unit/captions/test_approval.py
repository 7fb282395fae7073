"""What a person approves: the layout as it was found, or a rectangle of their own."""

from __future__ import annotations

import json

import pytest

from dailies.captions.approval import approved, plain, region_of, unknown
from dailies.captions.databases import FrameText, RawOcr
from dailies.captions.layout import Layout, find_layout
from dailies.captions.ocr import Box, Line
from dailies.errors import BadInput

pytestmark = pytest.mark.unit

SIZE = (640, 360)


def raw(*places: int) -> RawOcr:
    """On each of eight frames a centred line at each of these heights, with a text of its own."""
    frames = []
    for number in range(8):
        lines = tuple(
            Line(f"line {number} at {top}", 0.98, Box(200 - number, top, 440 + number, top + 30)) for top in places
        )
        frames.append(FrameText(number, number * 1_000_000, lines))
    return RawOcr(*SIZE, tuple(frames))


def found(text: RawOcr) -> Layout:
    return find_layout(text.seen, *SIZE)


def test_without_a_rectangle_the_layout_is_taken_as_it_was_found():
    text = raw(20, 300)
    layout = found(text)
    assert len(layout.regions) == 2
    assert approved(layout, text, None) == layout.regions


def test_a_layout_without_regions_cannot_be_approved_as_it_is():
    with pytest.raises(BadInput, match="draw the rectangle"):
        approved(found(raw()), raw(), None)


def test_a_rectangle_knows_the_lines_that_were_read_inside_and_no_others():
    text = raw(20, 300)
    (region,) = approved(found(text), text, (0.1, 0.7, 0.9, 1.0))
    assert region.crop == Box(64, 252, 576, 360)
    assert (region.anchor, region.line_height, region.centre) == ("center", 30.0, 315.0)


def test_a_rectangle_in_which_nothing_was_read_takes_lines_of_any_height():
    text = raw(300)
    (region,) = approved(found(text), text, (0.0, 0.0, 1.0, 0.4))
    assert region == unknown(Box(0, 0, 640, 144), 7_000_000)


@pytest.mark.parametrize("rectangle", [(0.5, 0.2, 0.4, 0.9), (0.0, 0.9, 1.0, 0.1), (0.0, 0.5, 1.0, 0.52), (0, 0, 0, 0)])
def test_a_rectangle_too_small_for_a_line_is_refused(rectangle):
    with pytest.raises(BadInput, match="must hold a line of text, so at least 16 x 16"):
        approved(found(raw(300)), raw(300), rectangle)


def test_a_region_goes_to_another_machine_and_comes_back_the_same():
    text = raw(300)
    (region,) = approved(found(text), text, None)
    assert region_of({**json.loads(json.dumps(plain(region))), "chunks": []}) == region
