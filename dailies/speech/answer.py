"""What an endpoint answered, as words: by the times it gives, or by as much of them as can be believed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dailies.speech.engine import Word


class Garbage(Exception):
    """Not an answer to what was asked."""


def words_of(answer: Any, length_us: int) -> list[Word]:
    """Words with times of their own; else those of its segments, spread; else the text, over all of the sound."""
    if not isinstance(answer, dict) or not {"text", "words", "segments"} & set(answer):
        raise Garbage("it has neither text nor words nor segments")
    segments = _rows(answer.get("segments"))
    rows = _rows(answer.get("words")) or [row for segment in segments for row in _rows(segment.get("words"))]
    found = _timed(rows, ("word", "text"), length_us)
    if found:
        return _as_written([_sure(word, row, segments) for word, row in found], answer.get("text"))
    spread = _timed(segments, ("text",), length_us)
    if spread:
        return [word for line, row in spread for word in _spread(line, _confidence(row))]
    text = answer.get("text")
    if isinstance(text, str) and text.strip():
        return [Word(0, length_us, " ".join(text.split()))]
    if rows or segments or not isinstance(text or "", str):
        raise Garbage("its words have no times, and it has no text")
    return []


def _as_written(words: list[Word], text: Any) -> list[Word]:
    """With the commas and stops of the text, which OpenAI's words lack; as they are where the text has other words."""
    if not isinstance(text, str):
        return words
    shown: list[str] = []
    at = 0
    for word in words:
        start = text.find(word.text, at)
        between = text[at : max(at, start)]
        if start < 0 or any(map(str.isalnum, between)):
            return words
        ends, begins = _parted(between if shown else f" {between}")
        if shown:
            shown[-1] += ends
        shown.append(begins + word.text)
        at = start + len(word.text)
    if any(map(str.isalnum, text[at:])):
        return words
    shown[-1] += _parted(text[at:])[0]
    return [replace(word, text=as_written) for word, as_written in zip(words, shown, strict=True)]


def _parted(between: str) -> tuple[str, str]:
    """What clings to the word before, and what to the one after."""
    spaced = re.fullmatch(r"(\S*)\s(?:.*\s)?(\S*)", between, re.DOTALL)
    return (spaced[1], spaced[2]) if spaced else (between, "")


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _timed(
    rows: Iterable[Mapping[str, Any]], names: tuple[str, ...], length_us: int
) -> list[tuple[Word, Mapping[str, Any]]] | None:
    """In the order of their times and inside the sound. None where one has no time: the others are then not all."""
    found = []
    for row in rows:
        text = next((row[name] for name in names if isinstance(row.get(name), str)), "")
        start, end = _us(row.get("start")), _us(row.get("end"))
        if not text.strip():
            continue
        if start is None or end is None:
            return None
        start = min(max(start, 0), length_us)
        found.append((Word(start, min(max(end, start), length_us), " ".join(text.split())), row))
    return sorted(found, key=lambda pair: (pair[0].start_us, pair[0].end_us))


def _us(seconds: Any) -> int | None:
    number = _number(seconds)
    return None if number is None else round(number * 1_000_000)


def _number(value: Any) -> float | None:
    """None for all that JSON, or what passes for it, may hold in the place of a number that can be used."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        return None
    return float(value)


def _sure(word: Word, row: Mapping[str, Any], segments: Iterable[Mapping[str, Any]]) -> Word:
    """As sure as itself, else as the segment that it is in."""
    own = _number(row.get("probability"))
    if own is None:
        middle = (word.start_us + word.end_us) / 2
        around = (segment for segment in segments if _covers(segment, middle))
        own = _confidence(next(around, {}))
    return replace(word, confidence=round(min(max(own, 0.0), 1.0), 4))


def _covers(segment: Mapping[str, Any], us: float) -> bool:
    start, end = _us(segment.get("start")), _us(segment.get("end"))
    return start is not None and end is not None and start <= us <= end


def _confidence(segment: Mapping[str, Any]) -> float:
    logarithm = _number(segment.get("avg_logprob"))
    return 1.0 if logarithm is None else round(math.exp(min(0.0, logarithm)), 4)


def _spread(line: Word, confidence: float) -> Iterator[Word]:
    """Each as long as its letters are of all."""
    texts = line.text.split()
    letters, length = sum(map(len, texts)), line.end_us - line.start_us
    said = 0
    for text in texts:
        start = line.start_us + length * said // letters
        said += len(text)
        yield Word(start, line.start_us + length * said // letters, text, confidence)
