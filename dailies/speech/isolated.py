"""The speech functions as a child process runs them: paths and plain values in, plain values out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dailies.canonical import canonical_json, digest, file_digest
from dailies.errors import Damaged, Missing
from dailies.failpoints import failpoint
from dailies.speech.audio import RATE, Sound
from dailies.speech.engine import Engine, engine
from dailies.speech.plan import Plan
from dailies.speech.transcript import facts
from dailies.speech.words import words_to_json
from dailies.store.interface import Store

SUFFIX = ".f32"


def plan_file(
    path: str, out: str, language: str | None, track: int | None, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Decode once; each chunk as raw samples in ``out``, under its key, and what there is to know of all of them."""
    sound, plan = Sound(Path(path), language=language, track=track), Plan()
    chunks = []
    for chunk in plan.chunks(sound.blocks()):
        samples = np.ascontiguousarray(chunk.samples, dtype="<f4")
        (Path(out) / f"{chunk.key}{SUFFIX}").write_bytes(samples.tobytes())
        chunks.append(
            {
                "end_us": chunk.end_us,
                "key": chunk.key,
                "number": chunk.number,
                "overlap_us": chunk.overlap_us,
                "start_us": chunk.start_us,
                "voiced": [list(span) for span in chunk.voiced],
            }
        )
        if sound.promised_us:
            progress(min(1.0, chunk.end_us / sound.promised_us))
    return {
        "chunks": chunks,
        "duration_us": plan.duration_us,
        "sha256": file_digest(Path(path)),
        "sound": facts(sound),
    }


def hear_file(
    path: str, sha256: str, engine: str, settings: Mapping[str, Any] | None, language: str | None
) -> list[dict[str, Any]]:
    """The words of one chunk. What is not the bytes that were written is not heard: its words would be wrong."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise Damaged(f"the working file {Path(path).name} is gone") from None
    if digest(data) != sha256:
        raise Damaged(f"the working file {Path(path).name} is not what was written")
    samples = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    failpoint("speech.hear")
    ear = loaded(engine, canonical_json(settings))
    return words_to_json(ear.transcribe(samples, RATE, language))


@contextmanager
def whole_or_damaged(store: Store, key: str) -> Iterator[Path]:
    """A working file to read from; that it is gone is no fault of who asked for the transcript."""
    try:
        with store.local(key) as path:
            yield path
    except Missing as error:
        raise Damaged(f"the working file {key} is gone") from error


@lru_cache(maxsize=1)
def loaded(name: str, settings: bytes) -> Engine:
    """Once a process: a model takes seconds to load."""
    return engine(name, json.loads(settings))
