"""job-recovery says so when the disk was never full, and when a ledger that was away leaves a hole in a transcript."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dailies.scenarios.journal import Journal, read
from dailies.scenarios.verdict import reason
from flows.scenarios import job_recovery as scenario
from tasks import recovery_parts
from tasks.recovery_findings import FIXES
from tests.integration import conftest as integration
from tests.recovery import broken_recovery as broken

pytestmark = [pytest.mark.recovery, pytest.mark.slow, pytest.mark.usefixtures("fast_api")]
home = integration.home
ENDED, FILES, WHOLE, HEARD, TOLD, LEFT, CLEARED = FIXES
GROUP = "no room, no ledger"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the part that is always played."""
    monkeypatch.setattr(scenario, "recovered_alone", lambda *_: None)


def judged() -> Journal:
    scenario.job_recovery(only="room", return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "job-recovery.json")


def failures(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


def test_a_disk_that_was_never_full_proves_nothing(monkeypatch):
    monkeypatch.setattr(recovery_parts, "attempt", broken.attempt_with_room)
    journal = judged()
    assert (journal.status, failures(journal), journal.error) == ("inconclusive", set(), None)
    assert {fault.name: fault.fired for fault in journal.faults} == {"no room for files": 0, "ledger refuses writes": 1}
    assert reason(journal) == "the fault 'no room for files' never fired"


def test_a_ledger_that_was_away_and_costs_a_gap_in_the_transcript_is_seen(monkeypatch):
    monkeypatch.setattr(recovery_parts, "attempt", broken.attempt_after_an_outage)
    journal = judged()
    assert (journal.status, journal.error) == ("violated", None)
    found = {check.name: check.actual for check in journal.checks if not check.passed}
    assert set(found) == {f"{GROUP}: {check}" for check in (FILES, HEARD, TOLD)}
    assert all(fault.startswith("ledger-away: ") for faults in found.values() for fault in faults)
    assert "ledger-away: transcript.json" in found[f"{GROUP}: {FILES}"]
    assert {fault.name: fault.fired for fault in journal.faults} == {"no room for files": 1, "ledger refuses writes": 1}
