"""Sound cut into chunks that an engine can take: at most 30 s, in the middle of a pause where there is one.

    plan = Plan()
    for chunk in plan.chunks(sound.blocks()): ...
    plan.duration_us == plan.speech_us + plan.silence_us

A chunk is given out as soon as its end is known, so that nothing is read twice and half a minute of sound is held. What
is in no chunk is silence. The chunks do not depend on how the blocks were cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dailies.canonical import digest
from dailies.speech.audio import RATE, Samples, microseconds

Span = tuple[int, int]

FRAME = RATE // 100
# Above the first is always a voice and below the second never, whatever lies around it: a mistake in favour of speech
# costs work, one against it costs text. The third decides where all is equally loud.
LOUD_DB, STILL_DB, EVEN_DB = -40.0, -65.0, -50.0
EVEN_RANGE_DB = 15.0
OVER_NOISE_DB = 9.0
# What the noise is judged by: as many frames before and, because a file may begin with a voice, after.
BEFORE, AFTER = 2000, 500


@dataclass(frozen=True)
class Rules:
    """In frames of 10 ms. `pad` is kept on each side of a voice; a pause of `rest` ends a chunk, and one of `pause` is
    where a chunk may be cut; `overlap` is said twice where there is no such pause."""

    longest: int = 3000
    overlap: int = 100
    pause: int = 20
    rest: int = 200
    pad: int = 25

    def __post_init__(self) -> None:
        if not (0 <= 2 * self.overlap <= self.longest and 0 < self.pause <= self.rest and 2 * self.pad <= self.rest):
            raise ValueError(f"these rules contradict each other: {self}")


@dataclass(frozen=True)
class Chunk:
    """`overlap_us` is how much of its beginning the chunk before has as well; `voiced` is where a voice is in it,
    counted from its own start."""

    number: int
    start_us: int
    end_us: int
    overlap_us: int
    samples: Samples = field(repr=False, compare=False)
    voiced: tuple[Span, ...] = ()

    @property
    def key(self) -> str:
        """The same for the same sound at the same place, whatever was found before it."""
        sound = digest(np.ascontiguousarray(self.samples, dtype="<f4").tobytes())
        return digest({"start_us": self.start_us, "end_us": self.end_us, "sound": sound})


class Plan:
    """The figures are right once `chunks` has run to its end."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.duration_us = self.speech_us = 0

    @property
    def silence_us(self) -> int:
        return self.duration_us - self.speech_us

    def chunks(self, blocks: Iterable[Samples]) -> Iterator[Chunk]:
        self.duration_us = self.speech_us = 0
        tape = _Tape()
        voices = _Voices(self.rules)
        for number, cut in enumerate(voices.cuts(_heard(blocks, tape, voices))):
            start, end = cut.start * FRAME, min(cut.end * FRAME, tape.end)
            self.speech_us += microseconds(end) - microseconds(start + cut.overlap * FRAME)
            yield Chunk(
                number,
                microseconds(start),
                microseconds(end),
                microseconds(start + cut.overlap * FRAME) - microseconds(start),
                tape.take(start, end),
                tuple(
                    (microseconds((first - cut.start) * FRAME), microseconds(min(last * FRAME, end) - start))
                    for first, last in cut.voiced
                ),
            )
        self.duration_us = microseconds(tape.end)


@dataclass(frozen=True)
class _Cut:
    start: int
    end: int
    overlap: int
    voiced: tuple[Span, ...]


