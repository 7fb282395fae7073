"""Words as JSON and back: what was heard is written down, and the same words are read from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from dailies.speech.engine import Word


def words_to_json(words: Iterable[Word]) -> list[dict[str, Any]]:
    """What JSON or UTF-8 cannot say is replaced here, so that a transcript does not depend on whether its words were
    read back."""
    return [
        {
            "start_us": int(word.start_us),
            "end_us": int(word.end_us),
            "text": word.text.encode(errors="replace").decode(),
            "confidence": float(word.confidence) if math.isfinite(word.confidence) else 0.0,
        }
        for word in words
    ]


def words_from_json(plain: Iterable[dict[str, Any]]) -> list[Word]:
    return [Word(one["start_us"], one["end_us"], one["text"], one["confidence"]) for one in plain]
