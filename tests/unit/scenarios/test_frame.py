"""The checks that every scenario ends with, and what a verdict looks like in Prefect."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from dailies.ledger.records import JobRequest
from dailies.scenarios.journal import Check, Journal
from dailies.scenarios.processes import Nursery
from dailies.scenarios.verdict import Verdict
from tasks.scenario import Scenario, nothing_lost, of_its_own, sound
from tasks.verdict import final_state

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Scenario]:
    made = Scenario(Journal(scenario="test"), tmp_path, Nursery(), *of_its_own(tmp_path))
    yield made
    made.ledger.close()
    made.trial.close()


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def begun(run: Scenario, name: str):
    job = run.ledger.jobs.submit(JobRequest("acme", "test", name), run_id=name)
    return job, run.ledger.jobs.start(job.id, 1, name, 60)[1]


def test_a_job_that_ended_well_is_sound(run):
    _, lease = begun(run, "good")
    run.ledger.units.begin(lease, "unit", "step")
    run.ledger.units.complete(lease, "unit", "step", "digest", {})
    run.ledger.jobs.done(lease, {})
    assert failed(sound(run, grace=0)) == set()
    assert failed(nothing_lost(run)) == set()


def test_a_job_that_never_ended_is_lost(run):
    begun(run, "forgotten")
    assert failed(nothing_lost(run)) == {"no accepted job lost"}


def test_a_finished_unit_that_was_redone_without_a_crash_is_an_effect_twice(run):
    _, lease = begun(run, "careless")
    for _ in range(2):
        run.ledger.units.begin(lease, "unit", "step")
        run.ledger.units.complete(lease, "unit", "step", "digest", {})
    run.ledger.jobs.done(lease, {})
    assert failed(nothing_lost(run)) == {"no effect twice"}


def test_a_job_that_ended_twice_is_an_effect_twice(run):
    job, lease = begun(run, "twice")
    run.ledger.outbox.emit(lease, "dailies.job.done", "again", {})
    run.ledger.jobs.done(lease, {})
    assert job.id in str(next(check.actual for check in nothing_lost(run) if not check.passed))


def test_the_trial_ledger_is_judged_as_well(run):
    job = run.trial.jobs.submit(JobRequest("acme", "test", "forgotten"), run_id="forgotten")
    run.trial.jobs.start(job.id, 1, "forgotten", 0.001)
    time.sleep(0.01)
    assert "trial ledger: no running without a live lease" in failed(sound(run, grace=0))
    assert failed(nothing_lost(run)) == {"no accepted job lost"}


@pytest.mark.parametrize(
    ("verdict", "kind", "name"),
    [
        (Verdict.PASSED, StateType.COMPLETED, "Completed"),
        (Verdict.SKIPPED, StateType.COMPLETED, "Skipped"),
        (Verdict.VIOLATED, StateType.FAILED, "Violated"),
        (Verdict.INCONCLUSIVE, StateType.FAILED, "Inconclusive"),
        (Verdict.ERROR, StateType.FAILED, "Error"),
    ],
)
def test_a_verdict_is_the_flow_runs_final_state(verdict, kind, name):
    state = final_state(Journal(scenario="test", status=verdict.value))
    assert (state.type, state.name) == (kind, name)
