"""Sound on the timeline of a player: every click where it was made, whatever container, codec, holes and stamps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dailies.errors import EmptyFile, Missing, NoAudio, TooLarge, Undecodable, Unreadable
from dailies.speech.audio import BLOCK, RATE, Sound, placed
from tests.media_files import Track, audio, video

pytestmark = pytest.mark.unit

CLICKS = (0.5, 1.25, 2.5)


def clicks(at: Sequence[float] = CLICKS, seconds: float = 3.0, rate: int = 48000) -> np.ndarray:
    wave = np.zeros(round(seconds * rate))
    for second in at:
        wave[round(second * rate) : round((second + 0.01) * rate)] = 0.8
    return wave


def heard(sound: Sound) -> np.ndarray:
    return np.concatenate(list(sound.blocks()))


def times(wave: np.ndarray) -> list[float]:
    loud = np.flatnonzero(np.abs(wave) > 0.4)
    return [float(place) / RATE for place in loud[np.diff(loud, prepend=-RATE) > RATE / 10]]


def pcm(path: Path, pieces: Sequence[tuple[float, np.ndarray]], rate: int = 48000) -> Path:
    """Each piece of sound with the stamp it is given, in Matroska, which keeps the stamps as they are."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("pcm_s16le", rate=rate)
        stream.codec_context.layout = "mono"
        for second, wave in pieces:
            frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(second * rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg", "webm", "m4a", "mkv", "mov"])
def test_every_click_is_where_it_was_made(suffix: str, tmp_path: Path) -> None:
    sound = Sound(audio(tmp_path / f"sound.{suffix}", tracks=[Track(samples=clicks())]))
    wave = heard(sound)
    assert times(wave) == pytest.approx(CLICKS, abs=0.002)
    assert sound.end_us == len(wave) * 1_000_000 // RATE == pytest.approx(3_000_000, abs=30_000)
    assert sound.promised_us == pytest.approx(sound.end_us, abs=30_000)
    assert (sound.short_us, sound.filled_us, sound.cut_us, sound.broken) == (0, 0, 0, 0)


@pytest.mark.parametrize("suffix", ["ogg", "webm", "mkv", "mov", "ts"])
def test_a_file_that_starts_late_starts_at_zero(suffix: str, tmp_path: Path) -> None:
    sound = Sound(audio(tmp_path / f"sound.{suffix}", tracks=[Track(samples=clicks())], start=4))
    # Where nothing in the file says that its first packet is the encoder's warming up, a player plays it.
    assert times(heard(sound)) == pytest.approx(CLICKS, abs=0.025)
    assert sound.promised_us == pytest.approx(sound.end_us, abs=30_000)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000])
def test_any_rate_keeps_the_time_and_the_loudness(rate: int, tmp_path: Path) -> None:
    track = Track(rate=rate, channels=1, samples=np.sin(np.arange(rate * 2) * 2 * np.pi * 440 / rate) * 0.5)
    wave = heard(Sound(audio(tmp_path / "sound.wav", tracks=[track])))
    assert len(wave) == pytest.approx(2 * RATE, abs=1)
    expected = np.sin(np.arange(len(wave)) * 2 * np.pi * 440 / RATE) * 0.5
    assert np.abs(wave - expected)[200:-200].max() < 0.01


def test_both_channels_are_heard_and_none_is_clipped(tmp_path: Path) -> None:
    wave = heard(Sound(audio(tmp_path / "sound.wav", tracks=[Track(channels=2, samples=np.full(48000, 0.9))])))
    assert wave[1000:-1000] == pytest.approx(0.9, abs=0.01)


def test_a_hole_in_the_stamps_is_silence(tmp_path: Path) -> None:
    part = clicks((0.25,), 0.5)
    sound = Sound(pcm(tmp_path / "sound.mkv", [(0, part), (0.5, part), (3.0, part), (3.52, part)]))
    wave = heard(sound)
    assert times(wave) == pytest.approx([0.25, 0.75, 3.25, 3.77], abs=0.002)
    assert sound.filled_us == pytest.approx(2_020_000, abs=1000)
    assert not wave[RATE : 3 * RATE].any()
    assert sound.end_us == pytest.approx(4_020_000, abs=1000)


