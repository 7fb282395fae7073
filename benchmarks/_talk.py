"""The work that recovery measures, as a bare loop, and what is counted of it whoever does it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.canonical import file_digest
from dailies.speech.isolated import SUFFIX, hear_file, plan_file
from dailies.speech.stitch import Heard, stitch
from dailies.speech.transcript import exports
from dailies.speech.words import words_from_json

Json = dict[str, Any]
ENGINE = "dtmf"
DONE, RECORDED = "transcribe_chunk:after", "transcribe_chunk:committed"
"""Where one dies: the chunk is heard and nobody knows it; and the moment after it was written down."""


# ── the work ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def plan(talk: str, out: str) -> Json:
    """The chunks as files in ``out``, each with its digest."""
    Path(out).mkdir(parents=True, exist_ok=True)
    found = plan_file(talk, out, None, None, lambda _: None)
    chunks = [{**chunk, "path": str(Path(out) / f"{chunk['key']}{SUFFIX}")} for chunk in found["chunks"]]
    return {**found, "chunks": [{**chunk, "sha256": file_digest(Path(chunk["path"]))} for chunk in chunks]}


def hear(chunk: Mapping[str, Any]) -> Json:
    words = hear_file(chunk["path"], chunk["sha256"], ENGINE, None, None)
    return {"number": chunk["number"], "sha256": chunk["sha256"], "words": words}


def join(planned: Mapping[str, Any], heard: Sequence[Mapping[str, Any]]) -> str:
    """The subtitles, which have every word with its time."""
    words = {one["number"]: tuple(words_from_json(one["words"])) for one in heard}
    chunks = [Heard(one["start_us"], one["end_us"], words[one["number"]]) for one in planned["chunks"]]
    return exports(stitch(chunks, planned["duration_us"]))["transcript.srt"].decode()


def bare(talk: str, out: str) -> str:
    planned = plan(talk, out)
    return join(planned, [hear(chunk) for chunk in planned["chunks"]])


def bare_loop(talk: str, out: str, times: Path) -> None:
    """In a child, as the others are."""
    with timed(times):
        subtitles = bare(talk, out)
    (Path(out) / "transcript.srt").write_text(subtitles)


@contextmanager
def timed(file: Path) -> Iterator[None]:
    """What is killed in there leaves no file."""
    begun = time.time()
    yield
    file.write_text(json.dumps({"begun": begun, "ended": time.time()}))


# ── what is counted ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Hearing:
    """One line of the tally: the engine itself writes it down, before it listens."""

    at: float
    sound: str


def hearings(tally: Path) -> list[Hearing]:
    lines = tally.read_text().splitlines() if tally.exists() else []
    return [Hearing(found["at"], found["sound"]) for found in map(json.loads, lines)]


@dataclass(frozen=True)
class Counts:
    """Of one job that was killed once. Only ``redone`` may be above zero, and by no more than what was in flight."""

    redone: int
    """Heard again because nobody had written down that it was done."""
    duplicates: int
    """Heard again although it was on record as finished when its process died."""
    lost: int
    """Never heard at all."""


def count(heard: Sequence[Hearing], died: float, finished: frozenset[str], wanted: frozenset[str]) -> Counts:
    """``finished`` is what was on record at the moment of death; every further hearing of it is one too many."""
    sounds = {one.sound for one in heard}
    duplicates = sum(one.at > died and one.sound in finished for one in heard)
    return Counts(len(heard) - len(sounds) - duplicates, duplicates, len(wanted - sounds))


def resumed_at(heard: Sequence[Hearing], died: float) -> float:
    """When the first unit after the death was begun."""
    return min(one.at for one in heard if one.at > died)


def unit_ms(heard: Sequence[Hearing]) -> float:
    """From one chunk to the next, in a run in which nothing went wrong."""
    times = sorted(one.at for one in heard)
    return (times[-1] - times[0]) / (len(times) - 1) * 1000


def places(kills: int, chunks: int) -> list[tuple[str, int]]:
    """Before and after the record in turn, spread over all chunks but the last, after which nothing is left to hear."""
    pairs = -(-kills // 2)
    return [((DONE, RECORDED)[each % 2], 1 + (each // 2) * (chunks - 1) // pairs) for each in range(kills)]


def upper_bound(trials: int) -> float:
    """Of the rate of what was never seen in so many trials, at 95 %: the rule of three."""
    return min(1.0, 3 / trials)
