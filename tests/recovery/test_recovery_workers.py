"""The part of job-recovery with real workers says what is wrong when they, or who follows them, fail in their duty."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from dailies.canonical import canonical_json
from dailies.events import schemas
from dailies.ledger.holding import TTL_S
from dailies.ledger.records import Job, Lease
from dailies.ledger.sqlite import SqliteLedger
from dailies.scenarios.journal import Journal, read
from dailies.scenarios.processes import Nursery
from flows.scenarios import job_recovery
from tasks import recovery_workers
from tasks.contention import RESCUE_S
from tasks.job_recovery import undisturbed
from tasks.recovery_findings import FIXES, Whole, findings
from tasks.recovery_parts import PARALLEL, Trial, claim
from tasks.recovery_workers import (
    HANDED_BACK_S,
    RESUMED_S,
    check_drained,
    count_deaths,
    death_to_running,
    measure,
    real_workers,
    started_to_resumed,
)
from tasks.scenario import Scenario, of_its_own, scenario
from tests.integration import conftest as integration

pytestmark = [pytest.mark.recovery]
home = integration.home
ENDED, FILES, WHOLE, HEARD, TOLD, LEFT, CLEARED = FIXES
RUNNING_ELSEWHERE = "workers: running elsewhere within (s)"
RESUMED = "workers: resumed after its start within (s), p95"
HANDED_BACK, NO_CRASH = "drained: handed back within (s)", "drained: it is no crash"
SWEPT_S = TTL_S + 1.0


# ── a job that lives on a real ledger, by a clock that the test moves ─────────────────────────────────────────────────


@dataclass
class Clock:
    now: float = 1.7e9

    def __call__(self) -> float:
        return self.now


@dataclass
class Life:
    """What attempts, workers and supervisors would do to one job, without any of them."""

    trial: Trial
    clock: Clock
    ttl: float = TTL_S

    def passes(self, seconds: float) -> None:
        self.clock.now += seconds

    def begins(self) -> Lease:
        """The next attempt, as a worker starts it."""
        claim(self.trial.run)
        job = self.job
        return self.trial.run.ledger.jobs.start(job.id, job.attempt, f"run-{job.attempt}", self.ttl)[1]

    def hears(self, lease: Lease, number: int, again: bool = False) -> None:
        """One chunk, and its event in the same transaction. ``again``: only with its own ears, the unit is known."""
        with self.trial.tally.open("ab") as tally:
            tally.write(canonical_json({"at": self.clock.now, "pid": lease.fence, "sound": f"sound-{number}"}) + b"\n")
        if again:
            return
        units, key, step = self.trial.run.ledger.units, f"chunk-{number}", "transcribe_chunk"
        units.begin(lease, key, step)
        facts = {"number": number, "sha256": f"sound-{number}"}
        told = {"event": "chunk_transcribed", "chunk_index": number, "chunk_text": "1"}
        event = schemas.CHUNK_TRANSCRIBED, {**told, "job_id": self.trial.job.id, "processing_time": 0, "retry_count": 0}
        units.complete(lease, key, step, "d", {"facts": facts}, event=event)

    def dies(self) -> None:
        """With the evidence that a failpoint leaves."""
        log = self.trial.log(1)
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            file.write(json.dumps({"name": "point", "pid": 7, "acted": True, "time": self.clock.now}) + "\n")

    def is_recovered(self) -> None:
        assert [job.id for job in self.trial.run.ledger.jobs.recover()] == [self.job.id]

    def goes_on(self, lease: Lease, done: int) -> None:
        data = {"remaining_chunks": 2 - done, "completed_chunks": done}
        self.trial.run.ledger.outbox.emit(lease, schemas.PROCESSING_RESUMED, str(self.job.attempt), data)

    @property
    def job(self) -> Job:
        return self.trial.run.ledger.jobs.get(self.trial.job.id)

    def judged(self) -> set[str]:
        """The checks that are red."""
        return {check.name for check in self.trial.run.journal.checks if not check.passed}


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    site, trial_ledger = of_its_own(tmp_path)
    site.ledger.close()
    clock = Clock()
    site = replace(site, ledger=SqliteLedger(tmp_path / "ledger.db", clock))
    with Nursery() as nursery:
        run = Scenario(Journal(scenario="job-recovery"), tmp_path, nursery, site, trial_ledger)
        life = Life(Trial(run, "by-hand", TTL_S), clock)
        life.trial.tally.parent.mkdir()
        yield life
        for ledger in run.ledgers().values():
            ledger.close()


# ── how long it took ──────────────────────────────────────────────────────────────────────────────────────────────────


def died_and_went_on(life: Life, noticed: float, running: float, resumed: float) -> None:
    """What happens after its death, in seconds since then."""
    life.hears(life.begins(), 0)
    life.dies()
    life.passes(noticed)
    life.is_recovered()
    life.passes(running - noticed)
    lease = life.begins()
    life.passes(resumed - running)
    life.goes_on(lease, done=1)
    count_deaths(life.trial)


@pytest.mark.parametrize(
    ("noticed", "running", "resumed", "red"),
    [
        (SWEPT_S, RESCUE_S - 1, SWEPT_S + RESUMED_S - 0.1, set()),
        (RESCUE_S - 1, RESCUE_S + 1, RESCUE_S + 1, {RUNNING_ELSEWHERE}),
        (SWEPT_S, SWEPT_S + 1, SWEPT_S + RESUMED_S + 1, {RESUMED}),
        (SWEPT_S, RESCUE_S + 1, RESCUE_S + 1, {RUNNING_ELSEWHERE, RESUMED}),
    ],
)
def test_who_runs_elsewhere_or_resumes_too_late_is_seen(life, noticed, running, resumed, red):
    died_and_went_on(life, noticed, running, resumed)
    assert death_to_running(life.trial) == [pytest.approx(running)]
    assert started_to_resumed(life.trial) == [pytest.approx(resumed - noticed)]
    measure(life.trial.run, [life.trial])
    assert life.judged() == red
    metrics = life.trial.run.journal.metrics
    assert (metrics["worker_kills"], metrics["worker_death_to_running_s"]["n"]) == (1, 1)


def test_where_nobody_died_or_nobody_took_over_nothing_was_proved(life):
    life.hears(life.begins(), 0)
    measure(life.trial.run, [life.trial])
    assert life.judged() == {RUNNING_ELSEWHERE, RESUMED}
    life.dies()
    count_deaths(life.trial)
    assert [death.done for death in life.trial.deaths] == [{"sound-0"}]
    assert death_to_running(life.trial) == []


# ── what was done, and done again ─────────────────────────────────────────────────────────────────────────────────────

WANTED = Whole({}, frozenset({"sound-0", "sound-1"}), 0)


def test_a_chunk_that_was_finished_when_its_run_died_is_not_to_be_heard_again(life):
    first = life.begins()
    life.hears(first, 0)
    life.passes(1)
    life.dies()
    life.passes(SWEPT_S)
    life.is_recovered()
    second = life.begins()
    life.passes(1)
    life.hears(second, 1)
    count_deaths(life.trial)
    assert findings(life.trial, WANTED)[HEARD] == []
    life.hears(second, 0, again=True)
    assert findings(life.trial, WANTED)[HEARD] == ["by-hand: finished and heard again sound-0"]


def test_what_came_to_the_ledger_after_the_death_counts_as_finished_and_what_the_next_run_did_does_not(life):
    first = life.begins()
    life.dies()
    life.passes(0.2)
    life.hears(first, 0)
    life.passes(SWEPT_S)
    life.is_recovered()
    life.hears(life.begins(), 1)
    count_deaths(life.trial)
    assert [death.done for death in life.trial.deaths] == [{"sound-0"}]
    (fault,) = life.trial.run.journal.faults
    assert (fault.name, fault.fired) == ("killed under a worker", 1)


def test_a_healthy_run_that_is_recovered_because_its_worker_was_killed_is_seen(life):
    """Its trial counts no death, so nobody had anything to recover."""
    life.begins()
    life.passes(SWEPT_S)
    life.is_recovered()
    life.trial.run.ledger.jobs.done(life.begins(), {})
    found = findings(life.trial, Whole({}, frozenset(), 0))
    assert found[ENDED] == ["by-hand: ('DONE', 2) instead of ('DONE', 1): "]
    assert "by-hand: dailies.recovery.started 1 times instead of 0" in found[TOLD]


def test_a_healthy_run_that_outlives_its_worker_has_no_fault_there(life):
    life.trial.run.ledger.jobs.done(life.begins(), {})
    found = findings(life.trial, Whole({}, frozenset(), 0))
    assert found[ENDED] == []
    assert not [fault for fault in found[TOLD] if "recovery" in fault or "running" in fault]


# ── told to stop ──────────────────────────────────────────────────────────────────────────────────────────────────────


def is_told_to_stop(life: Life, after: float, crashes: bool) -> set[str]:
    """The job goes back so long after its run was asked to; what the part says of it."""
    lease = life.begins()
    life.passes(1)
    asked = life.clock.now
    life.passes(after)
    if crashes:
        life.is_recovered()
    else:
        life.trial.run.ledger.jobs.hand_back(lease, "Its worker was told to stop")
    life.trial.run.ledger.jobs.done(life.begins(), {})
    check_drained(life.trial, asked)
    return life.judged()


def test_a_run_that_hands_its_job_back_at_once_has_no_fault(life):
    assert is_told_to_stop(life, HANDED_BACK_S - 1, crashes=False) == set()


def test_a_job_that_is_handed_back_late_is_seen(life):
    assert is_told_to_stop(life, HANDED_BACK_S + 0.5, crashes=False) == {HANDED_BACK}


def test_a_run_that_stops_without_handing_back_is_a_crash_and_late(life):
    assert is_told_to_stop(life, SWEPT_S, crashes=True) == {HANDED_BACK, NO_CRASH}


def test_a_run_that_is_counted_as_crashed_is_seen_though_it_was_quick(life):
    life.ttl = 1.0
    assert is_told_to_stop(life, HANDED_BACK_S - 1, crashes=True) == {NO_CRASH}


def test_a_run_that_does_not_heed_is_seen(life):
    lease = life.begins()
    life.trial.run.ledger.jobs.done(lease, {})
    check_drained(life.trial, life.clock.now)
    assert life.judged() == {HANDED_BACK, NO_CRASH}


# ── with workers ──────────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = "tests.recovery.broken_workers.tied_deaf_and_forgetful"


@flow(name="real-workers-alone", persist_result=False)
def alone() -> Any:
    """The part by itself, as job-recovery plays it, but without the jobs whose delays it measures."""
    with scenario("real-workers-alone", 0, {}, "local", job_recovery.PRELOADED) as run:
        run.width = PARALLEL
        real_workers(run, undisturbed(run), [])
    return run.state


def failures(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


@pytest.mark.slow
@pytest.mark.usefixtures("fast_api")
def test_runs_that_die_with_their_worker_do_not_hand_back_and_forget_what_was_done_are_seen(home, monkeypatch):
    monkeypatch.setattr(recovery_workers, "FLOW", BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the runs, which have to find it
    alone(return_state=True)
    journal = read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "real-workers-alone.json")
    assert (journal.status, journal.error) == ("violated", None)
    found = {check.name: check.actual for check in journal.checks}
    assert failures(journal) >= {HANDED_BACK, NO_CRASH, f"workers: {ENDED}", f"workers: {HEARD}", f"workers: {TOLD}"}
    assert any(fault.startswith("worker-killed: ('DONE', 2)") for fault in found[f"workers: {ENDED}"])
    assert any(fault.startswith("all-killed: finished and heard again") for fault in found[f"workers: {HEARD}"])
    assert all(fault.fired and fault.evidence for fault in journal.faults)
