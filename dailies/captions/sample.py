"""A film with captions burned in, made by code: what the demo and the scenarios read, and what they must find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dailies.media.sample import RATE, SIZE, film_at

FRAME_US = 1_000_000 // RATE
# From the frame, up to the frame; told again every twelve seconds. Without a gap in the middle, and one letter apart.
LINES = (
    (15, 60, "Good evening, everyone"),
    (70, 110, "We open the doors at 5"),
    (110, 150, "We open the doors at 6"),
    (165, 215, "And what did you say then?\nNothing at all."),
    (230, 285, "It was 20 minutes past nine"),
)
LAP = 12 * RATE


def make_film(path: Path, seconds: int = 12) -> Path:
    """Captions on a picture that slowly moves; the same bytes every time."""
    with film_at(path) as (container, video):
        for number in range(seconds * RATE):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(video.encode())
    return path


def truth(seconds: int = 12) -> list[tuple[int, int, str]]:
    """(start_us, end_us, text) of each caption of such a film."""
    shown = []
    for lap in range(0, seconds * RATE, LAP):
        for first, after, text in LINES:
            end = min(lap + after, seconds * RATE)
            if lap + first < end:
                shown.append(((lap + first) * FRAME_US, end * FRAME_US, text))
    return shown


def picture(number: int) -> np.ndarray[Any, Any]:
    width, height = SIZE
    across, along = np.arange(width) / width, np.arange(height)[:, None] / height
    drift = number / LAP
    light = 0.5 + 0.5 * np.sin(2 * np.pi * (across + drift) + 3 * along)
    ground = 0.5 + 0.5 * np.sin(2 * np.pi * (2 * drift - 1.5 * across) + 5 * along)
    dusk = np.stack([40 + 90 * ground * along, 30 + 50 * light, 90 + 70 * light * (1 - along)], axis=2)
    image = Image.fromarray(dusk.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for first, after, text in LINES:
        if first <= number % LAP < after:
            draw.multiline_text(
                (width / 2, height - 24),
                text,
                fill="white",
                font=ImageFont.load_default(26),
                anchor="md",
                align="center",
                stroke_width=2,
                stroke_fill="black",
            )
    return np.asarray(image)
