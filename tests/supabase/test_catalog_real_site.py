"""A catalogue whose lease, pointer and events are in PostgreSQL behind Supabase's API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dailies.events.schemas import CATALOG_PUBLISHED, CATALOG_STAGE
from dailies.ledger.records import JobState
from dailies.scenarios.federation import Federation
from tests.e2e.conftest import DAILIES, PREFECT
from tests.supabase import test_real_site

pytestmark = [pytest.mark.supabase, pytest.mark.e2e, pytest.mark.slow]
staging = test_real_site.staging


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation(seed=4, hosts=2, videos=120, latency_s=0.0) as running:
        yield running


def test_command_and_flow_take_turns_on_one_catalogue(staging, federation, tmp_path):
    staging.save("staging")
    prod = tmp_path / "main"
    asked = {"tenant": "acme", "whitelist": federation.whitelist_url, "prod": prod, "site": "staging"}
    asked |= {"allow_private": "true", "stop_after_pages": 0}
    words = [word for name, value in asked.items() for word in ("-p", f"{name}={value}")]
    done = staging.machine.run(PREFECT, "deployment", "run", "update-catalog/cpu", *words, "--watch", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    resource = "catalog:acme/catalogs/main"
    first = staging.ledger.generations.current(resource)
    (job,) = [one for one in staging.ledger.jobs.all() if one.kind == "update-catalog"]
    told = [event.type for event in staging.ledger.outbox.of(job.id)]
    assert (job.state, told.count(CATALOG_STAGE), told.count(CATALOG_PUBLISHED)) == (JobState.DONE, 11, 1)

    federation.evolve()
    where = ["--prod", prod, "--site", "staging"]
    update = ["update", "--whitelist", federation.whitelist_url, "--allow-private", "--stop-after-pages", "0", *where]
    done = staging.machine.run(DAILIES, "catalog", *update, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"out of {first}" in done.stdout
    second = staging.ledger.generations.current(resource)
    assert [key for _, key in staging.ledger.generations.history(resource)] == [first, second]
    assert first < second

    found = staging.machine.run(DAILIES, "catalog", "search", "how to", "--count", "3", *where, timeout=60)
    assert (found.returncode, len(found.stdout.splitlines())) == (0, 3), found.stderr
    assert staging.ledger.leases.holder(resource) is None
    assert not any(staging.ledger.audit().values())
