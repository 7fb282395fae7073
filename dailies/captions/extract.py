"""All of it on one machine: a film in; captions.srt, .vtt, .json, .db and a report out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, write_atomically
from dailies.captions.compose import compose
from dailies.captions.extents import Dropped, Follower
from dailies.captions.layout import Layout, find_layout, survey
from dailies.captions.ocr import Engine, engine
from dailies.captions.sampling import Film
from dailies.captions.subtitles import Caption, json_file, srt, vtt, write_database

RATE = Fraction(10)
SLACK_US = 500_000

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Coverage:
    """`short_us` is above zero where the film promises more than it decodes to."""

    frames: int
    samples: int
    decoded_us: int
    promised_us: int | None
    short_us: int
    broken_packets: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Report:
    captions: tuple[Caption, ...]
    dropped: tuple[Dropped, ...]
    layout: Layout
    coverage: Coverage
    confidence: float | None
    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"captions": len(self.captions)}


def extract(path: Path, out: Path, progress: Progress | None = None, *, reader: Engine | None = None) -> Report:
    """The four files carry no clock; the report carries the seconds of each stage, and is written last."""
    tell = progress or (lambda stage, share: None)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        reader = reader or engine()
        film = Film(path)
    with _timed(seconds, "layout"):
        tell("layout", 0.0)
        layout = find_layout(survey(film, reader), *film.size)
        tell("layout", 1.0)
    with _timed(seconds, "captions"):
        followers, samples = follow(film, layout, reader, lambda share: tell("captions", share))
    captions = compose([extent for follower in followers for extent in follower.extents])
    dropped = sorted(
        (one for follower in followers for one in follower.dropped),
        key=lambda one: (one.start_us, one.end_us, one.text),
    )
    with _timed(seconds, "write"):
        _write(out, captions, dropped)
    report = Report(
        captions=tuple(captions),
        dropped=tuple(dropped),
        layout=layout,
        coverage=_coverage(film, samples, dropped),
        confidence=round(sum(one.confidence for one in captions) / len(captions), 4) if captions else None,
        device=reader.device,
        seconds={stage: round(taken, 3) for stage, taken in seconds.items()},
    )
    write_atomically(out / "captions-report.json", [canonical_json(report.to_json()) + b"\n"])
    return report


def follow(
    film: Film, layout: Layout, reader: Engine, tell: Callable[[float], None], rate: Fraction = RATE
) -> tuple[list[Follower], int]:
    """Decodes the film once, also where there is no region: what was not looked at is not covered."""
    followers = [Follower(reader, region, place) for place, region in enumerate(layout.regions)]
    samples = 0
    length = max(1, film.promised_us or film.end_us)
    for step in film.steps([region.crop for region in layout.regions], rate):
        samples += 1
        for follower in followers:
            follower.take(step)
        tell(min(0.99, step.sample.us / length))
    for follower in followers:
        follower.finish(film.end_us)
    tell(1.0)
    return followers, samples


def _coverage(film: Film, samples: int, dropped: list[Dropped]) -> Coverage:
    short = (film.promised_us or 0) - film.end_us
    return Coverage(
        frames=film.frames,
        samples=samples,
        decoded_us=film.end_us,
        promised_us=film.promised_us,
        short_us=short if short > SLACK_US else 0,
        broken_packets=film.broken,
        dropped=dict(Counter(one.reason for one in dropped)),
    )


def _write(out: Path, captions: list[Caption], dropped: list[Dropped]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "captions.srt", [srt(captions)])
    write_atomically(out / "captions.vtt", [vtt(captions)])
    write_atomically(out / "captions.json", [json_file(captions)])
    write_database(out / "captions.db", captions, dropped)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
