"""All of it on one machine: a film in; captions.srt, .vtt, .json, .db and a report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, write_atomically
from dailies.captions.databases import write_captions
from dailies.captions.extents import Dropped
from dailies.captions.infer import Coverage, infer
from dailies.captions.layout import Layout, find_layout, survey
from dailies.captions.ocr import Engine, engine
from dailies.captions.sampling import Film
from dailies.captions.subtitles import Caption, exports

Progress = Callable[[str, float], None]


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
        seen = survey(film, reader, lambda share: tell("layout", share))
        layout = find_layout(seen, *film.size)
        tell("layout", 1.0)
    with _timed(seconds, "captions"):
        found = infer(film, layout.regions, reader, lambda share: tell("captions", share))
    with _timed(seconds, "write"):
        for name, data in exports(found.captions).items():
            write_atomically(out / name, [data])
        write_captions(out / "captions.db", found.captions, found.dropped)
    report = Report(
        captions=found.captions,
        dropped=found.dropped,
        layout=layout,
        coverage=found.coverage,
        confidence=found.confidence,
        device=reader.device,
        seconds={stage: round(taken, 3) for stage, taken in seconds.items()},
    )
    write_atomically(out / "captions-report.json", [canonical_json(report.to_json()) + b"\n"])
    return report


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
