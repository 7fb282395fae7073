"""The tones of a telephone's keypad, each key one word: speech of which the truth is known to the last sample.

    said = spoken("42 17#")
    Dtmf().transcribe(said.samples, RATE, None) == list(said.words), but for a few milliseconds

Every tone counts: sound that was lost, doubled or shifted changes the text or its times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dailies.canonical import canonical_json, digest
from dailies.speech.audio import RATE, Samples
from dailies.speech.engine import Engine, Word

Curve = NDArray[np.float64]

# A file that every hearing is written down in, so that a scenario can count what was done twice.
TALLY = "DAILIES_DTMF_TALLY"
LOW = (697, 770, 852, 941)
HIGH = (1209, 1336, 1477, 1633)
KEYS = "123A456B789C*0#D"

# 25 ms tell 697 from 770 Hz, and 5 ms a tone's ends.
WINDOW_S, HOP_S = 0.025, 0.005
# 40 ms are the least by the standard; what is shorter than this is none, and between them lies the error of the ends.
SHORTEST_US = 32_000
TWIST_DB = 9.0
NEXT_DB = 6.0
# Of all that is heard, and of full scale.
LEAST_SHARE = 0.4
LEAST_POWER = 1e-7
# In hops beyond the last window that is surely in the tone.
FARTHEST = 1.5
BATCH = 4096


class Dtmf(Engine):
    name = "dtmf"
    version = "1"

    def transcribe(self, samples: Samples, rate: int, language: str | None = None) -> list[Word]:
        if tally := os.environ.get(TALLY):
            _note(Path(tally), samples)
        keys, power, share = _frames(np.asarray(samples, dtype=np.float64), rate)
        hop_us = round(rate * HOP_S) * 1_000_000 / rate
        words = (self._word(first, last, keys, power, share, hop_us) for first, last in _runs(keys))
        length = len(samples) * 1_000_000 // rate
        return [
            Word(max(0, word.start_us), min(length, word.end_us), word.text, word.confidence)
            for word in words
            if word.end_us - word.start_us >= SHORTEST_US
        ]

    def _word(self, first: int, last: int, keys: NDArray[np.int64], power: Curve, share: Curve, hop_us: float) -> Word:
        half = power[first:last].max() / 4
        loud = first + np.flatnonzero(power[first:last] >= half)
        start = _crossing(power, loud[0], -1, half)
        end = _crossing(power, loud[-1], 1, half)
        sure = round(float(share[loud].mean()), 3)
        return Word(_us(start * hop_us), _us(end * hop_us), KEYS[keys[first]], sure)


def _note(tally: Path, samples: Samples) -> None:
    """One line, written at once: what counts how often a chunk was heard must not be lost with the process."""
    line = {
        "at": time.time(),
        "pid": os.getpid(),
        "sound": digest(np.ascontiguousarray(samples, dtype="<f4").tobytes()),
    }
    with tally.open("ab", buffering=0) as file:
        file.write(canonical_json(line) + b"\n")


def _us(us: float) -> int:
    """Whole milliseconds: what is finer than that differs from one processor to the next."""
    return round(us / 1000) * 1000


def _crossing(power: Curve, inside: int, step: int, half: float) -> float:
    """Where the amplitude falls to a half, between a window and the one outside: there the tone ends."""
    outside = inside + step
    if not 0 <= outside < len(power):
        return float(inside)
    bar, near, far = np.sqrt(half), np.sqrt(power[inside]), np.sqrt(power[outside])
    if near <= far:
        return float(inside)
    # What hardly falls outside is something else, and no part of this tone.
    return inside + step * min(FARTHEST, float((near - bar) / (near - far)))


def _runs(keys: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(keys, prepend=-1, append=-1))
    for first, last in pairwise(edges):
        if keys[first] >= 0:
            yield int(first), int(last)


def _frames(wave: Curve, rate: int) -> tuple[NDArray[np.int64], Curve, Curve]:
    """For each hop: the key or -1, the power of its two tones, and their share of all that is heard."""
    size, hop = round(rate * WINDOW_S) // 2 * 2, round(rate * HOP_S)
    count = len(wave) // hop + 1
    padded = np.zeros(max((count - 1) * hop + size, len(wave) + size))
    padded[size // 2 : size // 2 + len(wave)] = wave
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:count]
    parts = [_tones(windows[at : at + BATCH], rate) for at in range(0, count, BATCH)]
    keys, power, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    return keys, power, share


def _tones(windows: Curve, rate: int) -> tuple[NDArray[np.int64], Curve, Curve]:
    size = windows.shape[1]
    fade = np.hanning(size + 1)[:-1]
    turns = np.outer(np.arange(size) / rate, [*LOW, *HIGH])
    waves = fade[:, None] * np.exp(-2j * np.pi * turns)
    faded = windows * fade
    # A tone of power p gives p here, and so does noise: shares of one sum.
    power = 2 * np.abs(windows @ waves) ** 2 / fade.sum() ** 2
    heard = np.square(faded).sum(axis=1) / np.square(fade).sum()
    low, high = power[:, :4], power[:, 4:]
    row, column = low.argmax(axis=1), high.argmax(axis=1)
    first, second = np.sort(low, axis=1), np.sort(high, axis=1)
    both = first[:, -1] + second[:, -1]
    share = np.clip(both / np.maximum(heard, 1e-30), 0, 1)
    clear = (both > LEAST_POWER) & (share > LEAST_SHARE)
    clear &= np.abs(_db(first[:, -1]) - _db(second[:, -1])) < TWIST_DB
    for group in (first, second):
        clear &= _db(group[:, -1]) - _db(group[:, -2]) > NEXT_DB
    return np.where(clear, row * 4 + column, -1), both, share


def _db(power: Curve) -> Curve:
    return np.asarray(10 * np.log10(np.maximum(power, 1e-30)))


@dataclass(frozen=True)
class Spoken:
    samples: Samples
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def spoken(
    text: str,
    *,
    rate: int = RATE,
    tone_ms: int = 80,
    gap_ms: int = 60,
    pause_ms: int = 500,
    lead_ms: int = 0,
    tail_ms: int = 0,
    level: float = 0.3,
    twist_db: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Spoken:
    """A key for each letter of KEYS, a pause for each space. `level` is a tone's amplitude, `noise` the effective value
    of what lies over all; a `twist_db` above zero makes the high tone the louder one."""
    parts: list[Curve] = [np.zeros(lead_ms * rate // 1000)]
    words: list[Word] = []
    at = len(parts[0])
    for letter in text:
        if letter == " ":
            part = np.zeros(pause_ms * rate // 1000)
        else:
            tone = _press(letter, tone_ms * rate // 1000, rate, level, twist_db)
            words.append(Word(at * 1_000_000 // rate, (at + len(tone)) * 1_000_000 // rate, letter))
            part = np.concatenate([tone, np.zeros(gap_ms * rate // 1000)])
        parts.append(part)
        at += len(part)
    wave = np.concatenate([*parts, np.zeros(tail_ms * rate // 1000)])
    if noise:
        wave = wave + np.random.default_rng(seed).normal(0, noise, len(wave))
    return Spoken(np.clip(wave, -1, 1).astype(np.float32), tuple(words))


def _press(key: str, samples: int, rate: int, level: float, twist_db: float) -> Curve:
    place = KEYS.index(key)
    time = np.arange(samples) / rate
    louder = 10 ** (twist_db / 40)
    low = np.sin(2 * np.pi * LOW[place // 4] * time) / louder
    high = np.sin(2 * np.pi * HIGH[place % 4] * time) * louder
    return np.asarray(level * (low + high) / (louder + 1 / louder))
