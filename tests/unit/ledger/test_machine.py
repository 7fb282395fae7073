"""Workers that crash, freeze and come back, against a model of what the ledger must then hold.

The model knows nothing of the ledger's tables: who holds what under which fence, and what was allowed to land.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dailies.canonical import canonical_json
from dailies.errors import Fenced, Held, IllegalTransition, Injected, Unreadable
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Caps, Job, JobRequest, JobState, Lease, job_resource
from dailies.ledger.sqlite import SqliteLedger
from dailies.ledger.sqlite.database import Transaction
from dailies.ledger.sqlite.jobs import SqliteJobs, move
from dailies.ledger.sqlite.leases import SqliteLeases
from dailies.ledger.sqlite.messages import write_event
from dailies.ledger.sqlite.units import SqliteUnits
from tests.unit.ledger.contract.world import Clock

pytestmark = pytest.mark.unit

TTL = 6.0
WORKERS = ("ann", "ben", "cem")
KEYS = ("unit-1", "unit-2")
VIDEOS = ("video:1", "video:2")
CAPS = Caps(total=3, per_tenant=2)
QUEUED, PAUSED, RUNNING = JobState.QUEUED, JobState.PAUSED, JobState.RUNNING
DONE, FAILED, CANCELED = JobState.DONE, JobState.FAILED, JobState.CANCELED
FINAL = {DONE, FAILED, CANCELED}
WORK = st.sampled_from(
    [["begin"], ["begin", "complete"], ["complete"], ["reuse"], ["begin", "complete", "begin"], ["begin", "begin"]]
)


@dataclass
class JobModel:
    tenant: str
    max_attempts: int
    state: JobState = QUEUED
    attempt: int = 1
    crashes: int = 0
    told: bool = False
    claimed: bool = False
    run: str = ""
    available_at: float = 0.0
    units: dict[str, tuple[str, int, int, str]] = field(default_factory=dict)  # key: state, fence, attempts, digest
    history: list[JobState] = field(default_factory=lambda: [QUEUED])
    recoveries: list[tuple[str, int]] = field(default_factory=list)
    told_of: list[str] = field(default_factory=list)  # units, in the order in which they were first told of
    last_row: Job | None = None

    def enter(self, state: JobState) -> None:
        self.state = state
        self.history.append(state)
        if state in (DONE, FAILED) and self.recoveries:
            self.recoveries.append(("completed" if state is DONE else "failed", self.attempt))

    def lost(self) -> None:
        """Its worker died."""
        self.again()
        if self.state is QUEUED:
            self.recoveries.append(("started", self.attempt))
        elif not self.recoveries:
            self.recoveries.append(("failed", self.attempt))

    def again(self) -> None:
        """An attempt was lost."""
        self.crashes += 1
        if self.crashes >= self.max_attempts:
            self.enter(FAILED)
        elif self.told:
            self.enter(PAUSED)
        else:
            self.next_attempt()

    def next_attempt(self) -> None:
        self.attempt += 1
        self.claimed = False
        self.enter(QUEUED)

    @property
    def takes_slot(self) -> bool:
        return self.state is RUNNING or (self.state is QUEUED and self.claimed)


@dataclass
class Worker:
    """What a process knows. Freezing keeps it, crashing loses it."""

    job: Lease | None = None
    video: Lease | None = None


class LedgerMachine(RuleBasedStateMachine):
    """For any store: a subclass opens its ledger, with nothing in it, and closes it."""

    def open(self) -> tuple[Ledger, Clock]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.ledger, self.clock = self.open()
        self.jobs: dict[str, JobModel] = {}
        self.workers = {name: Worker() for name in WORKERS}
        self.frozen: list[Lease] = []
        self.runs = 0
        self.current: dict[str, Lease] = {}  # the lease that may write, also past its ttl
        self.highest: dict[str, int] = defaultdict(int)
        self.lost: set[str] = set()
        self.published: dict[str, dict[int, str]] = defaultdict(dict)
        self.recovered_at = self.swept_at = self.clock.now

    # ── helpers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def expired(self, lease: Lease | None) -> bool:
        return lease is None or lease.expires_at <= self.clock.now

    def entitled(self, lease: Lease) -> bool:
        now = self.current.get(lease.resource)
        return now is not None and (now.holder, now.fence) == (lease.holder, lease.fence)

    def got(self, lease: Lease) -> Lease:
        assert lease.fence > self.highest[lease.resource], f"fence {lease.fence} was given out before"
        assert self.expired(self.current.get(lease.resource)), f"{lease.resource} has two live leases"
        self.highest[lease.resource] = lease.fence
        self.current[lease.resource] = lease
        return lease

    def model(self, lease: Lease) -> JobModel:
        return self.jobs[lease.resource.removeprefix("job:")]

    def idle(self) -> list[str]:
        return [name for name, worker in self.workers.items() if worker.job is None]

    def took_video(self) -> list[str]:
        return [name for name, worker in self.workers.items() if worker.video is not None]

    def start(self, name: str, job_id: str, run: str) -> None:
        job, lease = self.ledger.jobs.start(job_id, self.jobs[job_id].attempt, run, TTL)
        assert (job.state, job.attempt, job.fence) == (RUNNING, self.jobs[job_id].attempt, lease.fence)
        self.workers[name].job = self.got(lease)
        self.jobs[job_id].enter(RUNNING)
        self.jobs[job_id].told = False
        self.jobs[job_id].run = run

    def lose_run(self, run: str) -> None:
        """A run that lost its job loses everything it held, under new fences, and gets nothing more."""
        self.lost.add(run)
        for resource in [name for name, lease in self.current.items() if lease.holder == run]:
            del self.current[resource]
            self.highest[resource] += 1

    def new_run(self) -> str:
        self.runs += 1
        return f"run-{self.runs}"

    def write(self, lease: Lease, kind: str, key: str) -> None:
        """Try one write. It must land if, and only if, the lease is still the current one."""
        allowed = self.entitled(lease)
        if kind == "renew" and self.expired(self.current.get(lease.resource)):
            allowed = False
        if allowed and kind == "done" and "RUNNING" in {unit[0] for unit in self.model(lease).units.values()}:
            return  # a worker that obeys its own flow does not do that
        try:
            WRITES[kind](self, lease, key)
        except Fenced:
            assert not allowed, f"{kind} was refused to its rightful holder"
        else:
            assert allowed, f"{kind} by the stale fence {lease.fence} landed on {lease.resource}"
            MODELS[kind](self, lease, key)

    def over(self, lease: Lease) -> None:
        self.current.pop(lease.resource, None)

    def drop(self, name: str) -> None:
        self.workers[name] = Worker()

    # ── the world ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @initialize(count=st.integers(1, 3))
    def first_jobs(self, count: int) -> None:
        for _ in range(count):
            self.submit("acme", 3)

    @rule(tenant=st.sampled_from(["acme", "globex"]), max_attempts=st.integers(1, 3))
    @precondition(lambda self: len(self.jobs) < 8)
    def submit(self, tenant: str, max_attempts: int) -> None:
        request = JobRequest(tenant, "ingest-media", f"video-{len(self.jobs)}", max_attempts=max_attempts)
        self.clock.advance(0.001)  # no two of the same age: which one is dispatched first must not depend on their ids
        job = self.ledger.jobs.submit(request, key=f"key-{len(self.jobs)}")
        assert self.ledger.jobs.submit(request, key=f"key-{len(self.jobs)}") == job
        self.jobs[job.id] = JobModel(tenant, max_attempts, available_at=self.clock.now)

    @rule(data=st.data())
    @precondition(lambda self: len(self.jobs) < 8 and self.idle())
    def submit_and_start_directly(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.idle()))
        self.clock.advance(0.001)
        run = self.new_run()
        job = self.ledger.jobs.submit(JobRequest("direct", "ingest-media", "video-d"), key=run, run_id=run)
        self.jobs[job.id] = JobModel("direct", 3, available_at=self.clock.now, claimed=True)
        self.start(name, job.id, run)

    @rule(data=st.data(), fate=st.sampled_from(["start", "start", "start", "wait", "give up", "wrong run"]))
    @precondition(lambda self: self.idle())
    def claim(self, data: st.DataObject, fate: str) -> None:
        claimed = self.claim_one()
        if claimed is not None:
            self.go_on(claimed, data.draw(st.sampled_from(self.idle())), fate)

    def claim_one(self) -> str | None:
        busy = [job.tenant for job in self.jobs.values() if job.takes_slot]
        fitting = {
            job_id
            for job_id, job in self.jobs.items()
            if job.state is QUEUED and not job.claimed and job.available_at <= self.clock.now
            if len(busy) < CAPS.total and busy.count(job.tenant) < CAPS.per_tenant
        }
        claimed = self.ledger.dispatch.next(CAPS)
        assert (claimed.id if claimed else None) in (fitting or {None})
        if claimed is None:
            return None
        model = self.jobs[claimed.id]
        assert claimed.attempt == model.attempt
        model.claimed = True
        return claimed.id

    @rule(data=st.data(), fate=st.sampled_from(["start", "give up"]))
    @precondition(lambda self: self.idle() and self.waiting())
    def a_claimed_job_goes_on(self, data: st.DataObject, fate: str) -> None:
        job_id = data.draw(st.sampled_from(self.waiting()))
        self.go_on(job_id, data.draw(st.sampled_from(self.idle())), fate)

    def waiting(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.state is QUEUED and job.claimed]

    def go_on(self, job_id: str, name: str, fate: str) -> None:
        model = self.jobs[job_id]
        if fate == "start":
            run = self.new_run()
            self.ledger.dispatch.bind(job_id, model.attempt, run)
            bound = {r.job: r.run_id for r in self.ledger.dispatch.waiting(0)}[job_id]
            self.start(name, job_id, bound)
        elif fate == "wrong run":
            self.ledger.dispatch.bind(job_id, model.attempt, self.new_run())
            with pytest.raises(IllegalTransition):
                self.ledger.jobs.start(job_id, model.attempt, "stranger", TTL)
        elif fate == "give up":
            assert self.ledger.dispatch.give_up(job_id, model.attempt) is not None
            model.told = False
            model.again()

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def leases_expire(self) -> None:
        self.clock.advance(TTL)

    @rule()
    def recover(self) -> None:
        lost = {
            job_id
            for job_id, job in self.jobs.items()
            if job.state is RUNNING and self.expired(self.current.get(job_resource(job_id)))
        }
        assert {job.id for job in self.ledger.jobs.recover()} == lost
        for job_id in lost:
            model = self.jobs[job_id]
            self.lose_run(model.run)
            if model.told:
                model.enter(PAUSED)
                model.told = False
            else:
                model.lost()
            model.available_at = self.clock.now
        self.recovered_at = self.clock.now

    @rule()
    def sweep(self) -> None:
        dead = {resource for resource, lease in self.current.items() if self.expired(lease)}
        assert {lease.resource for lease in self.ledger.leases.sweep()} == dead
        for resource in dead:
            del self.current[resource]
            self.highest[resource] += 1
        self.swept_at = self.clock.now

    @rule(data=st.data(), order=st.sampled_from(["cancel", "pause", "resume"]))
    @precondition(lambda self: self.jobs)
    def order(self, data: st.DataObject, order: str) -> None:
        job_id = data.draw(st.sampled_from(list(self.jobs)))
        model = self.jobs[job_id]
        legal = {"cancel": {QUEUED, PAUSED, RUNNING}, "pause": {QUEUED, RUNNING}, "resume": {PAUSED}}[order]
        if model.state not in legal:
            with pytest.raises(IllegalTransition):
                getattr(self.ledger.jobs, order)(job_id)
            return
        getattr(self.ledger.jobs, order)(job_id)
        if order == "cancel":
            if model.state is RUNNING:
                self.lose_run(model.run)
            model.enter(CANCELED)
        elif order == "resume":
            model.next_attempt()
        elif model.state is RUNNING:
            model.told = True
        else:
            model.claimed = False
            model.enter(PAUSED)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def job_of(self, name: str) -> Lease | None:
        """The lease that this worker believes in; one that has none looks for work first."""
        if self.workers[name].job is None and (claimed := self.claim_one()) is not None:
            self.go_on(claimed, name, "start")
        return self.workers[name].job

    @rule(name=st.sampled_from(WORKERS), kinds=WORK, key=st.sampled_from(KEYS))
    def work(self, name: str, kinds: list[str], key: str) -> None:
        if (lease := self.job_of(name)) is not None:
            for kind in kinds:
                self.write(lease, kind, key)

    @rule(name=st.sampled_from(WORKERS))
    def renew(self, name: str) -> None:
        for lease in (self.workers[name].job, self.workers[name].video):
            if lease is not None:
                self.write(lease, "renew", "")

    @rule(name=st.sampled_from(WORKERS), video=st.sampled_from(VIDEOS))
    def take_video(self, name: str, video: str) -> None:
        job = self.workers[name].job
        holder = job.holder if job is not None else name
        if holder in self.lost:
            with pytest.raises(Fenced):
                self.ledger.leases.acquire(video, holder, TTL)
        elif self.expired(self.current.get(video)):
            self.workers[name].video = self.got(self.ledger.leases.acquire(video, holder, TTL))
        else:
            with pytest.raises(Held) as refused:
                self.ledger.leases.acquire(video, holder, TTL)
            assert refused.value.by == self.current[video].holder

    @rule(data=st.data(), kind=st.sampled_from(["publish", "publish", "release"]))
    @precondition(took_video)
    def use_video(self, data: st.DataObject, kind: str) -> None:
        name = data.draw(st.sampled_from(self.took_video()))
        self.write(self.workers[name].video, kind, name)

    @rule(name=st.sampled_from(WORKERS), kind=st.sampled_from(["done", "done", "fail", "retry", "retry", "pause"]))
    def finish(self, name: str, kind: str) -> None:
        if (lease := self.job_of(name)) is None:
            return
        self.workers[name].job = None
        if kind == "done" and self.entitled(lease):
            for key, unit in sorted(self.model(lease).units.items()):
                if unit[0] == "RUNNING":
                    self.write(lease, "complete", key)
        self.write(lease, kind, "")

    @rule(name=st.sampled_from(WORKERS))
    def crash(self, name: str) -> None:
        self.drop(name)

    @rule(name=st.sampled_from(WORKERS), for_long=st.booleans())
    def freeze(self, name: str, for_long: bool) -> None:
        self.job_of(name)
        worker = self.workers[name]
        self.frozen.extend(lease for lease in (worker.job, worker.video) if lease is not None)
        self.drop(name)
        if for_long:
            self.clock.advance(TTL)
            self.recover()

    @rule(data=st.data())
    @precondition(lambda self: self.frozen)
    def revive(self, data: st.DataObject) -> None:
        """A zombie goes on exactly where it was. Past the end of its lease it tries everything there is."""
        lease = data.draw(st.sampled_from(self.frozen[-6:]))
        of_job = lease.resource.startswith("job:")
        kinds = sorted(JOB_WRITES if of_job else VIDEO_WRITES)
        if self.entitled(lease):
            kinds = [data.draw(st.sampled_from(kinds))]
        for kind in kinds:
            self.write(lease, kind, data.draw(st.sampled_from(KEYS)))

    # ── what must be true after every step ────────────────────────────────────────────────────────────────────────────

    @invariant()
    def no_accepted_job_is_lost_and_every_job_is_where_the_model_says(self) -> None:
        found = {job.id: job for job in self.ledger.jobs.all()}
        assert set(found) == set(self.jobs)
        for job_id, model in self.jobs.items():
            job = found[job_id]
            assert (job.state, job.attempt, job.crashes) == (model.state, model.attempt, model.crashes)
            assert job.crashes <= job.max_attempts == model.max_attempts
            assert (job.control == "pause") == (model.told and model.state is RUNNING)
            if model.last_row is not None and model.last_row.state in FINAL:
                assert job == model.last_row, "a final state changed"
            model.last_row = job

    @invariant()
    def events_tell_the_same_story(self) -> None:
        told: dict[str, dict[str, list[Any]]] = {job_id: defaultdict(list) for job_id in self.jobs}
        for event in self.ledger.outbox.pending(limit=10_000):
            _, about, what = event.type.split(".")
            told[event.job][about].append(event.data["unit"] if about == "unit" else (what, event.data["attempt"]))
        for job_id, model in self.jobs.items():
            assert [what.upper() for what, _ in told[job_id]["job"]] == [str(state) for state in model.history]
            assert told[job_id]["recovery"] == model.recoveries
            assert told[job_id]["unit"] == model.told_of

    @invariant()
    def units_are_what_rightful_holders_wrote(self) -> None:
        for job_id, model in self.jobs.items():
            units = {u.key: (u.state, u.fence, u.attempts, u.digest) for u in self.ledger.units.of(job_id)}
            assert units == model.units

    @invariant()
    def every_resource_has_the_one_live_holder_that_took_it_last(self) -> None:
        for resource in {*self.highest, *VIDEOS}:
            lease = self.current.get(resource)
            assert self.ledger.leases.holder(resource) == (None if self.expired(lease) else lease)

    @invariant()
    def generations_are_what_rightful_holders_published_in_the_order_of_their_fences(self) -> None:
        for video in VIDEOS:
            assert list(self.ledger.generations.history(video)) == sorted(self.published[video].items())

    @invariant()
    def the_audit_is_empty(self) -> None:
        """Whatever expired before the last recovery and sweep must be gone; what expired since may still be there."""
        grace = self.clock.now - min(self.recovered_at, self.swept_at)
        assert {rule: found for rule, found in self.ledger.audit(grace).items() if found} == {}

    def teardown(self) -> None:
        """In the end everybody goes away, the supervisor goes on, and every job that was accepted comes to its end."""
        try:
            self.everything_ends()
        finally:
            self.close()

    def everything_ends(self) -> None:
        ledger = self.ledger
        for _ in range(100):
            self.clock.advance(10 * TTL)
            ledger.jobs.recover()
            ledger.leases.sweep()
            for job in ledger.jobs.all(PAUSED):
                ledger.jobs.resume(job.id)
            for run in ledger.dispatch.waiting(0):
                ledger.dispatch.give_up(run.job, run.attempt)
            while (claimed := ledger.dispatch.next(CAPS)) is not None:
                self.finish_properly(claimed)
            for claimed in ledger.dispatch.unbound(0):
                self.finish_properly(claimed)
            if all(job.final for job in ledger.jobs.all()):
                break
        assert {job.id for job in ledger.jobs.all() if job.final} == set(self.jobs)
        assert not any(ledger.audit().values())

    def finish_properly(self, claimed: Job) -> None:
        _, lease = self.ledger.jobs.start(claimed.id, claimed.attempt, "last", TTL)
        for unit in self.ledger.units.of(claimed.id):
            if unit.state == "RUNNING":
                self.ledger.units.complete(lease, unit.key, unit.step, "d", None)
        self.ledger.jobs.done(lease, None)


# ── writes, and what the model makes of one that landed ───────────────────────────────────────────────────────────────


def modelled(kind: str, machine: LedgerMachine, lease: Lease, key: str) -> None:
    units, told_of = machine.model(lease).units, machine.model(lease).told_of
    state, fence, attempts, content = units.get(key, ("", 0, 0, ""))
    if kind != "begin" and key not in told_of:
        told_of.append(key)
    match kind:
        case "begin":
            goes_on = (state, fence) == ("RUNNING", lease.fence)
            units[key] = ("RUNNING", lease.fence, attempts if goes_on else attempts + 1, content)
        case "complete":
            units[key] = ("DONE", lease.fence, attempts, lease.holder)
        case "reuse":
            units[key] = ("DONE" if state == "DONE" else "REUSED", lease.fence, attempts, lease.holder)


def ending(apply: Callable[[JobModel, float], None]) -> Callable[[LedgerMachine, Lease, str], None]:
    def end(machine: LedgerMachine, lease: Lease, key: str) -> None:
        machine.over(lease)
        apply(machine.model(lease), machine.clock.now)
        machine.model(lease).told = False

    return end


def renewed(machine: LedgerMachine, lease: Lease, key: str) -> None:
    machine.current[lease.resource] = Lease(lease.resource, lease.holder, lease.fence, machine.clock.now + TTL)


def failed_but_tries_again(job: JobModel, now: float) -> None:
    job.available_at = now + 1
    job.again()


def complete(machine: LedgerMachine, lease: Lease, key: str, *, reused: bool = False) -> None:
    event = ("dailies.unit.done", {"unit": key, "reused": reused})
    machine.ledger.units.complete(lease, key, "step", lease.holder, None, reused=reused, event=event)


WRITES: dict[str, Callable[[LedgerMachine, Lease, str], Any]] = {
    "renew": lambda m, lease, key: m.ledger.leases.renew(lease, TTL),
    "begin": lambda m, lease, key: m.ledger.units.begin(lease, key, "step"),
    "complete": complete,
    "reuse": lambda m, lease, key: complete(m, lease, key, reused=True),
    "publish": lambda m, lease, key: m.ledger.generations.publish(lease, f"gen-{lease.fence}/{key}"),
    "release": lambda m, lease, key: m.ledger.leases.release(lease),
    "done": lambda m, lease, key: m.ledger.jobs.done(lease, None),
    "fail": lambda m, lease, key: m.ledger.jobs.failed(lease, Unreadable("not media")),
    "retry": lambda m, lease, key: m.ledger.jobs.failed(lease, Injected("again"), retry_in=1),
    "pause": lambda m, lease, key: m.ledger.jobs.paused(lease),
}
MODELS: dict[str, Callable[[LedgerMachine, Lease, str], None]] = {
    "renew": renewed,
    "begin": lambda m, lease, key: modelled("begin", m, lease, key),
    "complete": lambda m, lease, key: modelled("complete", m, lease, key),
    "reuse": lambda m, lease, key: modelled("reuse", m, lease, key),
    "publish": lambda m, lease, key: m.published[lease.resource].update({lease.fence: f"gen-{lease.fence}/{key}"}),
    "release": lambda m, lease, key: m.over(lease),
    "done": ending(lambda job, now: job.enter(DONE)),
    "fail": ending(lambda job, now: (setattr(job, "crashes", job.crashes + 1), job.enter(FAILED))[1]),
    "retry": ending(failed_but_tries_again),
    "pause": ending(lambda job, now: job.enter(PAUSED)),
}
VIDEO_WRITES = {"renew", "publish", "release"}
JOB_WRITES = set(WRITES) - VIDEO_WRITES | {"renew"}

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


class SqliteMachine(LedgerMachine):
    make: Callable[..., SqliteLedger] = SqliteLedger

    def open(self) -> tuple[Ledger, Clock]:
        self.folder = tempfile.TemporaryDirectory()
        clock = Clock()
        ledger = type(self).make(Path(self.folder.name) / "ledger.db", clock)
        ledger._database.one("PRAGMA synchronous = OFF")  # nobody cuts the power here: logic alone, and faster
        return ledger, clock

    def close(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


def test_whatever_workers_do_the_ledger_stays_what_the_model_says():
    run_state_machine_as_test(SqliteMachine, settings=SETTINGS)


# ── ledgers with the defects that this project is about: the same machine must catch each ─────────────────────────────


class CheckThenWrite(SqliteUnits):
    """Looks whether the lease is its own when the work begins, and writes without looking again."""

    def complete(self, lease, key, step, digest, result, *, reused=False, event=None):
        job = lease.resource.removeprefix("job:")
        if not any(unit.key == key and unit.fence == lease.fence for unit in self.of(job)):
            return super().complete(lease, key, step, digest, result, reused=reused, event=event)
        with self._database.transaction() as tx:
            tx.run(
                "UPDATE units SET state = 'DONE', digest = :digest, result = :result WHERE job = :job AND key = :key",
                digest=digest,
                result=canonical_json(result).decode(),
                job=job,
                key=key,
            )
        return next(unit for unit in self.of(job) if unit.key == key)


class TellsBeforeItIsDone(SqliteUnits):
    """Writes the event in a transaction of its own, and finds out about its fence after that."""

    def complete(self, lease, key, step, digest, result, *, reused=False, event=None):
        self._tell(lease.resource.removeprefix("job:"), key, event)
        return super().complete(lease, key, step, digest, result, reused=reused)

    def _tell(self, job, occasion, event):
        if event is not None:
            with self._database.transaction() as tx:
                write_event(tx, job, event[0], "", occasion, event[1])


class TellsEachTime(TellsBeforeItIsDone):
    """Takes each completion of a unit for another occasion."""

    def complete(self, lease, key, step, digest, result, *, reused=False, event=None):
        unit = super(TellsBeforeItIsDone, self).complete(lease, key, step, digest, result, reused=reused)
        self._tell(unit.job, f"{key}:{unit.fence}:{unit.reuses}", event)
        return unit


class CountsEachTry(SqliteUnits):
    """Takes a step's second try for another beginning of its unit."""

    def begin(self, lease, key, step):
        job = lease.resource.removeprefix("job:")
        tried = {(unit.key, unit.fence) for unit in self.of(job) if unit.state == "RUNNING"}
        begun = super().begin(lease, key, step)
        with self._database.transaction() as tx:
            again = int((key, lease.fence) in tried)
            tx.run(
                "UPDATE units SET attempts = attempts + :n WHERE job = :job AND key = :key", n=again, job=job, key=key
            )
        return begun


