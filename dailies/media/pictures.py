"""The pictures of a film, one after the other, each with the time at which a player shows it.

    pictures = Pictures(path)
    for us, frame in pictures.each(): ...
    pictures.end_us, pictures.frames, pictures.broken

Times are microseconds from the container's start, by presentation time, and only ever rise: a frame's number says
nothing about when it is shown. Interlaced frames come out whole. One frame more than is given out is held, whatever the
length of the film.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
from av.filter import Graph
from av.stream import Disposition

from dailies.errors import NoVideo, TooLarge, Undecodable, Unsupported
from dailies.media.decoding import decoded
from dailies.media.probe import GUESSED, LIMITS, SLACK_US, open_media, shown, size_of

Picture = TypeVar("Picture")

# The largest that cameras make (8K, padded to whole blocks): one more picture of a decoder's dozen is 50 MB.
PIXELS = 8192 * 4352
# A header may claim any shape for its pixels, and a picture a thousand times as wide would fill the memory.
WIDEST_PIXEL = 8
# A clock that falls back further was set anew: a recording that was joined to another, or a counter that wrapped.
SET_ANEW_US = 1_000_000
DEINTERLACER = "bwdif"
MICRO = Fraction(1, 1_000_000)


class Pictures:
    """`size` is of the upright picture with square pixels; `end_us`, `frames` and `broken` are right once an iteration
    has run to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = shown(path)
        self.end_us = self.frames = self.broken = 0
        self.rotation = 0
        self.size = (0, 0)
        self._refused = False
        size_of(path)
        with closing(open_media(path, pixels=PIXELS)) as container:
            source = self._source(container)
            self.start_us: int = container.start_time or 0
            self.promised_us = promise_of(container, source, self.start_us)
            for _, frame in self._shown(container, source, "DEFAULT"):
                self.size = _upright_size(frame, source.sample_aspect_ratio, self.rotation)
                break
        if not self.frames:
            raise self._too_large() if self._refused else self._undecodable()

    @property
    def short_us(self) -> int:
        """How much of what the film promises did not decode; zero where that is no more than headers are wrong by."""
        short = (self.promised_us or 0) - self.end_us
        return short if short > SLACK_US else 0

    def each(self, skip: str = "DEFAULT") -> Iterator[tuple[int, Any]]:
        """Every frame that decodes, or with `NONKEY` the key frames alone."""
        self.end_us = self.frames = self.broken = 0
        with closing(open_media(self.path, pixels=PIXELS)) as container:
            source = self._source(container)
            yield from self._shown(container, source, skip)

    def _shown(self, container: Any, source: Any, skip: str) -> Iterator[tuple[int, Any]]:
        source.thread_type = "AUTO"
        source.codec_context.skip_frame = skip
        source.codec_context.options = {"max_pixels": str(2 * PIXELS)}
        frames = decoded(container, source, lambda error: self._damaged(error, source))
        timed = self._timed(frames, source.time_base * 1_000_000)
        # Without its neighbours a frame cannot be deinterlaced, and text that stands still is whole as it is.
        return timed if skip == "NONKEY" else whole_frames(timed)

    def _timed(self, frames: Iterable[Any], tick_us: Fraction) -> Iterator[tuple[int, Any]]:
        """Counts each frame as it is given out."""
        stamped = (
            (
                None if frame.pts is None else round(frame.pts * tick_us) - self.start_us,
                round((frame.duration or 0) * tick_us),
                frame,
            )
            for frame in frames
        )
        for us, length, frame in rising(stamped):
            if us > LIMITS.seconds * 1_000_000:
                raise TooLarge(
                    f"{self.name} lasts {us / 1_000_000:.2f} s, the limit is {LIMITS.seconds:g} s: cut it into parts"
                )
            self.frames, self.end_us = self.frames + 1, us + length
            self.broken += frame.is_corrupt
            self.rotation = round(-frame.rotation / 90) * 90 % 360
            yield us, frame

    def _damaged(self, error: av.FFmpegError | None, source: Any) -> None:
        # FFmpeg's answer to a picture over max_pixels, which it also uses for the size that it then hides.
        self._refused = self._refused or (isinstance(error, av.ArgumentError) and not source.width)
        self.broken += 1

    def _source(self, container: Any) -> Any:
        for stream in container.streams.video:
            if stream.disposition & Disposition.attached_pic:
                continue
            if stream.codec_context is None:
                raise Unsupported(
                    f"the video of {self.name} is in a codec that cannot be decoded here: "
                    "convert it, for example to H.264"
                )
            if stream.width * stream.height > PIXELS:
                raise self._too_large()
            return stream
        raise NoVideo(f"{self.name} has no video ({_kinds(container)}): upload the film")

    def _too_large(self) -> TooLarge:
        return TooLarge(f"{self.name} has pictures of more than {PIXELS} pixels, which is the limit: scale it down")

    def _undecodable(self) -> Undecodable:
        return Undecodable(f"not one frame of {self.name} decodes: export it again from the original")


