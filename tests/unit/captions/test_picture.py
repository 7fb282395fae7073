"""The picture of a layout, asked by its pixels: what is bright, what is dark, and where which colour stands."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dailies.captions.databases import FrameText, RawOcr
from dailies.captions.layout import Layout, Region
from dailies.captions.ocr import Box, Line
from dailies.captions.picture import COLOURS, HEADER, HIGHEST, MARGIN, PAPER, WIDEST, layout_picture
from dailies.errors import Unreadable

pytestmark = pytest.mark.unit

LOWER = Region(Box(0, 540, 1280, 700), 620.0, 20.0, 40.0, "center", 640.0, 0.9871, 600_000, 3_725_400_000)
UPPER = Region(Box(100, 0, 1280, 120), 60.0, 1.0, 40.0, "left", 160.0, 0.5, 0, 1_000_000)
SIGN = Line("EXIT", 0.9, Box(1000, 300, 1160, 350))
SAID = Line("Come in", 0.9, Box(540, 600, 740, 640))
LAYOUT = Layout(1280, 720, 20, 30, (LOWER,))
RAW = RawOcr(1280, 720, (FrameText(0, 0, (SIGN, SAID)),))


def jpeg(size: tuple[int, int] = (1280, 720), grey: int = 200) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, "JPEG")
    return file.getvalue()


def sheet(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def drawn(layout: Layout, raw: RawOcr = RAW, frame: bytes | None = None) -> np.ndarray:
    """The film's picture alone; a film of 1280 x 720 stands in its own pixels."""
    whole = sheet(layout_picture(frame or jpeg((layout.width, layout.height)), layout, raw))
    scale = min(WIDEST / layout.width, HIGHEST / layout.height)
    across, along = round(layout.width * scale), round(layout.height * scale)
    return whole[HEADER : HEADER + along, MARGIN : MARGIN + across]


def near(pixel: np.ndarray, colour: tuple[int, ...], within: int = 3) -> bool:
    return bool(np.abs(pixel - colour).max() <= within)


def test_the_region_is_clear_and_framed_and_the_rest_is_dark() -> None:
    picture = drawn(LAYOUT)
    assert picture.shape == (720, 1280, 3)
    assert picture[400, 300].mean() < 90
    assert picture[560, 300].mean() > 150
    for y, x in ((540, 300), (542, 300), (699, 300), (600, 0), (600, 1279)):
        assert near(picture[y, x], COLOURS[0]), (y, x)


def test_the_anchor_is_dashed_and_the_middle_of_the_lines_has_its_band() -> None:
    picture = drawn(LAYOUT, RawOcr(1280, 720, ()))
    dashed = [near(picture[y, 640], COLOURS[0]) for y in range(545, 595)]
    assert 0.3 < sum(dashed) / len(dashed) < 0.7
    blue = picture[550:690, 200, 2] - picture[550:690, 200, 0]
    band = 550 + np.flatnonzero(blue > 15)
    assert (band[0], band[-1]) == (600, 640)
    assert 550 + int(blue.argmax()) == 620
    left = drawn(replace(LAYOUT, regions=(replace(LOWER, anchor="left", anchor_x=100.0),)), RawOcr(1280, 720, ()))
    assert not any(near(left[y, 640], COLOURS[0]) for y in range(545, 595))
    assert any(near(left[y, 100], COLOURS[0]) for y in range(545, 595))


def test_a_box_has_the_colour_of_its_region_or_none() -> None:
    picture = drawn(LAYOUT)
    said, sign = picture[610, 540], picture[325, 1000]
    assert said[2] - said[0] > 60
    assert np.ptp(sign) < 16
    assert sign.mean() > picture[325, 990].mean() + 30


def test_each_region_has_its_number_beside_its_captions_and_not_on_them() -> None:
    picture = drawn(replace(LAYOUT, regions=(UPPER, LOWER)))
    assert near(picture[0, 700], COLOURS[0])
    assert near(picture[560, 0], COLOURS[1])
    below, above = picture[122:144, 104:170].reshape(-1, 3), picture[518:538, 4:70].reshape(-1, 3)
    for plate, colour in ((below, COLOURS[0]), (above, COLOURS[1])):
        assert 0.5 < np.mean([near(pixel, colour) for pixel in plate]) < 0.95


