import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dailies.media.contact_sheet import GAP, HEADER, MARGIN, WAVE_HEIGHT, contact_sheet
from dailies.media.probe import probe
from tests.media_files import Track, audio, frame_number, frame_picture, frame_times, video

pytestmark = pytest.mark.unit


def sheet_of(path: Path, **shape: int) -> Image.Image:
    png = contact_sheet(path, probe(path, accept_damaged=True), **shape)
    return Image.open(io.BytesIO(png)).convert("RGB")


def cell(sheet: Image.Image, row: int, column: int, *, columns: int, aspect: Fraction) -> Image.Image:
    width = (sheet.width - 2 * MARGIN - (columns - 1) * GAP) // columns
    height = round(width / aspect)
    left = (sheet.width - columns * width - (columns - 1) * GAP) // 2
    x, y = left + column * (width + GAP), HEADER + row * (height + GAP)
    return sheet.crop((x, y, x + width, y + height))


def numbers(sheet: Image.Image, rows: int, columns: int, aspect: Fraction = Fraction(4, 3)) -> list[int]:
    places = [(row, column) for row in range(rows) for column in range(columns)]
    return [frame_number(cell(sheet, row, column, columns=columns, aspect=aspect)) for row, column in places]


def expected(times: list[Fraction], seconds: Fraction, cells: int) -> list[int]:
    """The number of the frame on show in the middle of each slot."""
    middles = [seconds * (2 * slot + 1) / (2 * cells) for slot in range(cells)]
    return [max(number for number, time in enumerate(times) if time <= middle) for middle in middles]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
@pytest.mark.parametrize("start", [0, 5])
def test_each_cell_shows_the_frame_of_its_time(tmp_path: Path, name: str, start: int) -> None:
    path = video(tmp_path / name, seconds=6, start=start, gop=10)
    assert numbers(sheet_of(path), 3, 4) == expected(frame_times(6), Fraction(6), 12)


@pytest.mark.parametrize("gop", [5, 500])
def test_a_variable_rate_is_shown_by_time_and_not_by_number(tmp_path: Path, gop: int) -> None:
    path = video(tmp_path / "film.mp4", seconds=6, vfr=True, gop=gop)
    times = frame_times(6, vfr=True)
    right = expected(times, times[-1] + Fraction(1, 25), 12)
    assert numbers(sheet_of(path), 3, 4) == right
    assert right != [len(times) * (2 * slot + 1) // 24 for slot in range(12)], "the control: counting would be wrong"


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_film_stands_upright(tmp_path: Path, rotation: int) -> None:
    path = video(tmp_path / "film.mp4", seconds=2, rotation=rotation)
    aspect = Fraction(4, 3) if rotation == 180 else Fraction(3, 4)
    assert numbers(sheet_of(path, rows=2), 2, 4, aspect) == expected(frame_times(2), Fraction(2), 8)


def test_wide_pixels_are_widened(tmp_path: Path) -> None:
    path = video(tmp_path / "film.mp4", seconds=2, aspect=Fraction(4, 3))
    assert numbers(sheet_of(path), 3, 4, Fraction(427, 240)) == expected(frame_times(2), Fraction(2), 12)


def test_a_short_film_shows_each_frame_once(tmp_path: Path) -> None:
    path = video(tmp_path / "film.mp4", seconds=0.2)
    sheet = sheet_of(path)
    assert numbers(sheet, 1, 4) == [0, 1, 2, 3]
    assert frame_number(cell(sheet, 1, 0, columns=4, aspect=Fraction(4, 3))) == 4
    with pytest.raises(ValueError, match="no frame number"):
        frame_number(cell(sheet, 1, 1, columns=4, aspect=Fraction(4, 3)))


def test_one_long_frame_does_not_fill_two_cells(tmp_path: Path) -> None:
    path = video(tmp_path / "film.mp4", seconds=1, rate=10, vfr=True)
    assert expected(frame_times(1, 10, vfr=True), Fraction(1), 5) == [0, 2, 3, 3, 5]
    sheet = sheet_of(path, columns=5, rows=1)
    cells = [cell(sheet, 0, column, columns=5, aspect=Fraction(4, 3)) for column in range(5)]
    assert [frame_number(shown) for shown in cells[:4]] == [0, 2, 3, 5]
    with pytest.raises(ValueError, match="no frame number"):
        frame_number(cells[4])


def test_a_still_fills_the_sheet(tmp_path: Path) -> None:
    frame_picture(9, Fraction(0), (320, 240)).save(tmp_path / "still.png")
    sheet = sheet_of(tmp_path / "still.png")
    assert sheet.width == 1280
    middle = sheet.crop(((1280 - 960) // 2, HEADER, (1280 + 960) // 2, HEADER + 720))
    assert frame_number(middle) == 9


def test_what_is_left_of_a_cut_film_is_shown(tmp_path: Path) -> None:
    whole = video(tmp_path / "film.mkv", seconds=4, gop=10)
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    shown = numbers(sheet_of(whole), 3, 4)
    assert shown == sorted(set(shown))
    assert 40 < shown[-1] < 50


def test_the_same_film_gives_the_same_bytes(tmp_path: Path) -> None:
    path = video(tmp_path / "film.mp4", seconds=1, tracks=[Track()])
    found = probe(path)
    first = contact_sheet(path, found)
    assert first == contact_sheet(path, found)
    assert b"tIME" not in first
    assert first != contact_sheet(path, found, columns=3)


def test_each_cell_carries_a_time_that_can_be_read(tmp_path: Path) -> None:
    path = video(tmp_path / "film.mp4", seconds=2)
    sheet = sheet_of(path)
    for row in range(3):
        corner = np.asarray(cell(sheet, row, 1, columns=4, aspect=Fraction(4, 3)).convert("L"))[-30:-8, -100:-10]
        assert corner.max() > 240, "white letters"
        assert np.median(corner) < 60, "on a dark plate"


def test_sound_alone_is_a_waveform_that_follows_its_loudness(tmp_path: Path) -> None:
    rate = 16000
    moments = np.arange(4 * rate) / rate
    samples = np.where((moments >= 1) & (moments < 2), 0.8, 0.1) * np.sin(2 * np.pi * 300 * moments)
    path = audio(tmp_path / "tone.wav", tracks=[Track(rate=rate, channels=2, samples=samples)])
    picture = np.asarray(sheet_of(path))
    plot = picture[HEADER : HEADER + WAVE_HEIGHT, MARGIN:-MARGIN]
    heights = (plot[:, :, 2].astype(int) > 150).sum(axis=0)
    quarter = len(heights) // 4
    loud, quiet = heights[quarter + 9 : 2 * quarter - 9], np.r_[heights[9 : quarter - 9], heights[2 * quarter + 9 : -9]]
    assert np.median(loud) == pytest.approx(0.8 * WAVE_HEIGHT, abs=6)
    assert np.median(quiet) == pytest.approx(0.1 * WAVE_HEIGHT, abs=6)


def test_the_times_on_a_sheet_rise(tmp_path: Path) -> None:
    shown = numbers(sheet_of(video(tmp_path / "film.mp4", seconds=3, gop=1000)), 3, 4)
    assert all(before < after for before, after in pairwise(shown))
