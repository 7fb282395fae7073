import json
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dailies.canonical import canonical_json, file_digest
from dailies.errors import (
    BadInput,
    EmptyFile,
    Missing,
    NoStreams,
    TooLarge,
    Truncated,
    Undecodable,
    Unreadable,
    Unsupported,
)
from dailies.media.probe import Limits, Probe, probe
from tests.media_files import Track, audio, frame_number, frame_picture, frame_times, video

pytestmark = pytest.mark.unit

NTSC = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films that several tests read and none may change."""
    folder = tmp_path_factory.mktemp("shelf")
    two = [Track("deu"), Track("eng", hertz=880)]
    video(folder / "film.mkv", seconds=4, tracks=two)
    video(folder / "fast.mp4", seconds=4, tracks=[Track("deu")], faststart=True)
    video(folder / "plain.mp4", seconds=4, tracks=[Track("deu")])
    return folder


def cut(path: Path, share: float = 0.5) -> Path:
    half = path.with_name(f"cut-{path.name}")
    content = path.read_bytes()
    half.write_bytes(content[: int(len(content) * share)])
    return half


def spoil(path: Path, name: str, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    spoiled = path.with_name(name)
    spoiled.write_bytes(content)
    return spoiled


def flip_middle(content: bytearray) -> None:
    middle = len(content) // 2
    for place in range(middle, middle + 1400, 7):
        content[place] ^= 0x5A


def wipe_middle(content: bytearray) -> None:
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)


def test_a_film_with_two_tracks_is_told_as_it_was_made(shelf: Path) -> None:
    path = shelf / "film.mkv"
    found = probe(path)
    assert (found.sha256, found.size) == (file_digest(path), path.stat().st_size)
    assert found.format == "matroska,webm"
    assert found.promised_us == 4_021_000
    assert found.decoded_us == 4_010_000
    assert (found.shortfall_us, found.damaged, found.audio_tracks) == (0, False, 2)
    (picture,) = found.videos
    assert (picture.index, picture.codec, picture.start_us, picture.decoded_us) == (0, "h264", 0, 4_000_000)
    assert picture.time_base == Fraction(1, 1000)
    assert picture.video is not None
    assert (picture.video.frames, picture.video.key_frames, picture.video.rate) == (100, 4, Fraction(25))
    assert (picture.video.rate_kind, picture.video.longest_step_us) == ("constant", 40_000)
    assert [track.language for track in found.audios] == ["deu", "eng"]
    assert [track.codec for track in found.audios] == ["aac", "aac"]
    sound = found.audios[0].audio
    assert sound is not None
    assert (sound.sample_rate, sound.channels, sound.layout, sound.longest_hole_us) == (48000, 2, "stereo", 0)


def test_the_json_goes_round_and_is_the_same_twice(shelf: Path) -> None:
    first, second = probe(shelf / "film.mkv"), probe(shelf / "film.mkv")
    assert canonical_json(first.to_json()) == canonical_json(second.to_json())
    assert Probe.from_json(json.loads(canonical_json(first.to_json()))) == first
    assert "." not in json.dumps(first.to_json()["streams"]), "integers only: no float may sneak in"


def test_a_film_without_sound_is_fine(tmp_path: Path) -> None:
    found = probe(video(tmp_path / "film.mp4", seconds=1))
    assert (found.audio_tracks, found.decoded_us) == (0, 1_000_000)


@pytest.mark.parametrize("name", ["film.mkv", "fast.mp4"])
def test_a_file_cut_in_half_is_truncated_and_says_both_durations(shelf: Path, name: str) -> None:
    half = cut(shelf / name)
    with pytest.raises(Truncated) as refused:
        probe(half)
    promised = "4.02 s" if name.endswith("mkv") else "4.00 s"
    assert f"promises {promised} but decodes to 2.00 s" in str(refused.value)
    assert "accept_damaged" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["film.mkv", "fast.mp4"])
def test_a_file_cut_in_half_may_be_accepted_with_its_shortfall(shelf: Path, name: str) -> None:
    found = probe(cut(shelf / name), accept_damaged=True)
    assert 1_900_000 < found.shortfall_us < 2_100_000
    assert found.damaged
    assert found.videos[0].decoded_us == 2_000_000
    assert Probe.from_json(found.to_json()) == found


def test_a_file_that_loses_less_than_half_a_second_is_not_truncated(shelf: Path) -> None:
    assert probe(cut(shelf / "film.mkv", 0.93)).shortfall_us == 0


def test_an_mp4_cut_before_its_index_is_unreadable(shelf: Path) -> None:
    with pytest.raises(Unreadable, match="not media, or its header is damaged"):
        probe(cut(shelf / "plain.mp4"))


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac"])
def test_sound_cut_in_half_is_truncated_too(tmp_path: Path, suffix: str) -> None:
    whole = audio(tmp_path / f"tone.{suffix}", seconds=4)
    assert probe(whole).decoded_us == pytest.approx(4_000_000, abs=30_000)
    with pytest.raises(Truncated, match=r"promises 4\.0\d s but decodes to (1|2)\."):
        probe(cut(whole))


def test_an_mp3_that_promises_nothing_is_held_to_nothing(tmp_path: Path) -> None:
    whole = audio(tmp_path / "tone.mp3", seconds=2)
    bare = spoil(
        whole, "bare.mp3", lambda content: content.__setitem__(slice(None), content.replace(b"Info", b"\0" * 4))
    )
    assert probe(bare).promised_us is None
    assert probe(whole).promised_us == 2_000_000


@pytest.mark.parametrize("name", ["film.mkv", "fast.mp4"])
def test_flipped_bytes_are_counted_and_placed(shelf: Path, name: str) -> None:
    found = probe(spoil(shelf / name, f"flip-{name}", flip_middle))
    damage = found.videos[0].damage
    assert damage.packets + damage.frames >= 1
    assert damage.first_us == pytest.approx(2_000_000, abs=100_000)
    assert found.damaged


def test_lost_packets_are_counted_one_by_one(shelf: Path) -> None:
    found = probe(spoil(shelf / "fast.mp4", "wiped.mp4", wipe_middle), accept_damaged=True)
    picture, sound = found.videos[0], found.audios[0]
    assert picture.video is not None
    assert picture.damage.packets == 100 - picture.video.frames
    assert sound.damage.packets == 10
    assert sound.damage.first_us == pytest.approx(2_005_333, abs=1000)


def test_a_hole_that_raises_no_error_shows_in_the_times(shelf: Path) -> None:
    found = probe(spoil(shelf / "film.mkv", "wiped.mkv", wipe_middle), accept_damaged=True)
    picture, sound = found.videos[0].video, found.audios[0].audio
    assert picture is not None
    assert sound is not None
    assert picture.longest_step_us > 500_000
    assert sound.longest_hole_us > 500_000


def test_a_damaged_file_gives_the_same_report_twice(shelf: Path) -> None:
    wiped = spoil(shelf / "fast.mp4", "again.mp4", wipe_middle)
    assert probe(wiped, accept_damaged=True) == probe(wiped, accept_damaged=True)


def test_text_is_unreadable_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("not a film\n" * 200)
    with pytest.raises(Unreadable, match=r"notes\.mp4"):
        probe(path)


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(EmptyFile, match="0 bytes"):
        probe(tmp_path / "empty.mp4")


def test_a_missing_file_and_a_folder_are_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.mp4", tmp_path):
        with pytest.raises(Missing):
            probe(path)


def test_a_playlist_is_refused_because_it_names_other_files(shelf: Path) -> None:
    playlist = shelf / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfast.mp4\n#EXT-X-ENDLIST\n")
    with av.open(str(playlist)) as control:
        assert control.streams.video, "without our list of formats FFmpeg would open what the playlist names"
    with pytest.raises(Unreadable):
        probe(playlist)


def test_a_container_with_only_subtitles_has_no_streams(tmp_path: Path) -> None:
    path = tmp_path / "words.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_mux_stream("subrip")
        packet = av.Packet(b"Good evening")
        packet.stream, packet.pts, packet.dts, packet.duration = stream, 0, 0, 1000
        packet.time_base = Fraction(1, 1000)
        output.mux(packet)
    with pytest.raises(NoStreams, match="subtitle"):
        probe(path)


@pytest.mark.parametrize(
    ("name", "tag", "other"), [("plain.mp4", b"avc1", b"zzzz"), ("film.mkv", b"ISO/AVC", b"ISO/XYZ")]
)
def test_a_codec_without_a_decoder_is_unsupported(shelf: Path, name: str, tag: bytes, other: bytes) -> None:
    path = shelf / f"unknown-{name}"
    path.write_bytes((shelf / name).read_bytes().replace(tag, other))
    with pytest.raises(Unsupported, match=r"stream 0 \(video\)"):
        probe(path)


def test_a_film_of_which_no_frame_decodes_is_undecodable(tmp_path: Path) -> None:
    def wipe(content: bytearray) -> None:
        begin = content.index(b"mdat") + 4
        end = content.index(b"moov") - 4
        content[begin:end] = b"\xff" * (end - begin)

    path = spoil(video(tmp_path / "film.mp4", seconds=1), "wiped.mp4", wipe)
    for accept in (False, True):
        with pytest.raises(Undecodable, match="not one frame"):
            probe(path, accept_damaged=accept)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_frame_rate_is_recognised_by_its_times(tmp_path: Path, suffix: str) -> None:
    times = frame_times(3, 25, vfr=True)
    picture = probe(video(tmp_path / f"film.{suffix}", seconds=3, vfr=True)).videos[0].video
    assert picture is not None
    assert picture.rate_kind == "variable"
    assert picture.frames == len(times)
    assert picture.rate == (len(times) - 1) / (times[-1] - times[0])
    assert picture.longest_step_us == 160_000


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_rate_that_no_millisecond_fits_is_still_constant(tmp_path: Path, suffix: str) -> None:
    picture = probe(video(tmp_path / f"film.{suffix}", seconds=2, rate=NTSC)).videos[0].video
    assert picture is not None
    assert (picture.rate_kind, picture.rate) == ("constant", NTSC)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_film_has_its_display_size(tmp_path: Path, rotation: int) -> None:
    picture = probe(video(tmp_path / "film.mp4", seconds=0.2, rotation=rotation)).videos[0].video
    assert picture is not None
    assert (picture.width, picture.height, picture.rotation) == (320, 240, rotation)
    assert (picture.display_width, picture.display_height) == ((320, 240) if rotation == 180 else (240, 320))


def test_the_matrix_a_phone_writes_means_ninety_degrees_clockwise(tmp_path: Path) -> None:
    """Independent of PyAV's own idea of a rotation: the bytes are those of the MP4 standard."""
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 240 << 16, 0, 0x40000000)

    def turn(content: bytearray) -> None:
        place = content.index(upright, content.index(b"tkhd"))
        content[place : place + 36] = turned

    path = spoil(video(tmp_path / "film.mp4", seconds=0.2), "phone.mp4", turn)
    picture = probe(path).videos[0].video
    assert picture is not None
    assert (picture.rotation, picture.display_width, picture.display_height) == (90, 240, 320)


