"""Films with captions burned in, read by the real engine: texts as they were written, times to the frame."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest

from dailies.captions.extract import Report, extract
from tests.captions.clips import Clip, Cue, busy, clip, cuts, moving

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def read(film: Clip, tmp_path: Path) -> Report:
    return extract(film.path, tmp_path / "out")


def assert_read(report: Report, film: Clip) -> None:
    """Every caption once, in order; each time within one source frame of the truth."""
    assert [caption.text for caption in report.captions] == [cue.text for cue in film.cues]
    for caption, cue in zip(report.captions, film.cues, strict=True):
        assert abs(frame_at(film.times_us, caption.start_us) - cue.first) <= 1, caption
        assert abs(frame_at(film.times_us, caption.end_us) - cue.last) <= 1, caption


def frame_at(times_us: Sequence[int], us: int) -> int:
    return min(range(len(times_us)), key=lambda number: abs(times_us[number] - us))


def test_captions_on_the_first_and_the_last_frame_are_read_to_the_frame(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [Cue(0, 31, "We were never going to make it"), Cue(47, 80, "No."), Cue(93, 120, "Tell me the truth, Anna")],
        frames=120,
    )
    report = read(film, tmp_path)
    assert_read(report, film)
    assert [(one.start_us, one.end_us) for one in report.captions] == [(c.start_us, c.end_us) for c in film.cues]


def test_neighbours_that_differ_in_one_letter_stay_two_captions_also_without_a_gap(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [Cue(5, 48, "There are 3 of them"), Cue(48, 90, "There are 8 of them")],
        frames=100,
        background=moving,
    )
    assert_read(read(film, tmp_path), film)


def test_two_lines_are_one_caption_with_its_line_break(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [Cue(10, 55, "The train leaves at noon,\nand we are late"), Cue(70, 110, "Nobody knows why")],
        frames=120,
        background=busy,
    )
    assert_read(read(film, tmp_path), film)


def test_the_space_and_the_capital_of_a_short_caption_on_a_busy_background_are_kept(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [Cue(10, 55, "The train leaves at noon,\nand we are late"), Cue(70, 110, "Come in")],
        frames=120,
        background=busy,
    )
    assert_read(read(film, tmp_path), film)


def test_times_are_true_where_the_frame_rate_varies_and_the_clock_starts_late(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [Cue(7, 40, "Is anyone there?"), Cue(52, 85, "I left it in the car")],
        frames=100,
        vfr=True,
        start=Fraction(3),
    )
    report = read(film, tmp_path)
    assert_read(report, film)
    assert report.captions[0].start_us == film.cues[0].start_us


def test_a_cut_behind_a_caption_does_not_split_it(tmp_path: Path) -> None:
    film = clip(tmp_path / "film.mp4", [Cue(20, 100, "She said nothing at all")], frames=120, background=cuts)
    assert_read(read(film, tmp_path), film)


def test_captions_at_the_top_of_an_upright_film_are_found(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [Cue(8, 45, "Not today", at=0.2), Cue(60, 95, "Run now", at=0.2)],
        frames=110,
        size=(360, 640),
        rotation=90,
    )
    report = read(film, tmp_path)
    assert_read(report, film)
    assert (report.layout.width, report.layout.height) == (360, 640)
    assert [region.anchor for region in report.layout.regions] == ["center"]
    assert report.layout.regions[0].centre < 0.25 * report.layout.height


def test_a_film_without_captions_is_a_result_with_empty_files(tmp_path: Path) -> None:
    film = clip(tmp_path / "film.mp4", [], frames=80, background=moving)
    report = read(film, tmp_path)
    assert report.captions == ()
    assert report.confidence is None
    assert report.coverage.frames == 80
    assert (tmp_path / "out" / "captions.srt").read_bytes() == b""


def test_two_runs_write_the_same_bytes_and_the_report_adds_up(tmp_path: Path) -> None:
    film = clip(tmp_path / "film.mp4", [Cue(5, 40, "Meet me at 10:45")], frames=50)
    stages: list[str] = []
    report = extract(film.path, tmp_path / "one", lambda stage, share: stages.append(stage))
    extract(film.path, tmp_path / "two")
    for name in ("captions.srt", "captions.vtt", "captions.json", "captions.db"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    with closing(sqlite3.connect(tmp_path / "one" / "captions.db")) as database:
        assert database.execute("SELECT start_us, end_us, text FROM captions").fetchall() == [
            (200_000, 1_600_000, "Meet me at 10:45")
        ]
    written = json.loads((tmp_path / "one" / "captions-report.json").read_bytes())
    assert written["captions"] == 1
    assert written["coverage"]["frames"] == 50
    assert written["coverage"]["short_us"] == 0
    assert set(written["seconds"]) == {"load", "layout", "captions", "write"}
    assert {"layout", "captions"} == set(stages)
    assert report.device == "cpu"


def test_captions_that_move_to_another_place_in_the_middle_are_two_regions_with_their_times(tmp_path: Path) -> None:
    below = [Cue(10, 50, "The harbour is closed"), Cue(60, 100, "Nobody told the captain")]
    above = [Cue(160, 200, "We sail at nine", at=0.2), Cue(210, 250, "With or without him", at=0.2)]
    film = clip(tmp_path / "film.mp4", [*below, *above], frames=270, background=moving)
    report = read(film, tmp_path)
    assert_read(report, film)
    upper, lower = report.layout.regions
    assert upper.crop.bottom <= lower.crop.top
    assert lower.last_us < 4_000_000 + 200_000 < upper.first_us
    assert [caption.region for caption in report.captions] == [1, 1, 0, 0]


def test_two_places_at_the_same_time_are_two_captions_at_the_same_time(tmp_path: Path) -> None:
    film = clip(
        tmp_path / "film.mp4",
        [
            Cue(10, 70, "London, 1911", at=0.2),
            Cue(30, 60, "Is anybody there?"),
            Cue(80, 140, "Three weeks later", at=0.2),
            Cue(90, 130, "He never came back"),
        ],
        background=moving,
    )
    report = read(film, tmp_path)
    assert_read(report, film)
    assert [caption.region for caption in report.captions] == [0, 1, 0, 1]
