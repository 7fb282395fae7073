"""A merge that meets a bad file, a full disk or its own death changes nothing, and says so in one line."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dailies import failpoints
from dailies.catalog import merge as module
from dailies.catalog import schema
from dailies.catalog.merge import merge
from dailies.catalog.staging import staging_digest
from dailies.errors import BadInput, DailiesError, Missing, Transient
from tests.unit.catalog import merging
from tests.unit.catalog.rows import add, database, dump, rows, video

pytestmark = pytest.mark.unit
stage, prod = merging.stage, merging.prod


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "BUSY_S", 0.1)


def refused(stage: Path, prod: Path, error: type[DailiesError], says: str) -> None:
    before = prod.read_bytes() if prod.exists() else b""
    with pytest.raises(error, match=says) as caught:
        merge(stage, prod)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert (prod.read_bytes() if prod.exists() else b"") == before
    if before:
        left = [path.name for path in prod.parent.iterdir() if path.name.startswith(prod.name + "-")]
        assert left == []


def test_a_database_that_is_missing_foreign_or_of_another_time(stage: Path, prod: Path, tmp_path: Path) -> None:
    refused(stage, tmp_path / "none.db", Missing, "no production database at .*none.db")
    refused(tmp_path / "none.db", prod, Missing, "no staging database at .*none.db")
    refused(stage, stage, BadInput, "is not a production database")
    refused(prod, prod, BadInput, "is not a staging database")
    (tmp_path / "letter.db").write_bytes(b"dear mother" * 100)
    refused(stage, tmp_path / "letter.db", BadInput, "is no SQLite database, or a damaged one")
    with closing(sqlite3.connect(prod)) as db:
        db.execute("PRAGMA user_version = 99")
    refused(stage, prod, BadInput, "has schema version 99, and this program knows version 1")


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_is_worth_another_try(stage: Path, prod: Path) -> None:
    with closing(sqlite3.connect(prod, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        refused(stage, prod, Transient, f"{prod} is locked by another program")


def test_a_finished_generation_is_refused_also_to_the_administrator(stage: Path, prod: Path) -> None:
    prod.chmod(0o444)
    refused(stage, prod, BadInput, "is read-only, as a finished generation is")


def test_a_staging_that_contradicts_itself_is_refused(stage: Path, prod: Path) -> None:
    add(stage, "videos", video("x", "nowhere.example"))
    refused(stage, prod, BadInput, "the staging does not fit .*FOREIGN KEY constraint failed; nothing was changed")


def test_a_staging_without_its_moment_is_refused(tmp_path: Path, prod: Path) -> None:
    refused(database(tmp_path / "bare.db", "staging"), prod, BadInput, "for which moment it was begun")


def test_a_full_disk_changes_nothing(stage: Path, prod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(stage, "videos", *(video(f"w{number}", description="x" * 3000) for number in range(100)))
    opens = module.open_to_write

    def cramped(path: Path) -> sqlite3.Connection:
        db = opens(path)
        db.execute("PRAGMA max_page_count = 40")
        return db

    monkeypatch.setattr(module, "open_to_write", cramped)
    refused(stage, prod, BadInput, "no space left while writing .*catalog.db")
    monkeypatch.undo()
    assert merge(stage, prod)["tables"]["videos"]["inserted"] == 100


def in_a_child(work: Callable[[], Any]) -> str:
    """What this says, or the error it ends in, in a process that shares nothing with this one any more."""
    reading, saying = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = f"done: {work()}"
        except DailiesError as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException as error:  # noqa: BLE001 - it is told to the parent
            said = f"unexpected {error!r}"
        os.write(saying, said.encode()[:4000])
        os._exit(0)
    os.close(saying)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def test_a_file_that_may_not_grow_changes_nothing(stage: Path, prod: Path) -> None:
    add(stage, "videos", *(video(f"w{number}", description="x" * 3000) for number in range(100)))
    before = dump(prod)

    def limited() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = prod.stat().st_size + 8192
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return merge(stage, prod)

    assert in_a_child(limited).startswith(f"BadInput: {prod} could not be written (full, over a limit, or failing)")
    assert dump(prod) == before
    assert merge(stage, prod)["tables"]["videos"]["inserted"] == 100


@pytest.mark.parametrize("what", ["folder", "file"])
def test_without_the_right_to_write_nothing_is_changed(stage: Path, prod: Path, what: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let nobody else in
        folder = Path(name)
        mine, theirs = folder / "catalog.db", folder / "staging.db"
        mine.write_bytes(prod.read_bytes())
        theirs.write_bytes(stage.read_bytes())
        add(theirs, "videos", video("w1"))
        before = mine.read_bytes()
        mine.chmod(0o666 if what == "folder" else 0o644)
        theirs.chmod(0o644)
        folder.chmod(0o755)

        def as_nobody() -> Any:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            return merge(theirs, mine)

        if os.geteuid() != 0:
            (folder if what == "folder" else mine).chmod(0o555 if what == "folder" else 0o444)
        said = in_a_child(as_nobody)
        assert said.startswith("BadInput: "), said
        assert "writ" in said or "read-only" in said
        assert mine.read_bytes() == before
        folder.chmod(0o755)


def test_a_killed_merge_leaves_the_old_or_the_new(stage: Path, prod: Path, tmp_path: Path) -> None:
    add(stage, "videos", *(video(f"w{number:04d}", description="x" * 500) for number in range(500)))
    copy = tmp_path / "copy.db"
    copy.write_bytes(prod.read_bytes())
    before = dump(prod)

    def killed() -> None:
        module.CACHE_KIB = 64  # so that pages are already on the disk, and must be taken back
        failpoints.arm("catalog.during_merge=kill", tmp_path / "log")
        merge(stage, prod)

    assert in_a_child(killed) == ""
    assert failpoints.fired(tmp_path / "log")
    assert prod.read_bytes() != copy.read_bytes()
    merge_said = merge(stage, copy)
    with closing(schema.connect(prod, "production", write=True)):
        pass
    assert dump(prod) == before
    assert merge(stage, prod) == merge_said
    assert dump(prod) == dump(copy)
    assert prod.read_bytes() == copy.read_bytes()


@pytest.mark.parametrize("mode", ["journal", "wal"])
def test_what_a_killed_crawl_left_is_put_right_before_it_is_read(stage: Path, prod: Path, mode: str) -> None:
    add(stage, "videos", *(video(f"w{number:04d}") for number in range(300)))
    digest = staging_digest(stage)

    def killed() -> None:
        db = sqlite3.connect(stage, isolation_level=None)
        db.execute(f"PRAGMA journal_mode = {'WAL' if mode == 'wal' else 'DELETE'}")
        db.execute("UPDATE videos SET views = 77")
        db.execute("PRAGMA cache_size = 5")
        db.execute("BEGIN")
        db.execute("UPDATE videos SET title = title || 'half'")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == ""
    left = stage.with_name(f"staging.db-{mode}")
    assert left.stat().st_size > 0
    said = merge(stage, prod)
    assert not left.exists()
    assert said["staging_digest"] != digest
    assert rows(prod, "SELECT count(*) FROM videos WHERE views = 77") == [(300,)]
    assert rows(prod, "SELECT count(*) FROM videos WHERE title LIKE '%half'") == [(0,)]