def test_pixels_that_are_not_square_widen_the_display(tmp_path: Path) -> None:
    picture = probe(video(tmp_path / "film.mp4", seconds=0.2, aspect=Fraction(4, 3))).videos[0].video
    assert picture is not None
    assert (picture.width, picture.display_width, picture.display_height) == (320, 427, 240)


def test_odd_sizes_stay_odd(tmp_path: Path) -> None:
    picture = probe(video(tmp_path / "film.mp4", seconds=0.2, size=(321, 241))).videos[0].video
    assert picture is not None
    assert (picture.width, picture.height) == (321, 241)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_late_start_is_the_zero_of_the_timeline(tmp_path: Path, suffix: str) -> None:
    found = probe(video(tmp_path / f"film.{suffix}", seconds=2, start=5, tracks=[Track()]))
    assert found.start_us == pytest.approx(5_000_000, abs=25_000)
    starts = [stream.start_us for stream in found.streams]
    assert min(start for start in starts if start is not None) == 0
    assert found.start_us + (found.videos[0].start_us or 0) == pytest.approx(5_000_000, abs=1000)
    assert found.decoded_us == pytest.approx(2_000_000, abs=40_000)
    assert found.promised_us == pytest.approx(2_000_000, abs=50_000)


@pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a", "ogg", "aac"])
def test_sound_alone_has_no_video(tmp_path: Path, suffix: str) -> None:
    found = probe(audio(tmp_path / f"tone.{suffix}", seconds=2, tracks=[Track(rate=48000, channels=1)]))
    assert (found.videos, found.audio_tracks) == ((), 1)
    sound = found.audios[0].audio
    assert sound is not None
    assert (sound.sample_rate, sound.channels) == (48000, 1)
    assert found.decoded_us == pytest.approx(2_000_000, abs=50_000)


