"""Films that are broken or odd: read right, on the player's timeline, or refused in one line that says what to do."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dailies.captions.extract import Report, extract
from dailies.captions.sampling import Film as Sampled
from dailies.errors import (
    BadInput,
    EmptyFile,
    Missing,
    NoVideo,
    TooLarge,
    Undecodable,
    Unreadable,
    Unsupported,
)
from dailies.media.frames import Frames, write_frames
from dailies.media.pictures import PIXELS, Pictures
from tests.captions import odd_films as films
from tests.captions.odd_films import FIRST, ODD, SECOND, Film
from tests.media_files import audio

pytestmark = [pytest.mark.unit, pytest.mark.slow]

RATE = Fraction(10)
MEBI = 1 << 20
# What a decoder, two encoders and their threads take for a film of common size, with room to spare.
ROOM = 384 * MEBI
# Its header promises an hour: what there is of it is read, and what is missing is told.
LYING = {"stray"}

READ_AND_WRITE: tuple[Callable[[Path, Path], object], ...] = (
    lambda path, out: extract(path, out / "captions"),
    lambda path, out: write_frames(path, out / "frames", RATE),
)
both = pytest.mark.parametrize("work", READ_AND_WRITE, ids=["extract", "write_frames"])


def assert_read(report: Report, film: Film) -> None:
    assert [caption.text for caption in report.captions] == [cue.text for cue in film.cues]
    for caption, cue in zip(report.captions, film.cues, strict=True):
        assert abs(caption.start_us - cue.start_us) <= film.frame_us, caption
        assert abs(caption.end_us - cue.end_us) <= film.frame_us, caption


def assert_shown(frames: Frames, film: Film) -> None:
    """Every tick has its file, and the caption is on those, and only those, on which a player shows it."""
    tick = 1_000_000 / RATE
    ticks = range(-(-film.end_us // int(tick)))
    assert [(one.index, one.us) for one in frames.pictures] == [(index, round(index * tick)) for index in ticks]
    assert (frames.width, frames.height) == film.size
    for one in frames.pictures:
        picture = Image.open(one.path)
        assert picture.size == film.size
        near = any(abs(one.us - edge) < film.frame_us for cue in film.cues for edge in (cue.start_us, cue.end_us))
        assert near or inked(picture, film.black_ink) == bool(film.shown_at(one.us)), one


def inked(picture: Image.Image, black: bool) -> bool:
    grey = np.asarray(picture.convert("L"), int)
    height, width = grey.shape
    band = grey[round(0.84 * height) : round(0.96 * height), width // 4 : 3 * width // 4]
    return float(((band < 50) if black else (band > 160)).mean()) > 0.02


def refused(work: Callable[[Path, Path], object], path: Path, out: Path, kind: type[BadInput]) -> str:
    """One line that says what to do, and nothing left on the disk that looks like a result."""
    out.mkdir()
    with pytest.raises(BadInput) as said:
        work(path, out)
    assert type(said.value) is kind
    message = str(said.value)
    assert "\n" not in message
    assert ": " in message
    assert [file for file in out.rglob("*") if file.is_file()] == []
    return message


@pytest.mark.parametrize("name", sorted(ODD))
def test_captions_of_an_odd_film_are_read_as_a_player_shows_them(name: str, tmp_path: Path) -> None:
    film = ODD[name](tmp_path)
    report = extract(film.path, tmp_path / "out")
    assert_read(report, film)
    assert (report.layout.width, report.layout.height) == film.size
    assert report.coverage.decoded_us == pytest.approx(film.end_us, abs=film.frame_us)
    assert (report.coverage.short_us > 0, report.coverage.broken_packets) == (name in LYING, film.joints)


@pytest.mark.parametrize("name", sorted(ODD))
def test_frames_of_an_odd_film_are_what_a_player_shows(name: str, tmp_path: Path) -> None:
    film = ODD[name](tmp_path)
    frames = write_frames(film.path, tmp_path / "frames", RATE)
    assert_shown(frames, film)
    assert frames.decoded_us == pytest.approx(film.end_us, abs=film.frame_us)


def test_a_truncated_film_is_read_as_far_as_it_goes_and_says_how_far(tmp_path: Path) -> None:
    whole = films.plain(tmp_path, muxer={"movflags": "+faststart"})
    half = films.cut_off(whole.path, 0.55)
    report = extract(half, tmp_path / "out")
    coverage = report.coverage
    assert coverage.promised_us == 3_000_000
    assert 1_280_000 < coverage.decoded_us < 2_400_000
    assert coverage.decoded_us == coverage.frames * 40_000
    assert coverage.short_us == 3_000_000 - coverage.decoded_us
    first, *cut = report.captions
    assert (first.text, first.start_us, first.end_us) == (FIRST, 480_000, 1_280_000)
    assert [(one.text, one.end_us) for one in cut] == [(SECOND, coverage.decoded_us)] * (
        coverage.decoded_us > 1_700_000
    )
    written = json.loads((tmp_path / "out" / "captions-report.json").read_bytes())["coverage"]
    assert written["short_us"] == coverage.short_us

    frames = write_frames(half, tmp_path / "frames", RATE)
    assert (frames.decoded_us, frames.promised_us, frames.short_us) == (
        coverage.decoded_us,
        3_000_000,
        coverage.short_us,
    )
    assert len(frames.pictures) == -(-frames.decoded_us // 100_000)


@both
def test_a_film_cut_before_its_index_is_refused(work: Callable[[Path, Path], object], tmp_path: Path) -> None:
    half = films.cut_off(films.plain(tmp_path).path, 0.55)
    assert "upload it again" in refused(work, half, tmp_path / "out", Unreadable)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
def test_bytes_spoiled_in_the_middle_cost_what_they_hold_and_are_counted(name: str, tmp_path: Path) -> None:
    """The gap between the captions is spoiled: both are read still, on their own frames."""

    def spoil(content: bytearray) -> None:
        place = len(content) * 35 // films.FRAMES
        for at in range(place, place + 600, 5):
            content[at] ^= 0x5A

    film = films.plain(tmp_path, name, options={"bf": "0", "g": "12"})
    bad = films.spoiled(film.path, f"bad-{name}", spoil)
    report = extract(bad, tmp_path / "out")
    assert report.coverage.broken_packets > 0
    assert [caption.text for caption in report.captions] == [FIRST, SECOND]
    assert report.captions[0].start_us == 480_000
    assert report.captions[1].end_us == 2_640_000
    assert report.coverage.short_us == 0

    frames = write_frames(bad, tmp_path / "frames", RATE)
    assert frames.broken == report.coverage.broken_packets
    assert [one.index for one in frames.pictures] == list(range(30))
    assert inked(Image.open(frames.pictures[8].path), black=False)
    assert inked(Image.open(frames.pictures[20].path), black=False)


@both
@pytest.mark.parametrize("name", ["tone.wav", "tone.m4a", "tone.mkv"])
def test_sound_alone_has_no_video(work: Callable[[Path, Path], object], name: str, tmp_path: Path) -> None:
    message = refused(work, audio(tmp_path / name, seconds=1), tmp_path / "out", NoVideo)
    assert "(audio)" in message
    assert "upload the film" in message


@both
@pytest.mark.parametrize("name", ["song.mp3", "song.m4a"])
def test_the_cover_of_a_song_is_no_film(work: Callable[[Path, Path], object], name: str, tmp_path: Path) -> None:
    message = refused(work, films.song_with_cover(tmp_path / name), tmp_path / "out", NoVideo)
    assert "(audio, picture)" in message


@both
@pytest.mark.parametrize(
    ("name", "kind"), [("empty.avi", Undecodable), ("empty.flv", Undecodable), ("empty.mkv", Unreadable)]
)
def test_a_header_without_a_frame_is_refused(
    work: Callable[[Path, Path], object], name: str, kind: type[BadInput], tmp_path: Path
) -> None:
    refused(work, films.no_frames(tmp_path / name), tmp_path / "out", kind)


@both
def test_a_container_with_nothing_in_it_has_no_video(work: Callable[[Path, Path], object], tmp_path: Path) -> None:
    assert "no stream at all" in refused(work, films.no_frames(tmp_path / "empty.mp4"), tmp_path / "out", NoVideo)


@both
def test_a_film_of_which_nothing_decodes_is_undecodable(work: Callable[[Path, Path], object], tmp_path: Path) -> None:
    def wipe(content: bytearray) -> None:
        begin, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
        content[begin:end] = b"\xff" * (end - begin)

    bad = films.spoiled(films.plain(tmp_path).path, "wiped.mp4", wipe)
    assert "export it again" in refused(work, bad, tmp_path / "out", Undecodable)


@both
def test_a_codec_that_nobody_knows_is_unsupported(work: Callable[[Path, Path], object], tmp_path: Path) -> None:
    path = films.plain(tmp_path).path
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "convert it" in refused(work, path, tmp_path / "out", Unsupported)


@both
def test_no_file_an_empty_one_and_garbage_are_told_apart(work: Callable[[Path, Path], object], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "garbage.mp4").write_bytes(np.random.default_rng(5).bytes(200_000))
    (tmp_path / "words.mp4").write_text("not a film\n" * 500)
    for name, kind in (
        ("nothing.mp4", Missing),
        ("empty.mp4", EmptyFile),
        ("garbage.mp4", Unreadable),
        ("words.mp4", Unreadable),
    ):
        refused(work, tmp_path / name, tmp_path / f"out-{name}", kind)


CHILD = """
import resource, sys
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from dailies.captions.extract import extract
from dailies.errors import BadInput
from dailies.media.frames import write_frames
path, out, room = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for work in (lambda: write_frames(path, out, Fraction(10)), lambda: extract(path, out, reader=object())):
    try:
        print("done", work())
    except BadInput as error:
        print(error.code, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def in_little_room(path: Path, out: Path, room: int = ROOM) -> tuple[list[str], int]:
    """What both say of the file in a process that may take so many bytes, and by how many MiB it grew."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(out), str(room)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, grown = done.stdout.splitlines()
    return said, int(grown)


def png(width: int, height: int) -> bytes:
    """Of one bit a pixel, all black: sixteen thousand squared are thirty kilobytes."""

    file = BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("name", "side"), [("bomb.mov", 8192), ("bomb.mov", 16_000), ("bomb.png", 16_000)])
def test_a_pixel_bomb_is_refused_before_it_takes_memory(name: str, side: int, tmp_path: Path) -> None:
    bomb = tmp_path / name
    if name.endswith("png"):
        bomb.write_bytes(png(side, side))
    else:
        films.packed_picture(bomb, png(side, side), (side, side))
    assert bomb.stat().st_size < MEBI
    said, grown = in_little_room(bomb, tmp_path / "out", 128 * MEBI)
    assert len(said) == 2
    for line in said:
        assert line.startswith("too_large "), line
        assert f"{PIXELS} pixels" in line
        assert "scale it down" in line
    assert grown < 64


def test_a_bomb_behind_a_harmless_header_goes_off_nowhere(tmp_path: Path) -> None:
    bomb = films.packed_picture(tmp_path / "bomb.mov", png(12_000, 12_000), (640, 360))
    said, grown = in_little_room(bomb, tmp_path / "out", 128 * MEBI)
    assert {line.split()[0] for line in said} <= {"too_large", "undecodable"}
    assert grown < 64


def test_a_common_film_fits_into_the_room_that_a_bomb_is_given(tmp_path: Path) -> None:
    """The control of the tests above: with a limit this low a film that is let in still works."""
    film = films.plain(tmp_path)
    done = write_frames(film.path, tmp_path / "frames", RATE)
    assert len(done.pictures) == 30
    with pytest.raises(TooLarge):
        Pictures(films.packed_picture(tmp_path / "bomb.mov", png(8192, 8192), (8192, 8192)))
    largest = films.packed_picture(tmp_path / "large.mov", png(7680, 4320), (7680, 4320))
    assert Sampled(largest).size == (1920, 1080)


def test_pixels_a_hundred_times_as_wide_as_high_are_taken_as_square(tmp_path: Path) -> None:
    def stretch(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(100)

    path = films.encode(tmp_path / "stretched.mp4", films.pictures(), tune=stretch)
    assert Pictures(path).size == films.SIZE


def test_a_year_between_two_frames_is_refused(tmp_path: Path) -> None:
    """A clock gone wild would otherwise fill the disk with copies of one picture."""
    stamps = [*range(40), *range(40 + 25 * 86_400 * 365, 75 + 25 * 86_400 * 365)]
    path = films.encode(tmp_path / "year.mkv", films.pictures(), stamps=stamps)
    for work in READ_AND_WRITE:
        with pytest.raises(TooLarge, match="cut it into parts"):
            work(path, tmp_path / "out")
    assert not (tmp_path / "out" / "frames").exists()


def test_where_a_file_breaks_off_what_is_in_the_decoder_still_counts(tmp_path: Path) -> None:
    film = films.plain(tmp_path, "film.nut")
    bad = films.spoiled(film.path, "bad.nut", lambda content: content.__setitem__(slice(-200, None), bytes(200)))
    sizes: list[int] = []
    with av.open(str(bad)) as container, suppress(av.FFmpegError):
        sizes.extend(packet.size for packet in container.demux(video=0))
        pytest.fail("the file must break off, not end")
    whole = len(sizes) - 1  # the last has zeros in it
    pictures = Pictures(bad)
    shown = [us for us, _ in pictures.each()]
    assert len(shown) == whole < films.FRAMES
    assert pictures.broken == 1
    assert pictures.short_us == 0
    assert pictures.end_us == whole * 40_000


GARBLED: dict[str, dict[str, Any]] = {
    "film.mp4": {},
    "film.mov": {"muxer": {"movflags": "+faststart"}},
    "film.mkv": {},
    "film.ts": {},
    "film.nut": {},
    "film.flv": {},
    "film.h264": {},
    "film.avi": {"codec": "mpeg4"},
    "film.asf": {"codec": "mpeg4"},
    "film.mpg": {"codec": "mpeg2video"},
    "film.mxf": {"codec": "mpeg2video"},
    "film.gif": {"codec": "gif", "kind": "rgb8"},
}


@pytest.mark.parametrize("name", GARBLED)
def test_whatever_is_garbled_there_is_a_film_or_one_typed_error(name: str, tmp_path: Path) -> None:
    """Sixty times, at the head, the tail or anywhere; times rise in each film that comes out of it."""
    small = (films.picture(number, (320, 180)) for number in range(30))
    content = films.encode(tmp_path / name, small, **GARBLED[name]).read_bytes()
    size, films_read, refusals = len(content), 0, 0
    for seed in range(60):
        chance = random.Random(seed)
        garbled = bytearray(content)
        first, last = chance.choice([(0, size), (0, min(2000, size)), (max(0, size - 3000), size)])
        for _ in range(chance.choice([1, 3, 20, 100])):
            garbled[chance.randrange(first, last)] = chance.randrange(256)
        bad = tmp_path / f"bad-{name}"
        bad.write_bytes(garbled)
        try:
            times = [us for us, _ in Pictures(bad).each()]
        except BadInput as error:
            refusals += "\n" not in str(error)
        else:
            films_read += 1
            assert times[0] >= 0
            assert all(before < after for before, after in pairwise(times))
    assert films_read > 10, "the control: not everything may be refused"
    assert films_read + refusals == 60


NAMES = (
    'it\'s a "film".mp4',
    "Übergröße – naïve.mp4",
    "-vf.mp4",
    "  two  spaces .mp4",
    "first\nsecond.mp4",
    "🎬.mp4",
    "shot%03d.mp4",
    "file:film.mp4",
    "a;b&c|d$(e)`f`.mp4",
    "[x]*?.mp4",
)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Film:
    return films.plain(tmp_path_factory.mktemp("common"))


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_changes_nothing(name: str, common: Film, tmp_path: Path) -> None:
    folder = tmp_path / name.removesuffix(".mp4")
    folder.mkdir()
    path = folder / name
    path.hardlink_to(common.path)
    frames = write_frames(path, folder / "frames of it", RATE)
    assert_shown(frames, common)
    assert {one.path.parent for one in frames.pictures} == {folder / "frames of it"}
    assert sorted(file.name for file in folder.iterdir()) == sorted([name, "frames of it"])
    empty = folder / f"no{name}"
    empty.touch()
    with pytest.raises(EmptyFile) as said:
        write_frames(empty, folder / "none", RATE)
    assert "\n" not in str(said.value)


def test_captions_of_a_file_with_an_odd_name_are_read(common: Film, tmp_path: Path) -> None:
    path = tmp_path / "".join(name.removesuffix(".mp4") for name in NAMES)
    path.hardlink_to(common.path)
    assert_read(extract(path, tmp_path / "out\nput"), common)


def test_an_odd_name_without_a_folder_is_a_file_too(
    common: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-i").hardlink_to(common.path)
    assert_shown(write_frames(Path("-i"), Path("-frames"), RATE), common)


def test_a_damaged_film_is_read_alike_twice(tmp_path: Path) -> None:
    whole = films.plain(tmp_path, muxer={"movflags": "+faststart"})
    half = films.cut_off(whole.path, 0.7)
    for name in ("one", "two"):
        extract(half, tmp_path / name)
    for name in ("captions.srt", "captions.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_interlaced_frames_are_woven_into_whole_ones(tmp_path: Path) -> None:
    """Lines of two moments side by side make a comb of every edge that moves."""

    def comb(grey: np.ndarray) -> float:
        lines = grey[100:250].astype(float)
        return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())

    film = films.interlaced(tmp_path)
    pictures = Pictures(film.path)
    raw = [np.asarray(frame.to_ndarray(format="gray")) for _, frame in pictures.each("NONKEY")]
    whole = [np.asarray(frame.to_ndarray(format="gray")) for _, frame in pictures.each()]
    assert len(whole) == films.FRAMES
    assert comb(raw[1]) > 10
    assert comb(whole[25]) < comb(raw[1]) / 4
