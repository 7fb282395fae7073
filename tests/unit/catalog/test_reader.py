"""A reader holds one whole generation, whatever is published or swept meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dailies.catalog import reader
from dailies.catalog.generation import sweep
from dailies.catalog.reader import Catalog
from dailies.errors import BadInput, Damaged, Missing
from dailies.ledger.sqlite import SqliteLedger
from tests.unit.catalog import generations
from tests.unit.catalog.generations import RESOURCE, SPOILT, Clock, held_open, published
from tests.unit.catalog.rows import dump

pytestmark = pytest.mark.unit
quick, clock, ledger, prod = generations.quick, generations.clock, generations.ledger, generations.prod


def test_a_reader_sees_its_generation_and_what_belongs_to_it(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    published(ledger, clock, prod, 1)
    with Catalog.open(prod, ledger, RESOURCE) as catalog:
        assert (catalog.name, catalog.meta["total"]) == ("gen-000001", 3)
        assert (catalog.video(2) or {})["video_id"] == "v2"
        assert (catalog.video(("v2", "a.example")) or {})["id"] == 2
        assert catalog.video(9) is catalog.video(("v2", "b.example")) is None
        assert catalog.neighbours(2) == [(1, 0.5), (3, 0.125)]
        assert catalog.neighbours(9) == []
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            catalog.videos.execute("DELETE FROM videos")


def test_neighbours_in_the_form_of_another_version_are_refused_in_one_line(
    prod: Path, ledger: SqliteLedger, clock: Clock
) -> None:
    published(ledger, clock, prod, 1)
    path = prod / "gen-000001" / "similar.db"
    path.chmod(0o644)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE meta SET value = '1' WHERE key = 'format'")
    with pytest.raises(BadInput, match=r"similar\.db was made by another version of this program: run an update$"):
        Catalog.open(prod, ledger, RESOURCE)


def test_nothing_published_is_said(prod: Path, ledger: SqliteLedger) -> None:
    with pytest.raises(Missing, match="nothing of catalog:films is published yet"):
        Catalog.open(prod, ledger, RESOURCE)


@pytest.mark.parametrize("what", ["an index of more", "neighbours of fewer", "a damaged page", "cut short", "no meta"])
def test_a_mismatched_set_is_never_served(prod: Path, ledger: SqliteLedger, clock: Clock, what: str) -> None:
    published(ledger, clock, prod, 1)
    folder = prod / "gen-000001"
    for path in folder.iterdir():
        path.chmod(0o644)
    if what == "cut short":
        os.truncate(folder / "index.faiss", 50)
    elif what == "no meta":
        (folder / "meta.json").unlink()
    elif what == "a damaged page":
        (folder / "catalog.db").write_bytes(bytes((folder / "catalog.db").stat().st_size))
    else:
        SPOILT[what][0](folder)
        meta = json.loads((folder / "meta.json").read_bytes())
        for name, told in meta["files"].items():
            told["size"] = (folder / name).stat().st_size
        (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises((BadInput, Damaged)):
        Catalog.open(prod, ledger, RESOURCE)
    assert not held_open(folder)


def test_a_set_that_goes_between_the_pointer_and_the_lock_is_asked_for_again(
    prod: Path, ledger: SqliteLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(ledger, clock, prod, 1, 2)
    told = iter(["gen-000001", "gen-000002"])
    shutil.rmtree(prod / "gen-000001")
    monkeypatch.setattr(ledger.generations, "current", lambda _: next(told))
    with Catalog.open(prod, ledger, RESOURCE) as catalog:
        assert catalog.name == "gen-000002"


def test_a_lock_on_a_file_that_was_unlinked_meanwhile_is_none(
    prod: Path, ledger: SqliteLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(ledger, clock, prod, 1, 2, 3)
    told = iter(["gen-000001", "gen-000003"])
    monkeypatch.setattr(ledger.generations, "current", lambda _: next(told))
    locks = fcntl.flock

    def swept_first(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", locks)
        assert sweep(prod, ledger, RESOURCE, keep=1) == ["gen-000001", "gen-000002"]
        locks(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    with Catalog.open(prod, ledger, RESOURCE) as catalog:
        assert catalog.name == "gen-000003"


def test_readers_in_a_loop_see_whole_generations_alone(prod: Path, ledger: SqliteLedger, clock: Clock) -> None:
    published(ledger, clock, prod, 1)
    seen: list[tuple[str, set[str]]] = []
    wrong: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                with Catalog.open(prod, ledger, RESOURCE) as catalog:
                    titles = {row["title"] for row in catalog.videos.execute("SELECT title FROM videos")}
                    seen.append((catalog.name, titles))
            except BaseException as error:  # noqa: BLE001 - it is the finding
                wrong.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for fence in range(2, 8):
        published(ledger, clock, prod, fence)
        sweep(prod, ledger, RESOURCE, keep=1)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []
    assert all(titles == {name} for name, titles in seen)
    assert len({name for name, _ in seen}) > 2
    assert dump(prod / "gen-000007" / "catalog.db")["videos"]


def test_the_header_is_that_of_faiss(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    for make in (
        lambda: faiss.IndexIDMap2(faiss.IndexFlatIP(16)),
        lambda: faiss.index_factory(16, "IVF2,SQfp16", faiss.METRIC_INNER_PRODUCT),
    ):
        made = make()
        vectors = np.random.default_rng(1).random((200, 16), dtype=np.float32)
        made.train(vectors)
        made.add_with_ids(vectors, np.arange(200, dtype=np.int64) + 7)
        faiss.write_index(made, str(tmp_path / "index.faiss"))
        assert reader.index_header(tmp_path / "index.faiss") == (16, 200)
