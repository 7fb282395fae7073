"""captions.db: the captions of a film, and what a second reading of each one's own frames said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from dailies.canonical import write_atomically
from dailies.captions.databases.extents import RATE, dropped_rows, sample_index, stored_drops
from dailies.captions.databases.file import built, opened
from dailies.captions.extents import Dropped
from dailies.captions.ocr import Box
from dailies.captions.reading import Reading
from dailies.captions.subtitles import Caption
from dailies.errors import DailiesError, Missing

SCHEMA = """
CREATE TABLE captions (
    id INTEGER PRIMARY KEY, start_frame_index INTEGER NOT NULL, end_frame_index INTEGER NOT NULL,
    start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, region INTEGER NOT NULL,
    "left" INTEGER NOT NULL, top INTEGER NOT NULL, "right" INTEGER NOT NULL, bottom INTEGER NOT NULL,
    caption_frame_extents_state TEXT NOT NULL
        CHECK (caption_frame_extents_state IN ('predicted', 'confirmed', 'gap', 'issue')),
    text TEXT NOT NULL, confidence REAL NOT NULL,
    text_status TEXT NOT NULL CHECK (text_status IN ('predicted', 'read', 'doubtful', 'edited')),
    text_notes TEXT NOT NULL, caption_ocr TEXT, caption_ocr_confidence REAL,
    caption_ocr_status TEXT NOT NULL CHECK (caption_ocr_status IN ('queued', 'processing', 'completed', 'error')),
    caption_ocr_error TEXT
);
CREATE TABLE dropped (
    id INTEGER PRIMARY KEY, start_us INTEGER NOT NULL, end_us INTEGER NOT NULL, text TEXT NOT NULL,
    confidence REAL NOT NULL, reason TEXT NOT NULL
);
"""
TABLES = ("captions", "dropped")


@dataclass(frozen=True)
class CaptionRow:
    """Samples from `start_frame_index` up to, not including, `end_frame_index` show it; `box` is in the picture.

    `text` is what the user sees: 'predicted' when the film was followed, 'read' when a reading of the caption's own
    frames agreed or was surer, 'doubtful' when one that was less sure disagreed, 'edited' once a human wrote it.
    """

    id: int
    start_frame_index: int
    end_frame_index: int
    start_us: int
    end_us: int
    region: int
    box: Box
    caption_frame_extents_state: str
    text: str
    confidence: float
    text_status: str = "predicted"
    text_notes: str = ""
    caption_ocr: str | None = None
    caption_ocr_confidence: float | None = None
    caption_ocr_status: str = "queued"
    caption_ocr_error: str | None = None


def write_captions(path: Path, captions: Sequence[Caption], dropped: Sequence[Dropped], rate: Fraction = RATE) -> None:
    rows = [_row(number, caption, rate) for number, caption in enumerate(captions, 1)]
    write_atomically(path, [_database(rows, dropped)])


def read_captions(source: Path | bytes) -> list[CaptionRow]:
    with opened(source, "captions.db", TABLES) as database:
        rows = database.execute("SELECT * FROM captions ORDER BY id")
        return [_caption(*row) for row in rows]


def read_dropped(source: Path | bytes) -> tuple[Dropped, ...]:
    with opened(source, "captions.db", TABLES) as database:
        return stored_drops(database)


def with_reading(database: bytes, caption_id: int, reading: Reading | DailiesError) -> bytes:
    """The same database with one caption read again; readings of several captions commute.

    Each caller applies its own reading to whatever is the newest database then, so that none of ten is lost.
    """
    rows = read_captions(database)
    place = next((place for place, row in enumerate(rows) if row.id == caption_id), None)
    if place is None:
        raise Missing(f"there is no caption {caption_id}: the film has {len(rows)}")
    if isinstance(reading, DailiesError):
        rows[place] = replace(rows[place], caption_ocr_status="error", caption_ocr_error=" ".join(str(reading).split()))
    else:
        rows[place] = _read_again(rows[place], reading)
    return _database(rows, read_dropped(database))


def _read_again(row: CaptionRow, reading: Reading) -> CaptionRow:
    """The surer text stands; what disagreed with it is told and not lost. What a human wrote nobody overrules."""
    row = replace(
        row,
        caption_ocr=reading.text,
        caption_ocr_confidence=reading.confidence,
        caption_ocr_status="completed",
        caption_ocr_error=None,
    )
    if row.text_status == "edited":
        return row
    confidence = max(reading.confidence, row.confidence)
    if "".join(reading.text.split()) == "".join(row.text.split()):
        # The recogniser swallows spaces and invents none.
        text = max(row.text, reading.text, key=lambda text: len(text.split()))
        return replace(row, text=text, confidence=confidence, text_status="read", text_notes="")
    if reading.confidence > row.confidence:
        return replace(row, text=reading.text, confidence=confidence, text_status="read", text_notes="")
    return replace(row, text_status="doubtful", text_notes="read again it says something else, though less surely")


def _database(rows: Sequence[CaptionRow], dropped: Sequence[Dropped]) -> bytes:
    return built(SCHEMA, {"captions": [_values(row) for row in rows], "dropped": dropped_rows(dropped)})


def _row(number: int, caption: Caption, rate: Fraction) -> CaptionRow:
    """One that lies between two samples has no sample: its indexes are the same."""
    return CaptionRow(
        id=number,
        start_frame_index=sample_index(caption.start_us, rate),
        end_frame_index=sample_index(caption.end_us, rate),
        start_us=caption.start_us,
        end_us=caption.end_us,
        region=caption.region,
        box=caption.box,
        caption_frame_extents_state="predicted",
        text=caption.text,
        confidence=caption.confidence,
    )


def _caption(*values: Any) -> CaptionRow:
    names = [field.name for field in fields(CaptionRow)]
    return CaptionRow(**dict(zip(names, (*values[:6], Box(*values[6:10]), *values[10:]), strict=True)))


def _values(row: CaptionRow) -> list[Any]:
    values = list(vars(row).values())
    box = row.box
    return [*values[:6], box.left, box.top, box.right, box.bottom, *values[7:]]
