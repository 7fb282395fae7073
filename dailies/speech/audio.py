"""One audio track as 16 kHz mono, read once, on the timeline of a player.

    sound = Sound(path, language="deu")
    for block in sound.blocks(): ...
    sound.end_us, sound.short_us, sound.filled_us, sound.broken

Sample 0 is where the container starts. What the stamps leave out is silence and what they say twice is cut, so that a
broken packet never moves what comes after it. One block and one frame are held, whatever the length of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from dailies.errors import NoAudio, TooLarge, Undecodable, Unsupported
from dailies.media.decoding import decoded
from dailies.media.pictures import promise_of
from dailies.media.probe import LIMITS, SLACK_US, is_guessed, open_media, riff_promise, shown, size_of
from dailies.speech.language import short

Samples = NDArray[np.float32]

RATE = 16_000
BLOCK = RATE
# Containers round to milliseconds, and the shortest packet that may get lost (Opus, AAC) is twice as long.
JITTER_US = 10_000
# A clock that falls back further was set anew.
SET_ANEW_US = 1_000_000


def microseconds(samples: int) -> int:
    """Lengths are differences of these, so that they add up although a sample lasts 62.5."""
    return samples * 125 // 2


class Sound:
    """`end_us`, `filled_us` (holes in the stamps), `cut_us` (said twice) and `broken` are right once `blocks` ended."""

    def __init__(self, path: Path, *, track: int | None = None, language: str | None = None) -> None:
        """`track` counts the audio tracks from 0; without it the one in `language`, else the default one, else the
        first."""
        self.path = path
        self.name = shown(path)
        self._reset()
        size_of(path)
        with closing(open_media(path)) as container:
            source = _choose(container, track, language, self.name)
            self.index: int = source.index
            self.language: str | None = source.language if source.language not in ("und", "") else None
            self.start_us: int = container.start_time or 0
            self.promised_us = _promise(path, container, source, self.start_us)

    @property
    def short_us(self) -> int:
        """How much of what the file promises did not decode; zero where that is no more than headers are wrong by."""
        short = (self.promised_us or 0) - self.end_us
        return short if short > SLACK_US else 0

    def blocks(self) -> Iterator[Samples]:
        """A second each, the last one shorter; raises Undecodable where not one frame decodes."""
        self._reset()
        with closing(open_media(self.path)) as container:
            source = container.streams[self.index]
            yield from _blocks(self._count(self._placed(container, source)))
        if not self.frames:
            raise Undecodable(f"not one frame of the sound of {self.name} decodes: export it again from the original")

    def _reset(self) -> None:
        self.end_us = self.filled_us = self.cut_us = self.broken = self.frames = 0

    def _count(self, parts: Iterable[Samples]) -> Iterator[Samples]:
        total = 0
        for part in parts:
            total += len(part)
            self.end_us = microseconds(total)
            yield part

    def _placed(self, container: Any, source: Any) -> Iterator[Samples]:
        """The runs of frames that follow on each other, each at its place."""
        at = 0
        run: _Run | None = None
        for us, frame in placed(self._stamped(container, source)):
            self._check_length(us)
            if run and (not run.fits(frame) or abs(us - run.due_us) > JITTER_US):
                yield from (parts := run.rest())
                at += sum(map(len, parts))
                run = None
            if run is None:
                start = round(us * RATE / 1_000_000)
                yield from _silence(start - at)
                self.filled_us += microseconds(max(0, start - at))
                self.cut_us += microseconds(max(0, at - start))
                run = _Run(frame, us, skip=max(0, at - start))
                at = max(at, start)
            parts = run.take(frame)
            at += sum(map(len, parts))
            yield from parts
        if run:
            yield from run.rest()

    def _stamped(self, container: Any, source: Any) -> Iterator[tuple[int | None, int, Any]]:
        tick_us = source.time_base * 1_000_000
        for frame in decoded(container, source, self._damaged):
            if not frame.samples or not frame.sample_rate:
                continue
            self.frames += 1
            self.broken += frame.is_corrupt
            stamp = None if frame.pts is None else round(frame.pts * tick_us) - self.start_us
            yield stamp, frame.samples * 1_000_000 // frame.sample_rate, frame

    def _damaged(self, _error: av.FFmpegError | None) -> None:
        self.broken += 1

    def _check_length(self, us: int) -> None:
        if us > LIMITS.seconds * 1_000_000:
            raise TooLarge(
                f"{self.name} lasts {us / 1_000_000:.2f} s, the limit is {LIMITS.seconds:g} s: cut it into parts"
            )


def placed(frames: Iterable[tuple[int | None, int, Any]]) -> Iterator[tuple[int, Any]]:
    """(time, frame) of (stamp or none, length, frame).

    A frame without a stamp follows on the one before it, and two that changed places change back. Where the clock was
    set anew the sound goes on; a single stamp that is out of all order moves nothing but itself. Any other stamp counts
    as it is.
    """
    clock = _Clock()
    held: tuple[int | None, int, Any] | None = None
    for frame in frames:
        if held:
            if clock.swapped(held[0], frame[0]):
                held, frame = frame, held
            yield clock.at(held[0], held[1], frame[0]), held[2]
        held = frame
    if held:
        yield clock.at(held[0], held[1], None), held[2]


class _Clock:
    """`offsets` are what was added to the stamps last, and before that: a clock may go back to what it was."""

    def __init__(self) -> None:
        self.due: int | None = None
        self.offsets = [0, 0]

    def swapped(self, stamp: int | None, following: int | None) -> bool:
        if self.due is None or stamp is None or following is None or following >= stamp:
            return False
        return abs(following + self.offsets[0] - self.due) <= JITTER_US

    def at(self, stamp: int | None, length: int, following: int | None) -> int:
        us = self._at(stamp, length, following)
        self.due = us + length
        return us

    def _at(self, stamp: int | None, length: int, following: int | None) -> int:
        if self.due is None or stamp is None:
            return (self.due or 0) if stamp is None else stamp
        due = self.due
        self.offsets.sort(key=lambda offset: abs(stamp + offset - due))
        us = stamp + self.offsets[0]
        if abs(us - due) <= SET_ANEW_US:
            return us
        # The next one goes on as if this one had been where it was due.
        if following is not None and abs(following + self.offsets[0] - due - length) <= JITTER_US:
            return due
        if us < due:
            self.offsets = [due - stamp, self.offsets[0]]
            return due
        return us


class _Run:
    """Frames of one format without a hole, through one resampler; its first `skip` samples were heard already."""

    def __init__(self, frame: Any, us: int, skip: int) -> None:
        self.shape = _shape(frame)
        self.us = us
        self.skip = skip
        self.given = 0
        self.graph = Graph()
        source = self.graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format,
            layout=frame.layout,
            time_base=Fraction(1, frame.sample_rate),
        )
        # Without a bound FFmpeg adds the channels up, and what is loud on both sides would be clipped.
        resampler = self.graph.add("aresample", f"{RATE}:rematrix_maxval=1.0")
        shape = self.graph.add("aformat", f"sample_fmts=flt:sample_rates={RATE}:channel_layouts=mono")
        sink = self.graph.add("abuffersink")
        source.link_to(resampler)
        resampler.link_to(shape)
        shape.link_to(sink)
        self.graph.configure()

    @property
    def due_us(self) -> int:
        return self.us + self.given * 1_000_000 // self.shape[0]

    def fits(self, frame: Any) -> bool:
        return _shape(frame) == self.shape

    def take(self, frame: Any) -> list[Samples]:
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = self.given
        self.given += frame.samples
        self.graph.push(frame)
        return self._ready()

    def rest(self) -> list[Samples]:
        self.graph.push(None)
        return self._ready()

    def _ready(self) -> list[Samples]:
        parts: list[Samples] = []
        while True:
            try:
                frame = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return parts
            wave = np.asarray(frame.to_ndarray(), dtype=np.float32).reshape(-1)
            dropped = min(self.skip, len(wave))
            self.skip -= dropped
            # A float file may hold what is no number, and one such sample would spoil every sum over the chunk.
            parts.append(np.nan_to_num(wave[dropped:], nan=0.0, posinf=1.0, neginf=-1.0))


def _shape(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _silence(samples: int) -> Iterator[Samples]:
    while samples > 0:
        yield np.zeros(min(samples, BLOCK), dtype=np.float32)
        samples -= BLOCK


def _blocks(parts: Iterable[Samples]) -> Iterator[Samples]:
    waiting: list[Samples] = []
    count = 0
    for part in parts:
        while count + len(part) >= BLOCK:
            yield np.concatenate([*waiting, part[: BLOCK - count]])
            part = part[BLOCK - count :]
            waiting, count = [], 0
        if len(part):
            waiting.append(part)
            count += len(part)
    if waiting:
        yield np.concatenate(waiting)


def _choose(container: Any, track: int | None, language: str | None, name: str) -> Any:
    tracks = list(container.streams.audio)
    if not tracks:
        kinds = ", ".join(sorted({str(stream.type) for stream in container.streams})) or "no stream at all"
        raise NoAudio(f"{name} has no sound ({kinds}): upload the film with its sound")
    if track is not None and not 0 <= track < len(tracks):
        raise NoAudio(f"{name} has {len(tracks)} audio tracks, and none is number {track}: count from 0")
    if track is not None:
        chosen = tracks[track]
    else:
        wanted = short(language)
        spoken = [one for one in tracks if wanted and short(one.language) == wanted]
        marked = [one for one in tracks if one.disposition & av.stream.Disposition.default]
        chosen = (spoken or marked or tracks)[0]
    if chosen.codec_context is None:
        raise Unsupported(
            f"the sound of {name} is in a codec that cannot be decoded here: convert it, for example to AAC"
        )
    return chosen


def _promise(path: Path, container: Any, source: Any, start_us: int) -> int | None:
    if is_guessed(path, container.format.name):
        return None
    promised = promise_of(container, source, start_us)
    if promised is None:
        return None
    if container.format.name == "ogg":
        # FFmpeg counts its length from zero, also where the first page comes later.
        return promised - max(0, start_us)
    return riff_promise(path, promised) if container.format.name == "wav" else promised