def test_a_tracks_own_sound_arrives(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(8000), 0.5 * np.ones(8000)])
    path = audio(tmp_path / "own.wav", tracks=[Track(rate=16000, channels=1, samples=samples)])
    with av.open(str(path)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert (heard[:8000] == 0).all()
    assert (heard[8000:] == 16383).all()


def test_one_frame_is_a_film(tmp_path: Path) -> None:
    found = probe(video(tmp_path / "film.mp4", seconds=0.04))
    picture = found.videos[0].video
    assert picture is not None
    assert (picture.frames, picture.rate_kind, found.decoded_us) == (1, "constant", 40_000)


@pytest.mark.parametrize("name", ["still.png", "still.jpg", "shot%03d.png"])
def test_a_still_is_a_film_of_one_frame(tmp_path: Path, name: str) -> None:
    frame_picture(7, Fraction(0), (320, 240)).save(tmp_path / name)
    picture = probe(tmp_path / name).videos[0].video
    assert picture is not None
    assert (picture.frames, picture.width, picture.height) == (1, 320, 240)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    song, path = audio(tmp_path / "song.mp3", seconds=1), tmp_path / "cover.mp3"
    with av.open(str(path), "w") as output, av.open(str(song)) as source:
        sound = output.add_stream_from_template(source.streams.audio[0])
        cover = output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), "red"))
        frame.pts = 0
        output.mux([*cover.encode(frame), *cover.encode(None)])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = sound
                output.mux(packet)
    found = probe(path)
    assert [stream.kind for stream in found.streams] == ["audio", "picture"]
    assert found.videos == ()
    assert found.streams[1].decoded_us is None


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(seconds=3), "limit is 3 s"),
        (Limits(pixels=320 * 240 - 1), "more than 76799 pixels"),
        (Limits(size=1000), "limit is 1000"),
    ],
)
def test_over_a_limit_is_too_large_and_names_the_limit(shelf: Path, limits: Limits, words: str) -> None:
    with pytest.raises(TooLarge, match=words):
        probe(shelf / "film.mkv", limits=limits)
    assert probe(shelf / "film.mkv", limits=Limits(seconds=5, pixels=320 * 240, size=10**9))


