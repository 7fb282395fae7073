"""crop-infer-e2e and caption-ocr-e2e on a site of real services."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import DAILIES
from tests.supabase import test_real_site

pytestmark = [pytest.mark.supabase, pytest.mark.e2e, pytest.mark.slow]
staging = test_real_site.staging


@pytest.mark.parametrize("name", ["crop-infer-e2e", "caption-ocr-e2e"])
def test_the_scenario_passes_and_leaves_the_site_as_it_was(staging, tmp_path, name):
    staging.save("staging")
    report = tmp_path / "report.json"
    words = ["scenario", name, "-p", "site=staging", "--report", report]
    done = staging.machine.run(DAILIES, *words, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    journal = json.loads(report.read_text())
    assert (journal["status"], journal["parameters"]["site"]) == ("passed", "staging")
    assert all(fault["fired"] == 1 for fault in journal["faults"])
    assert any(fault["name"].startswith("killed at ") for fault in journal["faults"])
    jobs = staging.ledger.jobs.all(limit=10_000)
    assert name.removesuffix("-e2e") in {job.kind.replace("crop-and-infer", "crop-infer") for job in jobs}
    assert all(job.final for job in jobs)
    assert not any(staging.ledger.audit().values())
    assert list(staging.store.store().list("scenario")) == []
