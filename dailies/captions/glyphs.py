"""Is this very line of text on that picture? A template of the pixels that stay while everything behind them moves.

Comparing whole pictures neither sees a caption of three letters nor anything on a moving background. A line is known by
its strokes and what is right around them; of these, the pixels that were seen to change while the line stood still are
background and count no more. A spot the size of a pen stroke that differs is a letter exchanged; the noise of a codec
is no spot.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dailies.captions.ocr import Box, Gray, Value

Mask = NDArray[np.bool_]

STROKE_SHARE, RIM_SHARE = 12, 16
# A letter exchanged may add no more than a thin stroke to the one that was there: 3 and 8.
SPOT, FAINT_SPOT = 0.8, 0.6
LEAST_AREA, LEAST_NEW = 0.03, 0.5
NOISE, CONTRAST_SHARE = 22, 0.3
STROKE_RISE, RISE_SHARE, SAME_TONE = 70, 0.4, 60
STILL_NOISE, EDGE, LETTER_SHARE = 16, 40, 0.2
SURE_SHARE, LIKELY_SHARE, FAINT_SHARE = 0.75, 0.6, 0.35
LIKE, VERY_LIKE = 0.75, 0.92
LIKELY_GAIN, FAINT_GAIN, STRONGER = 0.5, 0.3, 1.15


@dataclass(frozen=True)
class Match:
    """How much of a line is on a picture.

    `share` of the strokes, and of what is around them, are as they were. `gain` is how strong the shapes are against
    the template: 1 is the same, less a line that fades. It means nothing where `likeness`, their correlation, is low.
    """

    share: float
    gain: float
    likeness: float

    @property
    def sure(self) -> bool:
        return self.share >= SURE_SHARE

    @property
    def there(self) -> bool:
        return self.share >= LIKELY_SHARE or (self.gain >= LIKELY_GAIN and self.likeness >= LIKE)

    @property
    def fainter(self) -> bool:
        """The same shapes, all of them weaker: a line that fades out, and no other one."""
        return not self.sure and self.likeness >= VERY_LIKE and self.gain < 1

    @property
    def stronger(self) -> bool:
        """The same shapes, all of them clearer: a line that was fading in."""
        return self.likeness >= VERY_LIKE and self.gain > STRONGER

    @property
    def possible(self) -> bool:
        return self.share >= FAINT_SHARE or (self.gain >= FAINT_GAIN and self.likeness >= 0.5)

    @property
    def strength(self) -> float:
        return self.gain if self.likeness >= 0.5 else 0.0


class Template:
    """`box` is in the strip; `tells` is False on a template that has lost too many pixels to go by."""

    def __init__(self, strip: Gray, box: Box) -> None:
        self.box = box
        self.picture = box.cut(strip).copy()
        contrast = _contrast(self.picture)
        self.tolerance = max(NOISE, round(contrast * CONTRAST_SHARE))
        self.rise = min(STROKE_RISE, max(NOISE, round(contrast * RISE_SHARE)))
        self.window = max(3, box.height // STROKE_SHARE)
        self._rim_width = max(1, box.height // RIM_SHARE)
        self.light, strokes = _ink(self.picture, self.rise)
        # A line is written in one colour; a thin thing of another is behind it.
        self.tone = float(np.median(self.picture[strokes])) if strokes.any() else 0.0
        self.ink: Mask = strokes & _of_tone(self.picture, self.tone)
        self.seen = _wider(strokes)
        self.steady: Mask = np.ones(self.picture.shape, np.bool_)
        self._weigh()

    @property
    def tells(self) -> bool:
        return bool(self.area.mean() >= LEAST_AREA)

    def match(self, strip: Gray) -> Match:
        if not self.tells:
            return Match(0.0, 0.0, 0.0)
        now = self.box.cut(strip)[self.area]
        # Asked as one, a thin line that is gone leaves a dark rim on a dark ground as it was.
        same = np.abs(now.astype(np.int16) - self._then) <= self.tolerance
        share = min(float(same.mean()), float(same[self._inked].mean()) if self._inked.any() else 0.0)
        shapes = now - now.mean(dtype=np.float32)
        along = float(shapes @ self._shapes)
        power, own = float(shapes @ shapes), float(self._shapes @ self._shapes)
        return Match(share, along / max(own, 1.0), along / max((power * own) ** 0.5, 1.0))

    def exchanged(self, strip: Gray, earlier: Gray | None = None) -> bool:
        """Whether some letter differs, though most of the line is there; and since `earlier` it is the same other one.

        What is behind the line moves on; a letter stays.
        """
        differs = self._differs(strip) & self.area
        if earlier is not None:
            differs &= cv2.absdiff(self.box.cut(strip), self.box.cut(earlier)) <= NOISE
        return _spotted(differs, self.window, FAINT_SPOT)

    def grown(self, strip: Gray, earlier: Gray) -> bool:
        """Whether there are strokes that were not there before, and stand still."""
        now = self.box.cut(strip)
        strokes = _strokes(now, self.light, self.rise) & ~self.seen
        strokes &= (cv2.absdiff(now, self.box.cut(earlier)) <= STILL_NOISE) & _of_tone(now, self.tone)
        return _spotted(strokes & self._differs(strip), self.window, FAINT_SPOT)

    def settle(self, strip: Gray) -> None:
        """The strip is known to show the line: what differs there is not the line."""
        differs = self._differs(strip)
        if (differs & self.area).any():
            self.steady &= ~differs
            self._weigh()
        self.seen |= _wider(_strokes(self.box.cut(strip), self.light, self.rise))

    def came_after(self, strip: Gray) -> None:
        """The strip was on show just before the line came: strokes that it has already are behind the line."""
        came = self.ink & (cv2.absdiff(self.box.cut(strip), self.picture) > NOISE)
        # Where another line stood in this place before, the two may share half their strokes.
        if came.sum() > LEAST_NEW * self.ink.sum():
            self.ink = came
            self._weigh()

    def cleaned(self, picture: Gray) -> Gray:
        """Another picture of the line, as if nothing were behind it."""
        ground = np.median(picture[self._rim]) if self._rim.any() else 128
        return np.where(_wider(self.ink, 2 * self._rim_width), picture, np.uint8(ground))

    def fits_worse(self, other: Template, strip: Gray) -> bool:
        """Whether the other line is nearer to the strip, judged where the two differ and nowhere else."""
        shared = _shared(self.box, other.box)
        if shared is None:
            return False
        mine, others = (one.within(one.picture, shared) for one in (self, other))
        apart = cv2.absdiff(mine, others) > max(self.tolerance, other.tolerance)
        apart &= self.within(self.area, shared) | other.within(other.area, shared)
        now = shared.cut(strip)
        return bool(cv2.absdiff(now, others)[apart].astype(int).sum() < cv2.absdiff(now, mine)[apart].astype(int).sum())

    def agrees(self, other: Template) -> bool:
        """Whether two templates of one place hold the same shapes, as far as both know."""
        shared = _shared(self.box, other.box)
        if shared is None or shared.width < 0.8 * max(self.box.width, other.box.width):
            return False
        differs = cv2.absdiff(self.within(self.picture, shared), other.within(other.picture, shared)) > max(
            self.tolerance, other.tolerance
        )
        both = self.within(self.area, shared) & other.within(other.area, shared)
        if both.mean() < LEAST_AREA or _spotted(differs & both, self.window):
            return False
        # A stroke that only one of them has may lie where the other saw nothing but a moving background.
        return not any(
            _spotted(
                one.within(one.ink & one.steady, shared) & ~two.within(_wider(two.ink), shared) & differs,
                self.window,
                FAINT_SPOT,
            )
            for one, two in ((self, other), (other, self))
        )

    def within(self, table: NDArray[Value], shared: Box) -> NDArray[Value]:
        return shared.moved(-self.box.left, -self.box.top).cut(table)

    def _weigh(self) -> None:
        reach = _wider(self.ink, self._rim_width)
        self.area, self._rim = reach & self.steady, reach & ~self.ink
        self._then, self._inked = self.picture[self.area], self.ink[self.area]
        self._shapes = self._then - self._then.mean(dtype=np.float32) if self.area.any() else np.zeros(1, np.float32)

    def _differs(self, strip: Gray) -> Mask:
        return np.asarray(cv2.absdiff(self.box.cut(strip), self.picture) > self.tolerance)


def changed(before: Gray, now: Gray, but_for: list[Box]) -> bool:
    """Whether anything moved between two strips outside those boxes, by spots and not on average."""
    return _spotted(_blotted(cv2.absdiff(before, now) > NOISE, but_for), 4)


def appeared(before: Gray, earlier: Gray, now: Gray, height: float, but_for: list[Box]) -> bool:
    """Whether something like a letter of that height came since `before` and stands still since `earlier`.

    On a moving background everything changes all the time, but nothing that has edges stands still.
    """
    fresh = cv2.absdiff(before, now) > NOISE
    fresh &= cv2.absdiff(earlier, now) <= STILL_NOISE
    if not fresh.any():
        return False
    fresh &= cv2.morphologyEx(now, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > EDGE
    return _spotted(_blotted(fresh, but_for), max(5, round(height / 2)), LETTER_SHARE)


def _blotted(mask: Mask, boxes: list[Box]) -> Mask:
    for box in boxes:
        box.cut(mask.view(np.uint8))[:] = 0
    return mask


def _spotted(differs: Mask, window: int, least: float = SPOT) -> bool:
    if not differs.any():
        return False
    share = cv2.blur(differs.astype(np.float32), (window, window), borderType=cv2.BORDER_CONSTANT)
    return bool(share.max() >= least)


def _wider(mask: Mask, by: int = 1) -> Mask:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0)


def _shared(one: Box, other: Box) -> Box | None:
    shared = Box(
        max(one.left, other.left), max(one.top, other.top), min(one.right, other.right), min(one.bottom, other.bottom)
    )
    return shared if shared.width > 0 and shared.height > 0 else None


def _ink(picture: Gray, rise: int) -> tuple[bool, Mask]:
    """(light on dark?, the strokes): thin structures on the side where the box reaches furthest from its middle tone.

    Their number does not tell: between light letters lie as many thin dark gaps.
    """
    dark, middle, light = (float(tone) for tone in np.percentile(picture, (2, 50, 98)))
    is_light = light - middle >= middle - dark
    return is_light, _strokes(picture, is_light, rise)


def _strokes(picture: Gray, light: bool, rise: int) -> Mask:
    side = max(5, picture.shape[0] // 3) | 1
    kind = cv2.MORPH_TOPHAT if light else cv2.MORPH_BLACKHAT
    thin = cv2.morphologyEx(picture, kind, np.ones((side, side), np.uint8))
    return np.asarray(thin > rise)


def _of_tone(picture: Gray, tone: float) -> Mask:
    return np.asarray(np.abs(picture - np.float32(tone)) <= SAME_TONE)


def _contrast(picture: Gray) -> float:
    threshold, _ = cv2.threshold(np.ascontiguousarray(picture), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    high = picture > threshold
    if high.all() or not high.any():
        return 0.0
    return float(picture[high].mean() - picture[~high].mean())
