"""What hears words in a chunk of sound: one interface, any number of engines behind it.

hears = engine("dtmf")
words = hears.transcribe(chunk.samples, RATE, language=None)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from dailies.errors import NotConfigured
from dailies.speech.audio import Samples

# Imported when asked for: an engine may bring a library that takes seconds to load.
ENGINES = {
    "dtmf": ("dailies.speech.dtmf", "Dtmf"),
    "openai": ("dailies.speech.openai", "OpenAI"),
    "whisper": ("dailies.speech.whisper", "Whisper"),
}
# What each can be told, and the variable that says it where nobody does.
SETTINGS = {
    "openai": {
        "base_url": "OPENAI_BASE_URL",
        "api_key": "OPENAI_API_KEY",
        "model": "OPENAI_MODEL",
        "per_minute": "",
        "timeout_s": "",
    },
    "whisper": {"model": "DAILIES_WHISPER_MODEL", "device": "", "compute_type": "", "cache": ""},
}


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


def engine(name: str, settings: Mapping[str, Any] | None = None) -> Engine:
    """`settings` are plain JSON, because they travel to where the work is done; without them the environment says."""
    if name not in ENGINES:
        raise NotConfigured(f"there is no engine {name!r}: set one of {', '.join(sorted(ENGINES))}")
    known = SETTINGS.get(name, {})
    if settings is None:
        settings = {field: os.environ.get(variable, "") for field, variable in known.items() if variable}
    if unknown := sorted(set(settings) - set(known)):
        raise NotConfigured(
            f"the engine {name} has no setting {', '.join(unknown)}: it takes {', '.join(known) or 'none'}"
        )
    module, kind = ENGINES[name]
    # What is empty was not said: the engine's own default holds.
    said = {field: value for field, value in settings.items() if value not in ("", None)}
    made: Engine = getattr(import_module(module), kind)(**said)
    return made
