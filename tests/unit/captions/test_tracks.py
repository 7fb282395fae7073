"""One line on show: what is kept of it while it is followed, and what it is taken to say in the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dailies.captions.ocr import Box, Gray, Line
from dailies.captions.sampling import Native
from dailies.captions.tracks import Track

pytestmark = pytest.mark.unit

TEXT = "We should have turned left"


class Reads:
    """An engine that reads the same everywhere, and remembers how large the pictures were."""

    device = "cpu"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def find(self, image: Gray, *, closely: bool = False) -> list[Box]:
        return []

    def read_lines(self, image: Gray, boxes: Sequence[Box], *, stretch: float = 1.0) -> list[Line]:
        self.shapes += [box.cut(image).shape for box in boxes]
        return [Line(TEXT, 0.95, box) for box in boxes]

    def read(self, image: Gray) -> list[Line]:
        return []


def strip() -> Gray:
    image = Image.new("L", (400, 100), 60)
    ImageDraw.Draw(image).text((30, 30), TEXT, fill=255, font=ImageFont.load_default(24))
    return np.asarray(image)


@pytest.mark.parametrize(
    "wider", [Box(28, 30, 340, 62), Box(28, 26, 340, 66), Box(28, 34, 340, 58), Box(28, 0, 340, 99)]
)
def test_a_line_that_is_found_to_be_longer_is_read_from_its_own_row(wider: Box) -> None:
    """The box of the whole line may be higher or lower than that of the part that was found first."""
    first = Track(Line(TEXT[:9], 0.9, Box(28, 30, 140, 62)), [Native(0, (strip(),))], 0)
    for us in range(100_000, 1_000_000, 100_000):
        first.hold(Native(us, (strip(),)), 0)
    engine = Reads()
    line = first.widened(Line(TEXT, 0.95, wider), strip(), 0).final(engine)
    assert (line.text, line.box) == (TEXT, wider)
    assert set(engine.shapes) == {(wider.height, wider.width)}
