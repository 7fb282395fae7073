"""The sample library holds what its names say, and its truth is the films' own."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dailies.captions.databases import (
    file,
    read_approval,
    read_captions,
    read_dropped,
    read_extents,
    read_labels,
    read_layout,
)
from dailies.captions.ocr import Box, engine
from dailies.captions.sampling import Film
from tests.captions.clips import VFR_PATTERN
from tests.samples import DROPPED, NAMES, RATE, VIDEOS, make, video

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SIZES = {"high-res-4k.mp4": (1920, 1080), "low-res-480p.mp4": (854, 480), "edge-cases/vertical-video.mp4": (540, 960)}
LEAST_CUES = {"short-5s-text-bottom.mp4": 2, "medium-30s-multiple-captions.mp4": 10, "long-2m-dense-text.mp4": 40}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_sample_film_is_what_its_name_says_and_shows_each_caption_on_just_its_frames(
    name: str, tmp_path: Path
) -> None:
    sample = video(name, tmp_path)
    film = Film(sample.path)
    assert film.size == SIZES.get(name, (640, 360))
    assert len(sample.cues) >= LEAST_CUES.get(name, 0 if "no-text" in name else 2)
    width, height = film.size
    band = Box(width // 4, round(height * 0.8), width * 3 // 4, round(height * 0.95))
    strips = [native.strips[0] for step in film.steps([band], Fraction(RATE)) for native in step.frames]
    assert film.frames == len(strips) == VIDEOS[name].frames
    assert abs(film.end_us - sample.times_us[-1]) <= 1_000_000 // RATE * max(VFR_PATTERN)
    ink = np.array([np.count_nonzero(strip > 235) for strip in strips])
    shown = np.zeros(len(strips), bool)
    for cue in sample.cues:
        shown[cue.first : cue.last] = True
    if shown.any():
        assert ink[shown].min() > 2 * ink[~shown].max()
    assert all(before.last <= after.first for before, after in pairwise(sample.cues))


def test_the_truth_of_a_sample_is_what_the_engine_reads(tmp_path: Path) -> None:
    sample = video("edge-cases/variable-framerate.mp4", tmp_path)
    times = sample.times_us
    assert len({after - before for before, after in pairwise(times)}) > 1
    pictures = dict(Film(sample.path).whole(1))
    for cue in sample.cues:
        for us, text in ((cue.start_us, cue.text), (times[cue.last - 1], cue.text), (cue.end_us, "")):
            assert "\n".join(line.text for line in engine().read(pictures[us]) if line.confidence > 0.9) == text


def test_the_dense_film_is_hardly_ever_without_a_caption() -> None:
    cues = VIDEOS["long-2m-dense-text.mp4"].cues
    assert sum(cue.last - cue.first for cue in cues) > 0.9 * VIDEOS["long-2m-dense-text.mp4"].frames
    assert any("\n" in cue.text for cue in cues)
    assert any(before.last == after.first for before, after in pairwise(cues))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in VIDEOS or "5s" in name or "variable" in name])
def test_a_sample_is_the_same_bytes_every_time_and_is_made_once(name: str, tmp_path: Path) -> None:
    one, other = make(name, tmp_path / "one"), make(name, tmp_path / "two")
    assert one.read_bytes() == other.read_bytes()
    assert [path for path in (tmp_path / "one").rglob("*") if path.is_file()] == [one]
    one.write_bytes(b"kept")
    assert make(name, tmp_path / "one").read_bytes() == b"kept"


def test_the_layouts_are_an_empty_one_and_one_with_its_boxes_labelled(tmp_path: Path) -> None:
    empty, full = make("empty-layout.db", tmp_path), make("layout-with-annotations.db", tmp_path)
    assert read_layout(empty).regions == ()
    assert not read_approval(empty)
    assert {label.region for label in read_labels(empty)} == {None}
    (region,) = read_layout(full).regions
    assert region.anchor == "center"
    assert read_approval(full)
    labels = [label.region for label in read_labels(full)]
    assert labels.count(0) == 30 - 8 - 1
    assert labels.count(None) == 29 + 1


def test_the_extents_sample_adds_up(tmp_path: Path) -> None:
    sample = read_extents(make("caption-frame-extents-sample.db", tmp_path))
    cues = VIDEOS["medium-30s-multiple-captions.mp4"].cues
    assert [one.text for one in sample.extents] == [cue.text for cue in cues]
    assert [(one.start_us, one.end_us) for one in sample.extents] == [(c.first * 40_000, c.last * 40_000) for c in cues]
    assert len(sample.pairs) == 299
    labels = [pair.label for pair in sample.pairs]
    assert labels.count("empty_valid") == len(cues)
    assert "different" not in labels


def test_the_captions_sample_has_one_reading_of_each_kind(tmp_path: Path) -> None:
    path = make("captions-with-ocr.db.gz", tmp_path)
    assert path.read_bytes().startswith(file.GZIP_MAGIC)
    rows = read_captions(path)
    assert [(row.text_status, row.caption_ocr_status) for row in rows[:5]] == [
        ("read", "completed"),
        ("read", "completed"),
        ("doubtful", "completed"),
        ("predicted", "error"),
        ("predicted", "queued"),
    ]
    assert [row.text for row in rows][4:] == [cue.text for cue in VIDEOS["long-2m-dense-text.mp4"].cues][4:]
    assert all(row.box.width > 0 < row.box.height for row in rows)
    assert read_dropped(path) == DROPPED
