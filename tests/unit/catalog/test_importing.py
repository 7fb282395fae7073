"""A small production is copied out of a real one, which stays as it is to the byte; and what is none is refused."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dailies.catalog.importing import apart, import_production, inside
from dailies.catalog.merge import merge
from dailies.catalog.schema import connect
from dailies.errors import BadInput, Missing
from tests.unit.catalog.original import SCHEMA
from tests.unit.catalog.rows import DAY, T0, add, channel, embedding, instance, production, rows, staging, video

pytestmark = pytest.mark.unit


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Three hosts; b published last, then c. Of each video the number says how old it is, in days."""
    path = production(tmp_path / "source" / "catalog.db")
    for number, (host, ages) in enumerate({"b.example": (1, 2, 9), "c.example": (3, 4), "d.example": (50,)}.items()):
        add(path, "instances", instance(host, name=f"Tube {host}"))
        add(path, "channels", channel("c1", host), channel("c2", host))
        for age in ages:
            name, at = f"v{age}", T0 - age * DAY
            own = "c2" if age == 9 else "c1"
            add(path, "videos", video(name, host, own, id=100 * number + age, published_at=at, popularity=5.0))
            add(path, "video_embeddings", embedding(name, host, id=100 * number + age))
    return path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "theirs" / "whitelist.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO instances VALUES ('a.example', 'ok', 5, NULL)")
        db.execute("INSERT INTO channels VALUES ('7', 'c', 'u', 'd', 'a.example', 3, '12', NULL)")
        for name, at, views in (("old", 1000, 5), ("new", 3000, "many"), ("middle", 2000, 7.0)):
            db.execute(
                "INSERT INTO videos VALUES (?, ?, 'a.example', '7', ?, ?, ?, 1, ?, NULL, NULL, NULL, 3.5)",
                (name, name, f"title {name}", at, views, True),
            )
        db.execute("INSERT INTO video_embeddings VALUES ('old', 'a.example', x'00000000', 1, 'MiniLM', 1)")
    return path


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[dict[Path, bytes]]:
    """Fails a test that wrote to a source, or left anything beside it."""
    seen: dict[Path, bytes] = {}
    yield seen
    for folder, before in seen.items():
        assert state(folder) == before


def state(folder: Path) -> bytes:
    parts = [path.name.encode() + path.read_bytes() for path in sorted(folder.iterdir())]
    return hashlib.sha256(b"\0".join(parts)).digest()


def names(path: Path, table: str = "videos") -> list[str]:
    return [row[0] for row in rows(path, f"SELECT video_id || '@' || instance_domain FROM {table} ORDER BY id")]


# ── what is copied ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_newest_videos_of_the_newest_channels_of_the_newest_hosts_are_copied(ours, tmp_path, untouched):
    untouched[ours.parent] = state(ours.parent)
    out = tmp_path / "copy.db"
    counts = import_production(ours, out, hosts_limit=2, channels_limit=2, videos_limit=3)
    assert counts == {"instances": 2, "channels": 2, "videos": 3, "video_embeddings": 3}
    assert rows(out, "SELECT host, name FROM instances") == [
        ("b.example", "Tube b.example"),
        ("c.example", "Tube c.example"),
    ]
    assert sorted(rows(out, "SELECT instance_domain, channel_id FROM channels")) == [
        ("b.example", "c1"),
        ("c.example", "c1"),
    ]
    assert names(out) == ["v1@b.example", "v2@b.example", "v3@c.example"]


def test_ids_and_vectors_come_along_and_what_an_update_makes_does_not(ours, tmp_path):
    out = tmp_path / "copy.db"
    import_production(ours, out, hosts=["c.example"])
    assert rows(out, "SELECT id, popularity, popularity_as_of, removed_at FROM videos ORDER BY id") == [
        (103, 0.0, None, None),
        (104, 0.0, None, None),
    ]
    asked = "SELECT * FROM video_embeddings WHERE instance_domain = 'c.example' ORDER BY id"
    assert rows(out, asked) == rows(ours, asked)


def test_zero_is_no_limit_and_tombstones_stay_behind(ours, tmp_path):
    add(ours, "videos", video("gone", "b.example", id=9000, published_at=T0, removed_at=T0))
    counts = import_production(ours, tmp_path / "copy.db", hosts_limit=0, channels_limit=0, videos_limit=0)
    assert counts == {"instances": 4, "channels": 7, "videos": 6, "video_embeddings": 6}


