"""From a film and the regions of its layout to captions: one decode gives their text, their times and the crops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dailies.captions.chunks import Chunk, ChunkWriter
from dailies.captions.compose import compose
from dailies.captions.databases import sample_index
from dailies.captions.extents import Dropped, Extent, Follower
from dailies.captions.layout import Region
from dailies.captions.ocr import Engine
from dailies.captions.sampling import Film
from dailies.captions.subtitles import Caption

RATE = Fraction(10)
SLACK_US = 500_000


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

    @property
    def shortfall(self) -> str:
        """For a person; empty where all that was promised was decoded."""
        if not self.short_us:
            return ""
        return f"ended early at {self.decoded_us / 1e6:.2f} s of {(self.promised_us or 0) / 1e6:.2f} s"


@dataclass(frozen=True)
class Inference:
    """`samples` are the times at which was looked; `chunks` the crops of each region, where they were asked for."""

    captions: tuple[Caption, ...]
    extents: tuple[Extent, ...]
    dropped: tuple[Dropped, ...]
    samples: tuple[int, ...]
    chunks: tuple[tuple[Chunk, ...], ...]
    coverage: Coverage

    @property
    def confidence(self) -> float | None:
        sure = [caption.confidence for caption in self.captions]
        return round(sum(sure) / len(sure), 4) if sure else None


def infer(
    film: Film,
    regions: Sequence[Region],
    reader: Engine,
    tell: Callable[[float], None] = lambda share: None,
    *,
    rate: Fraction = RATE,
    crops: Path | None = None,
) -> Inference:
    """Decodes the film once, also where there is no region: what was not looked at is not covered.

    With `crops`, what was looked at is kept there: a folder for each region.
    """
    followers = [Follower(reader, region, place) for place, region in enumerate(regions)]
    writers = [ChunkWriter(crops / f"region_{place}", rate) for place in range(len(regions))] if crops else []
    samples: list[int] = []
    length = max(1, film.promised_us or film.end_us)
    for step in film.steps([region.crop for region in regions], rate):
        samples.append(step.sample.us)
        for follower in followers:
            follower.take(step)
        for place, writer in enumerate(writers):
            writer.add(sample_index(step.sample.us, rate), step.sample.strips[place])
        tell(min(0.99, step.sample.us / length))
    for follower in followers:
        follower.finish(film.end_us)
    extents = [extent for follower in followers for extent in follower.extents]
    dropped = sorted(
        (one for follower in followers for one in follower.dropped),
        key=lambda one: (one.start_us, one.end_us, one.text),
    )
    tell(1.0)
    return Inference(
        captions=tuple(compose(extents)),
        extents=tuple(extents),
        dropped=tuple(dropped),
        samples=tuple(samples),
        chunks=tuple(tuple(writer.close()) for writer in writers),
        coverage=_coverage(film, len(samples), dropped),
    )


def _coverage(film: Film, samples: int, dropped: Sequence[Dropped]) -> Coverage:
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
