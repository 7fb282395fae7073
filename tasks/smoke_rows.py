"""What a merge must come to, row by row, worked out again from what was there and what was gathered.

Written from the words of dailies/catalog/rules.py and removal.py and with nothing of theirs, in plain loops: where the
two disagree, one of them is wrong.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

KEYS = {
    "instances": ("host",),
    "channels": ("channel_id", "instance_domain"),
    "videos": ("video_id", "instance_domain"),
    "video_embeddings": ("video_id", "instance_domain"),
}
ERROR, HEALTH = ("last_error", "last_error_at", "last_error_source"), ("health_status", "health_error")
AS_TOLD = ("category", "last_checked_at", "error_count", "invalid_reason", "invalid_at")
MADE_LATER = ("id", "popularity", "popularity_as_of", "removed_at")
VECTOR = ("text_digest", "model_name", "embedding_dim", "embedding")
SHOWN = 5

Key = tuple[Any, ...]
Row = dict[str, Any]
Table = dict[Key, Row]
Tables = dict[str, Table]


def opened(path: Path) -> closing[sqlite3.Connection]:
    database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    database.row_factory = sqlite3.Row
    return closing(database)


def tables(path: Path) -> Tables:
    with opened(path) as database:
        return {
            table: {tuple(row[key] for key in keys): dict(row) for row in database.execute(f"SELECT * FROM {table}")}
            for table, keys in KEYS.items()
        }


def whole_lists(staging: Path) -> tuple[set[str], set[Key]]:
    """The hosts whose channels were read to the end, and the channels whose videos were."""
    with opened(staging) as database:
        rows = [tuple(row) for row in database.execute("SELECT what, host, channel_id FROM crawl_progress WHERE whole")]
    return {host for what, host, _ in rows if what == "channels"}, {
        (channel, host) for what, host, channel in rows if what == "videos"
    }


def merge_faults(before: Path, staging: Path, after: Path, as_of: int) -> dict[str, dict[str, list[Any]]]:
    """By table: rows that were lost, that came from nowhere, and values that are not as they must be."""
    old, new = tables(before), tables(staging)
    wanted = expected(old, new, *whole_lists(staging), as_of)
    return {table: differences(wanted[table], found) for table, found in tables(after).items()}


def differences(wanted: Table, found: Table) -> dict[str, list[Any]]:
    wrong = [
        (*key, column, row[column], found[key][column])
        for key, row in sorted(wanted.items())
        if key in found
        for column in row
        if row[column] != found[key][column]
    ]
    lost, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    named = {"lost": lost, "from nowhere": strange, "wrong": wrong}
    return {what: [len(rows), *rows[:SHOWN]] for what, rows in named.items() if rows}


def expected(old: Tables, new: Tables, whole: set[str], read: set[Key], as_of: int) -> Tables:
    seen = {key for key, row in new["channels"].items() if row["seen"]}
    gone_channels = {
        key for key, row in old["channels"].items() if not row["removed_at"] and key[1] in whole and key not in seen
    }
    gone_videos = {
        key
        for key, row in old["videos"].items()
        if not row["removed_at"] and key not in new["videos"] and gone_with(row, whole, read, seen)
    }
    told = {  # a channel that production only remembers is no news of it
        key: row
        for key, row in new["channels"].items()
        if row["seen"] or not (old["channels"].get(key) or {}).get("removed_at")
    }
    videos = merged(old["videos"], new["videos"], gone_videos, as_of)
    living = {key for key, row in videos.items() if row["removed_at"] is None}
    return {
        "instances": merged(old["instances"], new["instances"], set(), as_of, tombs=False),
        "channels": merged(old["channels"], told, gone_channels, as_of),
        "videos": videos,
        "video_embeddings": vectors(old, new["video_embeddings"], living),
    }


def gone_with(video: Row, whole: set[str], read: set[Key], seen: set[Key]) -> bool:
    """Its host told all of its channels, and that channel is none of them, or told all of its videos."""
    channel = (video["channel_id"], video["instance_domain"])
    return channel[0] is not None and channel[1] in whole and (channel in read or channel not in seen)


def merged(old: Table, new: Table, gone: set[Key], as_of: int, *, tombs: bool = True) -> Table:
    result: Table = {}
    for key in old.keys() | new.keys():
        row = refreshed(old.get(key), new.get(key))
        if tombs:
            row["removed_at"] = as_of if key in gone else None if key in new else old[key]["removed_at"]
        result[key] = row
    return result


def refreshed(old: Row | None, new: Row | None) -> Row:
    if new is None:
        return kept(old or {})
    columns = [column for column in new if column not in ("seen", *MADE_LATER)]
    if old is None:
        return {column: new[column] for column in columns}
    row = {column: value_of(column, old, new) for column in columns}
    return {**row, "id": old["id"]} if "id" in old else row


def kept(row: Row) -> Row:
    """What was not gathered stays as it was, its place among the popular ones aside."""
    return {name: value for name, value in row.items() if name not in ("popularity", "popularity_as_of")}


def value_of(column: str, old: Row, new: Row) -> Any:
    if column in AS_TOLD:
        return new[column]
    if column in ERROR and "last_error_at" in new:
        return old[column] if new["last_error_at"] is None else new[column]
    if column in HEALTH:
        return old[column] if new["health_checked_at"] is None else new[column]
    if column == "description":
        return old[column] if is_cut(new[column], old[column]) else new[column]
    return old[column] if new[column] is None else new[column]


def is_cut(text: str | None, whole: str | None) -> bool:
    return bool(text and whole and text.endswith("...") and len(whole) > len(text) and whole.startswith(text[:-3]))


def vectors(old: Tables, new: Table, living: set[Key]) -> Table:
    """A vector for each living video that has one; the time of one that stays the same is that of its making."""
    result: Table = {}
    for key in living:
        before, told = old["video_embeddings"].get(key), new.get(key)
        same = before and told and all(before[name] == told[name] for name in VECTOR)
        chosen = before if same or told is None else told
        if chosen is not None:
            result[key] = {name: value for name, value in chosen.items() if name != "id"}
            if key in old["videos"]:
                result[key]["id"] = old["videos"][key]["id"]
    return result


# ── the rules of the original ─────────────────────────────────────────────────────────────────────────────────────────


def original_faults(before: Path, staging: Path, after: Path) -> dict[str, Any]:
    """INSERT_ONLY: a row that was there stays to the last value. INSERT_OR_REPLACE: it is what was gathered."""
    old, new, found = tables(before), tables(staging), tables(after)
    only = ("instances", "channels", "videos")
    overlap = sorted(old["video_embeddings"].keys() & new["video_embeddings"].keys())
    staged = new["video_embeddings"]
    return {
        **{f"insert_only_changed.{table}": changed(unranked(old[table]), found[table]) for table in only},
        **{f"insert_only_absent.{table}": len(new[table].keys() - found[table].keys()) for table in only},
        "replace_overlap.video_embeddings": len(overlap),
        "replace_mismatch.video_embeddings": changed(staged, found["video_embeddings"]),
    }


def unranked(rows: Table) -> Table:
    return {key: kept(row) for key, row in rows.items()}


def changed(rows: Mapping[Key, Row], found: Mapping[Key, Row]) -> int:
    return sum(
        key not in found or any(found[key][name] != value for name, value in row.items()) for key, row in rows.items()
    )
