"""Whisper in this process, by faster-whisper: on a GPU where there is one, else on the CPU.

hears = Whisper(model="small")
words = hears.transcribe(chunk.samples, RATE, language="de")

The same samples give the same words: no sampling, nothing remembered of the chunk before. What it says where nothing is
said, or says again and again, is for `stitch` to judge, which knows where sound is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dailies.canonical import digest
from dailies.errors import BadInput, NotConfigured, Transient
from dailies.speech.audio import RATE, Samples
from dailies.speech.engine import Engine, Word
from dailies.speech.language import short
from dailies.speech.model_files import model_files

BEAM = 5
DEVICES = ("auto", "cpu", "cuda")
OPTIONS: dict[str, Any] = {
    "beam_size": BEAM,
    "condition_on_previous_text": False,
    "temperature": 0.0,
    "vad_filter": False,
    "word_timestamps": True,
}
# Of a folder's files so much of the end is read to tell one model from another: training changes every part of them.
TAIL = 1 << 20


class Whisper(Engine):
    name = "whisper"

    def __init__(self, model: str = "base", device: str = "auto", compute_type: str = "auto", cache: str = "") -> None:
        """Loads nothing yet: whoever only asks for the version need not wait for a model."""
        if find_spec("faster_whisper") is None:
            raise NotConfigured(
                "the engine whisper needs its package: pip install '.[whisper]' from the folder of Dailies"
            )
        if device not in DEVICES:
            raise NotConfigured(f"there is no device {device!r}: set device to one of {', '.join(DEVICES)}")
        self.model = str(model)
        self.device = _device() if device == "auto" else device
        self.compute_type = _compute_type(self.device) if compute_type == "auto" else str(compute_type)
        self.cache = str(cache)
        made = f"faster-whisper {_installed('faster-whisper')}, ctranslate2 {_installed('ctranslate2')}"
        self.version = f"{made}, {_identity(self.model)}, {self.compute_type}, beam {BEAM}"
        self._lock = threading.Lock()
        self._whisper: Any = None

    def transcribe(self, samples: Samples, rate: int, language: str | None = None) -> list[Word]:
        if rate != RATE:
            raise BadInput(f"whisper hears sound at {RATE} Hz, not at {rate}")
        if not len(samples):
            return []
        whisper = self._loaded()
        code = self._known(short(language), whisper.supported_languages)
        try:
            segments, _ = whisper.transcribe(np.asarray(samples, dtype=np.float32), language=code, **OPTIONS)
            # It works while it is read from.
            return list(_words(segments))
        except RuntimeError as error:
            raise _translated(error) from error

    def _loaded(self) -> Any:
        # Threads that come at once would each load it.
        with self._lock:
            if self._whisper is None:
                self._whisper = self._load()
            return self._whisper

    def _load(self) -> Any:
        from faster_whisper import WhisperModel

        folder = model_files(self.model, self.cache)
        try:
            return WhisperModel(str(folder), device=self.device, compute_type=self.compute_type)
        except Exception as error:  # the reader of the tokenizer has no narrower one
            raise _unloadable(error, folder) from error

    def _known(self, code: str | None, codes: list[str]) -> str | None:
        if code is None or code in codes:
            return code
        known = " ".join(codes)
        raise NotConfigured(
            f"the model {self.model!r} knows no language {code!r}: leave language empty, or set one of {known}"
        )


def _words(segments: Iterable[Any]) -> Iterable[Word]:
    for segment in segments:
        for word in segment.words or ():
            text = word.word.strip()
            if text and math.isfinite(word.start) and math.isfinite(word.end):
                start = max(0, round(float(word.start) * 1_000_000))
                end = max(start, round(float(word.end) * 1_000_000))
                yield Word(start, end, text, round(float(word.probability), 4))


def _device() -> str:
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"


def _compute_type(device: str) -> str:
    return "float16" if device == "cuda" else "int8"


def _installed(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return "unknown"


def _identity(model: str) -> str:
    """By what is in it, if it is a folder: where it lies does not change what it hears."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    files = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".json", ".txt"))
    return f"model {digest([[path.name, path.stat().st_size, _tail(path)] for path in files])[:12]}"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return digest(file.read())


def _unloadable(error: Exception, folder: Path) -> Exception:
    if "compute type" in str(error):
        return NotConfigured(f"whisper cannot work so ({_line(error)}): set compute_type to auto")
    known = _translated(error)
    if known is not error:
        return known
    return NotConfigured(f"the model in {folder} cannot be loaded ({_line(error)}): remove it, and fetch it again")


def _translated(error: Exception) -> Exception:
    said = _line(error)
    if "out of memory" in said:
        return Transient(f"there was no memory for whisper: {said}")
    if "libcu" in said or "CUDA" in said:
        return NotConfigured(f"whisper cannot use the GPU ({said}): install what is missing, or set device to cpu")
    return error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
