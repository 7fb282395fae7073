"""A decoded frame as grey and as colour, whatever the codec keeps it in."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest

from dailies.media.looks import GROUND, colour, luma, upright

pytestmark = pytest.mark.unit

SHAPE = (48, 70)
LEFT, RIGHT = 40, 210


def picture() -> np.ndarray[Any, Any]:
    grey = np.full((*SHAPE, 3), LEFT, np.uint8)
    grey[:, SHAPE[1] // 2 :] = RIGHT
    return grey


def levels(grey: np.ndarray[Any, Any]) -> tuple[int, int]:
    assert grey.shape[:2] == SHAPE
    assert grey.dtype == np.uint8
    return int(np.median(grey[:, :30])), int(np.median(grey[:, 40:]))


@pytest.mark.parametrize(
    "kind",
    [
        "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "gray", "yuyv422", "uyvy422", "rgb24", "bgr24", "gbrp",
        "yuv420p10le", "yuv422p10le", "yuv444p12le", "yuv444p16le", "yuv420p10be", "gray10le", "p010le", "gbrp10le",
        "grayf32le", "monow", "rgb565le", "pal8", "bgra", "argb", "yuva420p", "yuva444p10le", "ya8", "gbrap",
    ],
)  # fmt: skip
def test_every_way_to_keep_a_picture_gives_the_same_grey_and_colour(kind: str) -> None:
    source = av.VideoFrame.from_ndarray(picture(), format="rgb24")
    if kind == "pal8":
        frame = av.VideoFrame.from_ndarray(
            (picture()[..., 0], np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1)), format="pal8"
        )
    else:
        frame = source.reformat(format=kind)
    dark, light = levels(luma(frame))
    if kind == "monow":
        assert (dark, light) == (0, 255) or light > dark
        return
    if kind == "pal8":
        # The palette's own cover: what is 40 there is as good as glass.
        assert (dark, light) == (pytest.approx(GROUND, abs=30), pytest.approx(RIGHT, abs=30))
        return
    # Studio levels press 0…255 into 16…235; for reading that is as good.
    assert dark == pytest.approx(LEFT, abs=13)
    assert light == pytest.approx(RIGHT, abs=16)
    shown = colour(frame)
    assert shown.shape == (*SHAPE, 3)
    assert levels(shown[..., 1]) == (pytest.approx(LEFT, abs=6), pytest.approx(RIGHT, abs=6))


def test_what_nobody_sees_is_not_read() -> None:
    glass = np.zeros((*SHAPE, 4), np.uint8)
    glass[..., :3] = 255
    glass[:, SHAPE[1] // 2 :, 3] = 255
    frame = av.VideoFrame.from_ndarray(glass, format="rgba")
    for kind in ("rgba", "yuva444p"):
        dark, light = levels(luma(frame.reformat(format=kind)))
        assert dark == pytest.approx(GROUND, abs=3)
        assert light == pytest.approx(255, abs=3)


def code(light: float) -> float:
    root = (light / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375)


def hdr(*lights: float, bits: int = 10) -> av.VideoFrame:
    """Grey columns so bright, in candela a square metre, as HDR10 keeps them."""
    frame = av.VideoFrame(64 * len(lights), 64, f"yuv420p{bits}le")
    unit = 1 << (bits - 8)
    luma_plane, *chroma = frame.planes
    row = np.repeat([round((16 + 219 * code(light)) * unit) for light in lights], 64).astype(np.uint16)
    wide = np.zeros((64, luma_plane.line_size // 2), np.uint16)
    wide[:, : len(row)] = row
    luma_plane.update(wide.tobytes())
    for plane in chroma:
        plane.update(np.full((plane.height, plane.line_size // 2), 128 * unit, np.uint16).tobytes())
    frame.color_trc, frame.colorspace, frame.color_primaries, frame.color_range = 16, 9, 9, 1
    return frame


@pytest.mark.parametrize("bits", [10, 12])
def test_hdr_shows_paper_as_white_and_brighter_than_paper_as_brighter_still(bits: int) -> None:
    lights = (0, 5, 25, 100, 203, 600, 4000)
    for seen in (luma(hdr(*lights, bits=bits)), colour(hdr(*lights, bits=bits))[..., 1]):
        levels = [int(seen[32, 64 * place + 32]) for place in range(len(lights))]
        assert levels == sorted(levels)
        assert levels[0] <= 2
        assert levels[1] < 60
        assert 170 < levels[3] < 200
        assert 235 < levels[4] < 250
        assert levels[6] == 255


def test_the_same_numbers_without_the_mark_of_hdr_are_left_alone() -> None:
    frame = hdr(5, 100)
    frame.color_trc = 1
    assert luma(frame)[32, 96] == pytest.approx(16 + 219 * code(100), abs=1)


def test_a_grey_picture_is_not_copied() -> None:
    frame = av.VideoFrame.from_ndarray(picture(), format="rgb24").reformat(format="yuv420p")
    assert not luma(frame).flags.owndata


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_upright_turns_clockwise(rotation: int, corner: tuple[int, int]) -> None:
    plain = np.zeros((4, 6), np.uint8)
    plain[0, 0] = 255
    assert upright(plain, rotation)[corner] == 255


def test_a_picture_shrinks_to_the_size_asked_for() -> None:
    frame = av.VideoFrame.from_ndarray(picture(), format="rgb24")
    assert colour(frame, (35, 24)).shape == (24, 35, 3)
