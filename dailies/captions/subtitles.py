"""Captions as files, the same bytes for the same captions: SubRip, WebVTT and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dailies.canonical import canonical_json
from dailies.captions.ocr import Box
from dailies.subtitles import Cue, srt, vtt

NOWHERE = Box(0, 0, 0, 0)


@dataclass(frozen=True)
class Caption(Cue):
    """`box` holds all of its lines and is in the picture."""

    confidence: float
    region: int
    box: Box = NOWHERE


def exports(captions: Sequence[Caption]) -> dict[str, bytes]:
    """By file name."""
    return {"captions.json": json_file(captions), "captions.srt": srt(captions), "captions.vtt": vtt(captions)}


def json_file(captions: Sequence[Caption]) -> bytes:
    return canonical_json({"captions": [asdict(caption) for caption in captions]}) + b"\n"
