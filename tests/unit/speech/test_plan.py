"""Chunks: short enough, cut in pauses, none of the speech left out, and the same however the sound arrives."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dailies.speech.audio import RATE
from dailies.speech.dtmf import spoken
from dailies.speech.plan import FRAME, Chunk, Plan, Rules

pytestmark = pytest.mark.unit

SECOND = 1_000_000
# Seconds of voice and of pause, in turn.
Turns = list[tuple[float, float]]


def voice(seconds: float, level: float = 0.3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level / 3, round(seconds * RATE)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def turns(*pairs: tuple[float, float]) -> np.ndarray:
    return np.concatenate([part for said, still in pairs for part in (voice(said), silence(still))])


def planned(wave: np.ndarray, rules: Rules | None = None, step: int = RATE) -> tuple[Plan, list[Chunk]]:
    plan = Plan(rules)
    return plan, list(plan.chunks(wave[at : at + step] for at in range(0, len(wave), step)))


def spans(chunks: list[Chunk]) -> list[tuple[float, float]]:
    return [(chunk.start_us / SECOND, chunk.end_us / SECOND) for chunk in chunks]


def test_a_long_pause_ends_a_chunk_and_is_silence() -> None:
    plan, chunks = planned(turns((0, 3), (4, 5), (2, 6)))
    assert spans(chunks) == [(2.75, 7.25), (11.75, 14.25)]
    assert (plan.duration_us, plan.speech_us, plan.silence_us) == (20 * SECOND, 7 * SECOND, 13 * SECOND)
    assert chunks[0].voiced == ((250_000, 4_250_000),)


def test_a_chunk_that_gets_too_long_is_cut_in_the_middle_of_its_last_pause() -> None:
    _, chunks = planned(turns((10, 0.5), (14, 1.0), (12, 0.4), (3, 0)))
    assert spans(chunks) == [(0, 25.0), (25.0, 40.9)]
    assert [chunk.overlap_us for chunk in chunks] == [0, 0]


def test_where_there_is_no_pause_the_next_chunk_says_a_second_again() -> None:
    plan, chunks = planned(voice(70))
    assert spans(chunks) == [(0, 30), (29, 59), (58, 70)]
    assert [chunk.overlap_us for chunk in chunks] == [0, SECOND, SECOND]
    assert plan.speech_us == 70 * SECOND


@pytest.mark.parametrize("seconds", [29.99, 30.0, 30.0001, 30.01, 30.5, 59.0, 59.003])
def test_the_last_tail_is_always_in_a_chunk(seconds: float) -> None:
    _, chunks = planned(voice(seconds))
    assert chunks[-1].end_us == round(seconds * RATE) * SECOND // RATE
    # And none has only what another has.
    assert all(after.end_us > before.end_us for before, after in pairwise(chunks))


def test_the_samples_are_those_of_the_place() -> None:
    wave = turns((5, 3), (40, 0.3), (8, 4), (0.05, 0))
    _, chunks = planned(wave)
    assert len(chunks) == 4
    for chunk in chunks:
        start, end = (us * RATE // SECOND for us in (chunk.start_us, chunk.end_us))
        assert np.array_equal(chunk.samples, wave[start:end])


@pytest.mark.parametrize("level", [0.003, 0.3])
def test_a_single_short_tone_in_a_minute_is_found(level: float) -> None:
    wave = silence(60)
    tone = spoken("5", tone_ms=40, level=level).samples
    wave[40 * RATE : 40 * RATE + len(tone)] = tone
    _, chunks = planned(wave)
    assert spans(chunks) == [(39.75, 40.29)]


@pytest.mark.parametrize("level", [0.005, 0.02, 0.5])
def test_who_speaks_softly_after_the_loud_is_heard(level: float) -> None:
    wave = np.concatenate([voice(8, 0.9), silence(3), voice(2, level), silence(3)])
    wave += np.random.default_rng(5).normal(0, 2e-4, len(wave)).astype(np.float32)
    _, chunks = planned(wave)
    assert spans(chunks) == [(0, 8.25), (10.75, 13.25)]


def test_the_bar_follows_the_noise() -> None:
    noise = np.random.default_rng(3).normal(0, 0.002, 40 * RATE).astype(np.float32)
    noise[10 * RATE : 12 * RATE] += voice(2, 0.2)
    noise[20 * RATE : 22 * RATE] += voice(2, 0.2)
    _, chunks = planned(noise)
    assert spans(chunks) == [(9.75, 12.25), (19.75, 22.25)]


def test_who_is_just_above_loud_noise_is_heard_beside_one_who_shouts() -> None:
    noise = np.random.default_rng(3).normal(0, 0.0056, 25 * RATE).astype(np.float32)
    noise[5 * RATE : 7 * RATE] += voice(2, 0.9)
    noise[15 * RATE : 17 * RATE] += voice(2, 0.04)
    _, chunks = planned(noise)
    assert spans(chunks) == [(4.75, 7.25), (14.75, 17.25)]


def test_an_offset_of_the_microphone_is_no_voice() -> None:
    _, chunks = planned(turns((0, 5), (2, 5)) + np.float32(0.2))
    assert spans(chunks) == [(4.75, 7.25)]


def test_a_key_is_of_the_sound_and_its_place() -> None:
    wave = turns((5, 4), (5, 4), (5, 0))
    keys = [chunk.key for chunk in planned(wave)[1]]
    assert len(set(keys)) == 3
    changed = wave.copy()
    changed[2 * RATE] += 1e-4
    others = [chunk.key for chunk in planned(changed)[1]]
    assert [one == other for one, other in zip(keys, others, strict=True)] == [False, True, True]
    # The same sound elsewhere is another chunk.
    one, other = planned(turns((0, 4), (5, 4), (5, 4)))[1]
    assert np.array_equal(one.samples, other.samples)
    assert one.key != other.key
    # What was there before is not in it: the same place with one chunk less before it has the same key.
    changed[: 5 * RATE] = 0
    assert [chunk.key for chunk in planned(changed)[1]] == keys[1:]


def test_nothing_comes_of_nothing() -> None:
    plan, chunks = planned(silence(0))
    assert (chunks, plan.duration_us, plan.silence_us) == ([], 0, 0)
    plan, chunks = planned(silence(12.3))
    assert (chunks, plan.duration_us, plan.silence_us) == ([], 12_300_000, 12_300_000)


def test_a_chunk_is_given_out_before_the_rest_is_read() -> None:
    read = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal read
        for at in range(100):
            read += 1
            yield voice(1) if at % 10 < 5 else silence(1)

    first = next(Plan().chunks(blocks()))
    assert (first.end_us, read) == (5_250_000, 12)


@pytest.mark.parametrize("kind", ["speech", "silence", "noise"])
def test_memory_is_flat(kind: str) -> None:
    def blocks(minutes: int) -> Iterator[np.ndarray]:
        for second in range(minutes * 60):
            yield silence(1) if kind == "silence" or (kind == "speech" and second % 7 > 4) else voice(1)

    def peak(minutes: int) -> int:
        tracemalloc.start()
        for _ in Plan().chunks(blocks(minutes)):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(8) < peak(2) * 1.1 + 100_000


def test_rules_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="contradict"):
        Rules(longest=100, overlap=60)


talk = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 400)), min_size=1, max_size=6)
rules = st.builds(
    Rules,
    longest=st.integers(60, 500),
    overlap=st.integers(0, 30),
    pause=st.integers(5, 30),
    rest=st.integers(50, 250),
    pad=st.integers(0, 25),
)


@settings(max_examples=60, deadline=None)
@given(talk=talk, rules=rules, tail=st.just(0) | st.integers(16, FRAME), step=st.integers(1, 40_000))
def test_every_plan_adds_up_and_does_not_depend_on_the_blocks(
    talk: list[tuple[int, int]], rules: Rules, tail: int, step: int
) -> None:
    parts = [part for said, still in talk for part in (voice(said / 100), silence(still / 100))]
    wave = np.concatenate([*parts, voice(tail / RATE)])
    plan, chunks = planned(wave, rules, max(step, len(wave) // 200 + 1))
    assert plan.duration_us == len(wave) * SECOND // RATE
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    covered = np.zeros(len(wave), dtype=int)
    for chunk in chunks:
        assert 0 < len(chunk.samples) <= rules.longest * FRAME
        start = chunk.start_us * RATE // SECOND
        covered[start : start + len(chunk.samples)] += 1
        assert np.array_equal(chunk.samples, wave[start : start + len(chunk.samples)])
        assert all(0 <= first < last <= chunk.end_us - chunk.start_us for first, last in chunk.voiced)
    for before, after in pairwise(chunks):
        assert after.start_us + after.overlap_us == max(before.end_us, after.start_us)
        assert after.overlap_us <= rules.overlap * 10_000
    assert not wave[covered == 0].any()
    assert plan.speech_us == sum(chunk.end_us - chunk.start_us - chunk.overlap_us for chunk in chunks)
    again = planned(wave, rules)[1]
    assert [(chunk.key, chunk.voiced) for chunk in again] == [(chunk.key, chunk.voiced) for chunk in chunks]
