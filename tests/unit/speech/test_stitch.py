"""Chunks joined: nothing twice, nothing lost, nothing moved, and every microsecond accounted for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dailies.speech.audio import RATE
from dailies.speech.dtmf import Dtmf, Spoken, spoken
from dailies.speech.engine import Word
from dailies.speech.plan import Plan, Rules
from dailies.speech.stitch import OUTSIDE, REPEATED, SAID_TWICE, Coverage, Gap, Heard, Whole, stitch

pytestmark = pytest.mark.unit

SECOND = 1_000_000


def words(*said: tuple[float, float, str]) -> tuple[Word, ...]:
    return tuple(Word(round(start * SECOND), round(end * SECOND), text) for start, end, text in said)


def heard(start: float, end: float, *said: tuple[float, float, str], failure: str = "") -> Heard:
    return Heard(round(start * SECOND), round(end * SECOND), words(*said), failure)


def text(whole: Whole) -> str:
    return " ".join(word.text for word in whole.words)


def starts(whole: Whole) -> list[float]:
    return [word.start_us / SECOND for word in whole.words]


def test_words_are_put_at_the_place_of_their_chunk() -> None:
    whole = stitch([heard(10, 20, (1, 2, "b")), heard(2, 5, (0.5, 1, "a"))], 30 * SECOND)
    assert whole.words == words((2.5, 3, "a"), (11, 12, "b"))
    assert whole.coverage == Coverage(30 * SECOND, 13 * SECOND, 17 * SECOND, 0)


def test_what_two_chunks_heard_is_said_once() -> None:
    first = heard(0, 30, (27, 28, "the"), (28.9, 29.4, "quick"), (29.5, 29.8, "brown"), (29.9, 30, "f"))
    second = heard(29, 60, (0, 0.3, "ick"), (0.55, 0.85, "Brown"), (1.0, 1.3, "fox"))
    whole = stitch([first, second], 60 * SECOND)
    assert text(whole) == "the quick brown fox"
    assert [(one.word.text, one.reason) for one in whole.dropped] == [
        ("ick", SAID_TWICE),
        ("Brown", SAID_TWICE),
        ("f", SAID_TWICE),
    ]


def test_without_a_word_in_common_the_middle_parts_them() -> None:
    first = heard(0, 30, (29.1, 29.3, "a"), (29.7, 30, "bat"))
    second = heard(29, 60, (0, 0.2, "ay"), (0.7, 1.1, "bad"))
    assert text(stitch([first, second], 60 * SECOND)) == "a bad"


def test_a_word_said_twice_within_the_overlap_stays_twice() -> None:
    first = heard(0, 30, (29.1, 29.2, "5"), (29.3, 29.4, "5"), (29.55, 29.65, "5"), (29.8, 29.9, "5"))
    second = heard(29, 60, (0.12, 0.22, "5"), (0.32, 0.42, "5"), (0.57, 0.67, "5"), (0.82, 0.92, "5"), (1.1, 1.2, "5"))
    whole = stitch([first, second], 60 * SECOND)
    assert text(whole) == "5 5 5 5 5"
    assert starts(whole) == pytest.approx([29.1, 29.3, 29.55, 29.8, 30.1], abs=0.03)


def test_a_word_cut_by_both_edges_is_one_word() -> None:
    first, second = heard(0, 30, (28, 30, "D")), heard(29, 60, (0, 2, "D"))
    assert stitch([first, second], 60 * SECOND).words == words((28, 31, "D"))
    # The end is the one of the chunk that has it.
    first, second = heard(0, 30, (29.9, 30, "D")), heard(29, 60, (0.9, 1.2, "D"))
    assert stitch([first, second], 60 * SECOND).words == words((29.9, 30.2, "D"))


def test_a_chunk_that_failed_is_a_gap_and_moves_nothing() -> None:
    chunks = [heard(0, 30, (1, 2, "a"), (29.2, 29.4, "b")), heard(29, 59, (5, 6, "c")), heard(58, 80, (2, 3, "d"))]
    undisturbed = stitch(chunks, 100 * SECOND)
    assert text(undisturbed) == "a b c d"
    whole = stitch([chunks[0], heard(29, 59, failure="the engine\nis gone"), chunks[2]], 100 * SECOND)
    assert whole.words == words((1, 2, "a"), (29.2, 29.4, "b"), (60, 61, "d"))
    assert whole.gaps == (Gap(30 * SECOND, 58 * SECOND, "the engine is gone"),)
    assert whole.coverage == Coverage(100 * SECOND, 52 * SECOND, 20 * SECOND, 28 * SECOND)


def test_neighbours_that_failed_share_no_second() -> None:
    chunks = [heard(0, 30, failure="one"), heard(29, 59, failure="two"), heard(70, 71, (0, 1, "a"))]
    whole = stitch(chunks, 71 * SECOND)
    assert whole.gaps == (Gap(0, 30 * SECOND, "one"), Gap(30 * SECOND, 59 * SECOND, "two"))
    assert whole.coverage == Coverage(71 * SECOND, SECOND, 11 * SECOND, 59 * SECOND)


def test_times_rise_and_stay_in_the_chunk() -> None:
    said = [(3, 5, "c"), (-1, 2, "a"), (1.5, 3.5, "b"), (4, 3, "d"), (9, 12, "e"), (11, 12, "f"), (5, 6, "  \n")]
    whole = stitch([heard(100, 110, *said), heard(110, 120, (0, 1, "g"))], 120 * SECOND)
    assert text(whole) == "a b c d e g"
    assert [one.reason for one in whole.dropped] == [OUTSIDE]
    assert all(one.start_us <= one.end_us <= two.start_us for one, two in pairwise(whole.words))
    assert (whole.words[0].start_us, whole.words[-2].end_us) == (100 * SECOND, 110 * SECOND)


def test_confidence_is_always_a_share() -> None:
    one = Heard(0, SECOND, (Word(0, 1, "a", float("nan")), Word(2, 3, "b", 1.7), Word(4, 5, "c", 0.12345678)))
    assert [word.confidence for word in stitch([one], SECOND).words] == [0.0, 1.0, 0.1235]


def loop(phrase: str, times: int, start: float, step: float) -> list[tuple[float, float, str]]:
    said = phrase.split() * times
    return [(start + place * step, start + (place + 1) * step, word) for place, word in enumerate(said)]


def test_a_phrase_repeated_where_nothing_is_heard_is_cut() -> None:
    said = [(0, 0.5, "so"), *loop("thank you", 20, 2, 0.5)]
    chunk = replace(heard(5, 35, *said), voiced=((0, 4 * SECOND),))
    whole = stitch([chunk], 40 * SECOND)
    assert text(whole) == "so thank you thank you"
    assert {one.reason for one in whole.dropped} == {REPEATED}
    assert len(whole.dropped) == 36


def test_a_phrase_repeated_on_one_spot_is_cut() -> None:
    said = [(1, 2, "go"), *[(2, 2.2, "on")] * 30, (3, 4, "home"), *[(5, 5, "and")] * 4]
    assert text(stitch([heard(0, 30, *said)], 30 * SECOND)) == "go on home and"


def test_what_is_really_said_again_and_again_stays() -> None:
    said = spoken("7" * 40 + " " + "123" * 10)
    plan = Plan()
    chunks = [Heard.of(chunk, Dtmf().transcribe(chunk.samples, RATE)) for chunk in plan.chunks([said.samples])]
    whole = stitch(chunks, plan.duration_us)
    assert (text(whole), whole.dropped) == (said.text, ())
    # And without sound under it, a word that is said once or twice is nobody's loop.
    quiet = replace(heard(0, 9, (1, 2, "yes"), (2, 3, "yes"), (3, 4, "no")), voiced=())
    assert text(stitch([quiet], 9 * SECOND)) == "yes yes no"


def test_nothing_of_nothing() -> None:
    assert stitch([], 5 * SECOND) == Whole((), (), (), Coverage(5 * SECOND, 0, 5 * SECOND, 0))


keypad = st.text(alphabet="0123456789ABCD*# ", min_size=1, max_size=60).filter(lambda text: bool(text.strip()))


def cut_at_will(said: Spoken, cuts: list[int], overlap: int) -> list[Heard]:
    """By the frame and without a look at the sound: also through a tone."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut * 160 < len(said.samples)})]
    heard = []
    for place, begin in enumerate(edges):
        end = edges[place + 1] + overlap if place + 1 < len(edges) else len(said.samples) // 160 + 1
        wave = said.samples[begin * 160 : end * 160]
        length = len(wave) * 125 // 2
        heard.append(Heard(begin * 10_000, begin * 10_000 + length, tuple(Dtmf().transcribe(wave, RATE))))
    return heard