def test_the_originals_schema_is_read_and_what_does_not_fit_is_not_known(original, tmp_path, untouched):
    untouched[original.parent] = state(original.parent)
    out = tmp_path / "copy.db"
    assert import_production(original, out) == {"instances": 1, "channels": 1, "videos": 3, "video_embeddings": 0}
    assert rows(out, "SELECT id, video_id, views, nsfw, last_checked_at, error_count FROM videos ORDER BY id") == [
        (1, "old", 5, 1, 0, 0),
        (2, "middle", 7, 1, 0, 0),
        (3, "new", None, 1, 0, 0),
    ]
    assert rows(out, "SELECT followers_count, videos_count FROM channels") == [(12, 3)]
    with closing(connect(out, "production")) as database:
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []


def test_what_was_copied_takes_a_merge(original, tmp_path):
    out = tmp_path / "copy.db"
    import_production(original, out)
    gathered = staging(tmp_path / "staging.db")
    add(gathered, "instances", instance("a.example"))
    add(gathered, "videos", video("new", "a.example", "7", views=70), video("newest", "a.example", "7"))
    assert merge(gathered, out)["tables"]["videos"]["inserted"] == 1
    assert rows(out, "SELECT id, views FROM videos WHERE video_id = 'new'") == [(3, 70)]


def test_a_source_that_somebody_writes_to_is_read_with_its_log_and_one_at_rest_gets_no_side_files(ours, tmp_path):
    with closing(sqlite3.connect(ours, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("UPDATE videos SET title = 'just now' WHERE id = 1")
        import_production(ours, tmp_path / "busy.db")
        assert rows(tmp_path / "busy.db", "SELECT title FROM videos WHERE id = 1") == [("just now",)]
    before = state(ours.parent)
    assert not list(ours.parent.glob("*-wal"))
    import_production(ours, tmp_path / "rest.db")
    assert state(ours.parent) == before
    assert rows(tmp_path / "rest.db", "SELECT title FROM videos WHERE id = 1") == [("just now",)]


def test_the_same_source_gives_the_same_bytes(ours, tmp_path):
    copies = [tmp_path / "one.db", tmp_path / "two.db"]
    for path in copies:
        import_production(ours, path)
    assert copies[0].read_bytes() == copies[1].read_bytes()


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def no_database(path: Path) -> None:
    path.write_text("a list of hosts")


def another_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE recipes (name TEXT)")


def without_keys(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("CREATE TABLE instances (host); CREATE TABLE channels (name); CREATE TABLE videos (title)")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_database, "is no SQLite database, or a damaged one"),
        (another_database, "it lacks channels, instances, videos"),
        (without_keys, "it lacks channels, videos"),
    ],
)
def test_a_file_that_is_no_production_is_refused_in_one_line(make, said, tmp_path):
    source, out = tmp_path / "source.db", tmp_path / "copy.db"
    make(source)
    with pytest.raises(BadInput, match=said) as refused:
        import_production(source, out)
    assert "\n" not in str(refused.value)
    assert not out.exists()


@pytest.mark.parametrize("limits", [{"hosts_limit": -1}, {"channels_limit": -2}, {"videos_limit": -1}])
def test_a_limit_below_zero_is_refused(limits: dict[str, Any], ours, tmp_path):
    with pytest.raises(BadInput, match="0 for all, or more"):
        import_production(ours, tmp_path / "copy.db", **limits)


def test_no_source_is_missing_and_a_target_that_is_there_stays(ours, tmp_path):
    with pytest.raises(Missing, match="no database at"):
        import_production(tmp_path / "none.db", tmp_path / "copy.db")
    (tmp_path / "copy.db").write_bytes(b"mine")
    with pytest.raises(BadInput, match="is there already"):
        import_production(ours, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_bytes() == b"mine"


# ── where may be written ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_trial_writes_in_its_folder_alone(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    assert inside(place / "a" / "b.db", place) == place / "a" / "b.db"
    (place / "way-out").symlink_to(tmp_path)
    for path in (
        tmp_path / "b.db",
        place / ".." / "b.db",
        place / "way-out" / "b.db",
        place,
        tmp_path / "places" / "b",
    ):
        with pytest.raises(BadInput, match="is not inside"):
            inside(path, place)


def test_the_source_and_the_place_of_a_trial_lie_apart(tmp_path):
    place, source = tmp_path / "home" / "run", tmp_path / "real" / "catalog.db"
    assert apart(source, place) == source
    with pytest.raises(BadInput, match="lies inside"):
        apart(place / "deep" / "catalog.db", place)
    with pytest.raises(BadInput, match="lies inside the folder of"):
        apart(source, source.parent / "runs" / "1")
