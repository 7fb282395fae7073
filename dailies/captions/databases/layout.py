"""layout.db: where captions sit, and which of the boxes that were read on whole frames belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.canonical import write_atomically
from dailies.captions.databases.file import Rows, built, opened
from dailies.captions.databases.raw_ocr import RawOcr
from dailies.captions.layout import Layout, Region
from dailies.captions.ocr import Box

SCHEMA = """
CREATE TABLE meta (
    frame_width INTEGER NOT NULL, frame_height INTEGER NOT NULL, frames INTEGER NOT NULL, lines INTEGER NOT NULL
);
CREATE TABLE video_layout_config (
    region INTEGER PRIMARY KEY, frame_width INTEGER NOT NULL, frame_height INTEGER NOT NULL,
    crop_left INTEGER NOT NULL, crop_top INTEGER NOT NULL, crop_right INTEGER NOT NULL, crop_bottom INTEGER NOT NULL,
    vertical_position REAL NOT NULL, vertical_std REAL NOT NULL, box_height REAL NOT NULL,
    anchor_type TEXT NOT NULL CHECK (anchor_type IN ('left', 'center', 'right')), anchor_position REAL NOT NULL,
    confidence REAL NOT NULL, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL
);
CREATE TABLE full_frame_box_labels (
    frame_index INTEGER NOT NULL, box_index INTEGER NOT NULL, label TEXT NOT NULL CHECK (label IN ('in', 'out')),
    label_source TEXT NOT NULL CHECK (label_source IN ('user', 'model')),
    region INTEGER REFERENCES video_layout_config, PRIMARY KEY (frame_index, box_index)
) WITHOUT ROWID;
CREATE TABLE video_preferences (layout_approved INTEGER NOT NULL CHECK (layout_approved IN (0, 1)));
"""
TABLES = ("meta", "video_layout_config", "full_frame_box_labels", "video_preferences")


@dataclass(frozen=True)
class BoxLabel:
    """`region` is the number of the region that the box lies in, or None where it is out of all."""

    frame_index: int
    box_index: int
    region: int | None


def write_layout(path: Path, layout: Layout, raw: RawOcr, *, approved: bool = False) -> None:
    tables: dict[str, Rows] = {
        "meta": [(layout.width, layout.height, layout.frames, layout.lines)],
        "video_layout_config": [_row(number, layout) for number in range(len(layout.regions))],
        "full_frame_box_labels": [
            (one.frame_index, one.box_index, "out" if one.region is None else "in", "model", one.region)
            for one in labels(layout, raw)
        ],
        "video_preferences": [(int(approved),)],
    }
    write_atomically(path, [built(SCHEMA, tables)])


def read_layout(source: Path | bytes) -> Layout:
    with opened(source, "layout.db", TABLES) as database:
        ((width, height, frames, lines),) = database.execute("SELECT * FROM meta")
        regions = tuple(
            Region(Box(*crop), centre, spread, tall, anchor, anchor_x, confidence, first, last)
            for *crop, centre, spread, tall, anchor, anchor_x, confidence, first, last in database.execute(
                "SELECT crop_left, crop_top, crop_right, crop_bottom, vertical_position, vertical_std, box_height,"
                " anchor_type, anchor_position, confidence, first_us, last_us FROM video_layout_config ORDER BY region"
            )
        )
    return Layout(width, height, frames, lines, regions)


def read_labels(source: Path | bytes) -> list[BoxLabel]:
    with opened(source, "layout.db", TABLES) as database:
        query = "SELECT frame_index, box_index, region FROM full_frame_box_labels ORDER BY 1, 2"
        return [BoxLabel(*row) for row in database.execute(query)]


def read_approval(source: Path | bytes) -> bool:
    with opened(source, "layout.db", TABLES) as database:
        ((approved,),) = database.execute("SELECT layout_approved FROM video_preferences")
    return bool(approved)


def labels(layout: Layout, raw: RawOcr) -> list[BoxLabel]:
    """By place, and by size where that is known: a sign behind the captions is no caption."""
    return [
        BoxLabel(frame.index, place, _region_of(line.box, layout))
        for frame in raw.frames
        for place, line in enumerate(frame.lines)
    ]


def _region_of(box: Box, layout: Layout) -> int | None:
    x, y = box.middle
    for number, region in enumerate(layout.regions):
        crop = region.crop
        fits = not region.line_height or 0.55 * region.line_height <= box.height <= 1.7 * region.line_height
        if fits and crop.left <= x < crop.right and crop.top <= y < crop.bottom:
            return number
    return None


def _row(number: int, layout: Layout) -> tuple[Any, ...]:
    region = layout.regions[number]
    crop = region.crop
    place = (region.centre, region.spread, region.line_height, region.anchor, region.anchor_x)
    edges = (crop.left, crop.top, crop.right, crop.bottom)
    return (number, layout.width, layout.height, *edges, *place, region.confidence, region.first_us, region.last_us)
