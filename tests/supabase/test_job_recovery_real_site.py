"""job-recovery on a site of real services: PostgreSQL behind Supabase's API, S3 and Redis."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import DAILIES
from tests.supabase import test_real_site

pytestmark = [pytest.mark.supabase, pytest.mark.e2e, pytest.mark.slow]
staging = test_real_site.staging


def test_jobs_killed_damaged_and_crowded_come_to_the_same_end_there(staging, tmp_path):
    staging.save("staging")
    report = tmp_path / "report.json"
    words = ["scenario", "job-recovery", "-p", "site=staging", "-p", "only=kills,files,crowds", "--report", report]
    done = staging.machine.run(DAILIES, *words, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    journal = json.loads(report.read_text())
    assert (journal["status"], journal["parameters"]["site"]) == ("passed", "staging")
    assert journal["metrics"]["kills"] == 8
    assert all(fault["fired"] for fault in journal["faults"])
    assert all(job.final for job in staging.ledger.jobs.all(limit=10_000))
    assert not any(staging.ledger.audit().values())
    assert list(staging.store.store().list("scenario")) == []
