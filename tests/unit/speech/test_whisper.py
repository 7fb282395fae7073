"""Whisper: the real library with a model of which the answer is known, and every way not to get a model."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dailies.errors import BadInput, DailiesError, NotConfigured, Transient
from dailies.speech import model_files as files
from dailies.speech.audio import RATE
from dailies.speech.engine import Word, engine
from dailies.speech.language import short
from tests.servers.hub import COMMIT, serving_hub
from tests.unit.speech.scripted_whisper import write_model

pytestmark = pytest.mark.unit

REPOSITORY = "Systran/faster-whisper-base"
# From the start of the process: what a script of three words of 0.3 s each says, over and over.
ROUND_US = 900_000
SOUND = np.random.default_rng(3).normal(0, 0.1, 2 * RATE).astype(np.float32)


@pytest.fixture(scope="module")
def faster_whisper() -> Any:
    return pytest.importorskip("faster_whisper", reason="faster-whisper is not installed: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def model(faster_whisper: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whisper") / "model", "Hello brave world.")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may find a model of this machine, or ask the real Hugging Face for one."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DAILIES_WHISPER_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")


def whisper(model: Any, **more: Any) -> Any:
    return engine("whisper", {"model": str(model), "device": "cpu", **more})


def refused(hears: Any, kind: type[DailiesError]) -> str:
    with pytest.raises(kind) as caught:
        hears.transcribe(SOUND, RATE, None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compute_type", ["auto", "int8", "float32"])
def test_what_the_model_says_is_heard_at_its_time(model: Path, compute_type: str) -> None:
    words = whisper(model, compute_type=compute_type).transcribe(SOUND, RATE, "eng")
    assert words[:3] == [
        Word(0, 300_000, "Hello", 1.0),
        Word(300_000, 600_000, "brave", 1.0),
        Word(600_000, 900_000, "world.", 1.0),
    ]
    assert [word.start_us // ROUND_US for word in words] == sorted(word.start_us // ROUND_US for word in words)
    assert words[-1].start_us < 2_000_000, "no word begins where the sound is over"


def test_a_longer_sound_has_more_words(model: Path) -> None:
    hears = whisper(model)
    long = np.tile(SOUND, 14)
    assert len(hears.transcribe(long, RATE, None)) > 3 * len(hears.transcribe(SOUND, RATE, None)) > 0


def test_the_same_sound_gives_the_same_words_whatever_was_heard_before_and_beside_it(model: Path) -> None:
    hears, other = whisper(model), np.tile(SOUND[::-1], 3)
    alone = whisper(model).transcribe(SOUND, RATE, None)
    hears.transcribe(other, RATE, "de")
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda sound: hears.transcribe(sound, RATE, None), [SOUND, other, SOUND]))
    assert done[0] == done[2] == alone


def test_a_model_is_loaded_once_for_all_threads_and_not_before_it_is_needed(
    model: Path, faster_whisper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    class Counted(faster_whisper.WhisperModel):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            loaded.append(args)
            time.sleep(0.05)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(faster_whisper, "WhisperModel", Counted)
    hears = whisper(model)
    assert hears.version
    assert hears.transcribe(SOUND[:0], RATE, None) == []
    assert loaded == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: hears.transcribe(SOUND, RATE, None), range(4)))
    assert len(loaded) == 1


def test_it_is_asked_for_words_with_times_and_for_nothing_left_to_chance(
    model: Path, faster_whisper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripted model would say the same with any options."""
    asked: dict[str, Any] = {}

    class Told(faster_whisper.WhisperModel):
        def transcribe(self, audio: Any, **options: Any) -> Any:
            asked.update(options)
            return super().transcribe(audio, **options)

    monkeypatch.setattr(faster_whisper, "WhisperModel", Told)
    whisper(model).transcribe(SOUND, RATE, "de-AT")
    assert asked == {
        "beam_size": 5,
        "condition_on_previous_text": False,
        "language": "de",
        "temperature": 0.0,
        "vad_filter": False,
        "word_timestamps": True,
    }


def test_the_version_names_what_decides_what_is_heard(model: Path, tmp_path: Path) -> None:
    from importlib.metadata import version

    plain = whisper(model).version
    assert plain.startswith(f"faster-whisper {version('faster-whisper')}, ctranslate2 {version('ctranslate2')}, model ")
    assert plain.endswith(", int8, beam 5")
    assert whisper(model, compute_type="float32").version != plain
    shutil.copytree(model, tmp_path / "elsewhere")
    assert whisper(tmp_path / "elsewhere").version == plain
    weights = bytearray((tmp_path / "elsewhere" / "model.bin").read_bytes())
    weights[-1000] ^= 1
    (tmp_path / "elsewhere" / "model.bin").write_bytes(weights)
    assert whisper(tmp_path / "elsewhere").version != plain
    assert ", small, int8, " in whisper("small").version


