"""How well found captions match the truth, in counts that add up over many clips.

    compared = compare(truth, found, frame_times)
    compared.score.exact_share, [pair for pair in compared.pairs if pair.verdict is Verdict.PHANTOM]

Every caption of the truth and every one found appears in exactly one pair, so that nothing can be lost between the
figures: captions = matched + missed, and found = matched + phantoms + duplicates.
"""

from __future__ import annotations

import statistics
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

# Times are whole microseconds, frames are not: one frame of 1/30 s may measure 33,334 µs.
ROUNDING = 0.01


@dataclass(frozen=True, order=True)
class Cue:
    """On show from `start_us` until just before `end_us`; lines of text are separated by line feeds."""

    start_us: int
    end_us: int
    text: str


class Verdict(StrEnum):
    EXACT = "exact"
    WRONG_TEXT = "wrong text"
    MISSED = "missed"
    PHANTOM = "phantom"
    DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Pair:
    """What was on show and what was found for it; one of the two is missing where nothing matched."""

    truth: Cue | None
    found: Cue | None
    verdict: Verdict

    @property
    def cue(self) -> Cue:
        """The truth, where there is one."""
        cue = self.truth or self.found
        if cue is None:
            raise ValueError("a pair of nothing stands for nothing")
        return cue


@dataclass(frozen=True)
class Offset:
    """How late (or, below zero, how early) a boundary was found, in time and in source frames."""

    us: int
    frames: float