@settings(max_examples=150, deadline=None)
@given(keypad, st.lists(st.integers(1, 1500), max_size=4), st.sampled_from([40, 80, 150]))
def test_however_the_sound_is_cut_the_text_is_the_same(letters: str, cuts: list[int], tone_ms: int) -> None:
    said = spoken(letters, tone_ms=tone_ms, gap_ms=60, pause_ms=700)
    cuts = [cut for place, cut in enumerate(sorted(cuts)) if all(cut - other >= 250 for other in sorted(cuts)[:place])]
    whole = stitch(cut_at_will(said, cuts, 100), len(said.samples) * 125 // 2)
    assert text(whole) == said.text
    assert all(
        abs(word.start_us - truth.start_us) <= 5000 and abs(word.end_us - truth.end_us) <= 5000
        for word, truth in zip(whole.words, said.words, strict=True)
    )


rules = st.builds(
    Rules,
    longest=st.integers(200, 3000),
    overlap=st.just(100),
    pause=st.integers(7, 30),
    rest=st.integers(60, 250),
    pad=st.integers(5, 25),
)


@settings(max_examples=80, deadline=None)
@given(letters=keypad, rules=rules, noise=st.sampled_from([0.0, 0.001, 0.03]))
def test_whatever_the_rules_the_text_is_the_same(letters: str, rules: Rules, noise: float) -> None:
    said = spoken(letters, lead_ms=300, tail_ms=200, noise=noise)
    plan = Plan(rules)
    chunks = [Heard.of(chunk, Dtmf().transcribe(chunk.samples, RATE)) for chunk in plan.chunks([said.samples])]
    whole = stitch(chunks, plan.duration_us)
    assert text(whole) == said.text
    assert whole.coverage == Coverage(plan.duration_us, plan.speech_us, plan.silence_us, 0)


@settings(max_examples=80, deadline=None)
@given(letters=keypad, data=st.data(), noise=st.sampled_from([0.0, 0.03]))
def test_any_chunks_failing_change_their_own_spans_alone(letters: str, data: st.DataObject, noise: float) -> None:
    said = spoken(letters, noise=noise, pause_ms=1500)
    plan = Plan(Rules(longest=250, overlap=100, rest=100))
    chunks = [Heard.of(chunk, Dtmf().transcribe(chunk.samples, RATE)) for chunk in plan.chunks([said.samples])]
    lost = data.draw(st.sets(st.integers(0, len(chunks) - 1)))
    broken = [
        replace(chunk, words=(), failure=f"chunk {place}") if place in lost else chunk
        for place, chunk in enumerate(chunks)
    ]
    undisturbed = stitch(chunks, plan.duration_us)
    whole = stitch(data.draw(st.permutations(broken)), plan.duration_us)
    outside = [(chunks[place].start_us, chunks[place].end_us) for place in lost]

    def untouched(some: tuple[Word, ...]) -> list[Word]:
        return [word for word in some if all(word.end_us <= start or word.start_us >= end for start, end in outside)]

    assert untouched(whole.words) == untouched(undisturbed.words)
    covered = whole.coverage
    assert covered.speech_us + covered.silence_us + covered.failed_us == plan.duration_us
    assert covered.silence_us == plan.silence_us
    assert sum(gap.end_us - gap.start_us for gap in whole.gaps) == covered.failed_us
    assert all(before.end_us <= after.start_us for before, after in pairwise(whole.gaps))
    # What no gap marks is heard as if nothing had failed.
    assert apart(whole.words, whole.gaps) == apart(undisturbed.words, whole.gaps)


def apart(some: tuple[Word, ...], gaps: tuple[Gap, ...]) -> list[str]:
    return [
        word.text
        for word in some
        if all(word.end_us + 10_000 < gap.start_us or word.start_us - 10_000 > gap.end_us for gap in gaps)
    ]
