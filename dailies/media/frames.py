"""Whole frames of a film as JPEG files, one for each tick of a clock.

    frames = write_frames(path, folder, Fraction(10))
    frames.pictures[3].us, frames.pictures[3].path     # 300000, …/frame_0000000003.jpg

A file shows what a player shows at that time: upright, with square pixels, its colours right. A new folder appears
whole or not at all. A few frames are in memory at once, whatever the length of the film.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from dailies.errors import TooLarge
from dailies.media.looks import colour, upright
from dailies.media.pictures import Pictures

QUALITY = 85
# Four also on two cores: where others work too, a process gets its share by its threads.
ENCODERS = min(8, max(4, os.cpu_count() or 4))
# JPEG itself ends at 65,535.
LONGEST = 16_384
# Ten a second for a day. A clock gone wild may otherwise fill a disk with copies of one picture.
MOST = 864_000
# Bytes of decoded pictures that may wait for an encoder.
AHEAD = 64 << 20

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Frame:
    """`index` is the number of the tick, and so in the name of the file; `us` is its time."""

    index: int
    us: int
    path: Path


@dataclass(frozen=True)
class Frames:
    """`tick_us` is what was asked for, or less where the film is short. `short_us`: promised, but not decoded."""

    pictures: tuple[Frame, ...]
    width: int
    height: int
    tick_us: Fraction
    decoded_us: int
    promised_us: int | None
    short_us: int
    broken: int


def write_frames(
    path: Path,
    folder: Path,
    rate: Fraction,
    *,
    quality: int = QUALITY,
    least: int = 0,
    limit_side: int | None = None,
    progress: Progress | None = None,
) -> Frames:
    """One frame each 1/rate seconds; of a film too short for `least` of them so many, as far as it has them.

    `limit_side` is the most pixels on the longer side. Frames that are in the folder already are replaced, other files
    left alone. `progress` hears shares from 0 to 1 that never fall.
    """
    folder = folder.absolute()
    film = Pictures(path)
    size = _limited(film.size, min(limit_side or LONGEST, LONGEST))
    making = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    report = _Report(progress, film.promised_us)
    try:
        tick = _tick(rate, least, film.promised_us)
        written = _Sheaf(film, making, size, quality).write(tick, report)
        wanted = min(least, film.frames)
        if len(written) < wanted and film.end_us:
            # The film ended before its promise, or made none: now its length is known.
            shutil.rmtree(making)
            tick = Fraction(film.end_us, wanted)
            written = _Sheaf(film, making, size, quality).write(tick, report)
        _publish(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    report.done()
    return Frames(
        pictures=tuple(Frame(index, us, folder / name) for index, us, name in written),
        width=size[0],
        height=size[1],
        tick_us=tick,
        decoded_us=film.end_us,
        promised_us=film.promised_us,
        short_us=film.short_us,
        broken=film.broken,
    )


class _Report:
    def __init__(self, tell: Progress | None, length_us: int | None) -> None:
        self.tell = tell
        self.length_us = length_us
        self.told = -1

    def at(self, us: int) -> None:
        percent = min(99, us * 100 // self.length_us) if self.length_us else 0
        if self.tell and percent > self.told:
            self.told = percent
            self.tell(percent / 100)

    def done(self) -> None:
        if self.tell:
            self.tell(1.0)


Written = tuple[int, int, str]


class _Sheaf:
    """Decodes on the caller's thread and encodes on others, which are never more than a few frames behind."""

    def __init__(self, film: Pictures, folder: Path, size: tuple[int, int], quality: int) -> None:
        self.film = film
        self.folder = folder
        self.size = size
        self.quality = quality
        # So many decoded pictures wait at most, and so many are being encoded: of large ones fewer.
        self.ahead = max(2, min(2 * ENCODERS, AHEAD // max(1, film.size[0] * film.size[1] * 2)))
        self.encoders = min(ENCODERS, self.ahead)

    def write(self, tick: Fraction, report: _Report) -> list[Written]:
        self.folder.mkdir(parents=True)
        written: list[Written] = []
        pending: deque[Future[None]] = deque()
        with ThreadPoolExecutor(self.encoders, thread_name_prefix="jpeg") as pool:
            for frame, rotation, ticks in self._chosen(tick):
                if len(written) + len(ticks) > MOST:
                    raise TooLarge(
                        f"{self.film.name} makes more than {MOST} frames: ask for fewer a second, or cut it into parts"
                    )
                names = [f"frame_{index:010d}.jpg" for index in ticks]
                written += [(index, round(index * tick), name) for index, name in zip(ticks, names, strict=True)]
                pending.append(pool.submit(self._save, frame, rotation, names))
                if len(pending) > self.ahead:
                    pending.popleft().result()
                report.at(round(ticks[-1] * tick))
            for future in pending:
                future.result()
        return written

    def _chosen(self, tick: Fraction) -> Iterator[tuple[Any, int, range]]:
        """Each frame that is on show at a tick, with those ticks. The first is on show from the beginning, as in a
        player; the last until its end."""
        shown: tuple[Any, int] | None = None
        due = 0
        for us, frame in self.film.each():
            until = -(-us // tick)
            if shown and until > due:
                yield *shown, range(due, until)
                due = until
            shown = frame, self.film.rotation
        if shown and (until := max(due, -(-self.film.end_us // tick))) > due:
            yield *shown, range(due, until)

    def _save(self, frame: Any, rotation: int, names: list[str]) -> None:
        coded = self.size[::-1] if rotation % 180 else self.size
        picture = upright(colour(frame, coded), rotation)
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        (self.folder / names[0]).write_bytes(jpeg.data)
        for name in names[1:]:
            _link(self.folder / names[0], self.folder / name)


def _link(path: Path, twin: Path) -> None:
    """A picture that stands still costs its bytes once, where the file system knows links."""
    try:
        twin.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, twin)


def _tick(rate: Fraction, least: int, promised_us: int | None) -> Fraction:
    tick = 1_000_000 / Fraction(rate)
    return min(tick, Fraction(promised_us, least)) if least and promised_us else tick


def _limited(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(Fraction(1), Fraction(side, max(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _publish(making: Path, folder: Path) -> None:
    """Nothing is synced: these files are on their way to a store, which does that."""
    if not folder.is_dir() or not any(folder.iterdir()):
        making.rename(folder)
        return
    for stale in folder.glob("frame_*.jpg"):
        stale.unlink()
    for file in sorted(making.iterdir()):
        file.rename(folder / file.name)
