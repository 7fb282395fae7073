"""How cost grows with the number of videos, both axes in powers of ten, so that a straight slope of one is linear."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import ceil, floor, log10

from PIL import Image, ImageDraw, ImageFont

from dailies.scenarios.picture import FAINT, FINE, GRID, INK, LANE_COLOURS, PAPER

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = (FINE * size for size in (900, 560, 90, 190, 70, 70))
NAMES = ("full build, s", "update, s", "peak memory, MiB")


def growth_png(rows: Sequence[tuple[float, ...]]) -> bytes:
    """Each row: how many videos, and the figures of ``NAMES``."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font, title = ImageDraw.Draw(image), ImageFont.load_default(15 * FINE), ImageFont.load_default(22 * FINE)
    draw.text((LEFT, TOP / 2), "The catalogue as it grows", INK, title, anchor="lm")
    values = [max(value, 0.01) for row in rows for value in row[1:]]
    across = _powers([row[0] for row in rows])
    up = _powers(values)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (log10(value) - across[0]) / (across[-1] - across[0])

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (log10(value) - up[0]) / (up[-1] - up[0])

    for power in across:
        draw.line((x(10**power), TOP, x(10**power), HEIGHT - BOTTOM), GRID, width=FINE)
        draw.text((x(10**power), HEIGHT - BOTTOM / 2), f"{10**power:,}", FAINT, font, anchor="mm")
    for power in up:
        draw.line((LEFT, y(10.0**power), WIDTH - RIGHT, y(10.0**power)), GRID, width=FINE)
        draw.text((LEFT - 10 * FINE, y(10.0**power)), f"{10.0**power:g}", FAINT, font, anchor="rm")
    for number, name in enumerate(NAMES, 1):
        points = [(x(row[0]), y(max(row[number], 0.01))) for row in rows]
        colour = LANE_COLOURS[number - 1]
        draw.line(points, colour, width=3 * FINE)
        for at_x, at_y in points:
            draw.ellipse((at_x - 5 * FINE, at_y - 5 * FINE, at_x + 5 * FINE, at_y + 5 * FINE), colour)
        draw.text((points[-1][0] + 12 * FINE, points[-1][1]), name, colour, font, anchor="lm")
    file = io.BytesIO()
    image.reduce(FINE).save(file, "PNG", optimize=False, compress_level=6)
    return file.getvalue()


def _powers(values: Sequence[float]) -> list[int]:
    first = floor(log10(min(values)))
    return list(range(first, max(ceil(log10(max(values))), first + 1) + 1))
