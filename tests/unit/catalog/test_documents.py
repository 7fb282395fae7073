"""What PeerTube says becomes a row; what is not what PeerTube says is refused, with its reason, and alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dailies.catalog import documents, schema
from dailies.catalog.documents import Refused, Remote

pytestmark = pytest.mark.unit

HOST, BASE = "video.example.org", "https://video.example.org"
UUID = "9c9de5e8-0a1e-484a-b099-e80766180a6d"
AS_OF = 1_700_000_000_000
OURS = {"channel_id": "7", "channel_name": "woodwork", "channel_url": f"{BASE}/video-channels/woodwork"}

Change = Callable[[dict[str, Any]], Any]


def video_document() -> dict[str, Any]:
    return {
        "id": 42,
        "uuid": UUID,
        "shortUUID": "kkGMgK9ZtnKfYAgnEtQxbv",
        "url": f"{BASE}/videos/watch/{UUID}",
        "name": "A dovetail joint",
        "category": {"id": 13, "label": "Education"},
        "nsfw": False,
        "truncatedDescription": "How to cut…",
        "tags": ["wood", "joint"],
        "isLocal": True,
        "duration": 305,
        "views": 1200,
        "likes": 30,
        "dislikes": 1,
        "comments": 4,
        "publishedAt": "2023-01-05T12:00:00.250Z",
        "thumbnailPath": "/lazy-static/thumbnails/a.jpg",
        "previewPath": "/lazy-static/previews/a.jpg",
        "embedPath": f"/videos/embed/{UUID}",
        "channel": {"id": 7, "name": "woodwork", "host": HOST, "displayName": "Wood", "url": "…"},
        "account": {"id": 3, "name": "ann", "host": HOST, "url": f"{BASE}/accounts/ann"},
    }


def channel_document() -> dict[str, Any]:
    return {
        "id": 7,
        "name": "woodwork",
        "displayName": "Work in wood",
        "url": f"{BASE}/video-channels/woodwork",
        "host": HOST,
        "followersCount": 12,
        "avatars": [{"path": "/lazy-static/avatars/w.png", "width": 48}, {"path": "/big.png", "width": 120}],
        "isLocal": True,
        "ownerAccount": {"name": "ann"},
    }


def video(document: Any) -> documents.Row:
    return documents.video(HOST, BASE, OURS, document, AS_OF)


def channel(document: Any) -> documents.Row:
    return documents.channel(HOST, BASE, document)


def test_a_video_is_a_row_of_the_staging_database() -> None:
    assert video(video_document()) == {
        "video_id": UUID,
        "instance_domain": HOST,
        "video_uuid": UUID,
        "video_numeric_id": 42,
        **OURS,
        "account_name": "ann",
        "account_url": f"{BASE}/accounts/ann",
        "title": "A dovetail joint",
        "description": "How to cut…",
        "tags_json": '["wood","joint"]',
        "category": "Education",
        "published_at": 1_672_920_000_250,
        "video_url": f"{BASE}/videos/watch/{UUID}",
        "duration": 305,
        "thumbnail_url": f"{BASE}/lazy-static/thumbnails/a.jpg",
        "embed_path": f"/videos/embed/{UUID}",
        "preview_path": "/lazy-static/previews/a.jpg",
        "views": 1200,
        "likes": 30,
        "dislikes": 1,
        "comments_count": 4,
        "nsfw": 0,
        "last_checked_at": AS_OF,
    }


def test_a_channel_is_a_row_of_the_staging_database() -> None:
    assert channel(channel_document()) == {
        "channel_id": "7",
        "instance_domain": HOST,
        "channel_name": "woodwork",
        "channel_url": f"{BASE}/video-channels/woodwork",
        "display_name": "Work in wood",
        "followers_count": 12,
        "avatar_url": f"{BASE}/lazy-static/avatars/w.png",
    }


def test_an_instance_is_a_row_of_the_staging_database() -> None:
    document = {"instance": {"name": "Tube"}, "serverVersion": "7.2.1"}
    assert documents.instance(HOST, document) == {"host": HOST, "name": "Tube", "version": "7.2.1"}
    for wrong in (None, [], {}, {"instance": 3}, {"instance": {"name": 3}}, {"instance": {}, "serverVersion": []}):
        with pytest.raises(Refused):
            documents.instance(HOST, wrong)


def test_what_is_left_out_is_unknown_and_not_zero() -> None:
    row = video({"id": 42, "name": "Bare"})
    assert row["video_id"] == "42"
    assert row["video_url"] == f"{BASE}/videos/watch/42"
    unknown = set(row) - {
        "video_id",
        "video_numeric_id",
        "instance_domain",
        "title",
        "video_url",
        "last_checked_at",
        *OURS,
    }
    assert {name: row[name] for name in unknown if row[name] is not None} == {}
    assert video({"shortUUID": "kkGM", "name": "Short"})["video_id"] == "kkGM"
    assert video({"uuid": UUID.upper(), "id": 1, "name": "Long"})["video_id"] == UUID


def test_older_and_newer_spellings() -> None:
    document = channel_document()
    del document["avatars"]
    document["avatar"] = {"path": "/old.png"}
    assert channel(document)["avatar_url"] == f"{BASE}/old.png"
    assert channel({**channel_document(), "avatars": []})["avatar_url"] is None
    assert channel({**channel_document(), "avatars": [{"fileUrl": "https://cdn.example.org/a.png"}]})["avatar_url"] == (
        "https://cdn.example.org/a.png"
    )
    assert video({**video_document(), "category": {"id": None, "label": "Inconnu"}})["category"] is None
    assert video({**video_document(), "description": "All of it"})["description"] == "All of it"
    assert video({**video_document(), "views": 12.0})["views"] == 12


@pytest.mark.parametrize(
    ("moment", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2024-02-29T23:59:59.999+01:00", 1_709_247_599_999),
        ("2023-01-05T12:00:00", 1_672_920_000_000),
        ("2023-01-05", 1_672_876_800_000),
    ],
)
def test_moments(moment: str, ms: int) -> None:
    assert video({**video_document(), "publishedAt": moment})["published_at"] == ms


@pytest.mark.parametrize(
    "change",
    [
        {"channel": {"name": "woodwork", "host": "other.example.org"}},
        {"account": {"name": "ann", "host": "other.example.org"}},
        {"isLocal": False},
        {"channel": {"name": "woodwork", "isLocal": False}},
        {"channel": {"name": "woodwork", "host": "video.example.org:8080"}},
    ],
)
def test_a_video_of_another_host_is_no_row(change: dict[str, Any]) -> None:
    with pytest.raises(Remote):
        video({**video_document(), **change})


def test_a_channel_of_another_host_is_no_row() -> None:
    for change in ({"host": "other.example.org"}, {"isLocal": False}, {"host": "other.example.org", "isLocal": True}):
        with pytest.raises(Remote):
            channel({**channel_document(), **change})
    assert channel({**channel_document(), "host": "VIDEO.example.org."})["channel_id"] == "7"


BROKEN_VIDEOS: list[tuple[str, Change]] = [
    ("has no id", lambda d: [d.pop(name) for name in ("id", "uuid", "shortUUID")]),
    ("id is no number", lambda d: d.update(id="42")),
    ("id is no number", lambda d: d.update(id=True)),
    ("id is negative", lambda d: d.update(id=-1)),
    ("uuid is malformed", lambda d: d.update(uuid="9c9de5e8")),
    ("uuid is no text", lambda d: d.update(uuid=["a"])),
    ("shortUUID is malformed", lambda d: d.update(shortUUID="../../etc")),
    ("name is missing", lambda d: d.pop("name")),
    ("name is missing", lambda d: d.update(name="  ")),
    ("name is no text", lambda d: d.update(name={"en": "A"})),
    ("name is longer than", lambda d: d.update(name="x" * 1001)),
    ("name holds what is no character", lambda d: d.update(name="a\0b")),
    ("name holds what is no character", lambda d: d.update(name="half \ud83d")),
    ("description is longer than", lambda d: d.update(description="x" * 50_001)),
    ("truncatedDescription is no text", lambda d: d.update(truncatedDescription=7)),
    ("views is negative", lambda d: d.update(views=-5)),
    ("views is no number", lambda d: d.update(views="many")),
    ("views is no number", lambda d: d.update(views=2**60)),
    ("views is no number", lambda d: d.update(views=float("nan"))),
    ("likes is no whole number", lambda d: d.update(likes=1.5)),
    ("duration is negative", lambda d: d.update(duration=-1)),
    ("comments is no number", lambda d: d.update(comments=[])),
    ("nsfw is neither", lambda d: d.update(nsfw=1)),
    ("isLocal is neither", lambda d: d.update(isLocal="yes")),
    ("publishedAt is no moment", lambda d: d.update(publishedAt="2023-02-30T00:00:00Z")),
    ("publishedAt is no moment", lambda d: d.update(publishedAt="yesterday")),
    ("publishedAt is no moment that can be", lambda d: d.update(publishedAt="9999-12-31T00:00:00Z")),
    ("publishedAt is no moment", lambda d: d.update(publishedAt="0001-01-01T00:00:00+14:00")),
    ("publishedAt is no text", lambda d: d.update(publishedAt=1_672_920_000)),
    ("tags are no list", lambda d: d.update(tags="wood")),
    ("tags are no list", lambda d: d.update(tags=["x"] * 101)),
    ("a tag is no text", lambda d: d.update(tags=["wood", 3])),
    ("a tag is longer", lambda d: d.update(tags=["x" * 201])),
    ("category is no object", lambda d: d.update(category=[1])),
    ("label is no text", lambda d: d.update(category={"id": 1, "label": 2})),
    ("url is no address", lambda d: d.update(url="javascript:alert(1)")),
    ("thumbnailPath is no address", lambda d: d.update(thumbnailPath="//evil.example/x.jpg")),
    ("embedPath is no path", lambda d: d.update(embedPath="https://evil.example/")),
    ("channel is no object", lambda d: d.update(channel="woodwork")),
    ("account is no object", lambda d: d.update(account=3)),
    ("host is no text", lambda d: d.update(channel={"name": "woodwork", "host": 3})),
    ("host is no name", lambda d: d.update(channel={"name": "woodwork", "host": "http://x"})),
    ("not its own", lambda d: d.update(channel={"id": 8, "name": "metalwork", "host": HOST})),
    ("not its own", lambda d: d.update(channel={"id": 8, "host": HOST})),
]


@pytest.mark.parametrize(("reason", "change"), BROKEN_VIDEOS)
def test_a_malformed_video_is_refused_with_its_reason(reason: str, change: Change) -> None:
    document = video_document()
    change(document)
    with pytest.raises(Refused, match=reason) as told:
        video(document)
    assert told.value.name == documents.key(document)


@pytest.mark.parametrize("document", [None, 3, "text", [], [1], True])
def test_what_is_no_object_is_refused(document: Any) -> None:
    for take in (video, channel):
        with pytest.raises(Refused, match="is no object"):
            take(document)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("has no id", {"id": None}),
        ("id is no number", {"id": "7"}),
        ("no name of a channel", {"name": None}),
        ("no name of a channel", {"name": ""}),
        ("no name of a channel", {"name": "../accounts"}),
        ("no name of a channel", {"name": "a b"}),
        ("followersCount is negative", {"followersCount": -1}),
        ("avatars are no list", {"avatars": {"path": "/a"}}),
        ("an avatar is no object", {"avatars": ["a.png"]}),
        ("displayName is longer", {"displayName": "x" * 1001}),
        ("host is no name", {"host": "https://video.example.org"}),
    ],
)
def test_a_malformed_channel_is_refused_with_its_reason(reason: str, change: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=reason):
        channel({**channel_document(), **change})


def test_pages() -> None:
    assert documents.page({"total": 3, "data": [1, 2]}) == ([1, 2], 3)
    assert documents.page({"data": []}) == ([], None)
    for total in (-1, "3", True, 2**60, None, 1.5):
        assert documents.page({"total": total, "data": []}) == ([], None)
    for wrong in (None, [], {}, {"data": {}}, {"data": None}, {"data": [0] * 1001}):
        with pytest.raises(Refused):
            documents.page(wrong)


def test_a_key_is_the_rows_id_and_every_document_has_one() -> None:
    assert documents.key({**video_document(), "uuid": UUID.upper()}) == UUID
    assert documents.key({"id": 42}) == "42"
    assert documents.key(channel_document(), ("id",)) == "7"
    odd = [None, 3, [], {"id": True}, {"id": "a b"}, {"uuid": "\ud800"}, {"id": [1]}]
    keys = [documents.key(item) for item in odd]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("?") for key in keys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(video_document())), JSON)
def test_whatever_stands_in_a_field_the_video_is_a_row_remote_or_refused(name: str, value: Any) -> None:
    document = {**video_document(), name: value}
    try:
        row = video(document)
    except (Refused, Remote):
        return
    assert row["video_id"] == documents.key(document)
    insert("videos", row)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(channel_document())), JSON)
def test_whatever_stands_in_a_field_the_channel_is_a_row_remote_or_refused(name: str, value: Any) -> None:
    document = {**channel_document(), name: value}
    try:
        row = channel(document)
    except (Refused, Remote):
        return
    assert row["channel_id"] == documents.key(document, ("id",))
    insert("channels", row)


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_no_document_at_all_gets_past_its_refusal(document: Any) -> None:
    for take in (video, channel, lambda found: documents.instance(HOST, found)):
        with pytest.raises((Refused, Remote)):
            take(document)
    documents.key(document)


STRICT = sqlite3.connect(":memory:")
STRICT.executescript((Path(schema.__file__).with_name("staging.sql")).read_text())


def insert(table: str, row: documents.Row) -> None:
    """The table is STRICT: what is of the wrong kind would not go in."""
    with closing(STRICT.cursor()) as cursor:
        marks = ", ".join("?" * len(row))
        cursor.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
    json.dumps(row, ensure_ascii=False).encode()
