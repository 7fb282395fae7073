"""The times of a film's pictures: they rise, whatever the file says; and what it promises beside what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from dailies.media.pictures import Pictures, rising
from tests.media_files import Track, video

pytestmark = pytest.mark.unit

SECOND = 1_000_000


def shown(*stamps: float | None, length: float = 1) -> list[float]:
    """In seconds, each frame with its own number as the picture: none is lost and none changes its place."""
    given = [
        (None if stamp is None else round(stamp * SECOND), round(length * SECOND), number)
        for number, stamp in enumerate(stamps)
    ]
    times = list(rising(given))
    assert [number for _, _, number in times] == list(range(len(stamps)))
    assert all(after[0] > before[0] for before, after in pairwise(times))
    return [round(us / SECOND, 3) for us, _, _ in times]


def steps(first: int, last: int) -> list[float]:
    return [number / 25 for number in range(first, last)]


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([], []),
        ([7.5], [7.5]),
        ([-0.04, 0, 0.04], [0, 0, 0.04]),
        ([0, 0.04, 0.04, 0.12], [0, 0.04, 0.04, 0.12]),
        ([0, 0.08, 0.04, 0.12], [0, 0.08, 0.08, 0.12]),
        ([None, None, None], [0, 0.04, 0.08]),
        ([0, None, 0.08, None], [0, 0.04, 0.08, 0.12]),
        ([None, None, 0, 0.04], [0, 0.04, 0.08, 0.12]),
        ([0, 0.04, 9.0, 9.04], [0, 0.04, 9.0, 9.04]),
        ([0, 0.5, 3.5, 3.6], [0, 0.5, 3.5, 3.6]),
    ],
    ids=["none", "one", "below-zero", "twice", "swapped", "unstamped", "some", "at-first", "hole", "uneven"],
)
def test_times_rise_as_a_player_shows_them(stamps: Sequence[float | None], times: Sequence[float]) -> None:
    assert shown(*stamps, length=0.04) == pytest.approx(times, abs=0.001)


def test_a_clock_that_is_set_anew_goes_on_where_it_was() -> None:
    stamps = [*steps(250, 300), *steps(0, 50), *steps(5000, 5050)]
    times = shown(*stamps, length=0.04)
    assert times[:100] == pytest.approx(steps(250, 350))
    # Nobody knows which of its clocks the hole after that is told by: the shorter wait is as good.
    assert times[100:] == pytest.approx(stamps[100:])


@pytest.mark.parametrize("stray", [0.0, 3600.0, 80_000.0])
def test_one_stray_stamp_moves_nothing_else(stray: float) -> None:
    stamps = steps(250, 300)
    stamps[20] = stray
    assert shown(*stamps, length=0.04) == pytest.approx(steps(250, 300), abs=0.001)


def test_a_frame_without_a_length_lasts_as_long_as_those_before() -> None:
    lengths = [length for _, length, _ in rising([(0, 0, "a"), (40_000, 0, "b"), (80_000, 0, "c")])]
    assert lengths[1:] == [40_000, 40_000]


@pytest.mark.parametrize(
    ("suffix", "start"), [("mp4", 0), ("mp4", 4), ("mkv", 0), ("mkv", 4), ("ts", 0), ("ts", 4), ("avi", 0)]
)
def test_a_whole_film_keeps_its_promise(suffix: str, start: int, tmp_path: Path) -> None:
    film = Pictures(video(tmp_path / f"film.{suffix}", seconds=2, start=start, tracks=[Track(seconds=2)]))
    times = [us for us, _ in film.each()]
    assert film.frames == len(times) == 50
    assert film.end_us == pytest.approx(2_000_000, abs=80_000)
    assert film.promised_us == pytest.approx(film.end_us, abs=80_000)
    assert (film.short_us, film.broken) == (0, 0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("start", [0, 4])
def test_a_film_cut_in_half_is_short_by_what_is_missing(suffix: str, start: int, tmp_path: Path) -> None:
    path = video(tmp_path / f"film.{suffix}", seconds=6, start=start, faststart=True, tracks=[Track()])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    film = Pictures(path)
    times = [us for us, _ in film.each()]
    assert film.promised_us == pytest.approx(6_000_000, abs=60_000)
    assert film.end_us == times[-1] + 40_000
    assert film.short_us == film.promised_us - film.end_us > 2_000_000


def test_key_frames_alone_cost_no_more_than_they_are(tmp_path: Path) -> None:
    film = Pictures(video(tmp_path / "film.mp4", seconds=4, gop=25))
    assert [us for us, _ in film.each("NONKEY")] == [0, 1_000_000, 2_000_000, 3_000_000]


def test_the_size_is_of_the_upright_picture(tmp_path: Path) -> None:
    turned = Pictures(video(tmp_path / "film.mp4", seconds=0.2, rotation=90, aspect=2))
    assert (turned.size, turned.rotation) == ((240, 640), 90)
