"""update-catalog, the whole flow, against a federation of its own: what is published, told and left behind."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prefect import State, tags

from dailies.catalog import update as stages
from dailies.catalog.reader import CATALOG, FILES, Catalog
from dailies.catalog.schema import create
from dailies.errors import BadInput
from dailies.events.schemas import CATALOG_PUBLISHED, CATALOG_STAGE, faults_of
from dailies.ledger.holding import acquire
from dailies.ledger.records import Caps, Job, JobState
from dailies.scenarios.federation import Federation
from flows.update_catalog import update_catalog
from tasks import _job
from tasks import catalog as steps

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

RESOURCE = "catalog:acme/catalogs/main"
HOSTS, VIDEOS = 3, 300


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation(seed=1, hosts=HOSTS, videos=VIDEOS, latency_s=0.0) as running:
        yield running


@pytest.fixture
def prod(tmp_path) -> Path:
    return tmp_path / "catalog"


@pytest.fixture
def update(site, federation, prod):
    """Runs update-catalog on day ``day`` of the federation; the state of its run, and its job."""

    def run(day: int = 0, **more: Any) -> tuple[State[Any], Job]:
        federation.show(day)
        asked = {"tenant": "acme", "whitelist": federation.whitelist_url, "prod": str(prod), "allow_private": True}
        asked |= {"stop_after_pages": 0, "as_of": "2025-07-01T00:00:00Z", "timeout_s": 10.0}
        state = update_catalog(**{**asked, **more}, return_state=True)
        return state, site.ledger.jobs.all()[0]

    return run


def current(site, prod: Path) -> Path:
    name = site.ledger.generations.current(RESOURCE)
    assert name is not None
    return prod / name


def rows(prod: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{prod}?mode=ro", uri=True)) as database:
        return database.execute(statement).fetchall()


def keys(folder: Path) -> set[tuple[str, str]]:
    living = "SELECT video_id, instance_domain FROM videos WHERE removed_at IS NULL"
    return set(rows(folder / CATALOG, living))


def test_a_federation_becomes_a_catalogue_that_is_told_stage_by_stage(site, update, prod, federation):
    state, job = update()
    assert (state.type.value, job.state, job.error) == ("COMPLETED", JobState.DONE, "")
    folder = current(site, prod)
    found = keys(folder)
    truth = federation.truth()
    assert (truth.missing(found), truth.surplus(found), len(found)) == (set(), set(), VIDEOS)
    told = list(site.ledger.outbox.of(job.id))
    assert [event.data["stage"] for event in told if event.type == CATALOG_STAGE] == list(stages.STAGES)
    assert [fault for event in told for fault in faults_of(event.type, event.data)] == []
    assert [event.data["generation"] for event in told if event.type == CATALOG_PUBLISHED] == [folder.name]
    assert sorted(path.name for path in prod.iterdir()) == ["catalog.json", folder.name, "published.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "meta.json"])
    assert site.ledger.leases.holder(RESOURCE) is None
    assert not any(site.ledger.audit(grace=0).values())


def test_the_next_day_is_merged_and_what_is_gone_is_gone(site, update, prod, federation):
    update()
    before = current(site, prod)
    ids = dict(rows(before / CATALOG, "SELECT video_id, id FROM videos"))
    state, _ = update(day=1)
    after = current(site, prod)
    assert state.is_completed()
    assert after != before
    truth = federation.truth()
    assert (truth.missing(keys(after)), truth.surplus(keys(after))) == (set(), set())
    assert keys(before) != keys(after)
    now = dict(rows(after / CATALOG, "SELECT video_id, id FROM videos"))
    assert {video: now[video] for video in ids} == ids, "an id names the same video for ever"
    with Catalog.open(prod, site.ledger, RESOURCE) as catalog:
        living = {row["id"] for row in catalog.videos.execute("SELECT id FROM videos WHERE removed_at IS NULL")}
        near = {number for some in living for number, _ in catalog.neighbours(some)}
        assert near <= living
        assert len(catalog.neighbours(max(living))) == 20


def test_the_same_again_changes_nothing_but_the_generation(site, update, prod):
    update()
    before = current(site, prod)
    update()
    after = current(site, prod)
    tables = ("instances", "channels", "videos", "video_embeddings")
    assert [rows(after / CATALOG, f"SELECT * FROM {table}") for table in tables] == [
        rows(before / CATALOG, f"SELECT * FROM {table}") for table in tables
    ]


@pytest.mark.expects_errors
@pytest.mark.parametrize("point", ["merge_catalog:after", "relate_videos:before", "publish_catalog:before"])
def test_an_attempt_after_a_failure_asks_nobody_again_and_makes_no_finished_file_again(
    site, update, prod, federation, arm, monkeypatch, point
):
    """As the next attempt does: the same flow on the same folder, under another fence."""
    for step in (steps.merge_catalog, steps.relate_videos, steps.publish_catalog):
        monkeypatch.setattr(step.task, "retries", 0)
    arm(f"{point}=raise")
    federation.forget()
    _, job = update()
    assert job.state is JobState.QUEUED
    assert site.ledger.generations.current(RESOURCE) is None
    asked = federation.counters()["hosts"]
    inode = (prod / "gen-000001" / CATALOG).stat().st_mtime_ns
    state, _ = update()
    assert state.is_completed()
    again = federation.counters()["hosts"]
    assert [again[host]["pages"] for host in sorted(again)] == [asked[host]["pages"] for host in sorted(asked)]
    assert current(site, prod).name != "gen-000001"
    assert not (prod / "gen-000001").exists() or (prod / "gen-000001" / CATALOG).stat().st_mtime_ns == inode


@pytest.mark.expects_errors
def test_an_attempt_after_one_that_died_behind_the_publication_only_tidies_up(
    site, prod, federation, arm, client, deploy, monkeypatch
):
    deploy(update_catalog)
    federation.show(0)
    federation.forget()
    monkeypatch.setattr(steps.announce_catalog.task, "retries", 0)
    monkeypatch.setattr(_job, "RETRY_IN_S", 0.0)
    arm("announce_catalog:before=raise")
    asked = {"tenant": "acme", "whitelist": federation.whitelist_url, "prod": str(prod), "allow_private": True}
    update_catalog(**asked, return_state=True)
    (job,) = site.ledger.jobs.all()
    first = current(site, prod)
    assert (job.state, job.attempt) == (JobState.QUEUED, 2)
    pages = federation.counters()
    site.ledger.dispatch.next(Caps(9, 9))
    with tags(f"job:{job.id}", "attempt:2"):
        assert update_catalog(**asked, return_state=True).is_completed()
    assert federation.counters()["hosts"] == pages["hosts"]
    assert current(site, prod) == first
    told = [event.type for event in site.ledger.outbox.of(job.id)]
    assert (told.count(CATALOG_STAGE), told.count(CATALOG_PUBLISHED)) == (len(stages.STAGES), 1)
    assert sorted(path.name for path in prod.iterdir()) == ["catalog.json", first.name, "published.json"]


def test_a_catalogue_that_somebody_updates_is_left_alone(site, update, prod):
    acquire(site.ledger, RESOURCE, "another", 60.0)
    state, job = update(patience_s=0)
    assert (state.name, job.state, job.error_code) == ("Held", JobState.FAILED, "held")
    assert not prod.exists()


@pytest.mark.expects_errors
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"whitelist": "/nowhere/hosts.json"}, "whitelist"),
        ({"service": "sysv:x"}, "service is none, systemd:UNIT or process:COMMAND"),
        ({"device": "gpu"}, "cpu"),
        ({"allow_private": False}, "127.0.0.1"),
        ({"catalog": "a/b"}, "catalogue name"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_changed(site, update, prod, more, said):
    _, job = update(**more)
    assert job.state is JobState.FAILED
    assert said in job.error
    assert "\n" not in job.error
    assert site.ledger.generations.current(RESOURCE) is None
    assert not prod.exists() or not list(prod.iterdir())  # nor does the folder bear a name that was refused


def test_a_folder_of_another_catalogue_is_refused(site, update, prod):
    update()
    before = sorted(path.name for path in prod.iterdir())
    _, job = update(catalog="other")
    assert job.state is JobState.FAILED
    assert (
        job.error == f"{prod} is the folder of {RESOURCE}, and not of catalog:acme/catalogs/other: name another folder"
    )
    assert sorted(path.name for path in prod.iterdir()) == before


@pytest.mark.expects_errors
def test_a_production_of_another_schema_version_is_refused_and_stays(site, update, prod):
    update()
    folder = current(site, prod)
    database = folder / CATALOG
    database.chmod(0o644)
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA user_version = 99")
    before = database.read_bytes()
    _, job = update(day=1)
    assert job.state is JobState.FAILED
    assert "has schema version 99" in job.error
    assert current(site, prod) == folder
    assert database.read_bytes() == before


def test_an_empty_database_from_elsewhere_can_be_what_the_first_update_goes_out_from(tmp_path):
    create(tmp_path / "gen-000000" / CATALOG, "production")
    update = stages.Update(prod=tmp_path, whitelist="", as_of=1, base="gen-000000")
    assert stages.before(update, "index.faiss") is None
    assert update.production == str(tmp_path / "gen-000000" / CATALOG)


def test_an_update_travels_to_a_child_and_back(tmp_path):
    update = stages.Update(prod=tmp_path, whitelist="x", as_of=5, fence=7, base="gen-000003")
    assert stages.Update.from_json(json.loads(json.dumps(update.to_json()))) == update
    assert update.folder == tmp_path / "gen-000007"


def test_an_event_does_not_carry_the_reason_of_each_of_a_thousand_hosts():
    facts = {"pages": 3, "hosts": {"ok": 1, "failed": {f"h{number}.example": "no answer" for number in range(1000)}}}
    told = steps.brief(facts)
    assert (told["pages"], told["hosts"]["ok"], len(told["hosts"]["failed"])) == (3, 1, steps.TOLD)


def test_a_folder_belongs_to_one_catalogue(tmp_path):
    stages.owned(tmp_path, "catalog:a/catalogs/one")
    stages.owned(tmp_path, "catalog:a/catalogs/one")
    with pytest.raises(BadInput, match="is the folder of"):
        stages.owned(tmp_path, "catalog:a/catalogs/two")
