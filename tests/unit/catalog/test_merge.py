"""A merge brings production up to date in one transaction, by its rules, row by row; or it changes nothing."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dailies import failpoints
from dailies.catalog import schema
from dailies.catalog.merge import merge
from dailies.catalog.rules import ALWAYS, LONGER, ORIGINAL_RULES, RULES, UNLESS_NULL
from dailies.catalog.staging import staging_digest
from dailies.errors import BadInput, Injected
from tests.unit.catalog import merging
from tests.unit.catalog.merging import NOW
from tests.unit.catalog.rows import (
    HOST,
    T0,
    add,
    changes,
    channel,
    counts,
    database,
    embedding,
    instance,
    rows,
    staging,
    vector,
    video,
    whole,
)

pytestmark = pytest.mark.unit
stage, prod = merging.stage, merging.prod


def table(path: Path, name: str, key: str = "video_id") -> dict[str, dict[str, Any]]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return {row[key]: dict(row) for row in db.execute(f"SELECT * FROM {name}")}


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_new_comes_in_and_what_changed_is_refreshed(stage: Path, prod: Path) -> None:
    add(stage, "videos", video("v003", views=99, title="anew", last_checked_at=NOW), video("w2"), video("w1"))
    add(stage, "video_embeddings", embedding("w1"), embedding("w2"), embedding("v003", text="anew", created_at=NOW))
    before = table(prod, "videos")
    said = merge(stage, prod)
    after = table(prod, "videos")
    assert counts(said, "videos") == (20, 22, 2, 1, 0)
    assert counts(said, "video_embeddings") == (20, 22, 2, 1, 0)
    assert after["v003"] == {**before["v003"], "views": 99, "title": "anew", "last_checked_at": NOW}
    assert {name: row for name, row in after.items() if name in before and name != "v003"} == {
        name: row for name, row in before.items() if name != "v003"
    }
    vectors = table(prod, "video_embeddings")
    assert (vectors["v003"]["id"], vectors["v003"]["embedding"]) == (before["v003"]["id"], vector("anew"))
    assert vectors["w1"]["id"] == after["w1"]["id"] < after["w2"]["id"] == vectors["w2"]["id"]
    assert changes(prod) == {before["v003"]["id"]: "changed", after["w1"]["id"]: "new", after["w2"]["id"]: "new"}
    assert said["embeddings"] == {"new": 2, "changed": 1, "removed": 0}
    assert (said["again"], said["as_of"], said["staging_digest"]) == (False, NOW, staging_digest(stage))


def test_a_row_that_was_only_looked_at_again_is_not_counted_as_changed(stage: Path, prod: Path) -> None:
    add(stage, "videos", video("v001", last_checked_at=NOW), video("v002"))
    add(stage, "video_embeddings", embedding("v001", created_at=NOW))
    said = merge(stage, prod)
    assert counts(said, "videos") == (20, 20, 0, 0, 0)
    assert table(prod, "videos")["v001"]["last_checked_at"] == NOW
    assert counts(said, "video_embeddings") == (20, 20, 0, 0, 0)
    assert table(prod, "video_embeddings")["v001"]["created_at"] == T0
    assert changes(prod) == {}


def test_the_same_staging_again_changes_nothing(stage: Path, prod: Path) -> None:
    add(stage, "videos", video("w1"), video("v003", likes=7))
    add(stage, "video_embeddings", embedding("w1"))
    said = merge(stage, prod)
    before = prod.read_bytes()
    assert merge(stage, prod) == {**said, "again": True}
    assert prod.read_bytes() == before
    add(stage, "videos", video("w2"))
    assert not merge(stage, prod)["again"]


def test_the_same_databases_give_the_same_bytes_whatever_happened_in_between(
    stage: Path, prod: Path, tmp_path: Path
) -> None:
    add(stage, "videos", *(video(f"w{number:02d}") for number in range(50)))
    add(stage, "video_embeddings", *(embedding(f"w{number:02d}") for number in range(50)))
    other = tmp_path / "other.db"
    other.write_bytes(prod.read_bytes())
    merge(stage, prod)
    failpoints.arm("catalog.during_merge=raise", tmp_path / "log")
    try:
        with pytest.raises(Injected):
            merge(stage, other)
    finally:
        failpoints.arm("", tmp_path / "log")
    merge(stage, other)
    assert prod.read_bytes() == other.read_bytes()


def test_a_null_says_something_only_where_the_rules_say_so(stage: Path, prod: Path) -> None:
    known = {"description": "d", "category": "Music", "tags_json": "[1]", "thumbnail_url": "t", "likes": 5}
    errors = {"last_error": "e", "last_error_at": 3, "error_count": 2, "invalid_reason": "gone", "invalid_at": 4}
    add(prod, "videos", video("x", **known, **errors))
    add(stage, "videos", {"video_id": "x", "instance_domain": HOST, "last_checked_at": NOW})
    merge(stage, prod)
    row = table(prod, "videos")["x"]
    assert {name: row[name] for name in known} == {**known, "description": None, "category": None}
    assert {name: row[name] for name in errors} == {
        **errors,
        "error_count": 0,
        "invalid_reason": None,
        "invalid_at": None,
    }
    assert (row["title"], row["channel_id"], row["views"]) == ("title of x", "c1", 10)


@pytest.mark.parametrize(
    ("old", "new", "left"),
    [
        ("a long story", "a long...", "a long story"),
        ("a long story", "another...", "another..."),
        ("a long story", "a long", "a long"),
        ("a lon", "a long...", "a long..."),
        ("a long story", "...", "a long story"),
        (None, "a long...", "a long..."),
        ("a long story", None, None),
    ],
)
def test_a_text_that_a_list_cut_short_does_not_replace_the_whole(
    stage: Path, prod: Path, old: str | None, new: str | None, left: str | None
) -> None:
    add(prod, "videos", video("x", description=old))
    add(stage, "videos", video("x", description=new))
    merge(stage, prod)
    assert table(prod, "videos")["x"]["description"] == left


def test_health_goes_as_a_group(stage: Path, prod: Path) -> None:
    ill = {"health_status": "error", "health_checked_at": 1, "health_error": "timeout", "name": "A", "last_error": "e"}
    add(prod, "instances", instance("b.example", **ill, last_error_at=1), instance("c.example", **ill, last_error_at=1))
    add(stage, "instances", instance("b.example", health_status="ok", health_checked_at=NOW), instance("c.example"))
    said = merge(stage, prod)
    after = table(prod, "instances", "host")
    well = {**ill, "health_status": "ok", "health_checked_at": NOW, "health_error": None}
    assert {name: after["b.example"][name] for name in ill} == well
    assert {name: after["c.example"][name] for name in ill} == ill
    assert counts(said, "instances") == (3, 3, 0, 1, 0)


def test_progress_ends_at_one(stage: Path, prod: Path) -> None:
    heard: list[float] = []
    merge(stage, prod, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    assert sys.float_info.epsilon < heard[0]


# ── against an account of the rules in another language ───────────────────────────────────────────────────────────────


def expected(rule: Any, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    out = dict(old)
    for column, when in rule.columns.items():
        anchor = when.removeprefix("after ") if when.startswith("after ") else None
        cut = (new[column] or "").endswith("...") if when == LONGER else False
        if when == UNLESS_NULL:
            out[column] = old[column] if new[column] is None else new[column]
        elif anchor is not None:
            out[column] = old[column] if new[anchor] is None else new[column]
        elif cut and len(old[column] or "") > len(new[column]) and old[column].startswith(new[column][:-3]):
            pass
        else:
            assert when in (ALWAYS, LONGER)
            out[column] = new[column]
    if rule.revives:
        out["removed_at"] = None
    return out


TEXT = st.sampled_from([None, "a", "a tale", "a...", "b", "é 'q'"])
NUMBER = st.sampled_from([None, 0, 1, 5])
TYPES = {"last_checked_at": st.just(NOW), "error_count": st.sampled_from([0, 1])}
NUMBERS = {"video_numeric_id", "published_at", "duration", "views", "likes", "dislikes", "comments_count", "nsfw"}


@st.composite
def row_of(draw: Callable[..., Any], rule: Any) -> dict[str, Any]:
    return {
        column: draw(TYPES.get(column, NUMBER if column in NUMBERS or column.endswith(("_at", "_count")) else TEXT))
        for column in rule.columns
    }


def pairs(rule: Any) -> Any:
    return st.lists(st.tuples(row_of(rule), row_of(rule), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_every_column_of_every_row_follows_its_rule(data: Any) -> None:
    for rule in RULES.rules[:3]:
        with tempfile.TemporaryDirectory() as folder:
            stage, prod = staging(Path(folder) / "s.db", NOW), database(Path(folder) / "p.db", "production")
            host = instance() if rule.table != "instances" else None
            for path in (stage, prod):
                add(path, "instances", *([host] if host else []))
            place = {"instance_domain": HOST} if host else {}
            cases = {f"k{number}": case for number, case in enumerate(data.draw(pairs(rule)))}
            seen = {"seen": 1} if rule.table == "channels" else {}
            for name, (old, new, dead) in cases.items():
                add(
                    prod,
                    rule.table,
                    {rule.keys[0]: name, **place, **old, **({"removed_at": 9} if dead and rule.revives else {})},
                )
                add(stage, rule.table, {rule.keys[0]: name, **place, **new, **seen})
            before = table(prod, rule.table, rule.keys[0])
            said = merge(stage, prod)
            after = table(prod, rule.table, rule.keys[0])
            wanted = {n: expected(rule, before[n], new) for n, (_, new, _) in cases.items()}
            assert {name: after[name] for name in cases} == wanted
            ignored = {rule.stamp}
            changed = sum(
                {k: v for k, v in before[n].items() if k not in ignored}
                != {k: v for k, v in wanted[n].items() if k not in ignored}
                for n in cases
            )
            assert said["tables"][rule.table]["changed"] == changed


# ── the original's ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_original_only_adds_and_replaces_vectors(stage: Path, prod: Path) -> None:
    add(stage, "instances", instance("n.example", name="N"))
    add(prod, "channels", channel("gone", removed_at=5))
    add(stage, "channels", channel("c1", display_name="other", seen=1), channel("gone", seen=1), channel("c2", seen=1))
    add(stage, "videos", video("v001", views=10**6, title="other"), video("w1"))
    add(stage, "video_embeddings", embedding("v001", text="other"), embedding("v002"), embedding("w1"))
    add(stage, "crawl_progress", *whole(HOST, "c1", "c2"))
    before = {
        name: table(prod, name, key)
        for name, key in (
            ("instances", "host"),
            ("channels", "channel_id"),
            ("videos", "video_id"),
            ("video_embeddings", "video_id"),
        )
    }
    said = merge(stage, prod, "original", max_removed=0)
    for name, key in (("instances", "host"), ("channels", "channel_id"), ("videos", "video_id")):
        after = table(prod, name, key)
        assert {k: row for k, row in after.items() if k in before[name]} == before[name], name
        assert len(after) == len(before[name]) + 1
        assert said["tables"][name]["strategy"] == "INSERT_ONLY"
        assert counts(said, name)[2:] == (1, 0, 0)
    staged, after = table(stage, "video_embeddings"), table(prod, "video_embeddings")
    assert {name: {k: v for k, v in after[name].items() if k != "id"} for name in staged} == staged
    assert {name: after[name]["id"] for name in before["videos"]} == {n: r["id"] for n, r in before["videos"].items()}
    assert said["tables"]["video_embeddings"]["strategy"] == "INSERT_OR_REPLACE"
    assert counts(said, "video_embeddings") == (20, 21, 1, 2, 0)


def test_the_original_rules_are_those_of_its_document() -> None:
    assert [(rule.table, rule.strategy, rule.keys) for rule in ORIGINAL_RULES.rules] == [
        ("instances", "INSERT_ONLY", ("host",)),
        ("channels", "INSERT_ONLY", ("channel_id", "instance_domain")),
        ("videos", "INSERT_ONLY", ("video_id", "instance_domain")),
        ("video_embeddings", "INSERT_OR_REPLACE", ("video_id", "instance_domain")),
    ]


@pytest.mark.parametrize("kind", ["production", "staging"])
def test_the_rules_name_every_column_there_is(kind: schema.Kind, tmp_path: Path) -> None:
    path = database(tmp_path / "x.db", kind)
    ours = {"id", "removed_at", "popularity", "popularity_as_of", "seen"}
    for rule in RULES.rules:
        columns = {name for (name,) in rows(path, f"SELECT name FROM pragma_table_info('{rule.table}')")} - ours
        assert columns == {*rule.keys, *rule.columns}


def test_rules_that_do_not_exist_are_refused(stage: Path, prod: Path) -> None:
    with pytest.raises(BadInput, match="choose ours or original"):
        merge(stage, prod, "theirs")
