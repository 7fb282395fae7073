"""What was heard in the chunks, joined to one row of words on the timeline of the sound.

    whole = stitch(heard, duration_us)
    whole.words, whole.gaps, whole.dropped, whole.coverage

Every word has its chunk's place and not that of the words before it, so that a chunk that failed is a gap and moves
nothing. Speech, silence and what failed add up to the duration, to the microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dailies.speech.engine import Word
from dailies.speech.plan import Chunk, Span

# Two engines, or one with other words before it, put the same word this much apart.
SAME_US = 400_000
# A word that comes so close to the edge of its chunk may go on behind it.
EDGE_US = 30_000
# A phrase of up to so many words, said so often in a row, is suspected; what has sound under it stays.
PHRASE, OFTEN = 8, 3
LEAST_VOICED = 0.3
REPEATED = "repeated without sound of its own"
SAID_TWICE = "said by both chunks"
OUTSIDE = "outside its chunk"


@dataclass(frozen=True)
class Heard:
    """A chunk and what came of it: words, counted from its start, or why there are none.

    Without `voiced` all of the chunk counts as having sound.
    """

    start_us: int
    end_us: int
    words: tuple[Word, ...] = ()
    failure: str = ""
    voiced: tuple[Span, ...] | None = None

    @classmethod
    def of(cls, chunk: Chunk, words: Iterable[Word] = (), failure: str = "") -> Heard:
        return cls(chunk.start_us, chunk.end_us, tuple(words), failure, chunk.voiced)


@dataclass(frozen=True)
class Gap:
    start_us: int
    end_us: int
    reason: str


@dataclass(frozen=True)
class Dropped:
    word: Word
    reason: str


@dataclass(frozen=True)
class Coverage:
    """`speech_us` is what an engine heard, with or without words in it; `silence_us` is what was in no chunk."""

    duration_us: int
    speech_us: int
    silence_us: int
    failed_us: int


@dataclass(frozen=True)
class Whole:
    words: tuple[Word, ...]
    gaps: tuple[Gap, ...]
    dropped: tuple[Dropped, ...]
    coverage: Coverage


def stitch(heard: Iterable[Heard], duration_us: int) -> Whole:
    """In whatever order the chunks came; a chunk that is still to come is one that failed with that as its reason."""
    chunks = sorted(heard, key=lambda one: (one.start_us, one.end_us))
    dropped: list[Dropped] = []
    rows = [_row(chunk, dropped) for chunk in chunks]
    # By pairs, because a chunk overlaps with its neighbours alone; one that failed has no say over theirs.
    for (before, first), (after, second) in pairwise(zip(chunks, rows, strict=True)):
        if not before.failure and not after.failure and after.start_us < before.end_us:
            _join(first, second, (after.start_us, before.end_us), dropped)
    words = tuple(_rising(word for row in rows for word in row))
    gaps = tuple(_gaps(chunks))
    speech = _length(_union((chunk.start_us, chunk.end_us) for chunk in chunks if not chunk.failure))
    failed = sum(gap.end_us - gap.start_us for gap in gaps)
    return Whole(
        words,
        gaps,
        tuple(sorted(dropped, key=lambda one: (one.word.start_us, one.word.end_us, one.word.text, one.reason))),
        Coverage(duration_us, speech, duration_us - speech - failed, failed),
    )


def _row(chunk: Heard, dropped: list[Dropped]) -> list[Word]:
    """The words of one chunk at their place, rising, and without loops: by this chunk alone, whatever others say."""
    if chunk.failure:
        return []
    inside: list[Word] = []
    for word in sorted(chunk.words, key=lambda one: (one.start_us, one.end_us)):
        clean = replace(word, text=" ".join(word.text.split()), confidence=_share(word.confidence))
        placed = replace(
            clean,
            start_us=min(max(word.start_us, 0) + chunk.start_us, chunk.end_us),
            end_us=min(max(word.end_us, word.start_us, 0) + chunk.start_us, chunk.end_us),
        )
        if word.start_us >= chunk.end_us - chunk.start_us:
            dropped.append(Dropped(placed, OUTSIDE))
        elif clean.text:
            inside.append(placed)
    voiced = [(first + chunk.start_us, last + chunk.start_us) for first, last in chunk.voiced or ()]
    looped = _looped(inside, voiced if chunk.voiced is not None else None)
    dropped += [Dropped(inside[place], REPEATED) for place in sorted(looped)]
    return [word for place, word in enumerate(inside) if place not in looped]


def _share(confidence: float) -> float:
    return round(min(max(confidence, 0.0), 1.0), 4) if math.isfinite(confidence) else 0.0


def _looped(words: Sequence[Word], voiced: Sequence[Span] | None) -> set[int]:
    """The places of words in a phrase that is repeated, said where nothing is to be heard or where another word is."""
    return {
        place
        for first, last in _repetitions([word.text.casefold() for word in words])
        for place in range(first, last)
        if not _has_sound(words, place, voiced)
    }


def _has_sound(words: Sequence[Word], place: int, voiced: Sequence[Span] | None) -> bool:
    word = words[place]
    taken = words[place - 1].end_us if place else 0
    if place and (word.start_us == words[place - 1].start_us or taken - word.start_us > word.end_us - taken):
        return False
    if voiced is None:
        return True
    under = sum(max(0, min(last, word.end_us) - max(first, word.start_us)) for first, last in voiced)
    if word.end_us == word.start_us:
        return any(first <= word.start_us < last for first, last in voiced)
    return under >= LEAST_VOICED * (word.end_us - word.start_us)


def _repetitions(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    for period in range(1, PHRASE + 1):
        run = 0
        for place in range(period, len(texts) + 1):
            if place < len(texts) and texts[place] == texts[place - period]:
                run += 1
                continue
            if run >= (OFTEN - 1) * period:
                yield place - run - period, place
            run = 0


def _join(first: list[Word], second: list[Word], overlap: Span, dropped: list[Dropped]) -> None:
    """Changes from the one row to the other at the word that both have and that is farthest from the edges, because a
    word at an edge may be cut; where they have none in common, in the middle."""
    seam = (overlap[0] + overlap[1]) // 2
    pairs = _pairs(first, second, overlap)
    if pairs:
        place, other = min(pairs, key=lambda pair: (abs(_middle(first[pair[0]]) - seam), pair))
        first[place] = _whole_of(first[place], second[other], overlap)
        keep, skip = place + 1, other + 1
    else:
        keep = sum(_middle(word) < seam for word in first)
        skip = sum(_middle(word) < seam for word in second)
    dropped += [Dropped(word, SAID_TWICE) for word in [*first[keep:], *second[:skip]]]
    del first[keep:]
    del second[:skip]


def _pairs(first: Sequence[Word], second: Sequence[Word], overlap: Span) -> list[tuple[int, int]]:
    """The places of words that both rows have: each the nearest to the other, because a word may be said twice."""
    ones = [place for place, word in enumerate(first) if word.end_us > overlap[0]]
    twos = [place for place, word in enumerate(second) if word.start_us < overlap[1]]
    apart = {
        (place, other): abs(_middle(first[place]) - _middle(second[other]))
        for place in ones
        for other in twos
        if _same(first[place], second[other], overlap)
    }
    return [
        (place, other)
        for (place, other), distance in apart.items()
        if all(distance <= more for (left, right), more in apart.items() if left == place or right == other)
    ]


def _same(one: Word, two: Word, overlap: Span) -> bool:
    if one.text.casefold() != two.text.casefold():
        return False
    return abs(_middle(one) - _middle(two)) <= SAME_US or (_cut_short(one, overlap) and _cut_off(two, overlap))


def _cut_short(one: Word, overlap: Span) -> bool:
    return one.end_us >= overlap[1] - EDGE_US


def _cut_off(two: Word, overlap: Span) -> bool:
    return two.start_us <= overlap[0] + EDGE_US


def _whole_of(one: Word, two: Word, overlap: Span) -> Word:
    if not _cut_short(one, overlap):
        return one
    return replace(one, end_us=two.end_us) if _cut_off(two, overlap) else two


def _middle(word: Word) -> int:
    return (word.start_us + word.end_us) // 2


def _rising(words: Iterable[Word]) -> Iterator[Word]:
    """No word begins before the one before it ended, and none is lost for it."""
    at = 0
    for word in words:
        start = max(word.start_us, at)
        at = max(word.end_us, start)
        yield replace(word, start_us=start, end_us=at)


def _gaps(chunks: Sequence[Heard]) -> Iterator[Gap]:
    """What no chunk heard of those that failed; where two failed, the first one's reason stands."""
    done = _union((chunk.start_us, chunk.end_us) for chunk in chunks if not chunk.failure)
    for chunk in chunks:
        if not chunk.failure:
            continue
        for start, end in _without((chunk.start_us, chunk.end_us), done):
            yield Gap(start, end, " ".join(chunk.failure.split()))
        done = _union([*done, (chunk.start_us, chunk.end_us)])


def _union(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _without(span: Span, taken: Sequence[Span]) -> Iterator[Span]:
    at, end = span
    for first, last in taken:
        if last <= at or first >= end:
            continue
        if first > at:
            yield at, first
        at = max(at, last)
    if at < end:
        yield at, end


def _length(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in spans)