def test_settings_come_from_the_environment_where_nobody_gives_any(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine("whisper").version.split(", ")[2] == "base"
    monkeypatch.setenv("DAILIES_WHISPER_MODEL", str(model))
    assert [word.text for word in engine("whisper").transcribe(SOUND, RATE, None)][:3] == ["Hello", "brave", "world."]


def test_a_language_by_three_letters_or_with_a_country_is_the_one_that_is_meant() -> None:
    said = ["deu", "ger", "de-AT", "en_US", "EN", "nob", "yue", "und", "", None, "klingon"]
    assert [short(one) for one in said] == ["de", "de", "de", "en", "en", "no", "yue", None, None, None, "klingon"]


def test_every_language_of_the_model_has_its_name(faster_whisper: Any) -> None:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    assert [code for code in _LANGUAGE_CODES if short(code) != code] == []


def test_a_language_that_it_does_not_know_is_one_line(model: Path) -> None:
    with pytest.raises(NotConfigured, match="no language 'klingon'"):
        whisper(model).transcribe(SOUND, RATE, "klingon")


def test_a_model_of_english_alone_is_not_asked_for_german(faster_whisper: Any, tmp_path: Path) -> None:
    english = whisper(write_model(tmp_path / "english", "Hello", multilingual=False))
    assert [english.transcribe(SOUND, RATE, said)[0].text for said in ("eng", None)] == ["Hello", "Hello"]
    with pytest.raises(NotConfigured, match=r"no language 'de': leave language empty, or set one of en$"):
        english.transcribe(SOUND, RATE, "de")


def test_sound_at_another_rate_is_not_taken_for_slow_speech(model: Path) -> None:
    with pytest.raises(BadInput, match="16000 Hz, not at 8000"):
        whisper(model).transcribe(SOUND, 8000, None)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(NotConfigured) as caught:
        engine("whisper")
    said = "the engine whisper needs its package: pip install '.[whisper]' from the folder of Dailies"
    assert str(caught.value) == said


def test_wrong_settings_are_one_line_that_says_what_to_set(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match="set device to one of"):
        whisper(model, device="tpu")
    assert "set compute_type to auto" in refused(whisper(model, compute_type="float16"), NotConfigured)
    assert "or to one of tiny" in refused(whisper("bse"), NotConfigured)
    assert "or to one of tiny" in refused(whisper(tmp_path / "gone"), NotConfigured)
    assert "cannot be the name of a model" in refused(whisper("a..b/c"), NotConfigured)


def test_a_gpu_that_is_not_there_is_one_line(model: Path, faster_whisper: Any) -> None:
    import ctranslate2

    if ctranslate2.get_cuda_device_count():
        pytest.skip("there is a GPU here")
    hears = whisper(model, device="cuda")
    assert ", float16, " in hears.version
    assert "set device to cpu" in refused(hears, NotConfigured)


@pytest.mark.parametrize("missing", ["config.json", "model.bin", "tokenizer.json"])
def test_a_folder_that_lacks_a_part_is_named(model: Path, tmp_path: Path, missing: str) -> None:
    """Without its tokenizer the library would ask the network for one."""
    shutil.copytree(model, tmp_path / "half", ignore=shutil.ignore_patterns(missing))
    assert f"half has no {missing}" in refused(whisper(tmp_path / "half"), NotConfigured)


@pytest.mark.parametrize("broken", ["model.bin", "tokenizer.json", "vocabulary.json"])
def test_a_model_that_is_damaged_is_one_line(model: Path, tmp_path: Path, broken: str) -> None:
    shutil.copytree(model, tmp_path / "bad")
    whole = (tmp_path / "bad" / broken).read_bytes()
    (tmp_path / "bad" / broken).write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in refused(whisper(tmp_path / "bad"), NotConfigured)


def cached(model: Path, cache: Path) -> Path:
    """As Hugging Face's own library lays it down."""
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, place / "snapshots" / COMMIT)
    return place / "snapshots" / COMMIT