class _Voices:
    """From one flag a frame to where the chunks are. Numbers are frames from the start of the sound."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.start: int | None = None
        self.end = 0
        self.overlap = 0
        self.number = -1
        self.spans: list[list[int]] = []

    @property
    def needed(self) -> int:
        """Nothing before this will be asked for."""
        return self.number + 1 - self.rules.pad if self.start is None else self.start

    def cuts(self, flags: Iterable[bool]) -> Iterator[_Cut]:
        for self.number, voiced in enumerate(flags):
            if voiced:
                self._voice(self.number)
            if self.start is None:
                continue
            if self.number + 1 - self.spans[-1][1] >= self.rules.rest:
                yield from self._close()
            elif self.number + 1 - self.start >= self.rules.longest:
                yield from self._cut(self.number + 1)
        if self.start is not None:
            yield from self._close()

    def _voice(self, number: int) -> None:
        if self.start is None:
            self.start, self.overlap = max(self.end, number - self.rules.pad), 0
        if self.spans and self.spans[-1][1] == number:
            self.spans[-1][1] = number + 1
        else:
            self.spans.append([number, number + 1])

    def _cut(self, now: int) -> Iterator[_Cut]:
        """At the longest that a chunk may be: in its last pause, in the one that goes on, or through the voice."""
        if now - self.spans[-1][1] >= self.rules.pause:
            yield from self._close()
            return
        for before, after in reversed(list(pairwise(self.spans))):
            if after[0] - before[1] >= self.rules.pause:
                middle = (before[1] + after[0]) // 2
                yield self._part(middle, middle)
                return
        yield self._part(now, now - self.rules.overlap)

    def _part(self, end: int, onwards: int) -> _Cut:
        """The chunk up to `end`; the next one begins `onwards`."""
        cut = self._made(end)
        self.start, self.end, self.overlap = onwards, end, end - onwards
        self.spans = [[max(first, onwards), last] for first, last in self.spans if last > onwards]
        if not self.spans:
            # All that the overlap would repeat is silence.
            self.start, self.overlap = None, 0
        return cut

    def _close(self) -> Iterator[_Cut]:
        """None where the chunk before, which this one would overlap with, has all of it."""
        end = min(self.spans[-1][1] + self.rules.pad, self.number + 1)
        cut = self._made(end) if end > self.end else None
        self.start, self.end, self.overlap, self.spans = None, max(end, self.end), 0, []
        if cut:
            yield cut

    def _made(self, end: int) -> _Cut:
        assert self.start is not None
        voiced = tuple((max(first, self.start), min(last, end)) for first, last in self.spans if first < end)
        return _Cut(self.start, end, self.overlap, voiced)


class _Tape:
    """The sound that may still be asked for."""

    def __init__(self) -> None:
        self.end = 0
        self._parts: deque[tuple[int, Samples]] = deque()

    def add(self, part: Samples) -> None:
        self._parts.append((self.end, part))
        self.end += len(part)

    def take(self, start: int, end: int) -> Samples:
        parts = [part[max(0, start - at) : max(0, end - at)] for at, part in self._parts]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

    def forget(self, before: int) -> None:
        while self._parts and self._parts[0][0] + len(self._parts[0][1]) <= before:
            self._parts.popleft()


def _heard(blocks: Iterable[Samples], tape: _Tape, voices: _Voices) -> Iterator[bool]:
    """For each frame whether a voice is in it. `AFTER` frames behind what was read, and never by the cut of the blocks:
    what is judged is a second at a time, by what lies around that second."""
    levels: NDArray[np.float64] = np.zeros(0)
    begin = done = 0
    for level in _levels(blocks, tape):
        tape.forget(voices.needed * FRAME)
        levels = np.append(levels, level)
        while begin + len(levels) >= done + 100 + AFTER:
            yield from _judged(levels, done - begin, 100)
            done += 100
            if done - BEFORE > begin:
                levels = levels[done - BEFORE - begin :]
                begin = done - BEFORE
    while done < begin + len(levels):
        step = min(100, begin + len(levels) - done)
        yield from _judged(levels, done - begin, step)
        done += step


def _judged(levels: NDArray[np.float64], first: int, count: int) -> list[bool]:
    around = levels[max(0, first - BEFORE) : first + 100 + AFTER]
    low, high = float(np.percentile(around, 10)), float(around.max())
    bar = EVEN_DB
    if high - low >= EVEN_RANGE_DB:
        bar = min(max(low + min(OVER_NOISE_DB, (high - low) * 0.3), STILL_DB), LOUD_DB)
    flags: list[bool] = (levels[first : first + count] > bar).tolist()
    return flags


def _levels(blocks: Iterable[Samples], tape: _Tape) -> Iterator[NDArray[np.float64]]:
    """Decibels of full scale for each frame, without what is constant in it: a microphone's offset is no voice."""
    rest: Samples = np.zeros(0, dtype=np.float32)
    last: Samples = np.zeros(FRAME, dtype=np.float32)
    for block in blocks:
        tape.add(block)
        wave = np.concatenate([rest, block])
        whole = len(wave) // FRAME * FRAME
        rest = wave[whole:]
        if whole:
            last = wave[whole - FRAME : whole]
            yield _decibels(wave[:whole].reshape(-1, FRAME))
    if len(rest):
        # A few samples have no level of their own, and are judged with those before them.
        yield _decibels(np.concatenate([last, rest])[-FRAME:].reshape(1, -1))


def _decibels(frames: Samples) -> NDArray[np.float64]:
    power = np.var(frames, axis=1, dtype=np.float64)
    return np.asarray(10 * np.log10(np.maximum(power, 1e-12)))
