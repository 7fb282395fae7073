"""A staging is begun on one generation, taken up again only there, and known by what it holds."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from pathlib import Path

import pytest

from dailies.catalog import staging as module
from dailies.catalog.staging import begin_staging, staging_digest
from dailies.errors import BadInput, Missing
from tests.unit.catalog.rows import T0, add, channel, database, dump, embedding, instance, rows, staging, video, whole

pytestmark = pytest.mark.unit
HOSTS = ["b.example", "a.example"]


@pytest.fixture
def prod(tmp_path: Path) -> Path:
    path = database(tmp_path / "gen-000007" / "catalog.db", "production")
    add(path, "instances", instance("a.example", name="A"), instance("c.example"))
    add(path, "channels", channel("c1", followers_count=3), channel("gone", removed_at=5), channel("x", "c.example"))
    return path


def state(path: Path) -> dict[str, str]:
    return dict(rows(path, "SELECT key, value FROM crawl_state"))


def test_a_fresh_one_knows_the_whitelist_and_the_living_channels_of_its_hosts(tmp_path: Path, prod: Path) -> None:
    said = begin_staging(tmp_path / "staging.db", prod, HOSTS, T0, resume=True)
    assert (said["resumed"], said["why"]) == (False, "there was none to go on with")
    assert (said["hosts"], said["channels"], said["seeded_from"], said["as_of"]) == (2, 1, "gen-000007", T0)
    assert rows(tmp_path / "staging.db", "SELECT host, name FROM instances") == [
        ("a.example", None),
        ("b.example", None),
    ]
    seeded = rows(tmp_path / "staging.db", "SELECT channel_id, followers_count, seen FROM channels")
    assert seeded == [("c1", 3, 0)]
    assert state(tmp_path / "staging.db") == {
        "as_of": str(T0),
        "seeded_from": "gen-000007",
        "whitelist": '["b.example","a.example"]',
    }
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["staging.db"]


def test_it_goes_on_with_its_own_moment(tmp_path: Path, prod: Path) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    add(path, "videos", video("v1"))
    said = begin_staging(path, prod, HOSTS, T0 + 99, resume=True)
    assert (said["resumed"], said["as_of"], said["videos"]) == (True, T0, 1)


def test_it_is_begun_anew_when_that_is_asked_for(tmp_path: Path, prod: Path) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    add(path, "videos", video("v1"))
    said = begin_staging(path, prod, HOSTS, T0 + 99, resume=False)
    assert (said["resumed"], said["as_of"], said["videos"]) == (False, T0 + 99, 0)


def test_on_another_generation_it_is_begun_anew(tmp_path: Path, prod: Path) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, None, HOSTS, T0, resume=False)
    said = begin_staging(path, prod, HOSTS, T0, resume=True)
    assert (said["resumed"], said["why"]) == (False, "the one there was begun on no generation")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("PRAGMA user_version = 0", "schema version 0"),
        ("DELETE FROM crawl_state", "for which moment"),
    ],
)
def test_one_that_cannot_be_used_is_begun_anew(tmp_path: Path, prod: Path, spoil: str, why: str) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    db = sqlite3.connect(path)
    db.execute(spoil)
    db.commit()
    db.close()
    said = begin_staging(path, prod, HOSTS, T0 + 1, resume=True)
    assert not said["resumed"]
    assert why in said["why"]
    assert said["as_of"] == T0 + 1


@pytest.mark.parametrize("sound", [1, -1], ids=["all but the head", "the last page"])
def test_a_damaged_one_is_begun_anew(tmp_path: Path, prod: Path, sound: int) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    add(path, "videos", *(video(f"v{number}") for number in range(200)))
    whole_file = path.read_bytes()
    kept = whole_file[: 4096 * sound]
    path.write_bytes(kept + b"\xff" * (len(whole_file) - len(kept)))
    said = begin_staging(path, prod, HOSTS, T0, resume=True)
    assert not said["resumed"]
    assert (said["hosts"], said["videos"]) == (2, 0)


def test_the_journal_of_a_killed_writer_is_not_rolled_back_into_the_new_one(tmp_path: Path, prod: Path) -> None:
    path, other = tmp_path / "staging.db", tmp_path / "other.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    add(path, "videos", *(video(f"v{number}") for number in range(500)))
    if os.fork() == 0:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA cache_size = 2")
        db.execute("BEGIN")
        db.execute("UPDATE videos SET title = title || 'x'")
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
    assert (tmp_path / "staging.db-journal").stat().st_size > 0
    (tmp_path / ".staging.db.new").write_bytes(b"half")
    begin_staging(path, prod, HOSTS, T0, resume=False)
    begin_staging(other, prod, HOSTS, T0, resume=False)
    assert path.read_bytes() == other.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_file()) == ["other.db", "staging.db"]


def test_the_whitelist_is_followed_when_it_goes_on(tmp_path: Path, prod: Path) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    for host in HOSTS:
        add(path, "videos", video("v1", host))
        add(path, "video_embeddings", embedding("v1", host))
        add(path, "crawl_progress", *whole(host, "c1"))
        add(path, "refused", {"host": host, "what": "video", "name": "v9", "reason": "no title"})
    said = begin_staging(path, prod, ["c.example", "b.example"], T0, resume=True)
    assert (said["resumed"], said["hosts_added"], said["hosts_dropped"]) == (True, 1, 1)
    left = dump(path)
    assert [row[0] for row in left["instances"]] == ["b.example", "c.example"]
    assert [row[:2] for row in left["channels"]] == [("x", "c.example")]
    assert {row[1] for row in left["videos"]} == {row[1] for row in left["video_embeddings"]} == {"b.example"}
    assert {row[0] for row in left["crawl_progress"]} == {row[0] for row in left["refused"]} == {"b.example"}
    assert state(path)["whitelist"] == '["b.example","c.example"]'


@pytest.mark.parametrize("contents", [b"a letter to my mother", b"SQLite format 3\0" + bytes(500)])
def test_a_file_that_no_update_made_is_not_written_over(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "staging.db"
    path.write_bytes(contents)
    with pytest.raises(BadInput, match=r"is no staging database, and is not written over"):
        begin_staging(path, None, HOSTS, T0, resume=False)
    assert path.read_bytes() == contents


def test_without_production_the_old_staging_stays(tmp_path: Path, prod: Path) -> None:
    path = tmp_path / "staging.db"
    begin_staging(path, prod, HOSTS, T0, resume=False)
    before = path.read_bytes()
    with pytest.raises(Missing, match="no production database at"):
        begin_staging(path, tmp_path / "gen-000008" / "catalog.db", HOSTS, T0, resume=False)
    assert path.read_bytes() == before


def fill(path: Path, seed: int) -> None:
    """The same contents in another order on other pages."""
    shuffled = random.Random(seed)
    names = [f"v{number}" for number in range(200)]
    for make, table in ((video, "videos"), (embedding, "video_embeddings")):
        shuffled.shuffle(names)
        add(path, table, *(make(name) for name in names))


def test_the_digest_is_of_the_contents_alone(tmp_path: Path) -> None:
    one, other = staging(tmp_path / "one.db"), staging(tmp_path / "other.db")
    fill(one, 1)
    fill(other, 2)
    add(other, "crawl_state", {"key": "seeded_from", "value": "gen-000009"})
    add(other, "refused", {"host": "a", "what": "video", "name": "v9", "reason": "no title"})
    add(other, "crawl_progress", {"host": "a", "what": "videos", "status": "error", "next_start": 50})
    assert one.read_bytes() != other.read_bytes()
    assert staging_digest(one) == staging_digest(other)


CHANGES = [
    "UPDATE videos SET views = views + 1 WHERE video_id = 'v7'",
    "UPDATE videos SET title = 'other' WHERE video_id = 'v7'",
    "UPDATE videos SET description = 'a' || char(0) || 'b' WHERE video_id = 'v7'",
    "DELETE FROM videos WHERE video_id = 'v7'",
    "UPDATE video_embeddings SET embedding = zeroblob(16) WHERE video_id = 'v7'",
    "UPDATE video_embeddings SET text_digest = 'x' WHERE video_id = 'v7'",
    "UPDATE crawl_state SET value = '1' WHERE key = 'as_of'",
    "INSERT INTO instances (host) VALUES ('z')",
    "INSERT INTO channels (channel_id, instance_domain, seen) VALUES ('c', 'z', 1)",
    "INSERT INTO crawl_progress (host, what, status, whole) VALUES ('a', 'channels', 'done', 1)",
]


def test_each_content_that_a_merge_reads_changes_the_digest(tmp_path: Path) -> None:
    path = staging(tmp_path / "one.db")
    fill(path, 1)
    seen = [staging_digest(path)]
    for change in CHANGES:
        db = sqlite3.connect(path)
        db.execute(change)
        db.commit()
        db.close()
        seen.append(staging_digest(path))
    assert len(set(seen)) == len(CHANGES) + 1
    db = sqlite3.connect(path)  # what follows a NUL counts too
    db.execute("UPDATE videos SET description = 'a' || char(0) || 'c' WHERE video_id = 'v1'")
    db.commit()
    first = staging_digest(path)
    db.execute("UPDATE videos SET description = 'a' || char(0) || 'd' WHERE video_id = 'v1'")
    db.commit()
    db.close()
    assert staging_digest(path) != first


def test_every_table_with_a_host_is_known_to_the_staging() -> None:
    assert set(module.OF_A_HOST) | {"crawl_state"} == {
        line.split()[2]
        for line in Path(module.__file__).with_name("staging.sql").read_text().splitlines()
        if line.startswith("CREATE TABLE")
    }
