"""Generations are made apart, finished once, published under a fence, held by their readers, and swept when old."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dailies.canonical import file_digest
from dailies.catalog import generation
from dailies.catalog.generation import clone, complete, copy, copy_ahead, fence_of, name_of, prepare, publish, sweep
from dailies.catalog.merge import merge
from dailies.catalog.reader import FILES, Catalog
from dailies.errors import BadInput, Conflict, Damaged, Fenced, Missing
from dailies.ledger.sqlite import SqliteLedger
from tests.unit.catalog import generations
from tests.unit.catalog.generations import (
    ABOUT,
    RESOURCE,
    SPOILT,
    Clock,
    built,
    fill,
    held_open,
    lease_of,
    names,
    published,
)
from tests.unit.catalog.rows import DIM, T0, add, rows, staging, video

pytestmark = pytest.mark.unit
quick, clock, ledger, prod = generations.quick, generations.clock, generations.ledger, generations.prod


# ── making one ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_is_empty_and_the_next_begins_as_a_copy(prod: Path, tmp_path: Path) -> None:
    first = prepare(prod, "gen-000001", None)
    assert first == prod / "gen-000001"
    assert rows(first / "catalog.db", "SELECT count(*) FROM videos") == [(0,)]
    fill(first)
    complete(first, ABOUT)
    second = prepare(prod, "gen-000002", "gen-000001")
    assert (second / "catalog.db").read_bytes() == (first / "catalog.db").read_bytes()
    stage = staging(tmp_path / "staging.db")
    add(stage, "videos", video("w1"))
    merge(stage, second / "catalog.db")  # the original is read-only, its copy is not
    assert rows(first / "catalog.db", "SELECT count(*) FROM videos") == [(3,)]


def test_called_again_it_begins_again(prod: Path) -> None:
    folder = prepare(prod, "gen-000001", None)
    fill(folder)
    (folder / ".catalog.db.tmp").write_bytes(b"half")
    prepare(prod, "gen-000001", None)
    assert names(folder) == ["catalog.db"]
    assert rows(folder / "catalog.db", "SELECT count(*) FROM videos") == [(0,)]


def test_what_is_taken_over_is_not_rolled_back_by_the_journal_of_a_merge_that_was_killed_there(prod: Path) -> None:
    first = prepare(prod, "gen-000001", None) / "catalog.db"
    fill(first.parent)
    killed = prepare(prod, "gen-000002", None) / "catalog.db"
    killed.with_name("catalog.db-journal").write_bytes(b"of another file")
    clone(first, killed, file_digest(first))
    assert names(killed.parent) == ["catalog.db"]


def test_what_was_copied_ahead_is_taken_and_what_was_half_copied_is_not(
    prod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (built(prod, "gen-000001") / "catalog.db").read_bytes()
    copy_ahead(prod, "gen-000002", "gen-000001")
    assert names(prod / "gen-000002") == [".gen-000001.catalog.db"]
    with monkeypatch.context() as patch:
        patch.setattr(generation, "copy", lambda old, new: pytest.fail("it is there already"))
        folder = prepare(prod, "gen-000002", "gen-000001")
    assert (names(folder), (folder / "catalog.db").read_bytes()) == (["catalog.db"], whole)
    half = prod / "gen-000003" / "..gen-000001.catalog.db.tmp"
    half.parent.mkdir()
    half.write_bytes(whole[:4096])
    folder = prepare(prod, "gen-000003", "gen-000001")
    assert (names(folder), (folder / "catalog.db").read_bytes()) == (["catalog.db"], whole)


def test_a_complete_one_is_not_touched_any_more(prod: Path) -> None:
    folder = built(prod, "gen-000001")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Conflict, match="is complete, and nothing is written to it any more"):
        prepare(prod, "gen-000001", None)
    with pytest.raises(BadInput, match="is read-only"):
        merge(staging(prod / "staging.db"), folder / "catalog.db")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}


@pytest.mark.parametrize("name", ["gen-12", "gen-0000012", "gen-00001x", "../gen-000012", "gen-000012/..", ""])
def test_a_name_is_a_name(prod: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is no name of a generation"):
        prepare(prod, name, None)
    assert not prod.exists()


def test_fences_and_names() -> None:
    assert [name_of(12), name_of(1234567)] == ["gen-000012", "gen-1234567"]
    assert [fence_of("gen-000012"), fence_of("gen-1234567")] == [12, 1234567]


def test_a_previous_one_that_is_gone_is_said(prod: Path) -> None:
    with pytest.raises(Missing, match=r"no production database at .*gen-000001"):
        prepare(prod, "gen-000002", "gen-000001")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "prod").write_text("a file")
    with pytest.raises(BadInput, match="gen-000001 cannot be written"):
        prepare(tmp_path / "prod", "gen-000001", None)


@pytest.mark.parametrize("way", ["shared", "kernel", "plain"])
def test_every_way_of_copying_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(3_000_001))

    def not_here(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "not here")

    def shares(new: int, _: int, old: int) -> int:
        return os.pwrite(new, os.pread(old, 1 << 30, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", shares if way == "shared" else not_here)
    if way == "plain":
        monkeypatch.setattr(os, "copy_file_range", not_here)
    assert copy(source, target) == way
    assert target.read_bytes() == source.read_bytes()
    assert names(tmp_path) == ["a", "b"]


def test_a_full_disk_while_copying_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(tmp_path, "gen-000001")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "ioctl", full)
    with pytest.raises(BadInput, match=r"No space left on device\): free some space"):
        prepare(tmp_path, "gen-000002", folder.name)
    assert names(tmp_path / "gen-000002") == []


def test_a_finished_file_is_taken_over_if_it_is_the_recorded_one(tmp_path: Path) -> None:
    source, target = tmp_path / "one" / "index.faiss", tmp_path / "two" / "index.faiss"
    source.parent.mkdir()
    target.parent.mkdir()
    source.write_bytes(b"vectors")
    source.chmod(0o444)
    recorded = file_digest(source)
    assert clone(source, target, recorded) == target
    assert target.read_bytes() == b"vectors"
    assert target.stat().st_mode & 0o200
    source.chmod(0o644)
    source.write_bytes(b"Vectors")
    with pytest.raises(Damaged, match="is not what was recorded of it"):
        clone(source, target, recorded)
    assert target.read_bytes() == b"vectors"
    with pytest.raises(Damaged, match="is gone"):
        clone(tmp_path / "none", target, recorded)
    assert names(target.parent) == ["index.faiss"]


# ── finishing one ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_meta_tells_what_it_is_and_not_where(prod: Path) -> None:
    one, other = built(prod, "gen-000001"), prepare(prod, "gen-000002", None)
    fill(other)
    with closing(sqlite3.connect(other / "catalog.db")) as db, db:
        db.execute("UPDATE videos SET title = 'gen-000001'")
    shutil.copy(one / "catalog.db", other / "catalog.db")
    said = complete(other, ABOUT)
    meta = json.loads((one / "meta.json").read_bytes())
    assert {key: meta[key] for key in ("model", "dim", "total", "as_of", "base")} == {
        "model": "m", "dim": DIM, "total": 3, "as_of": T0, "base": "",
    }  # fmt: skip
    assert meta["files"] == {
        name: {"sha256": file_digest(one / name), "size": (one / name).stat().st_size}
        for name in ("catalog.db", "index.faiss", "similar.db")
    }
    assert said == file_digest(one / "meta.json") == file_digest(other / "meta.json")
    assert complete(other, ABOUT) == said
    with pytest.raises(Conflict, match="complete already"):
        complete(other, {**ABOUT, "as_of": T0 + 1})


@pytest.mark.parametrize("file", ["catalog.db", "index.faiss", "similar.db"])
def test_without_one_of_its_files_it_is_not_complete(prod: Path, file: str) -> None:
    folder = prepare(prod, "gen-000001", None)
    fill(folder)
    (folder / file).unlink()
    with pytest.raises(BadInput, match=f"is not complete: it has no {file}"):
        complete(folder, ABOUT)
    assert not (folder / "meta.json").exists()


@pytest.mark.parametrize("what", SPOILT)
def test_what_does_not_fit_together_is_not_finished(prod: Path, what: str) -> None:
    folder = prepare(prod, "gen-000001", None)
    fill(folder)
    spoil, says = SPOILT[what]
    spoil(folder)
    with pytest.raises((BadInput, Damaged), match=says):
        complete(folder, ABOUT)
    assert not (folder / "meta.json").exists()


def test_an_index_that_was_told_of_another_model_is_not_finished(prod: Path) -> None:
    folder = prepare(prod, "gen-000001", None)
    fill(folder)
    with pytest.raises(Damaged, match="says model m, and what the index told of itself says m2"):
        complete(folder, {**ABOUT, "index": {"model": "m2"}})


def test_what_a_killed_copy_left_is_cleared_away(prod: Path) -> None:
    folder = prepare(prod, "gen-000001", None)
    fill(folder)
    (folder / ".index.faiss.taken").write_bytes(b"half")
    complete(folder, ABOUT)
    assert names(folder) == ["catalog.db", "index.faiss", "meta.json", "similar.db"]


@pytest.mark.parametrize("checked", [False, True])
def test_everything_is_on_the_disk_before_the_mark_of_a_finished_one(
    prod: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    folder = prepare(prod, "gen-000001", None)
    fill(folder)
    done: list[str] = []
    sync, write = generation.sync, generation.write_atomically
    monkeypatch.setattr(generation, "sync", lambda path: [done.append(path.name), sync(path)])
    monkeypatch.setattr(generation, "write_atomically", lambda path, data: [done.append(path.name), write(path, data)])
    complete(folder, ABOUT, {file: file_digest(folder / file) for file in FILES} if checked else None)
    assert list(dict.fromkeys(done)) == ["catalog.db", "index.faiss", "similar.db", "meta.json", "gen-000001", "prod"]


# ── publishing one ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_a_complete_one_is_published(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    lease = lease_of(ledger, clock, 1)
    fill(prepare(prod, "gen-000001", None))
    with pytest.raises(BadInput, match=r"is not complete: it has no meta\.json"):
        publish(ledger, lease, prod, "gen-000001")
    assert ledger.generations.current(RESOURCE) is None
    complete(prod / "gen-000001", ABOUT)
    publish(ledger, lease, prod, "gen-000001")
    assert ledger.generations.current(RESOURCE) == "gen-000001"


def test_one_of_another_fence_is_not_published(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    built(prod, "gen-000001")
    with pytest.raises(Conflict, match="was not made under this lease, whose fence is 2"):
        publish(ledger, lease_of(ledger, clock, 2), prod, "gen-000001")
    assert ledger.generations.current(RESOURCE) is None


def test_a_revived_publisher_overwrites_nothing(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    frozen = lease_of(ledger, clock, 1)
    folder = prepare(prod, "gen-000001", None)
    published(ledger, clock, prod, 2)
    before = {path.name: path.read_bytes() for path in (prod / "gen-000002").iterdir()}
    fill(folder)
    complete(folder, ABOUT)
    with pytest.raises(Fenced):
        publish(ledger, frozen, prod, "gen-000001")
    with pytest.raises(Conflict):
        publish(ledger, frozen, prod, "gen-000002")
    with pytest.raises(Conflict):
        prepare(prod, "gen-000002", None)
    assert ledger.generations.current(RESOURCE) == "gen-000002"
    assert {path.name: path.read_bytes() for path in (prod / "gen-000002").iterdir()} == before
    with Catalog.open(prod, ledger, RESOURCE) as catalog:
        assert catalog.video(1) == {**(catalog.video(1) or {}), "title": "gen-000002"}


# ── sweeping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_ones_are_kept_and_the_older_go(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    published(ledger, clock, prod, 1, 2, 3, 4)
    assert sweep(prod, ledger, RESOURCE) == ["gen-000001", "gen-000002"]
    assert names(prod) == ["gen-000003", "gen-000004"]
    assert sweep(prod, ledger, RESOURCE, keep=1) == ["gen-000003"]
    assert sweep(prod, ledger, RESOURCE, keep=1) == []
    assert names(prod) == ["gen-000004"]
    with pytest.raises(BadInput, match="always kept"):
        sweep(prod, ledger, RESOURCE, keep=0)


def test_one_that_is_read_stays_until_it_is_closed(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    published(ledger, clock, prod, 1)
    with Catalog.open(prod, ledger, RESOURCE) as catalog:
        published(ledger, clock, prod, 2, 3)
        assert sweep(prod, ledger, RESOURCE, keep=1) == ["gen-000002"]
        assert (catalog.video(1) or {})["title"] == "gen-000001"
    assert not held_open(prod)
    assert sweep(prod, ledger, RESOURCE, keep=1) == ["gen-000001"]


def test_what_the_dead_left_goes_and_what_may_live_stays(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    for fence in (1, 2):
        fill(prepare(prod, name_of(fence), None))  # both died before they were done
    built(prod, "gen-000003")  # died before it published
    published(ledger, clock, prod, 4)
    for fence in (5, 6, 7):
        prepare(prod, name_of(fence), None)
    (prod / "staging.db").write_text("")
    (prod / "gen-other").mkdir()
    assert sweep(prod, ledger, RESOURCE) == [name_of(fence) for fence in (1, 2, 3, 5, 6)]
    assert names(prod) == ["gen-000004", "gen-000007", "gen-other", "staging.db"]


def test_before_anything_is_published_only_the_newest_stays(prod: Path, ledger: SqliteLedger) -> None:
    for fence in (1, 2, 3):
        prepare(prod, name_of(fence), None)
    assert sweep(prod, ledger, RESOURCE) == ["gen-000001", "gen-000002"]
