"""The transcript as files, the same bytes for the same words: JSON, SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dailies.canonical import canonical_json
from dailies.captions.subtitles import Caption, srt, vtt
from dailies.speech.engine import Word
from dailies.speech.stitch import Gap, Whole

# What fits two lines under a picture, and what one can read in the time.
PAUSE_US, LONGEST_US, LETTERS = 700_000, 7_000_000, 84


@dataclass(frozen=True)
class Segment:
    start_us: int
    end_us: int
    text: str
    words: tuple[Word, ...]


def segments(words: Iterable[Word], gaps: Iterable[Gap] = ()) -> list[Segment]:
    """A new one after a pause, over a gap, and where one gets too long to be read."""
    edges = [gap.start_us for gap in gaps]
    return [
        Segment(part[0].start_us, part[-1].end_us, _text(part), tuple(part)) for part in _parts(words, edges) if part
    ]


def exports(whole: Whole, about: dict[str, Any] | None = None) -> dict[str, bytes]:
    """By file name. `about` is what else the JSON shall say: the engine, the language, the source."""
    parts = segments(whole.words, whole.gaps)
    cues = _cues(parts, whole.gaps)
    return {
        "transcript.json": json_file(whole, parts, about or {}),
        "transcript.srt": srt(cues),
        "transcript.vtt": vtt(cues),
    }


def json_file(whole: Whole, parts: list[Segment], about: dict[str, Any]) -> bytes:
    plain = {
        "text": " ".join(part.text for part in parts),
        "segments": [asdict(part) for part in parts],
        "gaps": [asdict(gap) for gap in whole.gaps],
        "dropped": [asdict(one) for one in whole.dropped],
        "coverage": asdict(whole.coverage),
    }
    return canonical_json(about | plain) + b"\n"


def _parts(words: Iterable[Word], edges: list[int]) -> Iterator[list[Word]]:
    part: list[Word] = []
    for word in words:
        if part and _apart(part, word, edges):
            yield part
            part = []
        part.append(word)
    yield part


def _apart(part: list[Word], word: Word, edges: list[int]) -> bool:
    return (
        word.start_us - part[-1].end_us >= PAUSE_US
        or word.end_us - part[0].start_us > LONGEST_US
        or len(_text([*part, word])) > LETTERS
        or any(part[-1].start_us < edge <= word.start_us for edge in edges)
    )


def _text(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def _cues(parts: list[Segment], gaps: Iterable[Gap]) -> list[Caption]:
    """Who reads along sees that something is missing, where, and why."""
    said = [Caption(part.start_us, part.end_us, part.text, 1.0, 0) for part in parts]
    missing = [Caption(gap.start_us, gap.end_us, f"[not transcribed: {gap.reason}]", 1.0, 0) for gap in gaps]
    return sorted([*said, *missing], key=lambda cue: (cue.start_us, cue.end_us))