@dataclass(frozen=True)
class Score:
    """Sums only; the sum of two scores is the score of both clips together. A share of nothing is None, not perfect.

    Wrong characters are counted in matched captions: a missed one is counted once, as missed.
    """

    captions: int = 0
    found: int = 0
    exact: int = 0
    characters: int = 0
    wrong_characters: int = 0
    missed: int = 0
    phantoms: int = 0
    duplicates: int = 0
    watched_us: int = 0
    starts: tuple[Offset, ...] = ()
    ends: tuple[Offset, ...] = ()

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Score)))

    @property
    def exact_share(self) -> float | None:
        return _share(self.exact, self.captions)

    @property
    def cer(self) -> float | None:
        return _share(self.wrong_characters, self.characters)

    @property
    def phantoms_per_10_minutes(self) -> float | None:
        return _share(self.phantoms * 600_000_000, self.watched_us)

    @property
    def boundaries(self) -> tuple[Offset, ...]:
        return self.starts + self.ends

    def within(self, frames: int) -> float | None:
        """The share of boundaries at most so many source frames off, whatever the length of those frames."""
        near = [each for each in self.boundaries if abs(each.frames) <= frames + ROUNDING]
        return _share(len(near), len(self.boundaries))

    @property
    def offset_median_us(self) -> float | None:
        return statistics.median(abs(each.us) for each in self.boundaries) if self.boundaries else None

    @property
    def offset_p95_us(self) -> int | None:
        """By nearest rank: a boundary that was really that far off."""
        ranked = sorted(abs(each.us) for each in self.boundaries)
        return ranked[-(-len(ranked) * 95 // 100) - 1] if ranked else None


@dataclass(frozen=True)
class Comparison:
    """The pairs stand in the order of time."""

    pairs: tuple[Pair, ...]
    score: Score


def compare(truth: Sequence[Cue], found: Sequence[Cue], frame_times: Sequence[int]) -> Comparison:
    """`frame_times`: when each source frame starts, and when the last one ends; rising, at least two."""
    matches = match(truth, found)
    taken = {place for place, _ in matches}, {place for _, place in matches}
    pairs = [_matched(truth[here], found[there]) for here, there in matches]
    pairs += [Pair(cue, None, Verdict.MISSED) for place, cue in enumerate(truth) if place not in taken[0]]
    pairs += [Pair(None, cue, _left_over(cue, truth)) for place, cue in enumerate(found) if place not in taken[1]]
    pairs.sort(key=lambda pair: pair.cue)
    return Comparison(tuple(pairs), _score(pairs, frame_times))


def match(truth: Sequence[Cue], found: Sequence[Cue]) -> list[tuple[int, int]]:
    """Pairs of places, one to one and greedy: of those that share at least half their joint time, the best text first.

    Text decides before time, because two captions on screen at once share their times and differ in their text.
    """
    candidates = [
        (_distance(tidy(cue.text), tidy(other.text)), -_shared(cue, other), cue, other, here, there)
        for here, cue in enumerate(truth)
        for there, other in enumerate(found)
        if _shared(cue, other) >= 0.5
    ]
    matches: dict[int, int] = {}
    for *_, here, there in sorted(candidates):
        if here not in matches and there not in matches.values():
            matches[here] = there
    return sorted(matches.items())


def tidy(text: str) -> str:
    """What two readings of the same caption must agree on: every character and line break, but no spare space."""
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines())
    return "\n".join(line for line in lines if line)


def total(scores: Iterable[Score]) -> Score:
    return sum(scores, Score())


def _matched(truth: Cue, found: Cue) -> Pair:
    same = tidy(truth.text) == tidy(found.text)
    return Pair(truth, found, Verdict.EXACT if same else Verdict.WRONG_TEXT)


def _left_over(cue: Cue, truth: Sequence[Cue]) -> Verdict:
    """A second copy or a piece of what was on show is a duplicate; text that nobody showed is a phantom."""
    shown = [other.text for other in truth if _overlap(cue, other) > 0]
    wordings = [part for text in shown for part in (text, *text.splitlines())]
    return Verdict.DUPLICATE if any(_alike(cue.text, wording) for wording in wordings) else Verdict.PHANTOM


def _alike(one: str, other: str) -> bool:
    one, other = tidy(one), tidy(other)
    return bool(one) and 2 * _distance(one, other) < max(len(one), len(other))


def _score(pairs: Sequence[Pair], frame_times: Sequence[int]) -> Score:
    verdicts = [pair.verdict for pair in pairs]
    both = [(pair.truth, pair.found) for pair in pairs if pair.truth and pair.found]
    return Score(
        captions=sum(pair.truth is not None for pair in pairs),
        found=sum(pair.found is not None for pair in pairs),
        exact=verdicts.count(Verdict.EXACT),
        characters=sum(len(tidy(truth.text)) for truth, _ in both),
        wrong_characters=sum(_distance(tidy(truth.text), tidy(found.text)) for truth, found in both),
        missed=verdicts.count(Verdict.MISSED),
        phantoms=verdicts.count(Verdict.PHANTOM),
        duplicates=verdicts.count(Verdict.DUPLICATE),
        watched_us=frame_times[-1] - frame_times[0],
        starts=tuple(_offset(truth.start_us, found.start_us, frame_times) for truth, found in both),
        ends=tuple(_offset(truth.end_us, found.end_us, frame_times) for truth, found in both),
    )


def _offset(true_us: int, found_us: int, frame_times: Sequence[int]) -> Offset:
    frames = _frame_place(found_us, frame_times) - _frame_place(true_us, frame_times)
    return Offset(found_us - true_us, frames)


def _frame_place(time_us: int, frame_times: Sequence[int]) -> float:
    """A time as a frame number with a fraction: on a variable rate only this says how many frames lie between two."""
    place = min(max(bisect_right(frame_times, time_us) - 1, 0), len(frame_times) - 2)
    start, end = frame_times[place], frame_times[place + 1]
    return place + (time_us - start) / (end - start)


def _overlap(one: Cue, other: Cue) -> int:
    return max(0, min(one.end_us, other.end_us) - max(one.start_us, other.start_us))


def _shared(one: Cue, other: Cue) -> float:
    """The part of their joint time in which both are on show: 1 for the same times, 0 for strangers."""
    overlap = _overlap(one, other)
    return overlap / (one.end_us - one.start_us + other.end_us - other.start_us - overlap) if overlap else 0.0


def _distance(one: str, other: str) -> int:
    """The fewest insertions, deletions and replacements of a character that turn one into the other."""
    row = list(range(len(other) + 1))
    for here, letter in enumerate(one, 1):
        before, row[0] = row[0], here
        for there, sign in enumerate(other, 1):
            cost = min(row[there] + 1, row[there - 1] + 1, before + (letter != sign))
            before, row[there] = row[there], cost
    return row[-1]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
