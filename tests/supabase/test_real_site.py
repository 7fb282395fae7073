"""lock-contention on a site of real services: PostgreSQL behind Supabase's API, an S3 server, a Redis stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from blocks import RedisStream, S3Bucket, Site, SupabaseLedger
from dailies.ledger.records import JobRequest
from dailies.ledger.supabase import SupabaseLedger as RemoteLedger
from dailies.scenarios.processes import free_port
from tests.e2e.conftest import DAILIES, Machine
from tests.servers.redis import RedisServer, serving_redis
from tests.servers.s3 import Server, rclone_serving
from tests.supabase.servers import MIGRATIONS, SERVICE_KEY, Postgres, migrate, running_api

pytestmark = [pytest.mark.supabase, pytest.mark.e2e, pytest.mark.slow]


@dataclass
class Staging:
    machine: Machine
    prefect: str
    ledger: RemoteLedger
    database: psycopg.Connection
    store: Server
    redis: RedisServer
    block: Site

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
        with running_api(postgres, "staging") as api, machine.up(free_port()) as prefect:
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
            yield Staging(machine, prefect, ledger, database, store, redis, block)
            ledger.close()


def test_the_scenario_passes_and_leaves_the_site_as_it_was(staging, tmp_path):
    staging.save("staging")
    done = staging.run("staging", tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
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
