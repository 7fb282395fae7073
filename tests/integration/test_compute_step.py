"""A step that runs elsewhere: killed anywhere, it is found again and paid for once; canceled, nothing of it is left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prefect import State, tags

from blocks.site import OpenSite, open_site
from dailies.compute.interface import Busy, Canceled, StillRunning, UnknownCall, Unreachable
from dailies.compute.local import LocalCompute, id_of
from dailies.compute.modal import ModalCompute
from dailies.errors import DailiesError, Missing, NotConfigured, Transient
from dailies.failpoints import environment as armed
from dailies.failpoints import fired
from dailies.ledger.records import Call, Caps, Job, JobState
from dailies.ledger.sqlite import SqliteLedger
from services.environment import environment
from tasks import _compute, _job
from tasks._compute import on_compute, reap_orphans
from tasks._job import Working, job_flow
from tasks._step import REGISTRY, Output, work
from tests.compute_contract import eventually, gone, world
from tests.compute_work import ROOT, TABLE
from tests.modal_stand_in import Cloud

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]
__all__ = ["world"]

KEY = "acme/client/videos/v1/clip.mp4"


def with_compute(name: str = "local") -> OpenSite:
    """The site as it is, with its compute on the functions of the tests."""
    home = Path(os.environ["DAILIES_HOME"])
    compute = LocalCompute(home / "calls", {"folder": str(home / "media")}, TABLE)
    return dataclasses.replace(open_site(name), compute=compute)


@work(version=1, timeout=60, retries=0)
def worked_elsewhere(job: Working, function: str, payload: dict[str, Any]) -> Output:
    """Runs a function of the tests."""
    return on_compute(job, worked_elsewhere, function, payload)


del REGISTRY["worked_elsewhere"]  # nobody else's business


@job_flow("compute-step", subject=lambda tenant, **_: f"{tenant}/v1")
def compute_step(job: Working, tenant: str, function: str, payload: dict[str, Any]) -> dict[str, Any]:
    """One step that runs elsewhere.

    Args:
        tenant: Whose it is.
        function: What runs.
        payload: On what.
    """
    return worked_elsewhere(job, function, payload).to_json()


def run(function: str, payload: dict[str, Any]) -> State[Any]:
    return compute_step(tenant="acme", function=function, payload=payload, return_state=True)


def run_as_program(function: str, payload: str) -> None:
    _job.open_site = with_compute
    run(function, json.loads(payload))


PROGRAM = "import sys; from tests.integration.test_compute_step import run_as_program; run_as_program(*sys.argv[1:])"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def at(home, monkeypatch) -> Iterator[OpenSite]:
    monkeypatch.setattr(_job, "open_site", with_compute)
    site = with_compute()
    yield site
    for place in (home / "calls").glob("*/"):
        site.compute.cancel(place.name)
    site.ledger.close()


@pytest.fixture
def worker(fast_api, home, tmp_path, world) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """The flow in a process of its own, with a fault armed."""
    started = []

    def start(function: str, spec: str = "") -> subprocess.Popen[bytes]:
        env = environment(PREFECT_API_URL=fast_api, DAILIES_HOME=str(home), **armed(spec, tmp_path / "faults.jsonl"))
        log = (tmp_path / "worker.log").open("ab")
        command = [sys.executable, "-c", PROGRAM, function, json.dumps(world.payload(text="to be"))]
        with log:
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def only(site: OpenSite) -> Job:
    (job,) = site.ledger.jobs.all()
    return job


def call_of(site: OpenSite) -> Call:
    """The one call, whatever its state: there is no listing but the database itself."""
    with contextlib.closing(sqlite3.connect(site.ledger.path)) as database:
        ((unit, job, call_id, state),) = database.execute("SELECT unit, job, call_id, state FROM calls")
    return Call(unit, job, call_id, state)


def next_attempt(site: OpenSite, function: str, payload: dict[str, Any]) -> State[Any]:
    """What the supervisor does when the worker is dead, and then a run of the next attempt."""
    later(site).jobs.recover()
    return next_run(site, function, payload)


def next_run(site: OpenSite, function: str, payload: dict[str, Any]) -> State[Any]:
    job = later(site).dispatch.next(Caps())
    with tags(f"job:{job.id}", f"attempt:{job.attempt}"):
        return run(function, payload)


def later(site: OpenSite) -> SqliteLedger:
    """The same ledger when every lease of now is over, and every rest."""
    return SqliteLedger(site.ledger.path, clock=lambda: time.time() + 60)


def sound(site: OpenSite) -> bool:
    return not any(site.ledger.audit(grace=60).values())


def test_a_flow_gets_what_the_function_made_elsewhere_and_the_call_is_on_record(at, world):
    state = run("count", world.payload(text="to be or not"))
    answer = state.result()
    assert answer["facts"] == {"device": "cpu", "words": 4}
    assert at.store.get(answer["artifacts"][0]["key"]) == b"to be or not"
    assert only(at).result == answer
    call = call_of(at)
    assert (call.state, call.call_id) == ("DONE", id_of(call.unit))
    assert list(at.ledger.calls.orphans()) == []
    assert sound(at)


KILLED = {
    "before it is submitted": ("compute.intended", "INTENDED", 1),
    "between submitting and writing down the id": ("compute.submitted", "INTENDED", 1),
    "after the id is written down": ("compute.recorded", "SUBMITTED", 1),
}


@pytest.mark.recovery
@pytest.mark.parametrize(("point", "state", "executions"), KILLED.values(), ids=KILLED)
def test_a_worker_that_is_killed_leaves_a_call_that_the_next_attempt_does_not_pay_again(
    at, world, worker, tmp_path, point, state, executions
):
    process = worker("wait", f"{point}=kill")
    assert process.wait(60) == -signal.SIGKILL
    assert [entry["name"] for entry in fired(tmp_path / "faults.jsonl")] == [point]
    left = call_of(at)
    assert left.state == state
    if point != "compute.intended":
        world.begun()
    world.gate.touch()
    ended = next_attempt(at, "wait", world.payload(text="to be"))
    assert ended.result()["facts"]["waited"] is True
    assert world.executions == executions
    assert (call_of(at).state, call_of(at).call_id) == ("DONE", left.call_id or id_of(left.unit))
    assert (only(at).state, only(at).attempt) == (JobState.DONE, 2)
    assert sound(at)


@pytest.mark.recovery
def test_a_worker_that_is_killed_while_it_waits_is_followed_by_one_that_waits_for_the_same_call(at, world, worker):
    process = worker("wait")
    world.begun()
    eventually(lambda: call_of(at).state == "SUBMITTED")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    world.gate.touch()
    assert next_attempt(at, "wait", world.payload(text="to be")).is_completed()
    assert world.executions == 1


@pytest.mark.recovery
def test_a_result_made_while_nobody_was_there_is_fetched_and_not_made_again(at, world, worker):
    process = worker("count", "compute.recorded=kill")
    assert process.wait(60) == -signal.SIGKILL
    world.begun()
    at.compute.result(call_of(at).call_id, 20)
    assert next_attempt(at, "count", world.payload(text="to be")).result()["facts"]["words"] == 2
    assert world.executions == 1


@pytest.mark.expects_errors
def test_a_canceled_job_leaves_no_process_of_its_call_within_two_seconds(at, world, beside):
    running = beside(run, "linger", world.payload())
    eventually(world.note.exists)
    start = time.monotonic()
    at.ledger.jobs.cancel(only(at).id)
    eventually(lambda: all(map(gone, world.family)))
    assert time.monotonic() - start < 2
    assert running.result(20).name == "Cancelled"
    assert reap_orphans(at) == 1
    assert call_of(at).state == "CANCELED"
    assert reap_orphans(at) == 0
    assert sound(at)


@pytest.mark.expects_errors
def test_a_paused_job_lets_its_call_go_on_and_finds_it_when_it_is_resumed(at, world, beside):
    running = beside(run, "wait", world.payload())
    world.begun()
    at.ledger.jobs.pause(only(at).id)
    assert running.result(20).name == "Paused"
    assert call_of(at).state == "SUBMITTED"
    with pytest.raises(StillRunning):
        at.compute.result(call_of(at).call_id, 0.2)
    world.gate.touch()
    at.ledger.jobs.resume(only(at).id)
    assert next_run(at, "wait", world.payload()).is_completed()
    assert world.executions == 1


@pytest.mark.expects_errors
def test_who_lost_the_job_leaves_the_call_to_the_attempt_that_follows(at, world, beside):
    running = beside(run, "wait", world.payload())
    world.begun()
    later(at).jobs.recover()
    assert running.result(20).name == "Superseded"
    with pytest.raises(StillRunning):
        at.compute.result(call_of(at).call_id, 0.2)
    world.gate.touch()
    assert next_run(at, "wait", world.payload()).is_completed()
    assert world.executions == 1


@pytest.mark.expects_errors
def test_a_typed_error_from_elsewhere_is_the_jobs_and_its_call_has_failed(at, world):
    state = run("refuse", world.payload(code="missing"))
    assert (state.name, state.message) == ("Missing", "there is no upload")
    assert (only(at).state, only(at).error_code) == (JobState.FAILED, "missing")
    assert call_of(at).state == "FAILED"
    assert list(at.ledger.calls.orphans()) == []


@pytest.mark.expects_errors
def test_a_unit_that_failed_in_passing_is_submitted_anew_by_the_next_attempt(at, world):
    assert run("refuse_once", world.payload()).name == "Requeued"
    assert call_of(at).state == "FAILED"
    assert next_run(at, "refuse_once", world.payload()).result()["facts"]["tries"] == 2
    assert world.executions == 2


@pytest.mark.expects_errors
def test_a_reply_that_modal_lost_costs_the_next_attempt_looks_and_no_second_execution(at, world, tmp_path, monkeypatch):
    cloud = Cloud(tmp_path / "cloud", {"DAILIES_STORE": json.dumps({"folder": str(at.store.root)})}, TABLE)
    site = dataclasses.replace(at, compute=ModalCompute("dailies", client=cloud))
    monkeypatch.setattr(_job, "open_site", lambda name: dataclasses.replace(with_compute(), compute=site.compute))
    cloud.faults = ["lose_reply"]
    try:
        assert run("wait", world.payload()).name == "Requeued"
        assert (call_of(at).state, call_of(at).call_id) == ("INTENDED", "")
        world.begun()
        threading.Timer(4.0, world.gate.touch).start()
        assert next_run(at, "wait", world.payload()).result()["facts"]["waited"] is True
    finally:
        cloud.shut_down()
    assert world.executions == 1
    assert len(cloud.spawned) >= 3, "the lost one, one that looked and was told so, one that found the result"
    assert (call_of(at).state, call_of(at).call_id) == ("DONE", cloud.spawned[-1])


# ── what compute may answer, without a flow ───────────────────────────────────────────────────────────────────────────


class Scripted:
    """A compute that answers as it is told to, and remembers what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.submitted: list[str] = []
        self.canceled: list[str] = []
        self.when: list[float] = []

    def submit(self, function: str, payload: Any, unit: str) -> str:
        self.submitted.append(unit)
        self.when.append(time.monotonic())
        return f"call-{len(self.submitted)}"

    def result(self, call_id: str, timeout: float) -> Any:
        answer = self.answers.pop(0) if self.answers else StillRunning("not yet")
        if isinstance(answer, BaseException):
            time.sleep(0.01)
            raise answer
        return answer

    def cancel(self, call_id: str) -> None:
        self.canceled.append(call_id)

    def find(self, unit: str) -> str | None:
        return None

    def clean(self, older_than: float) -> int:
        return 0


