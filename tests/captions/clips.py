"""Clips with captions burned in, and exactly what should be read from them.

    film = clip(tmp_path / "film.mp4", [Cue(10, 60, "Good morning")])
    film.cues[0].start_us, film.cues[0].end_us     # the first frame with it, the first frame without

The font is the one that Pillow brings, so that every machine makes the same films.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

VFR_PATTERN = (1, 2, 1, 1, 3, 1, 2)

Background = Callable[[int, int, int], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Cue:
    """Shown on the frames from `first` up to, not including, `last`. `at` is the height of its last line's foot."""

    first: int
    last: int
    text: str
    at: float = 0.93
    start_us: int = 0
    end_us: int = 0


@dataclass(frozen=True)
class Clip:
    path: Path
    cues: tuple[Cue, ...]
    times_us: tuple[int, ...]


def clip(
    path: Path,
    cues: Sequence[Cue],
    *,
    frames: int = 150,
    size: tuple[int, int] = (640, 360),
    rate: int = 25,
    vfr: bool = False,
    start: Fraction = Fraction(0),
    background: Background | None = None,
    outline: int = 2,
    font_size: int | None = None,
    rotation: int = 0,
) -> Clip:
    """`start` shifts the container's clock, which must not be seen in any time."""
    ticks = _ticks(frames, vfr)
    us = [round(Fraction(tick * 1_000_000, rate)) for tick in ticks]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        stream: Any = output.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height = size[::-1] if rotation % 180 else size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(-rotation)
        for number, tick in enumerate(ticks[:-1]):
            picture = (background or plain)(number, *size)
            for cue in cues:
                if cue.first <= number < cue.last:
                    _burn(picture, cue, font_size or round(min(size) * 0.062), outline)
            turned = np.ascontiguousarray(np.rot90(picture, rotation // 90))
            frame = av.VideoFrame.from_ndarray(turned, format="rgb24")
            frame.time_base = Fraction(1, rate)
            frame.pts = tick + round(start * rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    timed = [replace(cue, start_us=us[cue.first], end_us=us[cue.last]) for cue in cues]
    return Clip(path, tuple(timed), tuple(us))


def plain(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    return np.full((height, width, 3), (40, 60, 80), np.uint8)


def busy(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    return _texture(width, height).copy()


def moving(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    return np.roll(_texture(width, height), (number * 3, number * 5), axis=(0, 1))


def cuts(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    """A hard cut every 40 frames, from dark to light and back."""
    return np.full((height, width, 3), (30, 40, 50) if number // 40 % 2 else (190, 170, 150), np.uint8)


@lru_cache(maxsize=4)
def _texture(width: int, height: int) -> np.ndarray[Any, Any]:
    """Blobs of many sizes and brightnesses: leaves, stones, a crowd."""
    rng = np.random.default_rng(7)
    picture = np.zeros((height, width, 3))
    for cells, weight in ((6, 0.5), (20, 0.3), (70, 0.2)):
        noise = rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8)
        scaled = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture += weight * np.asarray(scaled)
    return picture.astype(np.uint8)


def _burn(picture: np.ndarray[Any, Any], cue: Cue, size: int, outline: int) -> None:
    height, width = picture.shape[:2]
    ink, mask, top, left = _rendered(cue.text, size, outline, width, round(height * cue.at))
    area = picture[top : top + ink.shape[0], left : left + ink.shape[1]]
    area[:] = (area * (1 - mask) + ink * mask).astype(np.uint8)


@lru_cache(maxsize=64)
def _rendered(text: str, size: int, outline: int, width: int, foot: int) -> tuple[Any, Any, int, int]:
    font = _font(size)
    where = {"font": font, "stroke_width": outline, "anchor": "md", "align": "center"}
    ruler = ImageDraw.Draw(Image.new("L", (1, 1)))
    box = ruler.multiline_textbbox((width / 2, foot), text, **where)  # type: ignore[arg-type]
    left, top, right, bottom = (int(box[0]) - 2, int(box[1]) - 2, int(box[2]) + 3, int(box[3]) + 3)
    ink, mask = (Image.new("L", (right - left, bottom - top)) for _ in range(2))
    spot = (width / 2 - left, foot - top)
    ImageDraw.Draw(ink).multiline_text(spot, text, fill=255, stroke_fill=0, **where)  # type: ignore[arg-type]
    ImageDraw.Draw(mask).multiline_text(spot, text, fill=255, stroke_fill=255, **where)  # type: ignore[arg-type]
    return np.asarray(ink)[..., None] * 1.0, np.asarray(mask)[..., None] / 255, top, left


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _ticks(frames: int, vfr: bool) -> list[int]:
    """One more than there are frames: the last is the end."""
    ticks = [0]
    for number in range(frames):
        ticks.append(ticks[-1] + (VFR_PATTERN[number % len(VFR_PATTERN)] if vfr else 1))
    return ticks
