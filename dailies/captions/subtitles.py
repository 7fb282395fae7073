"""Captions as files, the same bytes for the same captions: SubRip, WebVTT and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dailies.canonical import canonical_json
from dailies.captions.ocr import Box

NOWHERE = Box(0, 0, 0, 0)


@dataclass(frozen=True)
class Caption:
    """What is on show from `start_us` up to, not including, `end_us`; its lines are parted by line feeds.

    `box` holds all of its lines and is in the picture.
    """

    start_us: int
    end_us: int
    text: str
    confidence: float
    region: int
    box: Box = NOWHERE


def exports(captions: Sequence[Caption]) -> dict[str, bytes]:
    """By file name."""
    return {"captions.json": json_file(captions), "captions.srt": srt(captions), "captions.vtt": vtt(captions)}


def srt(captions: Sequence[Caption]) -> bytes:
    cues = [
        f"{number}\n{_clock(caption.start_us, ',')} --> {_clock(caption.end_us, ',')}\n{caption.text}\n"
        for number, caption in enumerate(captions, 1)
    ]
    return "\n".join(cues).encode()


def vtt(captions: Sequence[Caption]) -> bytes:
    cues = [
        f"\n{_clock(caption.start_us, '.')} --> {_clock(caption.end_us, '.')}\n{_escaped(caption.text)}\n"
        for caption in captions
    ]
    return "".join(["WEBVTT\n", *cues]).encode()


def json_file(captions: Sequence[Caption]) -> bytes:
    return canonical_json({"captions": [asdict(caption) for caption in captions]}) + b"\n"


def _clock(us: int, point: str) -> str:
    """Both formats know milliseconds only."""
    seconds, thousandths = divmod(round(us / 1000), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
