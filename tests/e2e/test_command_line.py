"""The command line as its user meets it, on a machine with nothing running."""

import json
import time

import pytest

from dailies.scenarios.journal import read
from tests.e2e.conftest import DAILIES, Machine

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SCHEMA = {
    "scenario", "run_id", "status", "seed", "commit", "versions", "started", "duration_s", "steady_state",
    "faults", "checks", "metrics", "artifacts", "error",
}  # fmt: skip
PARTS = ("race", "kill", "freeze", "busy", "two flows", "load", "misuse", "recover")


def test_lock_contention_passes_in_a_minute_with_the_start_of_its_server(machine: Machine, tmp_path):
    report = tmp_path / "r.json"
    start = time.monotonic()
    done = machine.run(DAILIES, "scenario", "lock-contention", "--report", report, timeout=180)
    took = time.monotonic() - start
    assert done.returncode == 0, done.stdout + done.stderr
    assert took < 60
    raw = json.loads(report.read_text())
    assert raw.keys() >= SCHEMA
    assert raw["status"] == "passed"
    journal = read(report)
    assert all(check.passed for _, check in journal.every_check())
    for part in PARTS:
        assert any(check.name.startswith(part) for check in journal.checks), part
    assert journal.metrics["stale_writes"] == {"landed": 0, "tried": 160, "trials": 20}
    assert len(journal.faults) == 3
    assert all(fault.fired for fault in journal.faults)
    assert not list((machine.dailies / "scenarios").iterdir()), "the scenario left its folder behind"


def test_bad_input_is_one_line_and_starts_nothing(machine: Machine):
    for words, said in (
        (("scenario", "nonsense"), "there is no scenario 'nonsense'"),
        (("scenario", "lock-contention", "-p", "ttl=-1"), "ttl"),
        (("scenario", "lock-contention", "-p", "nonsense=1"), "no parameter 'nonsense'"),
        (("scenario", "lock-contention", "-p", "nonsense"), "KEY=VALUE"),
    ):
        done = machine.run(DAILIES, *words)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert "Traceback" not in done.stderr
    assert machine.processes() == []


def test_an_unreachable_server_is_one_line(machine: Machine):
    machine.env["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    done = machine.run(DAILIES, "scenario", "lock-contention")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