GOOD = {"facts": {"n": 1}, "artifacts": []}


@pytest.fixture
def scripted(at, monkeypatch):
    monkeypatch.setattr(_compute, "AGAIN_S", 0.05)

    def make(*answers: Any) -> Scripted:
        compute = Scripted(*answers)
        monkeypatch.setattr(_job, "open_site", lambda name: dataclasses.replace(with_compute(), compute=compute))
        return compute

    return make


@pytest.mark.parametrize("gone_call", [Busy("in other hands"), UnknownCall("not kept any longer")])
def test_a_call_that_came_to_nothing_is_submitted_again_under_the_same_unit(at, scripted, gone_call):
    compute = scripted(gone_call, gone_call, GOOD)
    assert run("count", {}).result()["facts"] == {"n": 1}
    assert len(compute.submitted) == 3
    assert len(set(compute.submitted)) == 1
    assert (call_of(at).call_id, call_of(at).state) == ("call-3", "DONE")


@pytest.mark.expects_errors
@pytest.mark.parametrize("gone_call", [Canceled("by whom?"), UnknownCall("not kept any longer")])
def test_calls_that_vanish_one_after_another_are_not_submitted_without_end(at, scripted, gone_call):
    compute = scripted(*[gone_call] * 100)
    state = run("count", {})
    assert (state.name, "4 calls came to nothing" in state.message) == ("Requeued", True)
    assert len(compute.submitted) == 4
    assert call_of(at).state == "FAILED"


