"""lock-contention on a site of real services: PostgreSQL behind Supabase's API, an S3 server, a Redis stream."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from blocks import RedisStream, S3Bucket, Site, SupabaseLedger
from dailies import failpoints
from dailies.ledger.records import RECOVERED, JobRequest, JobState
from dailies.ledger.supabase import SupabaseLedger as RemoteLedger
from dailies.media.sample import make_clip
from dailies.scenarios.processes import free_port
from tests.e2e.conftest import DAILIES, Machine, wait_for
from tests.servers.redis import RedisServer, serving_redis
from tests.servers.s3 import Server, rclone_serving
from tests.supabase.servers import MIGRATIONS, SERVICE_KEY, Postgres, migrate, running_api

pytestmark = [pytest.mark.supabase, pytest.mark.e2e, pytest.mark.slow]


class RestartableApi:
    """The API server, which can be away for a while and come back at the same address."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._port: int | None = None
        self._stack = ExitStack()

    def start(self) -> None:
        server = self._stack.enter_context(running_api(self._postgres, "staging", self._port))
        self._port = server.port

    def stop(self) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"


@contextmanager
def restartable_api(postgres: Postgres) -> Iterator[RestartableApi]:
    api = RestartableApi(postgres)
    api.start()
    try:
        yield api
    finally:
        api.stop()


@dataclass
class Staging:
    machine: Machine
    prefect: str
    ledger: RemoteLedger
    database: psycopg.Connection
    store: Server
    redis: RedisServer
    block: Site
    api: RestartableApi

    def save(self, name: str, **changes: object) -> None:
        with temporary_settings({PREFECT_API_URL: self.prefect}):
            self.block.model_copy(update=changes).save(name, overwrite=True)

    def run(self, site: str, report: Path):
        words = ["scenario", "lock-contention", "-p", f"site={site}", "--report", report]
        return self.machine.run(DAILIES, *words, timeout=280)


@pytest.fixture(scope="module")
def staging(postgres: Postgres, tmp_path_factory) -> Iterator[Staging]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    with (
        postgres.database("staging") as database,
        rclone_serving(tmp_path_factory.mktemp("s3")) as store,
        serving_redis(tmp_path_factory.mktemp("redis")) as redis,
    ):
        migrate(database, MIGRATIONS)
        with restartable_api(postgres) as api, machine.up(free_port()) as prefect:
            machine.env["PREFECT_API_URL"] = prefect
            block = Site(
                store=S3Bucket(
                    bucket=store.bucket,
                    endpoint_url=store.url,
                    access_key=SecretStr(store.access_key),
                    secret_key=SecretStr(store.secret_key),
                ),
                ledger=SupabaseLedger(url=api.url, service_key=SecretStr(SERVICE_KEY)),
                stream=RedisStream(url=redis.url),
                scenarios=True,
            )
            ledger = RemoteLedger(api.url, SERVICE_KEY)
            yield Staging(machine, prefect, ledger, database, store, redis, block, api)
            ledger.close()


