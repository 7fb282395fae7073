"""Forged results, each with the figures it must get: a scorer that flatters is worse than none."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies.captions.score import Comparison, Cue, Offset, Pair, Score, Verdict, compare, tidy, total

pytestmark = pytest.mark.unit

FRAME = 40_000
FRAMES = range(0, 60_000_000 + 1, FRAME)
TRUTH = (
    Cue(1_000_000, 3_000_000, "Where are you?"),
    Cue(3_000_000, 5_000_000, "Where are they?"),
    Cue(8_000_000, 9_000_000, "Go!"),
    Cue(20_000_000, 24_000_000, "First line,\nsecond line."),
)
CHARACTERS = 14 + 15 + 3 + 24
PERFECT = Score(
    captions=4,
    found=4,
    exact=4,
    characters=CHARACTERS,
    watched_us=60_000_000,
    starts=(Offset(0, 0.0),) * 4,
    ends=(Offset(0, 0.0),) * 4,
)


def compared(*found: Cue) -> Comparison:
    return compare(TRUTH, found, FRAMES)


def shifted(us: int) -> list[Cue]:
    return [replace(cue, start_us=cue.start_us + us, end_us=cue.end_us + us) for cue in TRUTH]


def verdicts(result: Comparison) -> list[str]:
    return [pair.verdict.value for pair in result.pairs]


def without(score: Score, *places: int) -> Score:
    """The perfect score without the boundaries of the captions at these places."""
    kept = tuple(each for place, each in enumerate(score.starts) if place not in places)
    return replace(score, starts=kept, ends=kept)


def test_the_truth_itself_is_perfect() -> None:
    result = compared(*TRUTH)
    assert result.score == PERFECT
    assert result.pairs == tuple(Pair(cue, cue, Verdict.EXACT) for cue in TRUTH)
    assert (result.score.exact_share, result.score.cer, result.score.phantoms_per_10_minutes) == (1.0, 0.0, 0.0)
    assert (result.score.within(0), result.score.within(1)) == (1.0, 1.0)
    assert (result.score.offset_median_us, result.score.offset_p95_us) == (0, 0)


@pytest.mark.parametrize("direction", [-1, 1])
def test_one_frame_off_is_within_one_frame_but_not_on_the_frame(direction: int) -> None:
    score = compared(*shifted(direction * FRAME)).score
    assert score == replace(
        PERFECT, starts=(Offset(direction * FRAME, direction),) * 4, ends=(Offset(direction * FRAME, direction),) * 4
    )
    assert (score.within(1), score.within(0)) == (1.0, 0.0)
    assert (score.offset_median_us, score.offset_p95_us) == (40_000, 40_000)


@pytest.mark.parametrize("direction", [-1, 1])
def test_two_frames_off_is_not_within_one_frame(direction: int) -> None:
    score = compared(*shifted(2 * direction * FRAME)).score
    assert score.exact == 4
    assert (score.within(2), score.within(1), score.within(0)) == (1.0, 0.0, 0.0)
    assert (score.offset_median_us, score.offset_p95_us) == (80_000, 80_000)


def test_a_start_and_an_end_are_judged_apart() -> None:
    late = replace(TRUTH[3], end_us=TRUTH[3].end_us + 3 * FRAME)
    score = compared(*TRUTH[:3], late).score
    assert score.starts == PERFECT.starts
    assert score.ends == (*PERFECT.ends[:3], Offset(120_000, 3.0))
    assert score.within(1) == 7 / 8
    assert (score.offset_median_us, score.offset_p95_us) == (0, 120_000)


@pytest.mark.parametrize(("late", "p95"), [(1, 0), (2, 120_000)])
def test_of_twenty_boundaries_the_nineteenth_is_the_95th_percentile(late: int, p95: int) -> None:
    truth = [Cue(second * 1_000_000, second * 1_000_000 + 800_000, f"number {second}") for second in range(10)]
    moved = [replace(cue, end_us=cue.end_us + 3 * FRAME) for cue in truth[:late]]
    score = compare(truth, [*moved, *truth[late:]], FRAMES).score
    assert (score.offset_median_us, score.offset_p95_us) == (0, p95)


def test_a_missing_caption_is_missed_and_costs_no_characters() -> None:
    result = compared(*TRUTH[:2], TRUTH[3])
    assert verdicts(result) == ["exact", "exact", "missed", "exact"]
    assert result.pairs[2] == Pair(TRUTH[2], None, Verdict.MISSED)
    assert result.score == replace(without(PERFECT, 2), found=3, exact=3, missed=1, characters=CHARACTERS - len("Go!"))
    assert result.score.exact_share == 3 / 4


def test_nothing_found_is_all_missed() -> None:
    assert compared().score == Score(captions=4, missed=4, watched_us=60_000_000)


def test_text_that_nobody_showed_is_a_phantom() -> None:
    scrap = Cue(12_000_000, 13_000_000, "IIl")
    result = compared(*TRUTH, scrap)
    assert verdicts(result) == ["exact", "exact", "exact", "phantom", "exact"]
    assert result.pairs[3] == Pair(None, scrap, Verdict.PHANTOM)
    assert result.score == replace(PERFECT, found=5, phantoms=1)
    assert result.score.phantoms_per_10_minutes == 10.0


def test_other_text_beside_a_caption_is_a_phantom_too() -> None:
    sign = Cue(1_000_000, 3_000_000, "EXIT 4")
    assert compared(*TRUTH, sign).score == replace(PERFECT, found=5, phantoms=1)


def test_a_caption_told_twice_is_a_duplicate_once() -> None:
    result = compared(*TRUTH, TRUTH[0])
    assert verdicts(result) == ["exact", "duplicate", "exact", "exact", "exact"]
    assert result.score == replace(PERFECT, found=5, duplicates=1)


def test_a_copy_after_the_caption_has_gone_is_a_phantom() -> None:
    again = replace(TRUTH[2], start_us=10_000_000, end_us=11_000_000)
    assert compared(*TRUTH, again).score == replace(PERFECT, found=5, phantoms=1)


def test_a_caption_split_in_halves_is_found_once_and_told_twice() -> None:
    first, second = replace(TRUTH[3], end_us=22_000_000), replace(TRUTH[3], start_us=22_000_000)
    result = compared(*TRUTH[:3], first, second)
    assert verdicts(result) == ["exact", "exact", "exact", "exact", "duplicate"]
    assert result.score == replace(PERFECT, found=5, duplicates=1, ends=(*PERFECT.ends[:3], Offset(-2_000_000, -50.0)))


def test_a_caption_split_in_three_is_missed() -> None:
    cuts = (20_000_000, 21_300_000, 22_600_000, 24_000_000)
    pieces = [replace(TRUTH[3], start_us=start, end_us=end) for start, end in pairwise(cuts)]
    result = compared(*TRUTH[:3], *pieces)
    assert verdicts(result)[3:] == ["duplicate", "missed", "duplicate", "duplicate"]
    assert result.score == replace(
        without(PERFECT, 3), found=6, exact=3, missed=1, duplicates=3, characters=CHARACTERS - 24
    )


def test_two_lines_told_as_two_captions_are_a_wrong_text_and_a_duplicate() -> None:
    upper, lower = (replace(TRUTH[3], text=line) for line in TRUTH[3].text.splitlines())
    result = compared(*TRUTH[:3], upper, lower)
    assert verdicts(result)[3:] == ["duplicate", "wrong text"]
    assert result.score.wrong_characters == len("First line,\n")
    assert (result.score.missed, result.score.phantoms, result.score.duplicates) == (0, 0, 1)


def test_neighbours_told_as_one_are_one_found_and_one_missed() -> None:
    merged = Cue(1_000_000, 5_000_000, "Where are they?")
    result = compared(merged, *TRUTH[2:])
    assert verdicts(result) == ["missed", "exact", "exact", "exact"]
    assert result.pairs[1] == Pair(TRUTH[1], merged, Verdict.EXACT), "the text decides which of the two was found"
    assert result.score == replace(
        without(PERFECT, 0),
        found=3,
        exact=3,
        missed=1,
        characters=CHARACTERS - 14,
        starts=(Offset(-2_000_000, -50.0), Offset(0, 0.0), Offset(0, 0.0)),
    )


def test_a_wrong_letter_is_one_character_of_all() -> None:
    misread = replace(TRUTH[1], text="Where are thcy?")
    result = compared(TRUTH[0], misread, *TRUTH[2:])
    assert verdicts(result) == ["exact", "wrong text", "exact", "exact"]
    assert result.score == replace(PERFECT, exact=3, wrong_characters=1)
    assert result.score.cer == 1 / CHARACTERS


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Whereare you?", 1),
        ("Where are you", 1),
        ("where are you?", 1),
        ("Where are\nyou?", 1),
        ("Where  are you?? ", 1),
        ("", 14),
    ],
)
def test_spaces_marks_cases_and_line_breaks_count(text: str, wrong: int) -> None:
    score = compared(replace(TRUTH[0], text=text), *TRUTH[1:]).score
    assert score == replace(PERFECT, exact=3, wrong_characters=wrong)


@pytest.mark.parametrize("text", [" Where are  you?", "Where are you?\n", "Where are\u00a0you?"])
def test_spare_space_does_not_count(text: str) -> None:
    assert compared(replace(TRUTH[0], text=text), *TRUTH[1:]).score == PERFECT


@pytest.mark.parametrize("text", ["caf\u00e9", "cafe\u0301"])
def test_an_accent_is_one_character_however_it_is_encoded(text: str) -> None:
    shown = Cue(0, FRAME, "caf\u00e9")
    assert compare([shown], [replace(shown, text=text)], FRAMES).score.exact == 1
    without_accent = compare([replace(shown, text=text)], [replace(shown, text="cafe")], FRAMES).score
    assert (without_accent.characters, without_accent.wrong_characters) == (4, 1)


def test_signs_that_only_look_alike_differ() -> None:
    assert len({tidy(text) for text in ("Well…", "Well...", "Well", "WeII")}) == 4


def test_captions_on_screen_together_are_told_apart_by_their_text() -> None:
    upper, lower = Cue(0, 2_000_000, "LONDON, 1931"), Cue(0, 2_000_000, "Good evening.")
    late = replace(upper, start_us=FRAME)
    result = compare([upper, lower], [lower, late], FRAMES)
    assert {(pair.truth, pair.found) for pair in result.pairs} == {(upper, late), (lower, lower)}
    assert result.score.exact == 2


@pytest.mark.parametrize(("end_us", "matched"), [(4_000_000, 1), (3_999_999, 0)])
def test_half_of_the_joint_time_is_the_least_for_a_match(end_us: int, matched: int) -> None:
    score = compare([Cue(2_000_000, 6_000_000, "Ten")], [Cue(2_000_000, end_us, "Ten")], FRAMES).score
    assert (score.exact, score.missed, score.duplicates) == (matched, 1 - matched, 1 - matched)


def test_frames_of_a_variable_rate_are_counted_and_not_timed() -> None:
    frames = [0, 10_000, 20_000, 520_000, 530_000, 1_030_000]
    result = compare([Cue(20_000, 530_000, "slow")], [Cue(10_000, 1_030_000, "slow")], frames)
    assert result.score.starts == (Offset(-10_000, -1.0),)
    assert result.score.ends == (Offset(500_000, 1.0),), "one frame of half a second"
    quick = compare([Cue(0, 530_000, "slow")], [Cue(20_000, 530_000, "slow")], frames)
    assert quick.score.starts == (Offset(20_000, 2.0),), "two frames in 20 ms"
    assert quick.score.within(1) == 0.5


def test_whole_microseconds_do_not_push_a_neighbouring_frame_out_of_reach() -> None:
    thirtieths = [round(number * 1_000_000 / 30) for number in range(91)]
    truth = [Cue(thirtieths[10], thirtieths[40], "a")]
    found = [Cue(thirtieths[11] + 1, thirtieths[39] - 1, "a")]
    assert compare(truth, found, thirtieths).score.within(1) == 1.0


def test_what_is_found_past_the_last_frame_is_measured_by_that_frame() -> None:
    score = compare([Cue(0, 60_000_000, "a")], [Cue(0, 60_000_000 + 3 * FRAME, "a")], FRAMES).score
    assert score.ends == (Offset(120_000, 3.0),)


def test_a_film_without_captions_has_no_shares_but_its_phantoms_count() -> None:
    silent = compare([], [], FRAMES).score
    assert (silent.exact_share, silent.cer, silent.within(1)) == (None, None, None)
    assert (silent.offset_median_us, silent.offset_p95_us, silent.phantoms_per_10_minutes) == (None, None, 0.0)
    assert compare([], [Cue(0, FRAME, "TAXI")], FRAMES).score.phantoms_per_10_minutes == 10.0


def test_scores_of_clips_add_up_by_characters_and_not_by_clip() -> None:
    bad = compare([Cue(0, FRAME, "Oh!")], [Cue(0, FRAME, "0h!")], FRAMES).score
    both = total([PERFECT, bad])
    assert (both.captions, both.exact, both.watched_us) == (5, 4, 120_000_000)
    assert both.cer == 1 / (CHARACTERS + 3)
    assert both.starts == (Offset(0, 0.0),) * 5
    assert total([]) == Score()


cues = st.builds(
    lambda start, length, text: Cue(start * FRAME, (start + length) * FRAME, text),
    st.integers(0, 200),
    st.integers(1, 60),
    st.text("ab \n", max_size=6),
)


@given(st.lists(cues, max_size=6), st.lists(cues, max_size=6))
def test_every_caption_is_accounted_for_exactly_once(truth: list[Cue], found: list[Cue]) -> None:
    result = compare(truth, found, FRAMES)
    assert sorted(map(str, truth)) == sorted(str(pair.truth) for pair in result.pairs if pair.truth)
    assert sorted(map(str, found)) == sorted(str(pair.found) for pair in result.pairs if pair.found)
    score, matched = result.score, len(result.score.starts)
    assert (score.captions, score.found) == (len(truth), len(found))
    assert score.captions == matched + score.missed
    assert score.found == matched + score.phantoms + score.duplicates


def test_of_two_copies_the_one_with_the_better_times_counts() -> None:
    early, close = replace(TRUTH[2], start_us=7_800_000), replace(TRUTH[2], end_us=9_040_000)
    result = compare(TRUTH[2:3], [early, close], FRAMES)
    assert result.score.ends == (Offset(FRAME, 1.0),)
    assert result.pairs[0] == Pair(None, early, Verdict.DUPLICATE)


def test_of_two_equally_good_copies_the_earlier_one_counts_in_whatever_order_they_come() -> None:
    early, late = replace(TRUTH[2], start_us=7_960_000), replace(TRUTH[2], end_us=9_040_000)
    for found in ([early, late], [late, early]):
        assert compare(TRUTH[2:3], found, FRAMES).score.starts == (Offset(-FRAME, -1.0),)


@given(st.lists(cues, max_size=6), st.lists(cues, max_size=6), st.randoms())
def test_the_order_of_what_was_found_changes_nothing(truth: list[Cue], found: list[Cue], chance: random.Random) -> None:
    mixed = list(found)
    chance.shuffle(mixed)
    assert compare(truth, mixed, FRAMES).score == compare(truth, found, FRAMES).score


def test_a_pair_stands_for_something() -> None:
    assert Pair(None, TRUTH[0], Verdict.PHANTOM).cue == TRUTH[0]
    with pytest.raises(ValueError, match="a pair of nothing"):
        _ = Pair(None, None, Verdict.MISSED).cue
