"""A ledger's world for its contract: a clock, jobs on their way, and every way to lose them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dailies.errors import (
    Injected,
    Unreadable,
)
from dailies.ledger.interface import Ledger
from dailies.ledger.records import (
    Caps,
    Event,
    Job,
    JobRequest,
    JobState,
    Lease,
    job_resource,
)

TTL = 6.0


ROOM = Caps(total=1000, per_tenant=1000)


Another = Callable[[], Ledger]


class Clock:
    """Time stands still until somebody advances it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


# ── ways to get somewhere ─────────────────────────────────────────────────────────────────────────────────────────────
def request(**changes: Any) -> JobRequest:
    return JobRequest(**{"tenant": "acme", "kind": "ingest-media", "subject": "video-1", **changes})


def running(ledger: Ledger, run: str = "run-1", **changes: Any) -> tuple[Job, Lease]:
    job = ledger.jobs.submit(request(**changes), run_id=run)
    return ledger.jobs.start(job.id, job.attempt, run, TTL)


def start_again(ledger: Ledger, job_id: str, run: str) -> tuple[Job, Lease]:
    """The next attempt, through the front door: claimed, bound, started."""
    claimed = ledger.dispatch.next(ROOM)
    assert claimed is not None
    assert claimed.id == job_id
    ledger.dispatch.bind(job_id, claimed.attempt, run)
    return ledger.jobs.start(job_id, claimed.attempt, run, TTL)


def in_state(ledger: Ledger, state: JobState) -> tuple[Job, Lease]:
    """A job in this state that has run once, and the lease that it ran under."""
    job, lease = running(ledger, f"run-{state.lower()}")
    match state:
        case JobState.QUEUED:
            job = ledger.jobs.failed(lease, Injected("once more"), retry_in=0)
        case JobState.PAUSED:
            job = ledger.jobs.paused(lease)
        case JobState.DONE:
            job = ledger.jobs.done(lease, {"answer": 42})
        case JobState.FAILED:
            job = ledger.jobs.failed(lease, Unreadable("not media"))
        case JobState.CANCELED:
            job = ledger.jobs.cancel(job.id)
    assert job.state is state
    return job, lease


def picture(ledger: Ledger, job_id: str) -> tuple[object, ...]:
    """All that can be seen of a job: equal pictures mean that nothing was changed."""
    return (
        ledger.jobs.get(job_id),
        list(ledger.units.of(job_id)),
        list(ledger.outbox.of(job_id)),
        ledger.leases.holder(job_resource(job_id)),
        list(ledger.generations.history(job_resource(job_id))),
        sorted(call.unit for call in ledger.calls.orphans()),
        [run for run in ledger.dispatch.unshown() if run.job == job_id],
    )


def states(ledger: Ledger, job_id: str) -> list[str]:
    return [event.type.removeprefix("dailies.job.").upper() for event in told(ledger, job_id, "job")]


def told(ledger: Ledger, job_id: str, about: str) -> list[Event]:
    """The events of a job that are of one family."""
    return [event for event in ledger.outbox.of(job_id) if event.type.startswith(f"dailies.{about}.")]


def recoveries_of(ledger: Ledger, job_id: str) -> list[tuple[str, int]]:
    """What was told of its recoveries, and in which attempts."""
    return [
        (event.type.removeprefix("dailies.recovery."), event.data["attempt"])
        for event in told(ledger, job_id, "recovery")
    ]