def test_a_still_over_the_pixel_limit_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    Image.new("L", (1000, 1000)).save(tmp_path / "bomb.png")
    for pixels in (999_999, 400_000):
        with pytest.raises(TooLarge, match=f"{pixels} pixels"):
            probe(tmp_path / "bomb.png", limits=Limits(pixels=pixels))
    assert probe(tmp_path / "bomb.png", limits=Limits(pixels=1_000_000)).videos


def test_progress_rises_to_one_and_may_end_the_probe(shelf: Path) -> None:
    heard: list[float] = []
    probe(shelf / "film.mkv", progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert len(heard) > 10

    def stop(share: float) -> None:
        raise BadInput("stop")

    with pytest.raises(BadInput, match="stop"):
        probe(shelf / "film.mkv", progress=stop)


def test_test_media_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        video(tmp_path / f"{name}.mkv", seconds=1, vfr=True, tracks=[Track("deu")])
        video(tmp_path / f"{name}.mp4", seconds=1, tracks=[Track("deu")])
    for suffix in ("mkv", "mp4"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_a_picture_without_blocks_has_no_number() -> None:
    assert frame_number(frame_picture(40_961, Fraction(1), (160, 120))) == 40_961
    with pytest.raises(ValueError, match="no frame number"):
        frame_number(Image.new("RGB", (320, 240), (120, 120, 120)))


def test_a_name_with_a_line_feed_is_told_in_one_line(tmp_path: Path) -> None:
    odd = tmp_path / "first\nsecond.mp4"
    odd.write_bytes(b"Meet me at noon.\n" * 100)
    with pytest.raises(Unreadable, match=r"^first second\.mp4 is not media[^\n]*$"):
        probe(odd)
