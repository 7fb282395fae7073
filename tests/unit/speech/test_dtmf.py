"""Keypad tones: every key is read at its time, in noise, soft and crooked; and nothing is read where none is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dailies.errors import NotConfigured
from dailies.speech.audio import RATE
from dailies.speech.dtmf import HIGH, KEYS, LOW, Dtmf, Spoken, spoken
from dailies.speech.engine import Word, engine

pytestmark = pytest.mark.unit

TEXT = "".join(np.random.default_rng(7).choice(list(KEYS + "  "), 200)) + "5555 00 " + KEYS


def read(said: Spoken, rate: int = RATE) -> list[Word]:
    return Dtmf().transcribe(said.samples, rate, None)


def text(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"tone_ms": 40, "gap_ms": 40},
        {"tone_ms": 40, "gap_ms": 20},
        {"tone_ms": 400, "gap_ms": 100},
        {"level": 0.002},
        {"level": 1.0},
        {"twist_db": 8},
        {"twist_db": -8},
        {"noise": 0.1},
        {"rate": 8000},
        {"rate": 44100},
    ],
    ids=lambda how: "-".join(f"{name}-{value}" for name, value in how.items()) or "plain",
)
def test_every_key_is_read_at_its_time(how: dict[str, Any]) -> None:
    said = spoken(TEXT, lead_ms=123, tail_ms=50, **how)
    words = read(said, how.get("rate", RATE))
    assert text(words) == said.text
    for word, truth in zip(words, said.words, strict=True):
        assert word.start_us == pytest.approx(truth.start_us, abs=3000)
        assert word.end_us == pytest.approx(truth.end_us, abs=3000)
        assert 0.4 < word.confidence <= 1


@pytest.mark.parametrize("tone_ms", [10, 20, 30])
def test_a_tone_that_is_too_short_is_none(tone_ms: int) -> None:
    assert read(spoken("159D", tone_ms=tone_ms)) == []


def test_noise_music_and_single_tones_are_no_keys() -> None:
    time = np.arange(20 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (262, 330, 392, 523, 659, 784)) / 8
    for wave in (
        np.random.default_rng(1).normal(0, 0.2, 60 * RATE),
        chord,
        *(0.5 * np.sin(2 * np.pi * hertz * time) for hertz in (*LOW, *HIGH)),
        np.zeros(RATE),
        np.zeros(0),
    ):
        assert Dtmf().transcribe(wave.astype(np.float32), RATE) == []


def test_two_keys_at_once_and_a_key_under_a_louder_sound_are_none() -> None:
    time = np.arange(RATE) / RATE
    for tones in (((0.2, 697), (0.18, 941), (0.2, 1209)), ((0.05, 697), (0.05, 1209), (0.5, 440))):
        wave = sum(level * np.sin(2 * np.pi * hertz * time) for level, hertz in tones)
        assert Dtmf().transcribe(np.asarray(wave, dtype=np.float32), RATE) == []


def test_a_key_that_is_clear_for_a_moment_only_is_none() -> None:
    faint = spoken("4", tone_ms=500, level=0.01).samples
    louder = 0.01 * np.sin(2 * np.pi * 300 * np.arange(len(faint)) / RATE).astype(np.float32)
    louder[RATE // 4 : RATE // 4 + RATE * 15 // 1000] = 0
    assert Dtmf().transcribe(faint + louder, RATE) == []
    assert text(Dtmf().transcribe(faint, RATE)) == "4"


def test_a_twist_beyond_the_standard_is_no_key() -> None:
    assert read(spoken("159D", twist_db=12)) == []


def test_what_is_read_depends_on_every_second() -> None:
    said = spoken("0123456789" * 4, tone_ms=60, gap_ms=40)
    for second in range(4):
        left = np.delete(said.samples, slice(second * RATE, (second + 1) * RATE))
        mute = said.samples.copy()
        mute[second * RATE : (second + 1) * RATE] = 0
        assert len(Dtmf().transcribe(left, RATE)) == len(Dtmf().transcribe(mute, RATE)) == 30
        twice = np.insert(said.samples, second * RATE, said.samples[second * RATE : (second + 1) * RATE])
        assert len(Dtmf().transcribe(twice, RATE)) == 50


def test_a_tone_at_the_edge_ends_there() -> None:
    said = spoken("7", tone_ms=200, gap_ms=0)
    assert read(said) == [Word(0, 200_000, "7", pytest.approx(0.95, abs=0.05))]
    begun = Dtmf().transcribe(said.samples[: RATE // 10], RATE)
    assert [(word.start_us, word.end_us) for word in begun] == [(0, pytest.approx(100_000, abs=2000))]


def test_the_same_samples_give_the_same_words_alone_or_within() -> None:
    said = spoken(TEXT, noise=0.02)
    whole = read(said)
    part = Dtmf().transcribe(said.samples[2 * RATE : 9 * RATE], RATE)
    inside = [word for word in whole if word.start_us > 2_030_000 and word.end_us < 8_970_000]
    moved = [(word.start_us + 2_000_000, word.end_us + 2_000_000, word.text, word.confidence) for word in part]
    assert len(inside) > 20
    assert {(word.start_us, word.end_us, word.text, word.confidence) for word in inside} <= set(moved)


def test_an_engine_is_found_by_its_name() -> None:
    found = engine("dtmf")
    assert (found.name, found.version) == ("dtmf", "1")
    assert text(found.transcribe(spoken("42").samples, RATE, "deu")) == "4 2"
    with pytest.raises(NotConfigured, match="no engine 'morse': set one of dtmf"):
        engine("morse")
