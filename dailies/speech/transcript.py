"""The transcript as files, the same bytes for the same words: JSON, SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dailies.canonical import canonical_json
from dailies.speech.audio import Sound
from dailies.speech.engine import Word
from dailies.speech.stitch import Gap, Whole
from dailies.subtitles import Cue, srt, vtt

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
    """By file name. `about` is what else the JSON shall say: its `origin`."""
    parts = segments(whole.words, whole.gaps)
    cues = _cues(parts, whole.gaps)
    return {
        "transcript.json": json_file(whole, parts, about or {}),
        "transcript.srt": srt(cues),
        "transcript.vtt": vtt(cues),
    }


def subrip(whole: Whole) -> bytes:
    """Of a part as well: what nobody has listened to yet is left out, and nothing is said about it."""
    return srt(_cues(segments(whole.words, whole.gaps), whole.gaps))


def origin(engine: str, version: str, language: str | None, source: str, sound: Mapping[str, Any]) -> dict[str, Any]:
    """Where a transcript comes from: `source` is the digest of the file, `sound` its facts."""
    return {
        "engine": {"name": engine, "version": version},
        "language": language or sound["language"],
        "sha256": source,
        "sound": dict(sound),
    }


def facts(sound: Sound) -> dict[str, Any]:
    """What the coverage cannot say, because it counts what decoded; right once the sound was read to its end.

    `short_us` was promised and never came, `filled_us` is silence in the place of what was lost, `cut_us` was there
    twice, and `broken` counts the packets that did not decode whole.
    """
    return {
        "language": sound.language,
        "promised_us": sound.promised_us,
        "short_us": sound.short_us,
        "filled_us": sound.filled_us,
        "cut_us": sound.cut_us,
        "broken": sound.broken,
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


def _cues(parts: list[Segment], gaps: Iterable[Gap]) -> list[Cue]:
    """Who reads along sees that something is missing, where, and why."""
    said = [Cue(part.start_us, part.end_us, part.text) for part in parts]
    missing = [Cue(gap.start_us, gap.end_us, f"[not transcribed: {gap.reason}]") for gap in gaps]
    return sorted([*said, *missing], key=lambda cue: (cue.start_us, cue.end_us))