def test_the_scenario_passes_and_leaves_the_site_as_it_was(staging, tmp_path):
    staging.save("staging")
    left = staging.ledger.jobs.submit(JobRequest("scenario", "ingest-media", "scenario/left-by-one-that-was-stopped"))
    staging.store.store().put("scenario/client/videos/left/clip.mp4", b"left as well")
    done = staging.run("staging", tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert staging.ledger.jobs.get(left.id).state is JobState.CANCELED
    journal = json.loads((tmp_path / "report.json").read_text())
    assert (journal["status"], journal["parameters"]["site"]) == ("passed", "staging")
    assert {fault["name"]: fault["fired"] > 0 for fault in journal["faults"]} == {
        "holder killed": True,
        "holder frozen past its ttl": True,
        "worker killed between two units": True,
    }

    jobs = staging.ledger.jobs.all(limit=10_000)
    assert len(jobs) > 20, "it did work here, and nowhere else"
    assert all(job.final for job in jobs)
    assert not any(staging.ledger.audit().values())
    assert list(staging.store.store().list("scenario")) == []

    expected = staging.database.execute("SELECT job, id FROM dailies.outbox ORDER BY seq").fetchall()
    assert in_order(expected) == in_order(
        [(fields["job"], fields["id"]) for _, fields in staging.redis.client.xrange("dailies:events")]
    )


def in_order(events: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The ids of each job's events, copies left out as a consumer leaves them out."""
    found: dict[str, list[str]] = defaultdict(list)
    for job, id_ in events:
        if id_ not in found[job]:
            found[job].append(id_)
    return found


def test_a_site_that_is_not_open_to_scenarios_is_not_touched(staging, tmp_path):
    staging.save("production", scenarios=False)
    before = len(staging.ledger.jobs.all(limit=10_000))
    done = staging.run("production", tmp_path / "report.json")
    assert done.returncode == 1
    assert "site 'production' is not open to scenarios" in done.stderr
    assert len(staging.ledger.jobs.all(limit=10_000)) == before


def test_a_site_that_is_at_work_is_not_touched(staging, tmp_path):
    staging.save("staging")
    job = staging.ledger.jobs.submit(JobRequest("acme", "ingest-media", "acme/v1"))
    done = staging.run("staging", tmp_path / "report.json")
    assert done.returncode == 1
    assert "site 'staging' is at work" in done.stderr
    assert staging.ledger.jobs.get(job.id) == job
    staging.ledger.jobs.cancel(job.id)


OUTAGE_S = 60.0


def test_a_job_outlives_a_ledger_that_is_away_for_a_minute(staging, tmp_path):
    staging.save("staging")
    key = "acme/client/videos/v1/clip.mp4"
    staging.store.store().put_file(key, make_clip(tmp_path / "clip.mp4", seconds=2))
    log = tmp_path / "faults.jsonl"
    with temporary_settings({PREFECT_API_URL: staging.prefect}), get_client(sync_client=True) as client:
        client.create_deployment(
            client.create_flow_from_name("ingest-media"),
            "outage",
            entrypoint="flows.ingest_media.ingest_media",
            work_pool_name="cpu",
            work_queue_name="cpu",
            job_variables={"env": failpoints.environment("probe_media:before=sleep(3)", log)},
        )
    params = {"tenant": "acme", "media_key": key}
    request = JobRequest("acme", "ingest-media", "acme/v1", params, "ingest-media/outage")
    with supervising(staging, tmp_path / "supervisor.log"):
        job = staging.ledger.jobs.submit(request)
        wait_for(lambda: bool(failpoints.fired(log)), 60)
        staging.api.stop()
        time.sleep(OUTAGE_S)
        staging.api.start()
        wait_for(lambda: staging.ledger.jobs.get(job.id).final, 90)
        wait_for(lambda: not staging.ledger.outbox.pending(), 30)
    done = staging.ledger.jobs.get(job.id)
    assert (done.state, done.attempt) == (JobState.DONE, 2), done.error
    events = staging.ledger.outbox.of(job.id)
    assert [event.data["message"] for event in events if event.type == "dailies.job.queued"] == ["", RECOVERED]
    assert [event.type for event in events].count("dailies.job.done") == 1
    units = {unit.step: (unit.state, unit.attempts) for unit in staging.ledger.units.of(job.id)}
    assert units == {"probe_media": ("DONE", 2), "make_contact_sheet": ("DONE", 1)}, "only what it was in is done again"
    assert not any(staging.ledger.audit(grace=10).values())
    told = [fields["id"] for _, fields in staging.redis.client.xrange("dailies:events") if fields["job"] == job.id]
    assert list(dict.fromkeys(told)) == [event.id for event in events]


@contextmanager
def supervising(staging: Staging, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "services.supervisor", "--site", "staging"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=staging.machine.env, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
