"""Text with times as files that players read, the same bytes for the same cues: SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cue:
    """On show from `start_us` up to, not including, `end_us`; its lines are parted by line feeds."""

    start_us: int
    end_us: int
    text: str


def srt(cues: Sequence[Cue]) -> bytes:
    blocks = [
        f"{number}\n{_clock(cue.start_us, ',')} --> {_clock(cue.end_us, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues, 1)
    ]
    return "\n".join(blocks).encode()


def vtt(cues: Sequence[Cue]) -> bytes:
    blocks = [f"\n{_clock(cue.start_us, '.')} --> {_clock(cue.end_us, '.')}\n{_escaped(cue.text)}\n" for cue in cues]
    return "".join(["WEBVTT\n", *blocks]).encode()


def _clock(us: int, point: str) -> str:
    """Both formats know milliseconds only."""
    seconds, thousandths = divmod(round(us / 1000), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
