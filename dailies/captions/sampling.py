"""One decode of a film, as strips of it: what is on show at each sample, and every frame between two samples.

Times are microseconds from the container's start, by presentation time: a frame's number says nothing about when it is
shown. Pictures are luma, upright, with square pixels, at most `TALLEST` on the short side. Kept are the strips of one
step only, whatever the length of the film.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from dailies.captions.ocr import Box, Gray, resized
from dailies.errors import NoVideo, Undecodable
from dailies.media.probe import open_media

TALLEST = 1080
# At a thousand frames a second a step would hold a hundred strips: it ends early instead.
STEP_BYTES = 16 << 20


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


class Film:
    """`end_us`, `frames` and `broken` are right once an iteration has run to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end_us = self.frames = self.broken = 0
        self.rotation = 0
        self.size = (0, 0)
        with closing(open_media(path)) as container:
            source = self._source(container)
            self.start_us = container.start_time or 0
            self.promised_us = _promised_us(container, source)
            for _, picture in self._pictures(container, source, "DEFAULT"):
                self.size = _working_size(picture, source.sample_aspect_ratio or Fraction(1), self.rotation)
                break
        if not self.frames:
            raise Undecodable(f"not one frame of {path.name} decodes: export it again from the original")

    def whole(self, interval_us: int, *, keys_only: bool = False) -> Iterator[tuple[int, Gray]]:
        """Whole pictures at least so far apart; of the key frames alone that costs a fraction of a decode."""
        due = 0
        for us, view in self._views("NONKEY" if keys_only else "DEFAULT"):
            if us >= due:
                due = us - us % interval_us + interval_us
                yield us, self._strip(view, Box(0, 0, *self.size))

    def steps(self, boxes: Sequence[Box], rate: Fraction = Fraction(10)) -> Iterator[Step]:
        """Every frame exactly once. A sample is the frame on show at a multiple of 1/rate, or the last."""
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
        self.end_us = self.frames = self.broken = 0
        with closing(open_media(self.path)) as container:
            source = self._source(container)
            for us, frame in self._pictures(container, source, skip):
                yield us, np.rot90(_luma(frame), -self.rotation // 90)

    def _pictures(self, container: Any, source: Any, skip: str) -> Iterator[tuple[int, Any]]:
        source.thread_type = "AUTO"
        source.codec_context.skip_frame = skip
        tick_us = source.time_base * 1_000_000
        last = None
        for frame in self._decoded(container, source):
            us = self.end_us if frame.pts is None else round(frame.pts * tick_us) - self.start_us
            # A clock that runs backwards or stands still would break every search by time that follows.
            us = us if last is None else max(us, last + 1)
            length = round((frame.duration or 0) * tick_us) or (us - last if last is not None else 0)
            self.frames, self.end_us, last = self.frames + 1, us + length, us
            self.rotation = round(-frame.rotation / 90) * 90 % 360
            yield us, frame

    def _decoded(self, container: Any, source: Any) -> Iterator[Any]:
        packets = container.demux(source)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except av.error.MemoryError:
                raise
            except av.FFmpegError:
                self.broken += 1

    def _source(self, container: Any) -> Any:
        for stream in container.streams.video:
            if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
                return stream
        raise NoVideo(f"{self.path.name} has no video to read captions from: upload the film")

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


def _luma(frame: Any) -> Gray:
    """The first plane of what most codecs give is the picture in grey already."""
    kind = frame.format
    bits = kind.components[0].bits
    if not kind.name.startswith(("yuv", "nv", "gray")) or (bits > 8 and not kind.name.endswith("le")):
        return np.asarray(frame.to_ndarray(format="gray"), np.uint8)
    plane = frame.planes[0]
    dtype = np.uint8 if bits == 8 else np.uint16
    if plane.line_size < frame.width * np.dtype(dtype).itemsize or kind.name.startswith("yuyv"):
        return np.asarray(frame.to_ndarray(format="gray"), np.uint8)
    table = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : frame.width]
    return np.asarray(table if bits == 8 else table >> (bits - 8)).astype(np.uint8, copy=False)


def _working_size(frame: Any, aspect: Fraction, rotation: int) -> tuple[int, int]:
    width, height = max(1, round(frame.width * aspect)), frame.height
    width, height = (height, width) if rotation % 180 else (width, height)
    scale = min(Fraction(1), Fraction(TALLEST, min(width, height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _promised_us(container: Any, source: Any) -> int | None:
    if source.duration is not None:
        return int(source.duration * source.time_base * 1_000_000)
    return None if container.duration is None else int(container.duration)


def _bytes(frames: Sequence[Native]) -> int:
    return len(frames) * sum(strip.nbytes for strip in frames[0].strips)
