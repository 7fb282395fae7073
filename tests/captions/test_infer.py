"""From regions to captions, with the crops kept: what a compute machine does in one decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dailies.captions.approval import unknown
from dailies.captions.chunks import read_chunks
from dailies.captions.extract import extract
from dailies.captions.infer import infer
from dailies.captions.ocr import Box, engine
from dailies.captions.sample import SIZE, make_film, truth
from dailies.captions.sampling import Film

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SECONDS = 6
LOWER = Box(0, 216, SIZE[0], SIZE[1])


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("film") / "film.mp4", SECONDS)


def test_a_rectangle_of_which_nothing_is_known_gives_the_same_captions(film: Path) -> None:
    found = infer(Film(film), [unknown(LOWER, 0)], engine())
    assert [(one.start_us, one.end_us, one.text) for one in found.captions] == truth(SECONDS)


def test_the_crops_are_kept_as_they_were_looked_at(film: Path, tmp_path: Path) -> None:
    parts: list[float] = []
    found = infer(Film(film), [unknown(LOWER, 0)], engine(), parts.append, crops=tmp_path / "crops")
    ((chunk,),) = found.chunks
    assert (chunk.path.parent.name, chunk.first_index, chunk.last_index) == ("region_0", 0, len(found.samples) - 1)
    seen = {step.sample.us: step.sample.strips[0] for step in Film(film).steps([LOWER])}
    for (index, kept), us in zip(read_chunks([chunk.path], 0, len(found.samples)), found.samples, strict=True):
        assert index == -(-us // 100_000)
        assert np.abs(kept.astype(int) - seen[us]).mean() < 3
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


def test_a_film_that_ends_early_says_so(film: Path, tmp_path: Path) -> None:
    from tests.media_files import video

    whole = video(tmp_path / "whole.mp4", seconds=3, faststart=True)
    half = tmp_path / "half.mp4"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = infer(Film(half), [], engine())
    assert 0 < found.coverage.decoded_us < 2_500_000
    assert found.coverage.shortfall == f"ended early at {found.coverage.decoded_us / 1e6:.2f} s of 3.00 s"
    assert infer(Film(whole), [], engine()).coverage.shortfall == ""


def test_the_whole_command_tells_how_far_each_stage_is(film: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    extract(film, tmp_path / "out", lambda stage, share: told.append((stage, share)))
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["layout", "captions"]
    for stage in ("layout", "captions"):
        shares = [share for name, share in told if name == stage]
        assert shares == sorted(shares)
        assert (len(shares) > 10, shares[-1]) == (True, 1.0)
