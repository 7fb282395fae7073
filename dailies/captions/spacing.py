"""What the strokes know better than the recogniser: the space in OK 3, and that Come in begins with a capital.

Only where the strokes leave no doubt: as many separate shapes as there are letters, and a gap between two of them that
is far wider than the rest; a first letter that stands out above the others.
"""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LONGEST = 10
WIDE = 0.3
# Small and capital differ in nothing but their height.
SAME_SHAPES = "coösvwxzç"
TALLER, LEAST_LETTER = 0.2, 0.3


def spaced(text: str, ink: NDArray[np.bool_]) -> str:
    if not 1 < len(text) <= LONGEST or not text.isascii() or " " in text or not ink.any():
        return text
    shapes = _shapes(np.any(ink, axis=0))
    if len(shapes) != len(text):
        return text
    height = int(np.ptp(np.flatnonzero(ink.any(axis=1)))) + 1
    gaps = [right[0] - left[1] for left, right in itertools.pairwise(shapes)]
    wide = [gap >= max(WIDE * height, 2.0 * min(gaps) + 1) for gap in gaps]
    return text[0] + "".join(" " * gap + letter for gap, letter in zip(wide, text[1:], strict=True))


def cased(text: str, ink: NDArray[np.bool_]) -> str:
    """Made a capital and never small: beside tall letters alone a capital does not stand out."""
    if text[:1] not in SAME_SHAPES or not any(letter.islower() for letter in text[1:]) or not ink.any():
        return text
    extent = int(np.ptp(np.flatnonzero(ink.any(axis=1)))) + 1
    _, _, found, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8))
    tall = [(int(left), int(top), int(high)) for left, top, _, high, _ in found[1:] if high >= LEAST_LETTER * extent]
    if len(tall) < 3:
        return text
    (_, first, _), *others = sorted(tall)
    rise = float(np.median([top for _, top, _ in others])) - first
    return text[0].upper() + text[1:] if rise > TALLER * float(np.median([high for *_, high in others])) else text


def _shapes(columns: Any) -> list[tuple[int, int]]:
    """(first, last) column of each run of ink."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], columns.astype(np.int8), [0]))))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