def test_the_longer_another_call_works_on_the_unit_the_rarer_one_looks(at, scripted, monkeypatch):
    monkeypatch.setattr(_compute, "LONGEST_REST_S", 0.3)
    compute = scripted(*[Busy("in other hands")] * 6, GOOD)
    assert run("count", {}).is_completed()
    rests = [after - before for before, after in pairwise(compute.when)]
    assert len(rests) == 6
    assert all(rest >= wanted for rest, wanted in zip(rests, (0.05, 0.1, 0.2, 0.3, 0.3, 0.3), strict=True))
    assert max(rests) < 1.5


@pytest.mark.expects_errors
def test_a_cancel_is_heard_while_one_rests(at, scripted, monkeypatch, beside):
    monkeypatch.setattr(_compute, "AGAIN_S", 30.0)
    compute = scripted(Busy("in other hands"))
    running = beside(run, "count", {})
    eventually(lambda: compute.submitted and not compute.answers)
    start = time.monotonic()
    at.ledger.jobs.cancel(only(at).id)
    assert running.result(20).name == "Cancelled"
    assert time.monotonic() - start < 4
    assert compute.canceled == ["call-1"]


def test_a_compute_that_cannot_be_asked_for_a_moment_is_asked_again_and_nothing_is_submitted_twice(at, scripted):
    compute = scripted(Unreachable("no answer"), StillRunning("not yet"), Unreachable("no answer"), GOOD)
    assert run("count", {}).is_completed()
    assert len(compute.submitted) == 1