def test_a_watermark_of_a_hundred_frames_is_one_box_and_no_smear() -> None:
    frames = tuple(
        FrameText(number, number, (replace(SIGN, box=SIGN.box.moved(number % 2, 0)),)) for number in range(100)
    )
    many, one = (drawn(LAYOUT, RawOcr(1280, 720, frames[:count])) for count in (100, 1))
    assert (many == one).all()


def test_a_film_without_captions_says_so() -> None:
    none = replace(LAYOUT, regions=())
    picture = drawn(none)
    plate = picture[335:385, 500:780].mean(axis=2)
    assert plate.min() < 35
    assert plate.max() > 200
    title = [sheet(layout_picture(None, layout, RAW))[:HEADER, :300] for layout in (none, LAYOUT)]
    assert (title[0] != title[1]).any()


def test_lines_outside_a_rectangle_drawn_by_hand_are_shown_where_they_were() -> None:
    picture = drawn(replace(LAYOUT, regions=(replace(LOWER, centre=300.0),)), RawOcr(1280, 720, ()))
    assert near(picture[300, 200], COLOURS[0], 60)
    assert not near(picture[620, 200], COLOURS[0], 60)
    assert drawn(replace(LAYOUT, regions=(replace(LOWER, centre=9000.0),))).shape == picture.shape


@pytest.mark.parametrize(
    "size", [(1280, 720), (720, 1280), (3840, 2160), (320, 240), (1080, 1080), (2, 2), (4000, 100)]
)
@pytest.mark.parametrize("regions", [0, 1, 6])
def test_nothing_runs_off_the_sheet(size: tuple[int, int], regions: int) -> None:
    width, height = size
    region = replace(LOWER, crop=Box(0, 0, width, height), centre=height / 2, anchor_x=float(width))
    layout = Layout(width, height, 12345, 12345, (region,) * regions)
    raw = RawOcr(width, height, (FrameText(0, 0, (SIGN,) * 2), FrameText(1, 1, error="it broke")))
    whole = sheet(layout_picture(jpeg(), layout, raw))
    for edge in (whole[:, :MARGIN], whole[:, -MARGIN:], whole[: MARGIN // 2], whole[-MARGIN // 2 :]):
        assert (edge == PAPER).all()
    assert whole.shape[1] <= WIDEST + 2 * MARGIN


def test_the_counts_never_run_into_the_title() -> None:
    narrow = Layout(100, 4000, 12345, 12345, (LOWER,) * 6)
    busy = RawOcr(100, 4000, tuple(FrameText(number, number, error="no answer") for number in range(12345)))
    titles = [sheet(layout_picture(None, narrow, raw))[:HEADER, :260] for raw in (busy, RawOcr(100, 4000, ()))]
    assert (titles[0] == titles[1]).all()


def test_the_facts_stand_beside_an_upright_film_and_below_a_wide_one() -> None:
    tall = Layout(720, 1280, 20, 30, (replace(LOWER, crop=Box(0, 900, 720, 1280), centre=1100.0),))
    upright = sheet(layout_picture(None, tall, RawOcr(720, 1280, ())))
    assert (upright[HEADER : HEADER + 200, MARGIN + 450 :] != PAPER).any()
    wide = sheet(layout_picture(None, LAYOUT, RAW))
    assert (wide[HEADER + 725 :] != PAPER).any()


def test_the_same_layout_gives_the_same_bytes_and_a_frame_of_another_size_fits() -> None:
    assert layout_picture(jpeg(), LAYOUT, RAW) == layout_picture(jpeg(), LAYOUT, RAW)
    assert np.abs(drawn(LAYOUT, frame=jpeg((640, 360))) - drawn(LAYOUT)).max() <= 2


def test_a_frame_that_is_no_picture_is_refused() -> None:
    for data in (b"", b"garbage", jpeg()[:600]):
        with pytest.raises(Unreadable, match="extract the frames again"):
            layout_picture(data, LAYOUT, RAW)
