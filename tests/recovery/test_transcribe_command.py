"""`dailies transcribe` killed, stopped and started again as a process: nothing is heard twice, no byte differs."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dailies.canonical import digest
from dailies.speech.audio import RATE, Samples, Sound
from dailies.speech.dtmf import KEYS, Dtmf, spoken
from dailies.speech.engine import ENGINES, Word
from dailies.speech.plan import Plan
from dailies.speech.working import FILES, FOLDER
from tests.media_files import Track, audio

pytestmark = pytest.mark.recovery

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
STOPPED = "dailies: stopped; the same command goes on where it was"


class Counting(Dtmf):
    """Writes down each chunk that it is given, before it listens, in a way that outlives its process."""

    name = "counting"
    tally = Path()
    delay = 0.0

    def __init__(self, *_: Any) -> None:
        pass

    def transcribe(self, samples: Samples, rate: int, language: str | None = None) -> list[Word]:
        with self.tally.open("ab", buffering=0) as file:
            file.write(digest(np.ascontiguousarray(samples).tobytes()).encode() + b"\n")
        time.sleep(self.delay)
        return super().transcribe(samples, rate, language)


def as_command(tally: str, delay: float, largest: int) -> None:
    """The command line itself, which knows one engine more."""
    ENGINES["counting"] = (__name__, "Counting")
    Counting.tally, Counting.delay = Path(tally), delay
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    from services.cli import main

    main()


@dataclass(frozen=True)
class Talk:
    path: Path
    text: str
    # What the engine is given, by the name of the file that its words are kept in.
    chunks: dict[str, str]
    files: dict[str, bytes]


def talk(folder: Path, said: str, pause_ms: int) -> Talk:
    truth = spoken(said, pause_ms=pause_ms, noise=0.0005)
    path = audio(folder / "talk.wav", tracks=[Track(channels=1, rate=RATE, samples=truth.samples)])
    chunks = {
        f"{chunk.key}.json": digest(np.ascontiguousarray(chunk.samples).tobytes())
        for chunk in Plan().chunks(Sound(path).blocks())
    }
    run = Run(folder, path)
    done = run.to_the_end()
    assert done.returncode == 0, done.stderr
    assert run.counted() == Counter(chunks.values())
    return Talk(path, truth.text, chunks, run.files())


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """Twenty-four phrases, each a chunk of its own, in two minutes and a half."""
    keys = random.Random(5).choices(KEYS, k=24 * 20)
    phrases = ["".join(keys[at : at + 20]) for at in range(0, len(keys), 20)]
    return talk(tmp_path_factory.mktemp("short"), (" " * 7).join(phrases), 500)


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """Speech without a pause of two seconds: chunks of half a minute, some of which overlap."""
    said = "".join(random.Random(6).choices(KEYS + "    ", k=3500))
    return talk(tmp_path_factory.mktemp("ten"), said, 300)


class Run:
    """One command that is started again and again on one folder."""

    def __init__(self, home: Path, media: Path) -> None:
        self.media = media
        self.out = home / "out"
        self.tally = home / "tally"

    def to_the_end(self, **how: Any) -> subprocess.CompletedProcess[str]:
        with self.going(**how) as process:
            out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @contextmanager
    def going(self, delay: float = 0.0, largest: int = 0) -> Iterator[subprocess.Popen[str]]:
        program = f"from {MODULE} import as_command; as_command({str(self.tally)!r}, {delay}, {largest})"
        words = ["transcribe", str(self.media), "--engine", "counting", "--out", str(self.out)]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def kept(self) -> list[Path]:
        return list(self.out.glob(f"{FOLDER}/*/*.json"))

    def counted(self) -> Counter[str]:
        return Counter(self.tally.read_text().split()) if self.tally.exists() else Counter()

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}


MODULE = "tests.recovery.test_transcribe_command"


@pytest.fixture
def run(short: Talk, tmp_path: Path) -> Run:
    return Run(tmp_path, short.path)


def wait_for(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        assert process.poll() is None, "it ended before that"
        time.sleep(0.002)


def end(run: Run, process: subprocess.Popen[str], how: signal.Signals) -> set[str]:
    """The names of what was kept at that moment."""
    process.send_signal(how)
    process.wait(PATIENCE)
    return {path.name for path in run.kept()}


def goes_on(run: Run, talk: Talk, kept: set[str], before: Counter[str]) -> None:
    """To the end, without one chunk that was kept."""
    done = run.to_the_end()
    assert done.returncode == 0, done.stderr
    assert run.files() == talk.files
    missing = Counter(sound for name, sound in talk.chunks.items() if name not in kept)
    assert run.counted() - before == missing


def test_the_undisturbed_run_says_all_of_it(short: Talk, ten_minutes: Talk) -> None:
    for said in (short, ten_minutes):
        assert sorted(said.files) == sorted(FILES)
        told = json.loads(said.files["transcript.json"])
        assert told["text"] == said.text
        assert told["coverage"]["failed_us"] == 0
    assert len(short.chunks) == 24
    assert len(ten_minutes.chunks) >= 20
    assert json.loads(ten_minutes.files["transcript.json"])["coverage"]["duration_us"] >= 600_000_000


@pytest.mark.parametrize("finished", [0, 1, 2, 12, 20])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_kept_before_the_end_is_not_heard_again(
    how: signal.Signals, finished: int, run: Run, short: Talk
) -> None:
    with run.going(delay=0.25) as process:
        wait_for(lambda: len(run.kept()) >= finished and bool(run.counted()), process)
        kept = end(run, process, how)
        said = process.communicate()[1]
    assert finished <= len(kept) < len(short.chunks)
    before = run.counted()
    assert not {"transcript.vtt", "transcript.json"} & run.files().keys(), "half a transcript looks like a whole one"
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert said.splitlines()[-1] == STOPPED
        assert "Traceback" not in said
        assert not list(run.out.rglob("*.tmp")), "half-written files are left"
        assert not kept or (run.out / "transcript.srt").exists()
    goes_on(run, short, kept, before)


@pytest.mark.parametrize("moment", [0.4, 0.7, 0.9, 1.1, 1.4, 1.9])
def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(moment: float, run: Run, short: Talk) -> None:
    with run.going(delay=0.05) as process:
        time.sleep(moment)
        kept = end(run, process, signal.SIGKILL)
    if process.returncode == 0:
        assert run.files() == short.files
        return
    goes_on(run, short, kept, run.counted())


def test_killed_whenever_it_has_done_a_little_it_comes_to_the_end(run: Run, short: Talk) -> None:
    dice, kept, runs = random.Random(9), set[str](), 0
    while True:
        before, least = run.counted(), len(kept)
        with run.going(delay=0.05) as process:
            wait_for_more(run, process, least)
            time.sleep(dice.uniform(0, 0.1))
            now = end(run, process, signal.SIGKILL)
        runs += 1
        again = {short.chunks[name] for name in kept} & set(run.counted() - before)
        assert not again, "what was kept was heard again"
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        assert now >= kept or not now
        kept = now
    assert runs >= 4
    assert run.files() == short.files
    assert sum(run.counted().values()) <= len(short.chunks) + runs * 4


def wait_for_more(run: Run, process: subprocess.Popen[str], least: int) -> None:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and len(run.kept()) <= least:
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_killed_when_all_was_heard_it_hears_nothing_more(there: int, run: Run, short: Talk) -> None:
    """Whichever of the three files were written already, and whatever they say."""
    assert run.to_the_end(largest=largest_file(short) // 2).returncode == 1
    for name in FILES[:there]:
        (run.out / name).write_bytes(short.files[name])
    goes_on(run, short, set(short.chunks), run.counted())


def largest_file(talk: Talk) -> int:
    """Half of it is more than any chunk's words are: a limit between the two is a disk that gets full at the end."""
    return max(len(data) for data in talk.files.values())