@pytest.mark.expects_errors
def test_a_compute_that_stays_silent_is_given_up_and_the_call_is_left_for_the_next_attempt(at, scripted, monkeypatch):
    monkeypatch.setattr(_compute, "OUTAGE_S", 0.05)
    compute = scripted(*[Unreachable("no answer")] * 100)
    assert run("count", {}).name == "Requeued"
    assert (call_of(at).call_id, call_of(at).state) == ("call-1", "SUBMITTED")
    assert compute.canceled == []
    compute.answers = [GOOD]
    assert next_run(at, "count", {}).is_completed()
    assert len(compute.submitted) == 1, "its id was on record"


@pytest.mark.expects_errors
def test_a_call_that_does_not_end_in_the_steps_time_is_cancelled(at, scripted, monkeypatch):
    monkeypatch.setattr(worked_elsewhere, "timeout", 0.3)
    compute = scripted()
    state = run("count", {})
    assert (state.name, "count did not end within 0.3 s" in state.message) == ("Requeued", True)
    assert compute.canceled == ["call-1"]
    assert call_of(at).state == "CANCELED"


@pytest.mark.expects_errors
def test_a_file_that_is_not_in_the_sites_store_is_not_believed(at, scripted):
    answer = {"facts": {}, "artifacts": [{"key": "acme/server/x", "sha256": "0" * 64, "size": 1}]}
    compute = scripted(answer, answer)
    state = run("count", {})
    assert state.name == NotConfigured.__name__
    assert "acme/server/x in another store than this site's" in state.message
    assert len(compute.submitted) == 2


@pytest.mark.expects_errors
@pytest.mark.parametrize("error", [Missing("no such upload"), Transient("killed")])
def test_the_word_of_the_function_ends_the_call(at, scripted, error: DailiesError):
    scripted(error)
    run("count", {})
    assert call_of(at).state == "FAILED"


def test_an_orphan_whose_id_nobody_wrote_down_is_found_by_its_unit(at, world, worker):
    process = worker("linger", "compute.submitted=kill")
    assert process.wait(60) == -signal.SIGKILL
    eventually(world.note.exists)
    assert call_of(at).call_id == ""
    at.ledger.jobs.cancel(only(at).id)
    assert reap_orphans(at) == 1
    eventually(lambda: all(map(gone, world.family)))
    assert call_of(at).state == "CANCELED"


@pytest.mark.expects_errors
def test_an_orphan_that_cannot_be_cancelled_now_keeps_no_other_and_waits_for_the_next_sweep(at, scripted, beside):
    compute = scripted()
    running = beside(run, "count", {})
    eventually(lambda: compute.submitted and call_of(at).state == "SUBMITTED")

    def refuse(call_id: str) -> None:
        raise Unreachable("no answer")

    willing, compute.cancel = compute.cancel, refuse
    at.ledger.jobs.cancel(only(at).id)
    assert running.result(20).name == "Cancelled"
    site = dataclasses.replace(at, compute=compute)
    assert reap_orphans(site) == 0
    assert call_of(at).state == "SUBMITTED"
    compute.cancel = willing
    assert reap_orphans(site) == 1
    assert compute.canceled == ["call-1"]
    assert call_of(at).state == "CANCELED"


def test_the_calls_of_a_running_job_are_no_orphans(at, scripted, beside):
    compute = scripted()
    running = beside(run, "count", {})
    eventually(lambda: compute.submitted and call_of(at).state == "SUBMITTED")
    assert reap_orphans(at) == 0
    compute.answers.append(GOOD)
    assert running.result(20).is_completed()
    assert compute.canceled == []
