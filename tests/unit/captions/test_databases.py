"""The four databases: what is written is what is read, the same contents give the same bytes, strangers are refused."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dailies.captions.compose import compose
from dailies.captions.databases import (
    LABELS,
    FrameText,
    RawOcr,
    file,
    packed,
    read_approval,
    read_captions,
    read_dropped,
    read_extents,
    read_labels,
    read_layout,
    read_raw_ocr,
    sample_index,
    unpacked,
    with_reading,
    write_captions,
    write_extents,
    write_layout,
    write_raw_ocr,
)
from dailies.captions.extents import Dropped, Extent
from dailies.captions.glyphs import Template
from dailies.captions.layout import Layout, Region, Seen
from dailies.captions.ocr import Box, Line
from dailies.captions.reading import Reading
from dailies.captions.subtitles import Caption, json_file
from dailies.errors import Missing, TooLarge, Unreadable

pytestmark = pytest.mark.unit

HELLO = Line("Hello, Anna – «oui»", 0.9871234567890123, Box(100, 300, 300, 330))
SIGN = Line("EXIT", 1 / 3, Box(10, 10, 60, 40))
POSTER = Line("SALE", 0.9, Box(150, 200, 500, 400))
RAW = RawOcr(
    640,
    360,
    (
        FrameText(0, 0, (SIGN, HELLO, POSTER)),
        FrameText(100, 10_000_000),
        FrameText(200, 20_000_000, error="the engine gave up"),
        FrameText(300, 29_960_000, (HELLO,)),
    ),
)
LOWER = Region(Box(0, 256, 640, 360), 314.5, 1.25, 30.0, "center", 320.5, 0.9871, 0, 29_960_000)
UPPER = Region(Box(0, 0, 640, 90), 44.0, 0.1, 24.0, "left", 40.0, 1 / 3, 1, 2)
LAYOUT = Layout(640, 360, 4, 3, (LOWER,))
NO_LAYOUT = Layout(640, 360, 4, 0, ())
DROPPED = (Dropped(5, 90_000, "l", 0.31, "unsure"), Dropped(7_000_000, 7_040_000, "", 0.0, "brief"))
CAPTIONS = [
    Caption(0, 1_960_000, "We were never\ngoing to make it", 0.97, 0, Box(120, 300, 520, 350)),
    Caption(2_000_000, 2_500_001, "It's 5 o'clock", 0.9, 0, Box(200, 310, 440, 340)),
    Caption(2_500_001, 4_000_000, "", 0.5, 1, Box(1, 2, 3, 4)),
]
READERS: list[tuple[Callable[[Any], Any], str]] = [
    (read_raw_ocr, "raw-ocr.db"),
    (read_layout, "layout.db"),
    (read_labels, "layout.db"),
    (read_approval, "layout.db"),
    (read_extents, "caption_frame_extents.db"),
    (read_captions, "captions.db"),
    (read_dropped, "captions.db"),
]


def extent(start: int, end: int, text: str = "text", region: int = 0, top: int = 10) -> Extent:
    box = Box(10, top, 110, top + 20)
    return Extent(start, end, text, 0.9, box, region, Template(np.zeros((60, 120), np.uint8), Box(10, 10, 110, 30)))


def write_all(folder: Path) -> None:
    write_raw_ocr(folder / "raw-ocr.db", RAW)
    write_layout(folder / "layout.db", LAYOUT, RAW)
    write_extents(folder / "caption_frame_extents.db", [extent(0, 150_000)], DROPPED, [0, 100_000, 200_000], regions=1)
    write_captions(folder / "captions.db", CAPTIONS, DROPPED)


def written(path: Path, write: Callable[..., object], *values: Any, **options: Any) -> bytes:
    write(path, *values, **options)
    return path.read_bytes()


def test_raw_ocr_comes_back_as_it_was_written_and_a_failed_frame_keeps_its_reason(tmp_path: Path) -> None:
    write_raw_ocr(tmp_path / "raw-ocr.db", RAW)
    assert read_raw_ocr(tmp_path / "raw-ocr.db") == RAW
    assert RAW.failed == 1
    assert RAW.seen == [Seen(0, (SIGN, HELLO, POSTER)), Seen(10_000_000, ()), Seen(29_960_000, (HELLO,))]
    with closing(sqlite3.connect(tmp_path / "raw-ocr.db")) as database:
        row = database.execute("SELECT * FROM full_frame_ocr WHERE frame_index = 0 AND box_index = 1").fetchone()
    assert row == (0, 1, HELLO.text, HELLO.confidence, 100, 300, 200, 30)


def test_the_reason_of_a_failed_frame_is_one_line(tmp_path: Path) -> None:
    raw = RawOcr(2, 2, (FrameText(0, 0, error="no model\n  at this address"),))
    write_raw_ocr(tmp_path / "raw-ocr.db", raw)
    assert read_raw_ocr(tmp_path / "raw-ocr.db").frames[0].error == "no model at this address"


@pytest.mark.parametrize("layout", [LAYOUT, NO_LAYOUT, replace(LAYOUT, regions=(UPPER, LOWER))])
def test_a_layout_comes_back_as_it_was_written(tmp_path: Path, layout: Layout) -> None:
    write_layout(tmp_path / "layout.db", layout, RAW)
    assert read_layout(tmp_path / "layout.db") == layout
    assert not read_approval(tmp_path / "layout.db")
    write_layout(tmp_path / "layout.db", layout, RAW, approved=True)
    assert read_approval(tmp_path / "layout.db")
    assert read_layout(tmp_path / "layout.db") == layout


def test_no_field_of_a_region_is_left_out_of_the_layout() -> None:
    stored = {"crop", "centre", "spread", "line_height", "anchor", "anchor_x", "confidence", "first_us", "last_us"}
    assert {field.name for field in fields(Region)} == stored, "layout.db has no column for it: add one"


def test_a_box_is_in_when_it_lies_in_a_region_and_is_as_high_as_its_lines(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout.db", replace(LAYOUT, regions=(UPPER, LOWER)), RAW)
    labels = {(one.frame_index, one.box_index): one.region for one in read_labels(tmp_path / "layout.db")}
    assert labels == {(0, 0): 0, (0, 1): 1, (0, 2): None, (300, 0): 1}
    with closing(sqlite3.connect(tmp_path / "layout.db")) as database:
        said = database.execute("SELECT label, label_source, count(*) FROM full_frame_box_labels GROUP BY 1, 2")
        assert said.fetchall() == [("in", "model", 3), ("out", "model", 1)]


def test_in_a_region_drawn_by_hand_lines_of_any_height_are_in(tmp_path: Path) -> None:
    everywhere = replace(LOWER, crop=Box(0, 0, 640, 360), line_height=0.0)
    write_layout(tmp_path / "layout.db", replace(LAYOUT, regions=(everywhere,)), RAW)
    assert {label.region for label in read_labels(tmp_path / "layout.db")} == {0}


def test_each_pair_of_neighbouring_samples_has_its_label(tmp_path: Path) -> None:
    samples = [number * 100_000 for number in range(8)]
    extents = [extent(200_000, 400_001, "b"), extent(100_000, 350_000, "a"), extent(600_000, 800_000, "c")]
    counts = write_extents(tmp_path / "extents.db", extents, DROPPED, samples, regions=2)
    read = read_extents(tmp_path / "extents.db")
    assert [pair.label for pair in read.pairs if pair.region == 0] == [
        "empty_valid",
        "different",
        "same",
        "different",
        "valid_empty",
        "empty_valid",
        "same",
    ]
    assert {pair.label for pair in read.pairs if pair.region == 1} == {"empty_empty"}
    assert [(pair.before, pair.after) for pair in read.pairs[:7]] == list(itertools.pairwise(range(8)))
    assert counts == {"same": 2, "different": 2, "empty_empty": 7, "empty_valid": 2, "valid_empty": 1}
    assert tuple(counts) == LABELS
    shown = [(one.id, one.text, one.start_index, one.end_index) for one in read.extents]
    assert shown == [(1, "a", 1, 4), (2, "b", 2, 5), (3, "c", 6, 8)]
    assert read.extents[0].box == Box(10, 10, 110, 30)
    assert (read.dropped, read.rate) == (DROPPED, Fraction(10))


def test_samples_that_a_variable_rate_leaves_out_make_no_pair_and_keep_their_numbers(tmp_path: Path) -> None:
    extents = [extent(0, 3_000_000, "slide 1"), extent(3_000_000, 3_960_000, "slide 2")]
    counts = write_extents(tmp_path / "extents.db", extents, (), [0, 1_010_000, 3_000_000, 3_920_000], regions=1)
    read = read_extents(tmp_path / "extents.db")
    assert [(pair.before, pair.after, pair.label) for pair in read.pairs] == [
        (0, 11, "same"),
        (11, 30, "different"),
        (30, 40, "same"),
    ]
    assert [(one.start_index, one.end_index) for one in read.extents] == [(0, 30), (30, 41)]
    assert sum(counts.values()) == 3


def test_a_film_without_samples_or_regions_is_a_database_too(tmp_path: Path) -> None:
    counts = write_extents(tmp_path / "extents.db", [], [], [], regions=0)
    assert set(counts.values()) == {0}
    assert read_extents(tmp_path / "extents.db").pairs == ()
    assert written(tmp_path / "one.db", write_extents, [], [], [0], regions=1)


def test_a_sample_has_the_number_of_the_first_tick_that_shows_its_frame() -> None:
    assert [sample_index(us) for us in (0, 1, 99_999, 100_000, 100_001)] == [0, 1, 1, 1, 2]
    assert sample_index(1_001_000, Fraction(30000, 1001)) == 30
    assert sample_index(1_001_001, Fraction(30000, 1001)) == 31


def test_captions_come_back_with_the_numbers_of_their_samples(tmp_path: Path) -> None:
    write_captions(tmp_path / "captions.db", CAPTIONS, DROPPED)
    rows = read_captions(tmp_path / "captions.db")
    assert [(row.id, row.start_frame_index, row.end_frame_index) for row in rows] == [
        (1, 0, 20),
        (2, 20, 26),
        (3, 26, 40),
    ]
    for row, caption in zip(rows, CAPTIONS, strict=True):
        for name, value in vars(caption).items():
            assert getattr(row, name) == value
        assert (row.caption_frame_extents_state, row.text_status, row.caption_ocr_status) == (
            "predicted",
            "predicted",
            "queued",
        )
        assert (row.caption_ocr, row.caption_ocr_confidence, row.caption_ocr_error) == (None, None, None)
    assert read_dropped(tmp_path / "captions.db") == DROPPED


def test_a_captions_box_holds_all_of_its_lines_and_reaches_the_json() -> None:
    upper, lower = (
        extent(0, 900_000, "upper", top=10),
        replace(extent(0, 900_000, "lower", top=40), box=Box(5, 40, 90, 62)),
    )
    (caption,) = compose([lower, upper])
    assert caption.box == Box(5, 10, 110, 62)
    (written_down,) = json.loads(json_file([caption]))["captions"]
    assert written_down["box"] == {"left": 5, "top": 10, "right": 110, "bottom": 62}
    assert (written_down["start_us"], written_down["text"]) == (0, "upper\nlower")


def test_the_same_contents_give_the_same_bytes_wherever_and_in_whatever_order_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_all(tmp_path / "one")
    write_all(tmp_path / "two" / "deeper")
    names = {name for _, name in READERS}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / "deeper" / name).read_bytes(), name
    extents = [extent(number % 3, 100 + number, region=number % 2, top=number) for number in range(9)]
    first = written(tmp_path / "first.db", write_extents, extents, (), [0], regions=2)
    assert written(tmp_path / "second.db", write_extents, extents[::-1], (), [0], regions=2) == first


@pytest.mark.parametrize(("read", "name"), READERS)
def test_what_is_no_such_database_is_refused_by_name(tmp_path: Path, read: Callable[[Any], Any], name: str) -> None:
    write_all(tmp_path)
    good = (tmp_path / name).read_bytes()
    stranger = next((tmp_path / other).read_bytes() for _, other in READERS if other != name)
    garbage = random.Random(1).randbytes(5000)
    bad = {
        "empty": b"",
        "garbage": garbage,
        "truncated": good[: len(good) // 2],
        "one page": good[:4096],
        "packed garbage": gzip.compress(garbage),
        "packed and cut": packed(good)[:-20],
        "packed and damaged": packed(good)[:40] + bytes(20) + packed(good)[60:],
        "another database": stranger,
        "the header of one": good[:16] + garbage,
    }
    for what, data in bad.items():
        with pytest.raises(Unreadable) as caught:
            read(data)
        assert "\n" not in str(caught.value), what
    with pytest.raises(Unreadable, match=name):
        read(stranger)
    with pytest.raises(Missing, match="there is no nowhere"):
        read(tmp_path / "nowhere.db")
    assert read(packed(good)) == read(good) == read(tmp_path / name)


def test_a_page_that_was_overwritten_is_found(tmp_path: Path) -> None:
    captions = [replace(CAPTIONS[0], start_us=number, text=f"line {number} " * 20) for number in range(200)]
    good = written(tmp_path / "captions.db", write_captions, captions, ())
    with pytest.raises(Unreadable):
        read_captions(good[:12288] + bytes(4096) + good[16384:])


def test_damage_in_a_table_that_is_not_asked_for_is_found_too(tmp_path: Path) -> None:
    dropped = [Dropped(number, number + 1, "a scrap of scenery " * 9, 0.3, "unsure") for number in range(400)]
    good = written(tmp_path / "captions.db", write_captions, CAPTIONS, dropped)
    assert len(read_captions(good)) == 3
    with pytest.raises(Unreadable):
        read_captions(good[:-4096] + bytes(4096))


def test_a_table_of_other_columns_or_a_view_in_its_place_is_refused(tmp_path: Path) -> None:
    write_captions(tmp_path / "captions.db", CAPTIONS, ())
    with closing(sqlite3.connect(tmp_path / "captions.db")) as database:
        database.execute("ALTER TABLE captions ADD COLUMN more TEXT")
    with pytest.raises(Unreadable):
        read_captions(tmp_path / "captions.db")
    with closing(sqlite3.connect(tmp_path / "captions.db")) as database:
        database.executescript("ALTER TABLE captions RENAME TO old; CREATE VIEW captions AS SELECT * FROM old")
    with pytest.raises(Unreadable, match="no table captions"):
        read_captions(tmp_path / "captions.db")


def test_packing_carries_no_clock_and_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.db").write_bytes(b"contents" * 100)
    assert packed(tmp_path / "some.db") == packed(b"contents" * 100)
    assert packed(b"")[4:8] == bytes(4)
    assert unpacked(packed(b"contents")) == unpacked(b"contents") == b"contents"
    monkeypatch.setattr(file, "LARGEST", 1 << 20)
    assert len(unpacked(packed(bytes(1 << 20)))) == 1 << 20
    with pytest.raises(TooLarge):
        unpacked(packed(bytes((1 << 20) + 1)))


def test_ten_readings_in_any_order_give_the_same_bytes_and_none_is_lost(tmp_path: Path) -> None:
    captions = [
        Caption(number * 1_000_000, number * 1_000_000 + 900_000, f"line {number}", 0.8, 0) for number in range(10)
    ]
    start = written(tmp_path / "captions.db", write_captions, captions, DROPPED)
    readings: dict[int, Reading | Unreadable] = {
        number: Reading(f"Line {number}", 0.9 + number / 1000, 8, 3, 1) for number in range(1, 10)
    }
    readings[10] = Unreadable("no text can be read\non 9 frames")
    results = set()
    for seed in range(5):
        order = random.Random(seed).sample(sorted(readings), len(readings))
        database = start
        for number in order:
            database = with_reading(database, number, readings[number])
        results.add(database)
    assert len(results) == 1
    rows = {row.id: row for row in read_captions(database)}
    for number in range(1, 10):
        assert (rows[number].text, rows[number].confidence) == (f"Line {number}", 0.9 + number / 1000)
        assert (rows[number].caption_ocr, rows[number].caption_ocr_status) == (f"Line {number}", "completed")
        assert rows[number].caption_ocr_confidence == 0.9 + number / 1000
    assert (rows[10].text, rows[10].caption_ocr, rows[10].caption_ocr_status) == ("line 9", None, "error")
    assert rows[10].caption_ocr_error == "no text can be read on 9 frames"
    assert read_dropped(database) == DROPPED


def test_a_reading_applied_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    start = written(tmp_path / "captions.db", write_captions, CAPTIONS, ())
    for reading in (
        Reading("It's 6 o'clock", 0.99, 5, 2, 1),
        Reading("It's 6 o'clock", 0.7, 5, 2, 4),
        Unreadable("no"),
    ):
        once = with_reading(start, 2, reading)
        assert once != start
        assert with_reading(once, 2, reading) == once


def test_the_surer_text_stands_and_a_doubt_is_noted(tmp_path: Path) -> None:
    start = written(tmp_path / "captions.db", write_captions, CAPTIONS, ())
    surer = read_captions(with_reading(start, 2, Reading("It's 6 o'clock", 0.95, 5, 2, 1)))[1]
    assert (surer.text, surer.confidence, surer.text_status, surer.text_notes) == ("It's 6 o'clock", 0.95, "read", "")
    less = read_captions(with_reading(start, 2, Reading("It's 6 o'clock", 0.85, 5, 2, 1)))[1]
    assert (less.text, less.confidence, less.text_status) == ("It's 5 o'clock", 0.9, "doubtful")
    assert (less.caption_ocr, less.caption_ocr_confidence) == ("It's 6 o'clock", 0.85)
    assert less.text_notes
    same = read_captions(with_reading(start, 2, Reading("It's 5 o'clock", 0.85, 5, 2, 1)))[1]
    assert (same.text, same.confidence, same.text_status) == ("It's 5 o'clock", 0.9, "read")


def test_a_space_is_never_lost_to_a_surer_reading_without_it(tmp_path: Path) -> None:
    captions = [Caption(0, 900_000, "OK 3", 0.8, 0), Caption(1_000_000, 1_900_000, "OK3", 0.8, 0)]
    database = written(tmp_path / "captions.db", write_captions, captions, ())
    for number, text in ((1, "OK3"), (2, "OK 3")):
        database = with_reading(database, number, Reading(text, 0.99, 5, 2, 1))
    assert [(row.text, row.confidence, row.text_status) for row in read_captions(database)] == [
        ("OK 3", 0.99, "read")
    ] * 2


def test_what_a_human_wrote_no_reading_overrules(tmp_path: Path) -> None:
    write_captions(tmp_path / "captions.db", CAPTIONS, ())
    with closing(sqlite3.connect(tmp_path / "captions.db")) as database:
        database.execute("UPDATE captions SET text = 'Half past five', text_status = 'edited' WHERE id = 2")
        database.commit()
    row = read_captions(with_reading((tmp_path / "captions.db").read_bytes(), 2, Reading("It's 5", 1.0, 5, 2, 1)))[1]
    assert (row.text, row.text_status, row.caption_ocr) == ("Half past five", "edited", "It's 5")


def test_a_reading_that_worked_takes_the_error_of_an_earlier_one_away(tmp_path: Path) -> None:
    start = written(tmp_path / "captions.db", write_captions, CAPTIONS, ())
    failed = with_reading(start, 1, Unreadable("no text"))
    reading = Reading("We were never\ngoing to make it", 0.99, 5, 2, 1)
    assert with_reading(failed, 1, reading) == with_reading(start, 1, reading)


@pytest.mark.parametrize("unknown", [0, 4, -1])
def test_a_caption_that_the_film_has_not_is_missing(tmp_path: Path, unknown: int) -> None:
    start = written(tmp_path / "captions.db", write_captions, CAPTIONS, ())
    with pytest.raises(Missing, match=f"no caption {unknown}"):
        with_reading(start, unknown, Reading("text", 0.9, 1, 0, 1))
    with pytest.raises(Unreadable):
        with_reading(b"garbage", 1, Reading("text", 0.9, 1, 0, 1))
