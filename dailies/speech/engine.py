"""What hears words in a chunk of sound: one interface, any number of engines behind it.

hears = engine("dtmf")
words = hears.transcribe(chunk.samples, RATE, language=None)
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from dailies.errors import NotConfigured
from dailies.speech.audio import Samples

# Imported when asked for: an engine may bring a library that takes seconds to load.
ENGINES = {"dtmf": ("dailies.speech.dtmf", "Dtmf")}


@dataclass(frozen=True)
class Word:
    """An engine counts from the start of what it was given, a transcript from the start of the sound."""

    start_us: int
    end_us: int
    text: str
    confidence: float = 1.0


class Engine(Protocol):
    """The same samples give the same words. `version` changes whenever what it hears may."""

    name: str
    version: str

    def transcribe(self, samples: Samples, rate: int, language: str | None) -> list[Word]: ...


def engine(name: str) -> Engine:
    if name not in ENGINES:
        raise NotConfigured(f"there is no engine {name!r}: set one of {', '.join(sorted(ENGINES))}")
    module, kind = ENGINES[name]
    made: Engine = getattr(import_module(module), kind)()
    return made
