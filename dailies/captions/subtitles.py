"""Captions as files, the same bytes for the same captions: SubRip, WebVTT, JSON and SQLite."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dailies.canonical import canonical_json, write_atomically
from dailies.captions.extents import Dropped

SCHEMA = """
CREATE TABLE captions (
    id INTEGER PRIMARY KEY, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, text TEXT NOT NULL,
    confidence REAL NOT NULL, region INTEGER NOT NULL
);
CREATE TABLE dropped (
    id INTEGER PRIMARY KEY, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, text TEXT NOT NULL,
    confidence REAL NOT NULL, reason TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Caption:
    """What is on show from `start_us` up to, not including, `end_us`; its lines are parted by line feeds."""

    start_us: int
    end_us: int
    text: str
    confidence: float
    region: int


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
    return canonical_json({"captions": [vars(caption) for caption in captions]}) + b"\n"


def write_database(path: Path, captions: Sequence[Caption], dropped: Sequence[Dropped]) -> None:
    """Through VACUUM INTO: pages in key order, none that tells of a deletion."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        copy = Path(folder) / "captions.db"
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(SCHEMA)
            database.executemany(
                "INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (number, one.start_us, one.end_us, one.text, one.confidence, one.region)
                    for number, one in enumerate(captions, 1)
                ],
            )
            database.executemany(
                "INSERT INTO dropped VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (number, one.start_us, one.end_us, one.text, one.confidence, one.reason)
                    for number, one in enumerate(dropped, 1)
                ],
            )
            database.commit()
            database.execute("VACUUM INTO ?", (str(copy),))
        write_atomically(path, [copy.read_bytes()])


def _clock(us: int, point: str) -> str:
    """Both formats know milliseconds only."""
    seconds, thousandths = divmod(round(us / 1000), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
