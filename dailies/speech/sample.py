"""A recording of which the truth is known: phrases of keypad tones, with a pause after each that ends a chunk."""

from __future__ import annotations

import random
import wave
from pathlib import Path

import numpy as np

from dailies.speech.audio import RATE
from dailies.speech.dtmf import KEYS, Spoken, spoken

PAUSE_MS = 2500


def make_talk(path: Path, phrases: int, seed: int = 0, keys: int = 12) -> str:
    """Write it as WAV; returns the text. No two phrases are alike, so that none can stand in for another."""
    sound = talk_of(phrases, seed, keys)
    samples = (np.clip(sound.samples, -1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return " ".join(word.text for word in sound.words)


def talk_of(phrases: int, seed: int = 0, keys: int = 12) -> Spoken:
    """The same without a file: its samples, and every word with its times."""
    return spoken(" ".join(phrases_of(phrases, seed, keys)), pause_ms=PAUSE_MS)


def phrases_of(count: int, seed: int, keys: int) -> list[str]:
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(chance.choices(KEYS, k=keys))] = None
    return list(found)