@contextmanager
def unchanged(ledger: Ledger, job_id: str) -> Iterator[None]:
    before = picture(ledger, job_id)
    yield
    assert picture(ledger, job_id) == before


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0) … work(count - 1)`` in threads that set off together; their results in that order."""
    gate = threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            gate.wait(10)
            results[number] = work(number)
        except BaseException as error:  # noqa: BLE001 - it is raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]
    return results


def flat(lists: list[list[Any]]) -> list[Any]:
    return [item for inner in lists for item in inner]


# ── every fenced write, and every way to lose the right to it ─────────────────────────────────────────────────────────
FENCED_WRITES: dict[str, Callable[[Ledger, Lease], Any]] = {
    "renew": lambda ledger, lease: ledger.leases.renew(lease, TTL),
    "release": lambda ledger, lease: ledger.leases.release(lease),
    "begin a unit": lambda ledger, lease: ledger.units.begin(lease, "unit-new", "probe"),
    "begin a known unit": lambda ledger, lease: ledger.units.begin(lease, "unit-1", "probe"),
    "complete a unit": lambda ledger, lease: ledger.units.complete(lease, "unit-1", "probe", "d-late", {"late": True}),
    "complete a new unit": lambda ledger, lease: ledger.units.complete(lease, "unit-new", "probe", "d-late", 1),
    "reuse a unit": lambda ledger, lease: ledger.units.complete(lease, "u", "probe", "d-late", 1, reused=True),
    "complete a unit and tell": lambda ledger, lease: ledger.units.complete(
        lease, "unit-1", "probe", "d-late", 1, event=("dailies.late", {"late": True})
    ),
    "reuse a unit and tell": lambda ledger, lease: ledger.units.complete(
        lease, "u", "probe", "d-late", 1, reused=True, event=("dailies.late", {"late": True})
    ),
    "intend a call": lambda ledger, lease: ledger.calls.intend(lease, "unit-new"),
    "intend a known call": lambda ledger, lease: ledger.calls.intend(lease, "unit-1"),
    "submit a call": lambda ledger, lease: ledger.calls.submitted(lease, "unit-1", "late-call"),
    "end a call": lambda ledger, lease: ledger.calls.ended(lease, "unit-1", "DONE"),
    "publish": lambda ledger, lease: ledger.generations.publish(lease, "gen-late/index"),
    "emit": lambda ledger, lease: ledger.outbox.emit(lease, "dailies.note", "late", {"late": True}),
    "emit again": lambda ledger, lease: ledger.outbox.emit(lease, "dailies.note", "early", {"early": True}),
    "done": lambda ledger, lease: ledger.jobs.done(lease, "late"),
    "failed": lambda ledger, lease: ledger.jobs.failed(lease, Unreadable("late")),
    "failed with retry": lambda ledger, lease: ledger.jobs.failed(lease, Injected("late"), retry_in=0),
    "paused": lambda ledger, lease: ledger.jobs.paused(lease),
}


def with_work_under_way(ledger: Ledger) -> tuple[Job, Lease]:
    job, lease = running(ledger)
    ledger.units.begin(lease, "unit-1", "probe")
    ledger.calls.intend(lease, "unit-1")
    ledger.outbox.emit(lease, "dailies.note", "early", {"early": True})
    return job, lease


def taken_over(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> None:
    clock.advance(TTL)
    ledger.jobs.recover()
    start_again(ledger, job.id, "run-2")


def recovered(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> None:
    clock.advance(TTL)
    ledger.jobs.recover()


def running_again(ledger: Ledger, clock: Clock, **changes: Any) -> tuple[Job, Lease]:
    """A job whose first worker died, in the hands of the next one."""
    job, _ = running(ledger, **changes)
    clock.advance(TTL)
    ledger.jobs.recover()
    return start_again(ledger, job.id, "run-2")


def swept(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> None:
    clock.advance(TTL)
    ledger.leases.sweep()


def canceled(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> None:
    ledger.jobs.cancel(job.id)


def ended(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> None:
    ledger.jobs.failed(lease, Unreadable("not media"))


def paused_and_resumed(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> None:
    ledger.jobs.paused(lease)
    ledger.jobs.resume(job.id)
    start_again(ledger, job.id, "run-1")  # by a run of the very same name


WAYS_TO_LOSE = [taken_over, recovered, swept, canceled, ended, paused_and_resumed]


class Sound:
    """Whatever a test did through the interface, it left no contradiction behind."""

    @pytest.fixture(autouse=True)
    def _is_sound_at_the_end(self, ledger: Ledger) -> Iterator[None]:
        yield
        assert {rule: offenders for rule, offenders in ledger.audit(grace=math.inf).items() if offenders} == {}


ORDERS: dict[str, Callable[[Ledger, Job, Lease], Any]] = {
    "start": lambda ledger, job, lease: ledger.jobs.start(job.id, job.attempt, "run-2", TTL)[0],
    "done": lambda ledger, job, lease: ledger.jobs.done(lease, {"answer": 42}),
    "failed": lambda ledger, job, lease: ledger.jobs.failed(lease, Unreadable("not media")),
    "failed with retry": lambda ledger, job, lease: ledger.jobs.failed(lease, Injected("again"), retry_in=5),
    "paused": lambda ledger, job, lease: ledger.jobs.paused(lease),
    "cancel": lambda ledger, job, lease: ledger.jobs.cancel(job.id),
    "pause": lambda ledger, job, lease: ledger.jobs.pause(job.id),
    "resume": lambda ledger, job, lease: ledger.jobs.resume(job.id),
    "recover": lambda ledger, job, lease: ledger.jobs.recover() or ledger.jobs.get(job.id),
}


# What tells of a recovery, of a job in its second attempt with so many in all.
RECOVERY_ORDERS: dict[str, tuple[Callable[[Ledger, Job, Lease], Any], int]] = {
    "done": (ORDERS["done"], 3),
    "failed": (ORDERS["failed"], 3),
    "failed with retry": (ORDERS["failed with retry"], 2),
    "recover": (ORDERS["recover"], 3),
    "recover for the last time": (ORDERS["recover"], 2),
}
