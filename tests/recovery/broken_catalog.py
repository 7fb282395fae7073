"""update-catalog as it must not be, for orchestrator-smoke to find out: a catalogue's name says how it is broken."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dailies.catalog import crawl_stage, polite
from dailies.catalog import update as stages
from dailies.catalog.notes import Notes
from dailies.catalog.update import Update
from dailies.errors import BadInput
from dailies.events import schemas
from dailies.home import home
from tasks import _job, smoke_catalogs, smoke_room
from tasks import catalog as steps
from tasks._job import Working

RUN = "tests.recovery.broken_catalog:run_stage"
LATER_MS = 400 * 86_400_000
LONG_S = 60.0
Patch = pytest.MonkeyPatch
Facts = dict[str, Any]


def attempt(parameters: dict[str, Any], *asked: Any) -> None:
    """In place of the scenario's own: the same flow, broken where its catalogue says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "RUN", RUN)
        patch.setattr(smoke_catalogs, "WITHOUT_ROOM", RUN)
        IN_THE_RUN.get(parameters["catalog"], as_it_is)(patch)
        smoke_catalogs.attempt(parameters, *asked)


def run_stage(stage: str, update: Facts, progress: Callable[[float], None]) -> Facts:
    """In place of the product's own, in the process that does the work."""
    asked = Update.from_json(update)
    with pytest.MonkeyPatch.context() as patch:
        before, after = IN_A_STAGE.get((asked.prod.name, stage), (as_it_is, same))
        before(patch)
        return after(asked, smoke_room.run_stage_without_room(stage, update, progress))


def as_it_is(patch: Patch) -> None:
    """Broken nowhere."""


def same(update: Update, facts: Facts) -> Facts:
    return facts


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    path.chmod(0o644)
    with closing(sqlite3.connect(path)) as database, database:
        yield database


# ── main: what is wrong with what it makes ────────────────────────────────────────────────────────────────────────────


def crowds_the_hosts(patch: Patch) -> None:
    patch.setattr(polite, "AT_ONCE", 8)
    patch.setattr(crawl_stage, "AT_ONCE", 8)


def loses_a_page(update: Update, facts: Facts) -> Facts:
    with writing(update.staging) as database:
        database.execute("DELETE FROM videos WHERE video_id IN (SELECT video_id FROM videos ORDER BY 1 LIMIT 40)")
    return facts


def says_cuda(update: Update, facts: Facts) -> Facts:
    return {**facts, "device": "cuda"}


def hides_who_failed(update: Update, facts: Facts) -> Facts:
    return {**facts, "hosts": {**facts["hosts"], "failed": {}}}


def drops_and_overwrites(update: Update, facts: Facts) -> Facts:
    """A row goes, and another one gets a value that nobody gathered."""
    with writing(update.folder / "catalog.db") as database:
        database.execute("UPDATE videos SET title = 'overwritten ' || title WHERE id = 2")
        for table in ("video_embeddings", "videos"):
            database.execute(f"DELETE FROM {table} WHERE id = 1")
    return facts


def ranks_at_another_moment(patch: Patch) -> None:
    rank = stages.rank
    patch.setattr(stages, "rank", lambda path, as_of, progress: rank(path, as_of - LATER_MS, progress))


def lists_the_worst_first(update: Update, facts: Facts) -> Facts:
    """As candidates come that nobody ranked again."""
    with relisted(update.folder / "similar.db") as (_, lists):
        lists[0] = lists[0, ::-1].copy()
    return facts


@contextmanager
def relisted(path: Path) -> Iterator[tuple[Any, Any]]:
    """The first 64 ids of similar.db and their lists, to be changed."""
    with writing(path) as database:
        first, *blobs = database.execute("SELECT first, ids, lists FROM similar ORDER BY first LIMIT 1").fetchone()
        ids, lists = (np.frombuffer(blob, "<i8").copy() for blob in blobs)
        yield ids, lists.reshape(len(ids), -1)
        new = ids.tobytes(), lists.tobytes(), first
        database.execute("UPDATE similar SET ids = ?, lists = ? WHERE first = ?", new)


def leaves_a_file(update: Update, facts: Facts) -> Facts:
    (update.prod / "forgotten.db").write_bytes(b"x")
    return facts


def forgets_a_marker(patch: Patch) -> None:
    tell = Working.tell

    def other(self: Working, kind: str, occasion: str, data: Any) -> None:
        if kind != schemas.CATALOG_STAGE or data["stage"] != "counts":
            tell(self, kind, occasion, data)

    patch.setattr(Working, "tell", other)


# ── what is wrong with how it fails ───────────────────────────────────────────────────────────────────────────────────


