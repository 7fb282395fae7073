"""The files: what they say, byte for byte, and from a media file to all three of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dailies.speech.audio import RATE, Sound
from dailies.speech.dtmf import KEYS, spoken
from dailies.speech.engine import Word, engine
from dailies.speech.plan import Plan, Rules
from dailies.speech.stitch import Coverage, Gap, Heard, Whole, stitch
from dailies.speech.transcript import LETTERS, LONGEST_US, exports, segments
from tests.media_files import Track, audio, video

pytestmark = pytest.mark.unit

SECOND = 1_000_000


def say(*said: tuple[float, float, str]) -> tuple[Word, ...]:
    return tuple(Word(round(start * SECOND), round(end * SECOND), text) for start, end, text in said)


def whole(words: tuple[Word, ...], *gaps: Gap, duration: float = 60) -> Whole:
    return Whole(words, gaps, (), Coverage(round(duration * SECOND), 0, round(duration * SECOND), 0))


def transcribe(path: Path, rules: Rules | None = None, lose: frozenset[int] = frozenset()) -> tuple[Sound, Whole]:
    sound, plan, reader = Sound(path), Plan(rules), engine("dtmf")
    heard = [
        Heard.of(chunk, failure="it was told to")
        if chunk.number in lose
        else Heard.of(chunk, reader.transcribe(chunk.samples, RATE, None))
        for chunk in plan.chunks(sound.blocks())
    ]
    assert plan.duration_us == sound.end_us
    return sound, stitch(heard, plan.duration_us)


def test_a_pause_a_length_and_a_gap_part_segments() -> None:
    words = say((0, 1, "one"), (1.2, 2, "two"), (2.8, 3, "three"), (3.1, 4, "four"), (8, 9, "five"))
    assert [part.text for part in segments(words)] == ["one two", "three four", "five"]
    assert [(part.start_us, part.end_us) for part in segments(words)][1] == (2_800_000, 4_000_000)
    gap = Gap(3_050_000, 3_080_000, "lost")
    assert [part.text for part in segments(words, [gap])] == ["one two", "three", "four", "five"]
    flow = say(*((place * 0.2, place * 0.2 + 0.2, "word" * 4) for place in range(100)))
    for part in segments(flow):
        assert len(part.text) <= LETTERS
        assert part.end_us - part.start_us <= LONGEST_US
    assert [word for part in segments(flow) for word in part.words] == list(flow)
    assert segments(()) == []


def test_the_files_say_the_words_and_what_is_missing() -> None:
    files = exports(
        whole(say((1, 1.5, "A"), (1.6, 2, "<&>"), (3661.5, 3662, "end")), Gap(10 * SECOND, 20 * SECOND, "no & answer")),
        {"engine": "dtmf"},
    )
    assert files["transcript.srt"].decode() == (
        "1\n00:00:01,000 --> 00:00:02,000\nA <&>\n\n"
        "2\n00:00:10,000 --> 00:00:20,000\n[not transcribed: no & answer]\n\n"
        "3\n01:01:01,500 --> 01:01:02,000\nend\n"
    )
    assert files["transcript.vtt"].decode() == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nA &lt;&amp;&gt;\n\n"
        "00:00:10.000 --> 00:00:20.000\n[not transcribed: no &amp; answer]\n\n"
        "01:01:01.500 --> 01:01:02.000\nend\n"
    )
    told = json.loads(files["transcript.json"])
    assert (told["text"], told["engine"]) == ("A <&> end", "dtmf")
    assert told["gaps"] == [{"start_us": 10_000_000, "end_us": 20_000_000, "reason": "no & answer"}]
    assert told["segments"][0]["words"][1] == {
        "start_us": 1_600_000,
        "end_us": 2_000_000,
        "text": "<&>",
        "confidence": 1.0,
    }
    assert told["coverage"]["duration_us"] == 60_000_000


def test_no_words_are_three_files_all_the_same() -> None:
    files = exports(whole(()))
    assert (files["transcript.srt"], files["transcript.vtt"]) == (b"", b"WEBVTT\n")
    assert json.loads(files["transcript.json"])["text"] == ""


LETTERS_SAID = "".join(np.random.default_rng(11).choice(list(KEYS + "      "), 260))
SAID = spoken(LETTERS_SAID, rate=48000, lead_ms=700, pause_ms=450, noise=0.001)


@pytest.mark.parametrize("name", ["sound.wav", "sound.mp3", "sound.ogg", "film.mp4", "film.mkv"])
def test_a_media_file_is_read_to_the_last_key(name: str, tmp_path: Path) -> None:
    track = Track(channels=1, samples=SAID.samples)
    if name.startswith("film"):
        path = video(tmp_path / name, seconds=1, size=(64, 64), tracks=[track])
    else:
        path = audio(tmp_path / name, tracks=[track])
    _, found = transcribe(path)
    assert " ".join(word.text for word in found.words) == SAID.text
    for word, truth in zip(found.words, SAID.words, strict=True):
        assert word.start_us == pytest.approx(truth.start_us, abs=8000)
        assert word.end_us == pytest.approx(truth.end_us, abs=8000)
    covered = found.coverage
    assert (
        covered.speech_us + covered.silence_us
        == covered.duration_us
        == pytest.approx(len(SAID.samples) * 1e6 / 48000, abs=50_000)
    )


def test_the_same_sound_gives_the_same_bytes_and_other_rules_the_same_text(tmp_path: Path) -> None:
    path = audio(tmp_path / "sound.flac", tracks=[Track(channels=1, samples=SAID.samples)])
    first, second = (exports(transcribe(path)[1]) for _ in range(2))
    assert first == second
    other = exports(transcribe(path, Rules(longest=800, pause=60))[1])
    assert json.loads(other["transcript.json"])["text"] == json.loads(first["transcript.json"])["text"]


def test_a_chunk_that_failed_can_be_heard_later_alone(tmp_path: Path) -> None:
    path = audio(tmp_path / "sound.flac", tracks=[Track(channels=1, samples=SAID.samples)])
    _, undisturbed = transcribe(path)
    _, found = transcribe(path, lose=frozenset({1}))
    (gap,) = found.gaps
    assert gap.reason == "it was told to"
    assert found.coverage.failed_us == gap.end_us - gap.start_us > 10 * SECOND
    left = [word for word in undisturbed.words if word.end_us <= gap.start_us or word.start_us >= gap.end_us]
    assert list(found.words) == left
    assert len(left) < len(undisturbed.words)
    assert b"[not transcribed: it was told to]" in exports(found)["transcript.srt"]
