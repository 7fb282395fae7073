"""A clip made by code: what the demo and the scenarios work on where nobody gave them one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dailies.canonical import write_atomically

RATE = 25
SOUND = 48_000
SIZE = (640, 360)


def make_clip(path: Path, seconds: int = 8) -> Path:
    """A moving bar, a running time and a tone that rises every second; the same bytes every time."""
    with film_at(path) as (container, video):
        audio = container.add_stream("aac", rate=SOUND)
        audio.options = {"flags": "+bitexact"}
        for second in range(seconds):
            for number in range(second * RATE, (second + 1) * RATE):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
            container.mux(audio.encode(tone(second)))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


@contextmanager
def film_at(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its pictures, to be filled; whole at the end or not there at all, and without a clock in it."""
    temp = path.with_name(f".{path.name}.making.tmp")
    temp.parent.mkdir(parents=True, exist_ok=True)
    try:
        with av.open(str(temp), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            video: Any = container.add_stream("libx264", rate=RATE)
            video.width, video.height = SIZE
            video.pix_fmt = "yuv420p"
            video.options = {"flags": "+bitexact", "preset": "ultrafast", "threads": "1"}
            yield container, video
        write_atomically(path, [temp.read_bytes()])
    finally:
        temp.unlink(missing_ok=True)


def picture(number: int) -> np.ndarray[Any, Any]:
    width, height = SIZE
    image = Image.new("RGB", SIZE, (24 + number % 64, 40, 90 - number % 48))
    draw = ImageDraw.Draw(image)
    x = number * 7 % width
    draw.rectangle((x, 0, x + 24, height), fill=(240, 200, 80))
    draw.text((24, height - 76), f"{number / RATE:06.2f} s", fill="white", font=ImageFont.load_default(48))
    return np.asarray(image)


def tone(second: int) -> av.AudioFrame:
    time = np.arange(SOUND) / SOUND
    wave = (0.2 * np.sin(2 * np.pi * 220 * (1 + second % 8 / 4) * time)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[np.newaxis], format="fltp", layout="mono")
    frame.sample_rate = SOUND
    frame.pts = second * SOUND
    return frame