def writes_to_production(update: Update, facts: Facts) -> Facts:
    with writing(update.prod / update.base / "catalog.db") as database:
        database.execute("UPDATE videos SET views = views + 1 WHERE id = 1")
    return facts


def keeps_its_lease(patch: Patch) -> None:
    give_back = _job.give_back
    patch.setattr(smoke_catalogs, "TTL_S", LONG_S)
    patch.setattr(_job, "give_back", lambda ledger, keeper, lease: (
        keeper.drop(lease) if lease.resource.startswith("catalog:") else give_back(ledger, keeper, lease)
    ))  # fmt: skip


def publishes_before_it_is_complete(patch: Patch) -> None:
    stage = steps.stage

    def early(job: Any, step: Any, name: str, update: Update) -> Any:
        if name == "index":
            job.site.ledger.generations.publish(job.claim, update.name)
        return stage(job, step, name, update)

    patch.setattr(steps, "stage", early)


def forgets_how_far_it_came(patch: Patch) -> None:
    begin = stages.STAGES["begin"]
    patch.setitem(stages.STAGES, "begin", lambda update, progress: begin(replace(update, resume=False), progress))  # type: ignore[arg-type]


def makes_all_anew(patch: Patch) -> None:
    patch.setattr(Notes, "take_over", lambda *_: False)


def makes_it_twice(patch: Patch) -> None:
    made = Notes.made

    def again(notes: Notes, file: str, *more: Any) -> Facts:
        notes.path(file).unlink(missing_ok=True)
        return made(notes, file, *more)

    patch.setattr(Notes, "made", again)


def keeps_it_to_itself(patch: Patch) -> None:
    """What SQLite says of a full disk comes through as it is."""
    patch.setattr("dailies.catalog.merge.refusals", nullcontext)


def goes_on_regardless(patch: Patch) -> None:
    run = smoke_room.run_stage_without_room

    def anyhow(*asked: Any) -> Facts:
        with suppress(BadInput):
            return run(*asked)
        return {}

    patch.setattr(smoke_room, "run_stage_without_room", anyhow)


def mixes_generations(update: Update, facts: Facts) -> Facts:
    shutil.copy(update.prod / update.base / "similar.db", update.folder / "similar.db")
    return facts


def trusts_its_files(patch: Patch) -> None:
    for module in ("dailies.catalog.generation.agree", "dailies.catalog.reader.agree"):
        patch.setattr(module, lambda folder, meta: None)


def publishes_whatever_its_fence(patch: Patch) -> None:
    """It looks at no lease any more, and its pointer comes on top."""

    def anyhow(update: Update, ledger: Any, lease: Any, how: str, job: str) -> None:
        with closing(sqlite3.connect(home() / "ledger.db", timeout=10)) as database, database:
            database.execute(
                """INSERT INTO generations (resource, fence, key)
                   SELECT ?, max(fence) + 1, ? FROM generations WHERE resource = ?""",
                (lease.resource, update.name, lease.resource),
            )

    patch.setattr(Working, "check", lambda self: None)
    patch.setattr(steps, "make_current", anyhow)


IN_THE_RUN: dict[str, Callable[[Patch], None]] = {
    "main": forgets_a_marker,
    "keeps-its-lease": keeps_its_lease,
    "publishes-early": publishes_before_it_is_complete,
    "mixes": trusts_its_files,
    "unfenced": publishes_whatever_its_fence,
}
IN_A_STAGE: dict[tuple[str, str], tuple[Callable[[Patch], None], Callable[[Update, Facts], Facts]]] = {
    ("main", "instances"): (as_it_is, hides_who_failed),
    ("main", "videos"): (crowds_the_hosts, loses_a_page),
    ("main", "embeddings"): (as_it_is, says_cuda),
    ("main", "merge"): (as_it_is, drops_and_overwrites),
    ("main", "popularity"): (ranks_at_another_moment, same),
    ("main", "similar"): (as_it_is, lists_the_worst_first),
    ("main", "complete"): (as_it_is, leaves_a_file),
    ("writes-to-production", "counts"): (as_it_is, writes_to_production),
    ("forgets", "begin"): (forgets_how_far_it_came, same),
    ("forgets", "merge"): (makes_all_anew, same),
    ("forgets", "index"): (makes_all_anew, same),
    ("makes-twice", "index"): (makes_it_twice, same),
    ("says-nothing", "merge"): (keeps_it_to_itself, same),
    ("shrugs", "counts"): (goes_on_regardless, same),
    ("mixes", "similar"): (as_it_is, mixes_generations),
    ("mixes", "complete"): (trusts_its_files, same),
}