def test_a_model_in_the_cache_asks_nobody(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(model, tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert whisper("base", cache=str(tmp_path)).transcribe(SOUND, RATE, None)[0].text == "Hello"


def test_offline_without_the_model_is_one_line_at_once(
    faster_whisper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    said = refused(whisper("base", cache=str(tmp_path)), NotConfigured)
    assert time.monotonic() - start < 2
    assert "'base' is not in the cache, and HF_HUB_OFFLINE is set" in said
    assert f"run `hf download {REPOSITORY} --cache-dir {tmp_path}` where there is a network" in said


def test_a_half_of_a_model_in_the_cache_is_none(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cached(model, tmp_path) / "model.bin").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "is not in the cache" in refused(whisper("base", cache=str(tmp_path)), NotConfigured)


@contextmanager
def black_hole(says: bytes) -> Iterator[tuple[str, list[socket.socket]]]:
    """Takes every connection and never answers: at most a byte now and then, so that there is always hope."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=20) as server:
        server.settimeout(0.1)
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                try:
                    taken.append(server.accept()[0])
                except TimeoutError:
                    for connection in taken:
                        with suppress(OSError):
                            connection.send(says)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        over.set()
        thread.join()
    for connection in taken:
        connection.close()


@pytest.mark.parametrize("says", [b"", b"H"], ids=["silent", "dripping"])
def test_a_server_that_never_answers_costs_seconds_and_not_for_ever(
    faster_whisper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    with black_hole(says) as (url, taken):
        monkeypatch.setenv("HF_ENDPOINT", url)
        start = time.monotonic()
        said = refused(whisper("base", cache=str(tmp_path)), NotConfigured)
        assert time.monotonic() - start < files.ANSWER_S + 2
        assert len(taken) == 1
    assert f"run `hf download {REPOSITORY}" in said
    assert psutil.Process().children() == []


def test_a_server_that_is_not_there_is_one_line_at_once(faster_whisper: Any, tmp_path: Path) -> None:
    start = time.monotonic()
    said = refused(whisper("base", cache=str(tmp_path)), NotConfigured)
    assert time.monotonic() - start < files.ANSWER_S
    assert "could not be fetched (ConnectError: " in said


def test_a_model_is_fetched_once_and_then_found(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub(REPOSITORY, model) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert whisper("base", cache=str(tmp_path)).transcribe(SOUND, RATE, None)[0].text == "Hello"
        assert any(asked.endswith("/model.bin") and asked.startswith("GET") for asked in hub.asked)
        hub.asked.clear()
        assert whisper("base", cache=str(tmp_path)).transcribe(SOUND, RATE, None)[0].text == "Hello"
        assert hub.asked == []


def test_a_model_that_stands_still_half_way_is_stopped_and_goes_on_with_the_next_try(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "STILL_S", 2.0)
    hears = whisper("base", cache=str(tmp_path))
    with serving_hub(REPOSITORY, model) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.cut["model.bin"] = 10_000_000
        assert "the next try goes on" in refused(hears, Transient)
        assert psutil.Process().children() == []
        assert hears.transcribe(SOUND, RATE, None)[0].text == "Hello"


def test_a_repository_that_is_none_is_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_hub(REPOSITORY, model) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert "RepositoryNotFound" in refused(whisper("small", cache=str(tmp_path)), NotConfigured)


def test_a_repository_of_something_else_is_one_line(
    faster_whisper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    with serving_hub(REPOSITORY, tmp_path / "theirs") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert "is no Whisper" in refused(whisper("base", cache=str(tmp_path / "cache")), NotConfigured)


def test_a_cache_that_cannot_be_written_is_one_line_and_nobody_is_asked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with serving_hub(REPOSITORY, model) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        said = refused(whisper("base", cache=str(tmp_path / "file" / "cache")), NotConfigured)
        assert hub.asked == []
    assert "cannot be written (Not a directory): set cache, or HF_HOME, to a folder that can" in said


FETCH = """
import sys
from dailies.speech.model_files import model_files
model_files("base", sys.argv[1])
"""


def test_what_fetches_ends_with_the_process_that_asked_for_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_hub(REPOSITORY, model) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.cut["model.bin"] = 1_000_000
        asks = subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path)])
        try:
            until = time.monotonic() + 30
            while not any("model.bin" in asked for asked in hub.asked) and time.monotonic() < until:
                time.sleep(0.05)
            (fetches,) = psutil.Process(asks.pid).children()
            asks.kill()
            asks.wait()
            psutil.wait_procs([fetches], timeout=5)
            assert not fetches.is_running()
        finally:
            asks.kill()
            asks.wait()
