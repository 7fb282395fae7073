"""The one-machine transcription: what is heard, kept, gone on with, published and cleared away."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dailies.canonical import canonical_json, digest
from dailies.errors import (
    BadInput,
    Changed,
    Conflict,
    DailiesError,
    EmptyFile,
    Missing,
    NoAudio,
    NotConfigured,
    Transient,
    Undecodable,
)
from dailies.speech import transcribe as module
from dailies.speech.audio import RATE, Samples, Sound
from dailies.speech.dtmf import Dtmf, spoken
from dailies.speech.engine import ENGINES, Word
from dailies.speech.plan import Chunk, Plan
from dailies.speech.stitch import Heard, stitch
from dailies.speech.transcribe import THREADS, WAITING, Report, transcribe
from dailies.speech.transcript import exports
from dailies.speech.words import words_from_json, words_to_json
from dailies.speech.working import FILES, FOLDER, KEPT_S, working
from services.transcribe import _ctrl_c, missing, run, summary
from tests.media_files import Track, audio, video

pytestmark = pytest.mark.unit

# Ten phrases with pauses that end a chunk, and one that goes on for longer than a chunk may be.
PHRASES = [f"{number}{number + 1}47A{number}" for number in range(1, 9)]
PAUSE = " " * 6
SAID = spoken(PAUSE.join([*PHRASES, "159D*0# " * 9, "6042"]), lead_ms=400, noise=0.0005)


class Ear(Dtmf):
    """Reads keypad tones, remembers which chunks it was given, and does to some what a test wants done."""

    def __init__(self, does: Callable[[int, Samples], None] | None = None, name: str = "dtmf") -> None:
        self.name = name
        self.does = does
        self.given: list[str] = []
        self.languages: list[str | None] = []
        self._lock = threading.Lock()

    def transcribe(self, samples: Samples, rate: int, language: str | None = None) -> list[Word]:
        with self._lock:
            number = len(self.given)
            self.given.append(digest(samples.tobytes()))
            self.languages.append(language)
        if self.does:
            self.does(number, samples)
        return super().transcribe(samples, rate, language)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audio(
        tmp_path_factory.mktemp("sound") / "sound.wav", tracks=[Track(channels=1, rate=RATE, samples=SAID.samples)]
    )


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of them is a chunk and a cue."""
    track = Track(channels=1, rate=RATE, samples=spoken(PAUSE.join(PHRASES)).samples)
    return audio(tmp_path_factory.mktemp("phrases") / "phrases.wav", tracks=[track])


