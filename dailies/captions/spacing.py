"""The space that the recogniser swallows in a short line: OK 3 comes back as OK3.

Only where the strokes leave no doubt: as many separate shapes as there are letters, and a gap between two of them that
is far wider than the rest.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 10
WIDE = 0.3


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


def _shapes(columns: Any) -> list[tuple[int, int]]:
    """(first, last) column of each run of ink."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], columns.astype(np.int8), [0]))))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
