"""Is this very line of text on that picture? A template of the pixels that stay while everything behind them moves.

Comparing whole pictures neither sees a caption of three letters nor anything on a moving background. Here each pixel
in a line's box is steady or not, and a picture shows the line unless a spot the size of a pen stroke differs on steady
pixels: one letter exchanged is such a spot, the noise of a codec is not.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dailies.captions.ocr import Box, Gray

STROKE_SHARE = 12
# A letter exchanged may add no more than a thin stroke to the one that was there: 3 and 8.
SPOT, FAINT_SPOT = 0.8, 0.6
LEAST_STEADY = 0.06
NOISE, CONTRAST_SHARE = 22, 0.3
STROKE_RISE, LEAST_INK = 70, 0.03


class Template:
    """`box` is in the strip; `shows` is False on a template that has lost too many pixels to tell."""

    def __init__(self, strip: Gray, box: Box) -> None:
        self.box = box
        self.picture = box.cut(strip).copy()
        self.steady: NDArray[np.bool_] = np.ones(self.picture.shape, np.bool_)
        self.tolerance = max(NOISE, round(_contrast(self.picture) * CONTRAST_SHARE))
        self.window = max(3, box.height // STROKE_SHARE)
        self.light, self.ink = _ink(self.picture)
        self.ring = _wider(_wider(self.ink)) & ~self.ink
        self.relief = self._relief(self.picture)

    @property
    def tells(self) -> bool:
        return bool(self.steady.mean() >= LEAST_STEADY)

    def shows(self, strip: Gray) -> bool:
        return self.tells and not _spotted(self._differs(strip) & self.steady, self.window)

    def holds(self, strip: Gray) -> bool:
        """The strokes are all there, they stand out, and there are no others: whatever happened behind them."""
        now = self.box.cut(strip)
        if self.ink.mean() < LEAST_INK or _spotted(self._differs(strip) & self.ink, self.window):
            return False
        if self._relief(now) < 0.5 * self.relief:
            return False
        ground = float(self.picture[self.ring].mean())
        rise = (now - ground) * (1 if self.light else -1)
        like_ink = rise > 0.6 * self.relief
        return not _spotted(like_ink & self._differs(strip) & ~self.ink, self.window, FAINT_SPOT)

    def settle(self, strip: Gray) -> None:
        """The strip is known to show the line: what differs there is not the line."""
        self.steady &= ~self._differs(strip)
        self.ink &= self.steady
        self.relief = self._relief(self.picture)

    def fits_worse(self, other: Template, strip: Gray) -> bool:
        """Whether the other line is nearer to the strip, judged where the two differ and nowhere else."""
        shared = Box(
            max(self.box.left, other.box.left),
            max(self.box.top, other.box.top),
            min(self.box.right, other.box.right),
            min(self.box.bottom, other.box.bottom),
        )
        if shared.width <= 0 or shared.height <= 0:
            return False
        mine, others = (shared.moved(-one.box.left, -one.box.top).cut(one.picture) for one in (self, other))
        apart = cv2.absdiff(mine, others) > max(self.tolerance, other.tolerance)
        now = shared.cut(strip)
        return bool(cv2.absdiff(now, others)[apart].astype(int).sum() < cv2.absdiff(now, mine)[apart].astype(int).sum())

    def agrees(self, other: Template) -> bool:
        """Whether two templates of one place hold the same shapes, as far as both know."""
        if self.picture.shape != other.picture.shape:
            return False
        both = self.steady & other.steady
        differs = cv2.absdiff(self.picture, other.picture) > max(self.tolerance, other.tolerance)
        if both.mean() < LEAST_STEADY or _spotted(differs & both, self.window):
            return False
        # A stroke that only one of them has may lie where the other saw nothing but a moving background.
        return not any(
            _spotted(one.ink & ~_wider(two.ink), self.window, FAINT_SPOT) for one, two in ((self, other), (other, self))
        )

    def _relief(self, picture: Gray) -> float:
        """By how much the strokes are lighter than what is right around them, or darker."""
        if not self.ink.any() or not self.ring.any():
            return 0.0
        rise = float(picture[self.ink].mean()) - float(picture[self.ring].mean())
        return rise if self.light else -rise

    def _differs(self, strip: Gray) -> NDArray[np.bool_]:
        return np.asarray(cv2.absdiff(self.box.cut(strip), self.picture) > self.tolerance)


def changed(before: Gray, now: Gray, but_for: list[Box]) -> bool:
    """Whether anything moved between two strips outside those boxes, by spots and not on average."""
    differs = cv2.absdiff(before, now) > NOISE
    for box in but_for:
        box.cut(differs.view(np.uint8))[:] = 0
    return _spotted(differs, 4)


def _spotted(differs: NDArray[np.bool_], window: int, least: float = SPOT) -> bool:
    if not differs.any():
        return False
    share = cv2.blur(differs.astype(np.float32), (window, window), borderType=cv2.BORDER_CONSTANT)
    return bool(share.max() >= least)


def _wider(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)


def _ink(picture: Gray) -> tuple[bool, NDArray[np.bool_]]:
    """(light on dark?, the strokes): thin structures on the side where the box reaches furthest from its middle tone.

    Their number does not tell: between light letters lie as many thin dark gaps.
    """
    dark, middle, light = (float(tone) for tone in np.percentile(picture, (2, 50, 98)))
    is_light = light - middle >= middle - dark
    return is_light, _strokes(picture, is_light)


def _strokes(picture: Gray, light: bool) -> NDArray[np.bool_]:
    side = max(5, picture.shape[0] // 3) | 1
    kind = cv2.MORPH_TOPHAT if light else cv2.MORPH_BLACKHAT
    thin = cv2.morphologyEx(picture, kind, np.ones((side, side), np.uint8))
    return np.asarray(thin > STROKE_RISE)


def _contrast(picture: Gray) -> float:
    threshold, _ = cv2.threshold(np.ascontiguousarray(picture), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    high = picture > threshold
    if high.all() or not high.any():
        return 0.0
    return float(picture[high].mean() - picture[~high].mean())
