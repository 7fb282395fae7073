"""raw-ocr.db: what was read on whole frames, before anybody knew where the captions are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.canonical import write_atomically
from dailies.captions.databases.file import Rows, built, opened
from dailies.captions.layout import Seen
from dailies.captions.ocr import Box, Line

SCHEMA = """
CREATE TABLE meta (width INTEGER NOT NULL, height INTEGER NOT NULL);
CREATE TABLE full_frames (frame_index INTEGER PRIMARY KEY, us INTEGER NOT NULL, error TEXT NOT NULL);
CREATE TABLE full_frame_ocr (
    frame_index INTEGER NOT NULL REFERENCES full_frames, box_index INTEGER NOT NULL, text TEXT NOT NULL,
    confidence REAL NOT NULL, x INTEGER NOT NULL, y INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    PRIMARY KEY (frame_index, box_index)
) WITHOUT ROWID;
"""
TABLES = ("meta", "full_frames", "full_frame_ocr")


@dataclass(frozen=True)
class FrameText:
    """One frame, at its time on the player's timeline. One that could not be read has its reason and no lines."""

    index: int
    us: int
    lines: tuple[Line, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class RawOcr:
    """`frames` in the order of their indexes."""

    width: int
    height: int
    frames: tuple[FrameText, ...]

    @property
    def seen(self) -> list[Seen]:
        """For `find_layout`: a frame that could not be read says nothing about where text is missing."""
        return [Seen(frame.us, frame.lines) for frame in self.frames if not frame.error]

    @property
    def failed(self) -> int:
        return sum(bool(frame.error) for frame in self.frames)


def write_raw_ocr(path: Path, raw: RawOcr) -> None:
    boxes: list[tuple[Any, ...]] = [
        (frame.index, place, line.text, line.confidence, box.left, box.top, box.width, box.height)
        for frame in raw.frames
        for place, line in enumerate(frame.lines)
        for box in [line.box]
    ]
    tables: dict[str, Rows] = {
        "meta": [(raw.width, raw.height)],
        "full_frames": [(frame.index, frame.us, " ".join(frame.error.split())) for frame in raw.frames],
        "full_frame_ocr": boxes,
    }
    write_atomically(path, [built(SCHEMA, tables)])


def read_raw_ocr(source: Path | bytes) -> RawOcr:
    with opened(source, "raw-ocr.db", TABLES) as database:
        ((width, height),) = database.execute("SELECT width, height FROM meta")
        lines: dict[int, list[Line]] = {}
        for index, text, confidence, x, y, across, along in database.execute(
            "SELECT frame_index, text, confidence, x, y, width, height FROM full_frame_ocr"
            " ORDER BY frame_index, box_index"
        ):
            lines.setdefault(index, []).append(Line(text, confidence, Box(x, y, x + across, y + along)))
        frames = tuple(
            FrameText(index, us, tuple(lines.get(index, ())), error)
            for index, us, error in database.execute("SELECT frame_index, us, error FROM full_frames ORDER BY 1")
        )
    return RawOcr(width, height, frames)