@pytest.fixture(scope="module")
def undisturbed(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    transcribe(sound, out, Ear())
    return files(out)


def files(out: Path) -> dict[str, bytes]:
    """All that is there, also what is hidden."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def records(out: Path) -> list[Path]:
    return sorted((out / FOLDER).rglob("*.json"))


def failing(places: set[int], error: type[DailiesError] = Transient, why: str = "no answer") -> Callable[..., None]:
    """By the order in the file, since threads come in any order."""

    def fail(_number: int, samples: Samples) -> None:
        if CHUNKS.index(digest(samples.tobytes())) in places:
            raise error(why)

    return fail


CHUNKS = [
    digest(chunk.samples.tobytes())
    for chunk in Plan().chunks([(SAID.samples * 32767).astype(np.int16) / np.float32(32768)])
]

EVERY = set(range(len(CHUNKS)))


def text(out: Path) -> str:
    said: str = json.loads((out / "transcript.json").read_bytes())["text"]
    return said


def test_all_that_was_said_is_written_down_and_nothing_else_is_left(sound: Path, tmp_path: Path) -> None:
    ear = Ear()
    report = transcribe(sound, tmp_path / "a" / "b", ear)
    out = tmp_path / "a" / "b"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert text(out) == SAID.text
    assert (report.heard, report.reused, sorted(ear.given)) == (len(CHUNKS), 0, sorted(CHUNKS))
    told = json.loads((out / "transcript.json").read_bytes())
    covered = told["coverage"]
    assert (
        covered["speech_us"] + covered["silence_us"] == covered["duration_us"] == len(SAID.samples) * 1_000_000 // RATE
    )
    assert told["engine"] == {"name": "dtmf", "version": "1"}
    assert told["sha256"] == digest(sound.read_bytes())
    assert told["sound"] == report.sound
    for word, truth in zip(report.whole.words, SAID.words, strict=True):
        assert word.start_us == pytest.approx(truth.start_us, abs=8000)
    assert b"-->" in (out / "transcript.srt").read_bytes()
    assert (out / "transcript.vtt").read_bytes().startswith(b"WEBVTT\n\n")


def test_it_is_what_the_parts_give_one_after_the_other(sound: Path, undisturbed: dict[str, bytes]) -> None:
    source, plan, ear = Sound(sound), Plan(), Dtmf()
    heard = [Heard.of(chunk, ear.transcribe(chunk.samples, RATE)) for chunk in plan.chunks(source.blocks())]
    alone = exports(stitch(heard, plan.duration_us))
    assert {name: alone[name] for name in FILES[:2]} == {name: undisturbed[name] for name in FILES[:2]}
    told, known = json.loads(undisturbed["transcript.json"]), json.loads(alone["transcript.json"])
    assert {name: told[name] for name in known} == known


def test_the_order_in_which_chunks_come_back_changes_no_byte(
    sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert len(CHUNKS) >= 10
    transcribe(sound, tmp_path, Ear(lambda number, _: time.sleep(0.05 * (number % 3 == 0))))
    assert files(tmp_path) == undisturbed


def test_chunks_are_heard_at_the_same_time_and_few_are_held(sound: Path, tmp_path: Path) -> None:
    together = threading.Barrier(THREADS)
    gc.collect()
    before = {id(one) for one in chunks()}  # of other tests
    held: list[int] = []

    def meet(number: int, _samples: Samples) -> None:
        if number < THREADS:
            together.wait(20)
        time.sleep(0.05)
        held.append(sum(id(one) not in before for one in chunks()))

    transcribe(sound, tmp_path, Ear(meet))
    # The one more is in the hands of whoever waits to give it away.
    assert THREADS < max(held) <= THREADS + WAITING + 1 < len(CHUNKS)


def chunks() -> list[Chunk]:
    return [one for one in gc.get_objects() if isinstance(one, Chunk)]


def test_words_survive_json_also_what_it_cannot_say() -> None:
    words = [
        Word(1, 2, "Grüße\n", 0.25),
        Word(3, 4, "a\ud800b", float("nan")),
        Word(np.int64(5), 6, "", np.float32(0.5)),
    ]  # type: ignore[arg-type]
    read = words_from_json(json.loads(canonical_json(words_to_json(words))))
    assert read == [Word(1, 2, "Grüße\n", 0.25), Word(3, 4, "a?b", 0.0), Word(5, 6, "", 0.5)]
    assert words_from_json(words_to_json(read)) == read


@pytest.mark.parametrize("name", ["transcript", "transcribe"])
def test_speech_needs_nothing_of_what_reads_captions(name: str) -> None:
    program = f"import sys, dailies.speech.{name}; print(*({{'cv2', 'rapidocr', 'onnxruntime'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"


# ── chunks that fail ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [Transient, BadInput])
def test_a_chunk_that_failed_is_a_gap_and_the_next_run_hears_it_alone(
    error: type[DailiesError], sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    report = transcribe(sound, tmp_path, Ear(failing({2}, error, "the engine\nis ill")))
    (gap,) = report.whole.gaps
    assert gap.reason == "the engine is ill"
    assert report.whole.coverage.failed_us == gap.end_us - gap.start_us > 0
    assert text(tmp_path).split() == left_of({2})
    assert b"[not transcribed: the engine is ill]" in files(tmp_path)["transcript.srt"]
    assert missing(report) == [f"not transcribed {gap.start_us / 1e6:.3f}–{gap.end_us / 1e6:.3f} s: the engine is ill"]
    again = Ear()
    report = transcribe(sound, tmp_path, again)
    assert again.given == [CHUNKS[2]]
    assert (report.heard, report.reused) == (1, len(CHUNKS) - 1)
    assert files(tmp_path) == undisturbed


def left_of(lost: set[int]) -> list[str]:
    chunks = list(Plan().chunks([SAID.samples]))
    return [
        word.text
        for word in SAID.words
        if not any(chunks[place].start_us <= word.start_us < chunks[place].end_us for place in lost)
    ]


def test_all_chunks_may_fail(sound: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    report = transcribe(sound, tmp_path, Ear(failing(EVERY)))
    assert (report.whole.words, report.whole.coverage.speech_us) == ((), 0)
    assert sorted(files(tmp_path)) == sorted(FILES)
    transcribe(sound, tmp_path, Ear())
    assert files(tmp_path) == undisturbed


def test_an_engine_that_is_not_set_up_ends_it_and_leaves_nothing(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match="set the key"):
        transcribe(sound, tmp_path / "new" / "out", Ear(failing(EVERY, NotConfigured, "set the key")))
    assert list(tmp_path.iterdir()) == []


def test_what_was_heard_before_the_engine_gave_up_is_kept(
    sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    last = len(CHUNKS) - 1
    with pytest.raises(NotConfigured):
        transcribe(sound, tmp_path, Ear(failing({last}, NotConfigured)))
    kept = len(records(tmp_path))
    assert kept >= last - THREADS - WAITING
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER, "transcript.srt"]
    again = Ear()
    transcribe(sound, tmp_path, again)
    assert len(again.given) == len(CHUNKS) - kept
    assert files(tmp_path) == undisturbed


# ── what was kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def stopped_late(sound: Path, out: Path) -> None:
    transcribe(sound, out, Ear(failing({len(CHUNKS) - 1})))
    assert len(records(out)) == len(CHUNKS) - 1


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def other_words(data: bytes) -> bytes:
    """Right in form, and not what was heard: only the digest tells."""
    record = json.loads(data)
    record["heard"]["words"][0]["text"] = "9"
    return canonical_json(record) + b"\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: flipped(data, 0),
        lambda data: flipped(data, len(data) // 2),
        lambda data: flipped(data, data.index(b"start_us") + 10),
        lambda data: flipped(data, len(data) - 10),
        other_words,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-3],
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: b"[]",
        lambda data: b'{"heard":7,"sha256":""}',
        lambda data: canonical_json({"heard": {}, "sha256": digest({})}),
    ],
)
def test_a_damaged_working_file_is_heard_again_and_no_other(
    damage: Callable[[bytes], bytes], sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    stopped_late(sound, tmp_path)
    victim = records(tmp_path)[3]
    victim.write_bytes(damage(victim.read_bytes()))
    again = Ear()
    transcribe(sound, tmp_path, again)
    assert len(again.given) == 2
    assert CHUNKS[-1] in again.given
    assert files(tmp_path) == undisturbed


def test_the_words_of_one_chunk_are_not_taken_for_those_of_another(
    sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    stopped_late(sound, tmp_path)
    one, other, gone = records(tmp_path)[:3]
    one.write_bytes(other.read_bytes())
    gone.unlink()
    again = Ear()
    transcribe(sound, tmp_path, again)
    assert len(again.given) == 3
    assert files(tmp_path) == undisturbed


def test_what_another_engine_or_language_or_track_or_source_heard_is_not_used(sound: Path, tmp_path: Path) -> None:
    stopped_late(sound, tmp_path)
    changed = tmp_path / "changed.wav"
    changed.write_bytes(flipped(sound.read_bytes(), 5000))
    newer = Ear(failing({0}))
    newer.version = "2"
    for path, ear, language in (
        (sound, Ear(failing({0}), name="other"), None),
        (sound, newer, None),
        (sound, Ear(failing({0})), "de"),
        (changed, Ear(), None),
    ):
        assert transcribe(path, tmp_path, ear, language).reused == 0
        assert len(ear.given) == len(CHUNKS)
        assert ear.languages == [language] * len(CHUNKS)
    assert len(list((tmp_path / FOLDER).iterdir())) == 4


def test_folders_of_other_transcriptions_go_when_they_are_a_week_old(sound: Path, tmp_path: Path) -> None:
    names = {"young": "a" * 64, "old": "b" * 64, "not ours": "notes"}
    for name in names.values():
        (tmp_path / FOLDER / name).mkdir(parents=True)
        (tmp_path / FOLDER / name / "something.json").write_text("{}")
    now = time.time()
    os.utime(tmp_path / FOLDER / names["young"], (now, now - KEPT_S + 60))
    for name in ("old", "not ours"):
        os.utime(tmp_path / FOLDER / names[name], (now, now - KEPT_S - 60))
    transcribe(sound, tmp_path, Ear())
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == sorted([names["young"], names["not ours"]])


def test_its_own_folder_is_used_however_old_it_is(sound: Path, tmp_path: Path) -> None:
    stopped_late(sound, tmp_path)
    os.utime(records(tmp_path)[0].parent, (0, 0))
    assert transcribe(sound, tmp_path, Ear()).heard == 1


def test_a_working_folder_that_cannot_be_removed_takes_nothing_from_the_transcript(
    sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, last = tmp_path / "out", len(CHUNKS) - 1
    transcribe(sound, out, Ear(failing({last - 1, last})))
    folder = records(out)[0].parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="cannot write to"):
        transcribe(sound, out, Ear())
    assert {name: (out / name).read_bytes() for name in FILES} == undisturbed


def test_drafts_of_a_run_that_was_killed_are_cleared_away(sound: Path, tmp_path: Path) -> None:
    stopped_late(sound, tmp_path)
    for folder, name in ((tmp_path, "transcript.srt"), (records(tmp_path)[0].parent, "0.json")):
        (folder / f".{name}.0123456789ab.tmp").write_text("half")
    transcribe(sound, tmp_path, Ear(failing({len(CHUNKS) - 1})))
    assert not list(tmp_path.rglob("*.tmp"))


# ── what can be read meanwhile ────────────────────────────────────────────────────────────────────────────────────────


def watch(sound: Path, out: Path, expected: Callable[[int], int]) -> list[dict[str, bytes]]:
    """What lay in `out` whenever a chunk was given to the engine, as soon as so many cues could be read as expected."""
    seen: list[dict[str, bytes]] = []

    def look(number: int, _samples: Samples) -> None:
        eventually(lambda: len(cues_in(out)) >= expected(number))
        seen.append(
            {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".tmp"}
        )

    transcribe(sound, out, Ear(look))
    return seen


def heard_before(number: int) -> int:
    """Nobody gets this chunk before so many others were heard to their end."""
    return max(0, number - THREADS + 1)


def cues_in(out: Path) -> set[str]:
    path = out / "transcript.srt"
    return cues_of(path.read_bytes()) if path.exists() else set()


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def cues_of(srt: bytes) -> set[str]:
    """Without their numbers, which the cues that are still to come will change."""
    return {block.split("\n", 1)[1].strip() for block in srt.decode().split("\n\n") if block}


def test_a_partial_srt_says_what_was_heard_and_nothing_of_what_was_not(
    phrases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARTIAL_S", 0.0)
    seen = [there for there in watch(phrases, tmp_path, heard_before) if there]
    assert len(seen) >= len(PHRASES) - THREADS
    final = cues_of(files(tmp_path)["transcript.srt"])
    assert len(final) == len(PHRASES)
    for there in seen:
        assert list(there) == ["transcript.srt"]
        assert cues_of(there["transcript.srt"]) < final


def test_the_partial_srt_is_written_at_once_and_then_now_and_then(
    phrases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARTIAL_S", 3600.0)
    seen = [there["transcript.srt"] for there in watch(phrases, tmp_path, lambda number: number >= THREADS) if there]
    assert len(seen) >= len(PHRASES) - THREADS
    assert [len(cues_of(srt)) for srt in seen] == [1] * len(seen)


def test_what_is_kept_can_be_read_when_it_ends_early(
    phrases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARTIAL_S", 3600.0)

    def give_up(number: int, _samples: Samples) -> None:
        if number == len(PHRASES) - 1:
            raise NotConfigured("set the key")

    with pytest.raises(NotConfigured):
        transcribe(phrases, tmp_path, Ear(give_up))
    kept = len(records(tmp_path))
    assert kept >= 3
    assert len(cues_of((tmp_path / "transcript.srt").read_bytes())) == kept


def test_a_slow_chunk_does_not_keep_back_the_words_of_those_before_it(
    phrases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PARTIAL_S", 0.3)
    last = len(PHRASES) - 1
    transcribe(
        phrases, tmp_path, Ear(lambda number, _: number == last and eventually(lambda: len(cues_in(tmp_path)) == last))
    )
    assert len(cues_in(tmp_path)) == len(PHRASES)


def test_files_of_another_transcript_do_not_stay_beside_a_partial_one(sound: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("of another film")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotConfigured):
        transcribe(sound, tmp_path, Ear(failing(EVERY, NotConfigured)))
    assert {(tmp_path / name).read_text() for name in FILES} == {"of another film"}
    with pytest.raises(NotConfigured):
        transcribe(sound, tmp_path, Ear(failing({len(CHUNKS) - 1}, NotConfigured)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER, "notes.txt", "transcript.srt"]
    assert "of another film" not in (tmp_path / "transcript.srt").read_text()


def test_progress_goes_forward_to_the_end(sound: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    transcribe(sound, tmp_path, Ear(), progress=lambda stage, share: told.append((stage, share)))
    for stage in ("sound", "words"):
        shares = [share for name, share in told if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert len(set(shares)) > 5


# ── one at a time ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_one_in_the_same_folder_is_refused_in_one_line(
    sound: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with working(tmp_path, "0" * 64):
        with pytest.raises(Conflict) as refused:
            transcribe(sound, tmp_path, Ear())
        assert "another transcription writes to" in str(refused.value)
        transcribe(sound, tmp_path / "elsewhere", Ear())
    transcribe(sound, tmp_path, Ear())
    assert {name: files(tmp_path)[name] for name in FILES} == undisturbed


def test_never_two_are_in_a_folder_though_the_lock_comes_and_goes(tmp_path: Path) -> None:
    inside = most = entered = 0

    def enter() -> None:
        nonlocal inside, most, entered
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                with working(tmp_path / "out", "0" * 64):
                    inside += 1
                    most = max(most, inside)
                    entered += 1
                    time.sleep(0)
                    inside -= 1
            except Conflict:
                continue

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered > 50
    assert files(tmp_path) == {}


def test_a_lock_that_was_left_behind_locks_nothing(sound: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "lock").touch()
    with (tmp_path / FOLDER / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(Conflict):
            transcribe(sound, tmp_path, Ear())
    transcribe(sound, tmp_path, Ear())
    assert files(tmp_path) == undisturbed


# ── odd files and folders ─────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_file_promised_and_did_not_keep_is_told_beside_the_coverage(sound: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.wav"
    short.write_bytes(sound.read_bytes()[: 44 + RATE * 2 * 20])
    report = transcribe(short, tmp_path / "out", Ear())
    told = json.loads((tmp_path / "out" / "transcript.json").read_bytes())
    assert told["sound"]["short_us"] == pytest.approx(len(SAID.samples) / RATE * 1e6 - 20e6, abs=10_000)
    assert told["coverage"]["duration_us"] == pytest.approx(20e6, abs=10_000)
    assert told["coverage"]["failed_us"] == 0
    assert any("did not decode" in line and line.startswith("sound") for line in summary(report))


def test_holes_and_repetitions_in_the_stamps_are_told(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    wave = spoken("147", rate=48000).samples
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("pcm_s16le", rate=48000)
        stream.codec_context.layout = "mono"
        for second in (0.0, 1.5, 1.75):
            frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), round(second * 48000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    report = transcribe(path, tmp_path / "out", Ear())
    length = len(wave) / 48000
    assert report.sound["filled_us"] == pytest.approx((1.5 - length) * 1e6, abs=2000)
    assert report.sound["cut_us"] == pytest.approx((1.5 + length - 1.75) * 1e6, abs=2000)
    assert json.loads((tmp_path / "out" / "transcript.json").read_bytes())["sound"] == report.sound
    assert any(line.startswith("damage") for line in summary(report))


@pytest.mark.parametrize(
    "name", ["two words.wav", "line\nbreak.wav", "-x.wav", "Größe ✓.wav", "shot%03d.wav", b"\xff\xfe.wav"]
)
def test_odd_names_are_names(name: str | bytes, sound: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    odd = os.fsdecode(name)
    media, out = tmp_path / odd, tmp_path / f"out {odd}"
    media.write_bytes(sound.read_bytes())
    said: list[str] = []
    assert run(media, out, "dtmf", None, None, said.append, said.append) == 0
    assert files(out) == undisturbed
    for line in said:
        assert "\n" not in line
        line.encode()


@pytest.mark.parametrize("kind", ["missing", "empty", "no sound", "no media", "not one frame", "no such track"])
def test_what_cannot_be_transcribed_leaves_nothing(kind: str, sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    if kind == "empty":
        path.touch()
    elif kind == "no sound":
        video(path, seconds=0.2, size=(64, 64))
    elif kind == "no media":
        path.write_text("words " * 1000)
    elif kind == "not one frame":
        path = tmp_path / "film.m4a"
        data = bytearray(audio(path, seconds=1).read_bytes())
        first, last = data.index(b"mdat") + 4, data.index(b"moov") - 4
        data[first:last] = b"\xff" * (last - first)
        path.write_bytes(data)
    elif kind == "no such track":
        path.write_bytes(sound.read_bytes())
    error = {"missing": Missing, "empty": EmptyFile, "no sound": NoAudio, "no such track": NoAudio}.get(kind, BadInput)
    before = files(tmp_path)
    with pytest.raises(error) as refused:
        transcribe(path, tmp_path / "out", Ear(), track=7 if kind == "no such track" else None)
    if kind == "not one frame":
        assert refused.type is Undecodable
    assert len(str(refused.value).splitlines()) == 1
    assert files(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a file", "below a file", "not writable", "its working folder is a file"])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(kind: str, sound: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "its working folder is a file":
        out.mkdir()
        (out / FOLDER).touch()
    elif kind == "not writable":
        out = Path("/proc/dailies-transcribe")  # a superuser may write anywhere but there
    else:
        out.touch()
    target = out / "deeper" if kind == "below a file" else out
    ear, said = Ear(), []
    before = files(tmp_path)
    with pytest.raises(BadInput, match="cannot write to") as refused:
        transcribe(sound, target, ear)
    assert len(str(refused.value).splitlines()) == 1
    assert run(sound, target, "dtmf", None, None, said.append, said.append) == 1
    assert said == [str(refused.value)]
    assert ear.given == []
    assert files(tmp_path) == before


@pytest.mark.parametrize("change", ["grows", "goes"])
def test_a_file_that_changes_while_it_is_read_is_refused(change: str, sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(sound.read_bytes())

    def happen(number: int, _samples: Samples) -> None:
        if number == 0 and change == "goes":
            path.unlink()
        elif number == 0:
            with path.open("ab") as file:
                file.write(bytes(1000))

    with pytest.raises(Changed):
        transcribe(path, tmp_path / "out", Ear(happen))
    assert not (tmp_path / "out" / "transcript.json").exists()


def test_the_track_that_is_asked_for_is_heard(tmp_path: Path) -> None:
    first, second = (
        Track(lang, channels=1, samples=spoken(said, rate=48000).samples)
        for lang, said in (("eng", "123"), ("deu", "789"))
    )
    path = audio(tmp_path / "film.mkv", tracks=[first, second])
    ear = Ear()
    transcribe(path, tmp_path / "0", ear, track=0)
    transcribe(path, tmp_path / "1", ear, track=1)
    transcribe(path, tmp_path / "deu", ear, "deu")
    assert [text(tmp_path / name) for name in ("0", "1", "deu")] == ["1 2 3", "7 8 9", "7 8 9"]
    assert ear.languages == [None, None, "deu"]


def test_silence_is_a_transcript_without_words(tmp_path: Path) -> None:
    path = audio(tmp_path / "still.wav", tracks=[Track(channels=1, rate=RATE, samples=np.zeros(RATE * 3))])
    ear = Ear()
    report = transcribe(path, tmp_path / "out", ear)
    assert ear.given == []
    assert (report.whole.coverage.silence_us, report.whole.words) == (3_000_000, ())
    assert files(tmp_path / "out")["transcript.srt"] == b""


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_tells_what_it_did_and_where(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    complaints: list[str] = []
    assert run(sound, tmp_path, "dtmf", None, None, said.append, complaints.append) == 0
    assert complaints == []
    assert said[0] == f"words      {len(SAID.words)}"
    assert said[2] == "engine     dtmf 1"
    assert said[-3:] == [f"  {tmp_path / name}" for name in FILES]
    duration = len(SAID.samples) / RATE
    figures = [float(word) for word in said[1].split() if word.replace(".", "").isdecimal()]
    assert figures[0] == pytest.approx(duration, abs=0.001)
    assert figures[0] == pytest.approx(sum(figures[1:]))
    assert capsys.readouterr().err.splitlines() == ["decoding the sound …", "hearing the words …"]


class Ill(Ear):
    def __init__(self) -> None:
        super().__init__(failing({2, 5}), name="ill")


def test_spans_that_failed_are_a_line_each_and_a_status(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "ill", (__name__, "Ill"))
    said: list[str] = []
    assert run(sound, tmp_path, "ill", None, None, said.append, said.append) == 1
    gaps = json.loads((tmp_path / "transcript.json").read_bytes())["gaps"]
    spans = [f"{gap['start_us'] / 1e6:.3f}–{gap['end_us'] / 1e6:.3f} s" for gap in gaps]
    assert said[-2:] == [f"not transcribed {span}: no answer" for span in spans]


def test_the_summary_says_what_was_heard_before(sound: Path, tmp_path: Path) -> None:
    stopped_late(sound, tmp_path)
    report: Report = transcribe(sound, tmp_path, Ear())
    assert f"{len(CHUNKS) - 1} of its chunks were heard before" in summary(report)[3]


def test_an_unknown_engine_is_one_line(sound: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert run(sound, tmp_path / "out", "nonsense", None, None, said.append, said.append) == 1
    assert len(said) == 1
    assert "there is no engine 'nonsense'" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_ctrl_c_that_a_library_swallows_is_raised_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _ctrl_c() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) == before


def test_what_the_system_refuses_is_one_line_too(tmp_path: Path) -> None:
    said: list[str] = []
    assert run(tmp_path / ("x" * 300), tmp_path / "out", "dtmf", None, None, said.append, said.append) == 1
    assert "File name too long" in said[0]
    assert len(said) == 1