class ForgetfulLeases(SqliteLeases):
    """Deletes what was released, so that the fence starts again."""

    def release(self, lease):
        super().release(lease)
        with self._database.transaction() as tx:
            tx.run("DELETE FROM leases WHERE resource = :r", r=lease.resource)


class RenewsTheDead(SqliteLeases):
    """Prolongs whatever lease there is, by whomever."""

    def renew(self, lease, ttl):
        with self._database.transaction() as tx:
            tx.run("UPDATE leases SET expires_at = clock() + :ttl WHERE resource = :r", ttl=ttl, r=lease.resource)
        return lease


class CancelLeavesTheLease(SqliteJobs):
    """Writes CANCELED and lets the run write on."""

    def cancel(self, job_id):
        with self._database.transaction() as tx:
            return move(tx, job_id, CANCELED, assign="message = 'Canceled', control = ''")


class RecoverForgetsTheEvent(SqliteJobs):
    """Puts lost jobs back by hand."""

    def recover(self):
        lost = [job for job in self.all(RUNNING) if self._lost(job)]
        with self._database.transaction() as tx:
            for job in lost:
                put_back(tx, job)
        return lost

    def _lost(self, job):
        row = self._database.one(
            "SELECT 1 FROM leases WHERE resource = :r AND holder IS NOT NULL AND expires_at > clock()",
            r=job_resource(job.id),
        )
        return row is None