def test_ten_minutes_killed_in_the_middle(ten_minutes: Talk, tmp_path: Path) -> None:
    run = Run(tmp_path, ten_minutes.path)
    with run.going(delay=0.2) as process:
        wait_for(lambda: len(run.kept()) >= 10, process)
        kept = end(run, process, signal.SIGKILL)
    partial = run.files()["transcript.srt"]
    assert b"-->" in partial
    assert b"not transcribed" not in partial
    assert len(partial) < len(ten_minutes.files["transcript.srt"])
    goes_on(run, ten_minutes, kept, run.counted())


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "gone", "all of them gone"])
def test_a_damaged_working_file_costs_its_own_chunk_alone(damage: str, run: Run, short: Talk) -> None:
    with run.going(delay=0.1) as process:
        wait_for(lambda: len(run.kept()) >= 8, process)
        kept = end(run, process, signal.SIGKILL)
    victims = run.kept() if damage == "all of them gone" else run.kept()[3:4]
    for victim in victims:
        data = bytearray(victim.read_bytes())
        if damage == "a flipped bit":
            data[data.index(b"end_us") + 9] ^= 1
            victim.write_bytes(data)
        elif damage == "cut short":
            victim.write_bytes(data[: len(data) * 2 // 3])
        else:
            victim.unlink()
    goes_on(run, short, kept - {victim.name for victim in victims}, run.counted())


def test_a_second_instance_ends_in_one_line_and_the_first_one_goes_on(run: Run, short: Talk) -> None:
    with run.going(delay=0.15) as first:
        wait_for(lambda: len(run.kept()) >= 2, first)
        before = run.counted()
        second = run.to_the_end()
        assert second.returncode == 1
        assert len(second.stderr.strip().splitlines()) == 1
        assert "another transcription writes to" in second.stderr
        first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    assert run.files() == short.files
    assert run.counted() == Counter(short.chunks.values())
    assert before < run.counted()


def test_a_frozen_one_still_has_the_folder_and_a_killed_one_has_not(run: Run, short: Talk) -> None:
    with run.going(delay=0.15) as first:
        wait_for(lambda: len(run.kept()) >= 2, first)
        first.send_signal(signal.SIGSTOP)
        assert run.to_the_end().returncode == 1
        kept = end(run, first, signal.SIGKILL)
    goes_on(run, short, kept, run.counted())


def test_a_full_disk_is_one_line_and_what_was_heard_is_kept(run: Run, short: Talk) -> None:
    done = run.to_the_end(largest=largest_file(short) // 2)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("dailies:")]
    assert "cannot write to" in said
    assert "Traceback" not in done.stderr
    assert not list(run.out.rglob("*.tmp"))
    assert "transcript.json" not in run.files()
    kept = {path.name for path in run.kept()}
    assert kept == set(short.chunks)
    goes_on(run, short, kept, run.counted())


def test_odd_names_are_stopped_and_gone_on_with_like_any_other(short: Talk, tmp_path: Path) -> None:
    media = tmp_path / os.fsdecode(b"-- \xff line\nbreak %03d.wav")
    media.write_bytes(short.path.read_bytes())
    run = Run(tmp_path, media)
    run.out = tmp_path / os.fsdecode(b"out \xfe \n'\"*[]")
    with run.going(delay=0.1) as process:
        wait_for(lambda: len(run.kept()) >= 3, process)
        kept = end(run, process, signal.SIGKILL)
    goes_on(run, short, kept, run.counted())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.wav", "--engine", "dtmf", "--out", "out"), "there is no file none.wav"),
        (("empty.wav", "--engine", "dtmf", "--out", "out"), "empty.wav is empty"),
        (("words.wav", "--engine", "dtmf", "--out", "out"), "words.wav is not media"),
        (("talk.wav", "--engine", "nonsense", "--out", "out"), "there is no engine 'nonsense'"),
        (("talk.wav", "--engine", "dtmf", "--out", "words.wav"), "cannot write to words.wav"),
        (("talk.wav", "--engine", "dtmf", "--out", "out", "--track", "3"), "has 1 audio tracks"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], said: str, short: Talk, tmp_path: Path
) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "words.wav").write_text("no sound at all " * 100)
    (tmp_path / "talk.wav").symlink_to(short.path)
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [Path(sys.executable).with_name("dailies"), "transcribe", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dailies: ")
    assert said in line
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_prints_what_it_did_and_where(short: Talk, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("dailies"),
            "transcribe",
            short.path,
            "--engine",
            "dtmf",
            "--out",
            tmp_path / "out",
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0
    assert done.stderr.splitlines() == ["decoding the sound …", "hearing the words …"]
    lines = done.stdout.splitlines()
    assert lines[0] == f"words      {len(short.text.split())}"
    assert lines[-3:] == [f"  {tmp_path / 'out' / name}" for name in FILES]
    assert json.loads((tmp_path / "out" / "transcript.json").read_bytes())["text"] == short.text
