"""One decode of a film, as strips of it: what is on show at each sample, and every frame between two samples.

Times are microseconds from the container's start, by presentation time: a frame's number says nothing about when it is
shown. Pictures are luma, upright, with square pixels, at most `TALLEST` on the short side. Kept are the strips of one
step only, whatever the length of the film.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dailies.captions.ahead import ahead
from dailies.captions.ocr import Box, Gray, resized
from dailies.media.looks import luma, upright
from dailies.media.pictures import Pictures

TALLEST = 1080
# At a thousand frames a second a step would hold a hundred strips: it ends early instead.
STEP_BYTES = 16 << 20
STEPS_AHEAD = 3


@dataclass(frozen=True)
class Native:
    """One frame of the film: `strips` in the order of the boxes asked for."""

    us: int
    strips: tuple[Gray, ...]


@dataclass(frozen=True)
class Step:
    """The frames after one sample up to the next, which is the last of them."""

    frames: tuple[Native, ...]

    @property
    def sample(self) -> Native:
        return self.frames[-1]


class Film(Pictures):
    """`size` is that of the pictures given out: at most `TALLEST` on the short side."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        scale = min(Fraction(1), Fraction(TALLEST, min(self.size)))
        self.size = (max(1, round(self.size[0] * scale)), max(1, round(self.size[1] * scale)))

    def whole(self, interval_us: int) -> Iterator[tuple[int, Gray]]:
        """Whole pictures about so far apart. Frames that no other is made from are not decoded: it costs far less."""
        due = 0
        for us, view in self._views("NONREF"):
            if us >= due:
                due = us - us % interval_us + interval_us
                yield us, self._strip(view, Box(0, 0, *self.size))

    def steps(self, boxes: Sequence[Box], rate: Fraction = Fraction(10)) -> Iterator[Step]:
        """Every frame exactly once. A sample is the frame on show at a multiple of 1/rate, or the last."""
        return ahead(self._steps(boxes, rate), STEPS_AHEAD)

    def _steps(self, boxes: Sequence[Box], rate: Fraction) -> Iterator[Step]:
        pending: list[Native] = []
        tick = Fraction(1_000_000) / rate
        due = Fraction(0)
        for us, view in self._views("DEFAULT"):
            if pending and (us > due or _bytes(pending) > STEP_BYTES):
                yield Step(tuple(pending))
                pending = []
            if us > due:
                due = -(-us // tick) * tick
            pending.append(Native(us, tuple(self._strip(view, box) for box in boxes)))
        if pending:
            yield Step(tuple(pending))

    def _views(self, skip: str) -> Iterator[tuple[int, Gray]]:
        for us, frame in self.each(skip):
            yield us, upright(luma(frame), self.rotation)

    def _strip(self, view: Gray, box: Box) -> Gray:
        """A copy: a view would keep the whole decoded frame alive."""
        across, along = view.shape[1] / self.size[0], view.shape[0] / self.size[1]
        cut = view[
            round(box.top * along) : max(round(box.bottom * along), round(box.top * along) + 1),
            round(box.left * across) : max(round(box.right * across), round(box.left * across) + 1),
        ]
        if cut.shape == (box.height, box.width):
            return cut.copy()
        return resized(cut, (box.width, box.height))


def _bytes(frames: Sequence[Native]) -> int:
    return len(frames) * sum(strip.nbytes for strip in frames[0].strips)