def test_what_the_stamps_say_twice_is_cut(tmp_path: Path) -> None:
    part = clicks((0.25,), 0.5)
    sound = Sound(pcm(tmp_path / "sound.mkv", [(0, part), (0.4, part), (0.9, part)]))
    assert times(heard(sound)) == pytest.approx([0.25, 0.65, 1.15], abs=0.002)
    assert sound.cut_us == pytest.approx(100_000, abs=1000)


def test_milliseconds_of_rounding_are_no_holes(tmp_path: Path) -> None:
    rate, size = 44100, 1024
    wave = np.sin(np.arange(rate * 3) * 2 * np.pi * 300 / rate) * 0.5
    pieces = [(round(at / rate, 3), wave[at : at + size]) for at in range(0, len(wave), size)]
    sound = Sound(pcm(tmp_path / "sound.mkv", pieces, rate))
    assert len(heard(sound)) == pytest.approx(3 * RATE, abs=2)
    assert (sound.filled_us, sound.cut_us) == (0, 0)


def test_sound_that_begins_after_the_picture_keeps_its_delay(tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as output:
        picture: Any = output.add_stream("mpeg4", rate=25)
        picture.width = picture.height = 64
        stream: Any = output.add_stream("pcm_s16le", rate=48000)
        stream.codec_context.layout = "mono"
        for number in range(50):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(picture.encode(frame))
        late = av.AudioFrame.from_ndarray((clicks((0.25,), 1) * 32767).astype(np.int16)[None], "s16", "mono")
        late.sample_rate, late.time_base, late.pts = 48000, Fraction(1, 48000), 48000
        output.mux(stream.encode(late))
        output.mux([*picture.encode(None), *stream.encode(None)])
    sound = Sound(path)
    assert times(heard(sound)) == pytest.approx([1.25], abs=0.002)
    assert sound.filled_us == 1_000_000


def follow(*stamps: float | None) -> list[tuple[float, int]]:
    """In seconds, with each frame's number; each lasts a tenth."""
    given = [(None if one is None else round(one * 1e6), 100_000, number) for number, one in enumerate(stamps)]
    return [(us / 1e6, number) for us, number in placed(given)]


def test_missing_stamps_follow_on() -> None:
    assert follow(None, None, 0.2, None, 0.4) == [(0, 0), (0.1, 1), (0.2, 2), (0.3, 3), (0.4, 4)]


def test_two_frames_that_changed_places_change_back() -> None:
    assert follow(0, 0.2, 0.1, 0.3) == [(0, 0), (0.1, 2), (0.2, 1), (0.3, 3)]


@pytest.mark.parametrize("stray", [-50.0, 0.0, 3600.0, 90_000.0])
def test_one_stray_stamp_moves_nothing_else(stray: float) -> None:
    stamps = [place / 10 for place in range(100, 130)]
    moved = [*stamps[:15], stray, *stamps[16:]]
    assert [time for time, _ in follow(*moved)] == pytest.approx(stamps)


def test_a_clock_that_is_set_anew_goes_on() -> None:
    stamps = [place / 10 for place in [*range(100, 120), *range(20), *range(120, 140)]]
    assert [time for time, _ in follow(*stamps)] == pytest.approx([place / 10 for place in range(100, 160)])


def test_the_track_is_chosen_by_number_then_language(tmp_path: Path) -> None:
    tracks = [Track(name, samples=clicks((at,), 3)) for name, at in (("eng", 0.5), ("deu", 1.5))]
    path = video(tmp_path / "film.mkv", tracks=tracks, seconds=3)
    found = {
        str(choice): times(heard(Sound(path, **choice)))
        for choice in ({}, {"track": 1}, {"language": "deu"}, {"language": "fra"}, {"track": 0, "language": "deu"})
    }
    assert [round(one[0], 1) for one in found.values()] == [0.5, 1.5, 1.5, 0.5, 0.5]
    assert Sound(path, language="deu").language == "deu"
    with pytest.raises(NoAudio, match="2 audio tracks, and none is number 2"):
        Sound(path, track=2)


@pytest.mark.parametrize(
    ("asked", "number"), [("de", 1), ("ger", 1), ("de-AT", 1), ("DEU", 1), ("fr", 0), ("und", 0), ("auto", 0), ("", 0)]
)
def test_a_language_has_many_names(tmp_path: Path, asked: str, number: int) -> None:
    names = ["eng", "deu", "und"]
    path = video(tmp_path / "film.mkv", tracks=[Track(name) for name in names], seconds=1)
    assert Sound(path, language=asked).language == names[number]


def test_blocks_are_a_second_each_and_the_same_twice(tmp_path: Path) -> None:
    sound = Sound(audio(tmp_path / "sound.mp3", seconds=3.5))
    first, second = list(sound.blocks()), list(sound.blocks())
    assert [len(block) for block in first[:-1]] == [BLOCK] * (len(first) - 1)
    assert {block.dtype for block in first} == {np.dtype(np.float32)}
    assert b"".join(map(np.ndarray.tobytes, first)) == b"".join(map(np.ndarray.tobytes, second))


def test_a_file_cut_in_half_is_short_by_what_is_missing(tmp_path: Path) -> None:
    for suffix in ("wav", "mp4"):
        path = tmp_path / f"sound.{suffix}"
        if suffix == "wav":
            audio(path, seconds=6)
        else:
            video(path, seconds=6, faststart=True, size=(64, 64), tracks=[Track()])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        sound = Sound(path)
        heard(sound)
        assert sound.promised_us == pytest.approx(6_000_000, abs=60_000)
        assert sound.short_us == sound.promised_us - sound.end_us > 2_000_000


def test_lost_packets_are_silence_and_what_follows_keeps_its_time(tmp_path: Path) -> None:
    at = [0.5 + place * 0.5 for place in range(18)]
    path = audio(tmp_path / "sound.ts", seconds=10, tracks=[Track(samples=clicks(at, 10))])
    whole = times(heard(Sound(path)))
    data = path.read_bytes()
    middle = len(data) // 2 // 188 * 188
    path.write_bytes(data[:middle] + data[middle + 40 * 188 :])
    sound = Sound(path)
    left = times(heard(sound))
    assert sound.filled_us > 100_000
    assert 10 < len(left) < len(whole)
    assert [second for second in whole if second > 8] == pytest.approx(left[-len([s for s in whole if s > 8]) :])
    assert all(min(abs(second - one) for one in whole) < 0.002 for second in left)


def test_what_is_no_sound_says_so(tmp_path: Path) -> None:
    silent = video(tmp_path / "film.mp4", seconds=0.2)
    with pytest.raises(NoAudio, match="has no sound \\(video\\)"):
        Sound(silent)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(EmptyFile):
        Sound(tmp_path / "empty.wav")
    (tmp_path / "words.wav").write_text("not a sound" * 100)
    with pytest.raises(Unreadable):
        Sound(tmp_path / "words.wav")
    with pytest.raises(Missing):
        Sound(tmp_path / "none.wav")


def test_sound_of_which_nothing_decodes_says_so(tmp_path: Path) -> None:
    path = audio(tmp_path / "sound.flac", seconds=1)
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(len(data) - 100))
    with pytest.raises((Undecodable, Unreadable)):
        heard(Sound(path))


def test_stamps_a_day_apart_end_before_the_silence_between_them(tmp_path: Path) -> None:
    part = clicks((0.25,), 0.5)
    sound = Sound(pcm(tmp_path / "sound.mkv", [(0, part), (90_000, part), (90_000.5, part)]))
    with pytest.raises(TooLarge, match="cut it into parts"):
        heard(sound)