def rising(frames: Iterable[tuple[int | None, int, Picture]]) -> Iterator[tuple[int, int, Picture]]:
    """(time, length, frame) of (time or none, length or zero, frame): times that rise, as a player goes on showing.

    A frame out of order comes right after the one before it. Where the clock was set anew the film goes on; a single
    stamp that is out of all order moves nothing but itself. A hole stays a hole: the frame before it stays on show.
    """
    clock = _Clock()
    held: tuple[int | None, int, Picture] | None = None
    for frame in frames:
        if held:
            yield clock.show(held, frame[0])
        held = frame
    if held:
        yield clock.show(held, None)


class _Clock:
    """`offsets` are what was added to the film's stamps last, and before that: a clock may go back to what it was."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.step = 1
        self.offsets = [0, 0]
        self.guessed = False

    def show(self, frame: tuple[int | None, int, Picture], following: int | None) -> tuple[int, int, Picture]:
        stamp, length, picture = frame
        us = self._at(stamp, following)
        if self.last is not None and 0 < us - self.last <= SET_ANEW_US:
            self.step = us - self.last
        if self.last is None and length:
            self.step = length
        self.last = us
        return us, length or self.step, picture

    def _at(self, stamp: int | None, following: int | None) -> int:
        if self.last is None:
            self.guessed = stamp is None
            return max(0, stamp or 0)
        due = self.last + self.step
        guessed, self.guessed = self.guessed, stamp is None
        if stamp is None:
            return due
        self.offsets.sort(key=lambda offset: abs(stamp + offset - due))
        us = stamp + self.offsets[0]
        if us < self.last - SET_ANEW_US or (guessed and us <= self.last):
            self.offsets = [due - stamp, self.offsets[0]]
            return due
        strayed = us > due + SET_ANEW_US and following is not None and self.last < following + self.offsets[0] < us
        return due if strayed else max(us, self.last + 1)


def whole_frames(timed: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """From the first interlaced frame on through a deinterlacer, which gives one frame for each, a frame later."""
    weaver: _Weaver | None = None
    for us, frame in timed:
        if weaver and not weaver.fits(frame):
            yield from weaver.rest()
            weaver = None
        if weaver is None and frame.interlaced_frame:
            weaver = _Weaver(frame)
        if weaver is None:
            yield us, frame
        else:
            yield from weaver.take(us, frame)
    if weaver:
        yield from weaver.rest()


class _Weaver:
    def __init__(self, frame: Any) -> None:
        self.shape = _shape(frame)
        self.waiting: deque[int] = deque()
        self.graph = Graph()
        source = self.graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=MICRO)
        filters = self.graph.add(DEINTERLACER, "mode=send_frame:deint=interlaced")
        sink = self.graph.add("buffersink")
        source.link_to(filters)
        filters.link_to(sink)
        self.graph.configure()

    def fits(self, frame: Any) -> bool:
        return _shape(frame) == self.shape

    def take(self, us: int, frame: Any) -> Iterator[tuple[int, Any]]:
        # The filter would sort by these, and ours are the ones that count.
        frame.pts = us
        frame.time_base = MICRO
        self.waiting.append(us)
        self.graph.push(frame)
        yield from self._ready()

    def rest(self) -> Iterator[tuple[int, Any]]:
        self.graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[tuple[int, Any]]:
        while self.waiting:
            try:
                frame = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield self.waiting.popleft(), frame


def _shape(frame: Any) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _upright_size(frame: Any, aspect: Fraction | None, rotation: int) -> tuple[int, int]:
    if not aspect or not 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL:
        aspect = Fraction(1)
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (height, width) if rotation % 180 else (width, height)


def promise_of(container: Any, source: Any, start_us: int) -> int | None:
    """Where the video ends by its own header, on the timeline; none where FFmpeg only guesses from the bit rate."""
    if container.format.name in GUESSED:
        return None
    if source.duration is not None:
        return int(((source.start_time or 0) + source.duration) * source.time_base * 1_000_000) - start_us
    if (end := _tagged_end_us(source.metadata.get("DURATION"))) is not None:
        return end - start_us
    if container.duration is None:
        return None
    # Matroska counts its duration from zero, also where the first frame comes later.
    return int(container.duration) - (max(0, start_us) if container.format.name.startswith("matroska") else 0)


def _tagged_end_us(tag: str | None) -> int | None:
    try:
        hours, minutes, seconds = (tag or "").split(":")
        return round(((int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)) * 1_000_000)
    except ValueError:
        return None


def _kinds(container: Any) -> str:
    kinds = {
        "picture" if stream.disposition & Disposition.attached_pic else str(stream.type) for stream in container.streams
    }
    return ", ".join(sorted(kinds)) or "no stream at all"
