"""Whole frames as JPEG files: the right picture at the right time, upright, in its own colours, or no folder at all."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dailies.errors import BadInput
from dailies.media import frames as subject
from dailies.media.frames import write_frames
from tests.media_files import Track, frame_number, frame_picture, frame_times, video

pytestmark = pytest.mark.unit

TEN = Fraction(10)


def numbers(frames: subject.Frames) -> list[int]:
    return [frame_number(Image.open(one.path)) for one in frames.pictures]


@pytest.mark.parametrize("rate", [TEN, Fraction(1, 2), Fraction(30_000, 1001), Fraction(60)])
@pytest.mark.parametrize("vfr", [False, True])
def test_each_tick_shows_the_frame_that_is_on_show_then(rate: Fraction, vfr: bool, tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=3, vfr=vfr)
    times = frame_times(3, 25, vfr=vfr)
    frames = write_frames(film, tmp_path / "out", rate)
    ticks = [one.index / rate for one in frames.pictures]
    assert numbers(frames) == [bisect_right(times, tick) - 1 for tick in ticks]
    assert [one.index for one in frames.pictures] == list(range(len(ticks)))
    assert [one.us for one in frames.pictures] == [round(tick * 1_000_000) for tick in ticks]
    assert ticks[-1] * 1_000_000 < frames.decoded_us <= (ticks[-1] + 1 / rate) * 1_000_000
    assert [one.path.name for one in frames.pictures[:2]] == ["frame_0000000000.jpg", "frame_0000000001.jpg"]
    assert sorted((tmp_path / "out").iterdir()) == [one.path for one in frames.pictures]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_clock_starts_where_the_container_does(suffix: str, tmp_path: Path) -> None:
    film = video(tmp_path / f"film.{suffix}", seconds=1, start=5)
    assert numbers(write_frames(film, tmp_path / "out", TEN)) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]


def test_before_the_first_picture_a_player_shows_the_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as output:
        sound = output.add_stream("pcm_s16le", rate=8000)
        stream: Any = output.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        wave.sample_rate, wave.pts = 8000, 0
        output.mux([*sound.encode(wave), *sound.encode(None)])
        for number in range(5):
            frame = av.VideoFrame.from_image(frame_picture(number, Fraction(0), (320, 240)))
            frame.pts, frame.time_base = 5 + number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert numbers(write_frames(path, tmp_path / "out", TEN)) == [0, 0, 0, 0, 0, 0, 1, 2, 3, 4]


def test_a_picture_that_stands_still_costs_its_bytes_once(tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=3, rate=1)
    frames = write_frames(film, tmp_path / "out", TEN)
    assert numbers(frames) == [0] * 10 + [1] * 10 + [2] * 10
    assert len({one.path.stat().st_ino for one in frames.pictures}) == 3


def test_a_file_system_without_links_gets_copies(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"picture")
    (tmp_path / "two").write_bytes(b"in the way: a link is refused")
    subject._link(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == b"picture"
    assert (tmp_path / "two").stat().st_nlink == 1


@pytest.mark.parametrize("least", [1, 5, 24, 70])
def test_a_short_film_gives_the_least_that_is_asked_for(least: int, tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=3)
    frames = write_frames(film, tmp_path / "out", Fraction(1, 10), least=least)
    assert len(frames.pictures) == least
    steps = {after.us - before.us for before, after in zip(frames.pictures, frames.pictures[1:], strict=False)}
    assert max(steps, default=0) - min(steps, default=0) <= 1
    assert frames.tick_us == Fraction(3_000_000, least)
    assert frames.pictures[-1].us >= 3_000_000 * (least - 1) // least


def test_a_long_film_is_not_asked_for_more_than_the_rate(tmp_path: Path) -> None:
    frames = write_frames(video(tmp_path / "film.mp4", seconds=3), tmp_path / "out", TEN, least=24)
    assert len(frames.pictures) == 30
    assert frames.tick_us == 100_000


def test_a_film_of_few_frames_gives_those_and_no_more(tmp_path: Path) -> None:
    frames = write_frames(video(tmp_path / "film.mp4", seconds=0.2), tmp_path / "out", Fraction(1, 10), least=24)
    assert set(numbers(frames)) == {0, 1, 2, 3, 4}
    frames = write_frames(video(tmp_path / "bare.h264", seconds=0.4), tmp_path / "bare", Fraction(1, 10), least=24)
    assert numbers(frames) == list(range(10))


@pytest.mark.parametrize("name", ["film.h264", "cut.mp4"])
def test_the_least_holds_where_the_header_promises_nothing_or_too_much(name: str, tmp_path: Path) -> None:
    film = video(tmp_path / name, seconds=6, faststart=name.endswith("mp4"))
    if name == "cut.mp4":
        film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    frames = write_frames(film, tmp_path / "out", Fraction(1, 10), least=20)
    assert len(frames.pictures) == 20
    assert frames.pictures[-1].us < frames.decoded_us
    assert len(set(numbers(frames))) == 20
    assert bool(frames.short_us) == (name == "cut.mp4")


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_upright_and_their_pixels_square(rotation: int, tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=0.2, size=(320, 240), rotation=rotation, aspect=Fraction(3, 2))
    frames = write_frames(film, tmp_path / "out", TEN)
    assert (frames.width, frames.height) == ((240, 480) if rotation % 180 else (480, 240))
    assert {Image.open(one.path).size for one in frames.pictures} == {(frames.width, frames.height)}
    assert numbers(frames) == [0, 2]


def test_the_longer_side_may_be_limited_and_never_grows(tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=0.2, size=(321, 241))
    for limit, size in ((200, (200, 150)), (1000, (321, 241))):
        frames = write_frames(film, tmp_path / f"out-{limit}", TEN, limit_side=limit)
        assert (frames.width, frames.height) == size
        assert Image.open(frames.pictures[1].path).size == size
        assert numbers(frames) == [0, 2]


PATCHES = [(220, 40, 40), (40, 200, 60), (50, 60, 220), (240, 220, 40), (128, 128, 128), (250, 250, 250), (6, 6, 6)]
TAGS: dict[str, tuple[int, int, int, tuple[int, int]]] = {
    # matrix as coded, matrix and range as tagged, size
    "bt709": (1, 1, 1, (1280, 720)),
    "bt601": (5, 6, 1, (640, 360)),
    "bt601-hd": (5, 5, 1, (1280, 720)),
    "full-range": (1, 1, 2, (1280, 720)),
    "untagged-hd": (1, 2, 0, (1280, 720)),
    "untagged-sd": (5, 2, 0, (640, 360)),
}


@pytest.mark.parametrize("name", TAGS)
def test_colours_come_out_as_they_went_in(name: str, tmp_path: Path) -> None:
    matrix, tag, span, size = TAGS[name]
    wide = size[0] // len(PATCHES)
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for place, patch in enumerate(PATCHES):
        picture[:, place * wide : (place + 1) * wide] = patch
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, span
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=matrix, dst_color_range=span or 1
            )
            frame.colorspace, frame.color_range, frame.pts = tag, span, number
            frame.time_base = Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    frames = write_frames(path, tmp_path / "out", TEN, quality=95)
    shown = np.asarray(Image.open(frames.pictures[0].path).convert("RGB"), int)
    for place, patch in enumerate(PATCHES):
        seen = shown[size[1] // 2, place * wide + wide // 2]
        assert np.abs(seen - patch).max() <= 5, (patch, seen)


def test_a_run_that_fails_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=2)

    def stop(share: float) -> None:
        if share > 0.5:
            raise BadInput("stop")

    before = set(tmp_path.iterdir())
    with pytest.raises(BadInput, match="stop"):
        write_frames(film, tmp_path / "out", TEN, progress=stop)
    assert set(tmp_path.iterdir()) == before
    whole = write_frames(film, tmp_path / "out", TEN)
    kept = {one.path: one.path.read_bytes() for one in whole.pictures}
    with pytest.raises(BadInput, match="stop"):
        write_frames(film, tmp_path / "out", Fraction(20), progress=stop)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept
    assert set(tmp_path.iterdir()) == before | {tmp_path / "out"}


def test_frames_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=1)
    write_frames(film, tmp_path / "out", Fraction(25))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    frames = write_frames(film, tmp_path / "out", TEN)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "notes.txt",
        *(one.path.name for one in frames.pictures),
    }
    assert len(frames.pictures) == 10


def test_two_runs_write_the_same_bytes_whatever_the_encoders_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = video(tmp_path / "film.mp4", seconds=2)
    one = write_frames(film, tmp_path / "one", TEN)
    monkeypatch.setattr(subject, "ENCODERS", 5)
    two = write_frames(film, tmp_path / "two", TEN)
    assert [a.path.read_bytes() for a in one.pictures] == [b.path.read_bytes() for b in two.pictures]


def test_a_better_quality_costs_more_bytes(tmp_path: Path) -> None:
    film = video(tmp_path / "film.mp4", seconds=0.1)
    sizes = [
        write_frames(film, tmp_path / f"at-{quality}", TEN, quality=quality).pictures[0].path.stat().st_size
        for quality in (60, 85, 95)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("least", [0, 40])
def test_progress_rises_to_one(least: int, tmp_path: Path) -> None:
    heard: list[float] = []
    film = video(tmp_path / "film.mp4", seconds=2, tracks=[Track()])
    write_frames(film, tmp_path / "out", TEN, least=least, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert len(heard) > 10


def test_more_frames_than_a_day_of_ten_a_second_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MOST", 19)
    film = video(tmp_path / "film.mp4", seconds=2)
    with pytest.raises(BadInput, match="more than 19 frames: ask for fewer a second"):
        write_frames(film, tmp_path / "out", TEN)
    assert not (tmp_path / "out").exists()