class RecoversInSilence(SqliteJobs):
    """Says that the job is queued, and not why."""

    def recover(self):
        with self._silence("started", "failed"):
            return super().recover()

    @contextmanager
    def _silence(self, *kinds):
        names = ", ".join(f"'dailies.recovery.{kind}'" for kind in kinds)
        with self._database.transaction() as tx:
            tx.run(f"""CREATE TRIGGER hush BEFORE INSERT ON outbox WHEN NEW.type IN ({names})
                       BEGIN SELECT RAISE(IGNORE); END""")
        try:
            yield
        finally:
            with self._database.transaction() as tx:
                tx.run("DROP TRIGGER hush")


class ForgetsThatItWasRecovered(RecoversInSilence):
    """Recovers, and never tells how it went."""

    def recover(self):
        return super(RecoversInSilence, self).recover()

    def done(self, lease, result):
        with self._silence("completed"):
            return super().done(lease, result)


class RecoversTwice(SqliteJobs):
    """Tells of the same recovery as of two."""

    def recover(self):
        jobs = super().recover()
        with self._database.transaction() as tx:
            for job in jobs:
                data = {"attempt": job.attempt}
                write_event(tx, job.id, "dailies.recovery.started", job.subject, f"{job.attempt} again", data)
        return jobs


def put_back(tx: Transaction, job: Job) -> None:
    tx.run("UPDATE jobs SET state = 'QUEUED', attempt = attempt + 1, crashes = crashes + 1 WHERE id = :id", id=job.id)
    tx.run("UPDATE leases SET holder = NULL, fence = fence + 1 WHERE resource = :r", r=job_resource(job.id))


def broken(part: str, defect: type[Any]) -> type[SqliteMachine]:
    def make(path: Path, clock: Callable[[], float]) -> SqliteLedger:
        ledger = SqliteLedger(path, clock)
        setattr(ledger, part, defect(ledger._database))
        return ledger

    return type(f"Broken{defect.__name__}", (SqliteMachine,), {"make": staticmethod(make)})


@pytest.mark.parametrize(
    ("part", "defect"),
    [
        ("units", CheckThenWrite),
        ("units", TellsBeforeItIsDone),
        ("units", TellsEachTime),
        ("units", CountsEachTry),
        ("leases", ForgetfulLeases),
        ("leases", RenewsTheDead),
        ("jobs", CancelLeavesTheLease),
        ("jobs", RecoverForgetsTheEvent),
        ("jobs", RecoversInSilence),
        ("jobs", ForgetsThatItWasRecovered),
        ("jobs", RecoversTwice),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_machine_catches_a_broken_ledger(part, defect, capsys):
    quickly = settings(SETTINGS, max_examples=200, phases=[Phase.generate], print_blob=False)
    with pytest.raises((AssertionError, Fenced, IllegalTransition)):
        run_state_machine_as_test(broken(part, defect), settings=quickly)
