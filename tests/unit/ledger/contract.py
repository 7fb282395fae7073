"""What every ledger must keep, written against ``dailies.ledger.interface`` alone.

A store joins by a test module with three fixtures, and a subclass of each contract here named ``Test...``:

    clock    a ``Clock`` that the ledger was given; nobody else's time counts
    ledger   a ``Ledger`` with nothing in it
    another  opens one more ledger object on the same database, as another process would
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from dailies.errors import (
    BadInput,
    Conflict,
    Fenced,
    Held,
    IdempotencyConflict,
    IllegalTransition,
    Injected,
    Missing,
    NotConfigured,
    Unreadable,
)
from dailies.ledger.interface import Ledger
from dailies.ledger.records import (
    RECOVERED,
    Caps,
    Job,
    JobRequest,
    JobState,
    Lease,
    event_id,
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
    return [event.type.removeprefix("dailies.job.").upper() for event in ledger.outbox.of(job_id)]


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


class FenceContract(Sound):
    @pytest.mark.parametrize("lose", WAYS_TO_LOSE, ids=lambda way: way.__name__)
    @pytest.mark.parametrize("write", FENCED_WRITES)
    def test_a_revived_holder_cannot_write(self, ledger, clock, lose, write):
        job, lease = with_work_under_way(ledger)
        lose(ledger, clock, job, lease)
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            FENCED_WRITES[write](ledger, lease)

    @pytest.mark.parametrize("write", sorted({*FENCED_WRITES} - {"renew"}))
    def test_a_holder_past_its_ttl_may_write_as_long_as_nobody_took_over(self, ledger, clock, write):
        _, lease = with_work_under_way(ledger)
        if write == "done":
            ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        clock.advance(10 * TTL)
        FENCED_WRITES[write](ledger, lease)
        if write == "release":
            clock.advance(0.001)
            ledger.jobs.recover()

    @pytest.mark.parametrize("forge", [{"fence": 99}, {"fence": 0}, {"holder": "stranger"}], ids=str)
    @pytest.mark.parametrize("write", FENCED_WRITES)
    def test_a_lease_that_was_never_given_out_writes_nothing(self, ledger, write, forge):
        job, lease = with_work_under_way(ledger)
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            FENCED_WRITES[write](ledger, replace(lease, **forge))

    @pytest.mark.parametrize("write", FENCED_WRITES)
    def test_a_lease_on_a_resource_that_nobody_ever_leased_is_missing(self, ledger, write):
        job = ledger.jobs.submit(request())
        with unchanged(ledger, job.id), pytest.raises(Missing, match="never leased"):
            FENCED_WRITES[write](ledger, Lease(job_resource(job.id), "run-1", 1, math.inf))

    def test_the_refusal_says_why(self, ledger, clock):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        with pytest.raises(Fenced, match="belongs to a"):
            ledger.leases.release(replace(lease, holder="b"))
        clock.advance(TTL)
        with pytest.raises(Fenced, match="expired"):
            ledger.leases.renew(lease, TTL)
        ledger.leases.release(lease)
        with pytest.raises(Fenced, match="released"):
            ledger.leases.renew(lease, TTL)
        ledger.leases.acquire("video:1", "b", TTL)
        with pytest.raises(Fenced, match=r"taken over \(fence 2 is past 1\)"):
            ledger.leases.renew(lease, TTL)


class LostRunContract(Sound):
    """A run that lost its job may be alive: with the job it loses every lease it held."""

    @pytest.mark.parametrize("lose", [canceled, recovered], ids=lambda lose: lose.__name__)
    def test_a_run_that_lost_its_job_cannot_publish_what_it_worked_on(self, ledger, clock, lose):
        job, lease = running(ledger)
        video = ledger.leases.acquire("video:acme/v1", lease.holder, 10 * TTL)
        ledger.generations.publish(video, "before")
        lose(ledger, clock, job, lease)
        with pytest.raises(Fenced):
            ledger.generations.publish(video, "after")
        assert ledger.generations.current("video:acme/v1") == "before"
        assert ledger.leases.acquire("video:acme/v1", "the next one", TTL).fence > video.fence

    def test_the_leases_of_others_stay(self, ledger, clock):
        job, lease = running(ledger)
        other = ledger.leases.acquire("video:acme/v2", "somebody else", 10 * TTL)
        canceled(ledger, clock, job, lease)
        ledger.generations.publish(other, "mine")
        ledger.leases.release(other)

    def test_a_run_that_ended_well_gives_its_leases_back_itself(self, ledger):
        _, lease = running(ledger)
        video = ledger.leases.acquire("video:acme/v1", lease.holder, 10 * TTL)
        ledger.jobs.done(lease, {})
        ledger.leases.release(video)


class LeaseContract(Sound):
    def test_a_free_resource_is_leased_for_its_ttl(self, ledger, clock):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        assert (lease.resource, lease.holder, lease.fence) == ("video:1", "a", 1)
        assert lease.expires_at == pytest.approx(clock.now + TTL)
        assert ledger.leases.holder("video:1") == lease

    def test_a_held_resource_is_refused_saying_by_whom_and_for_how_long(self, ledger, clock):
        held = ledger.leases.acquire("video:1", "a", TTL)
        clock.advance(2.5)
        with pytest.raises(Held) as refused:
            ledger.leases.acquire("video:1", "b", TTL)
        assert (refused.value.resource, refused.value.by) == ("video:1", "a")
        assert refused.value.expires_in == pytest.approx(TTL - 2.5)
        assert ledger.leases.holder("video:1") == held

    def test_the_same_holder_name_twice_is_not_re_entrant(self, ledger):
        ledger.leases.acquire("video:1", "a", TTL)
        with pytest.raises(Held) as refused:
            ledger.leases.acquire("video:1", "a", TTL)
        assert refused.value.by == "a"

    def test_a_lease_excludes_nobody_from_another_resource(self, ledger):
        first = ledger.leases.acquire("video:1", "a", TTL)
        second = ledger.leases.acquire("video:2", "b", TTL)
        assert ledger.leases.holder("video:1") == first
        assert ledger.leases.holder("video:2") == second

    def test_of_many_who_ask_at_the_same_moment_one_gets_it(self, ledger, another):
        def ask(number):
            own = another()
            try:
                return own.leases.acquire("video:1", f"worker-{number}", TTL)
            except Held as held:
                return held.by
            finally:
                own.close()

        answers = at_once(8, ask)
        [winner] = [answer for answer in answers if isinstance(answer, Lease)]
        assert [answer for answer in answers if answer != winner] == [winner.holder] * 7
        assert ledger.leases.holder("video:1") == winner

    def test_an_expired_lease_is_taken_over_under_a_higher_fence_and_not_a_moment_before(self, ledger, clock):
        old = ledger.leases.acquire("video:1", "a", TTL)
        clock.advance(TTL - 0.25)
        with pytest.raises(Held):
            ledger.leases.acquire("video:1", "b", TTL)
        clock.advance(0.25)
        new = ledger.leases.acquire("video:1", "b", TTL)
        assert new.fence > old.fence
        assert ledger.leases.holder("video:1") == new

    def test_the_fence_only_grows_whichever_way_leases_end(self, ledger, clock):
        fences = []
        ways = ["release", "expire", "sweep"] * 4
        random.Random(7).shuffle(ways)
        for way in ways:
            lease = ledger.leases.acquire("video:1", "a", TTL)
            fences.append(lease.fence)
            if way == "release":
                ledger.leases.release(lease)
            else:
                clock.advance(TTL)
            if way == "sweep":
                ledger.leases.sweep()
        assert fences == sorted(set(fences))

    def test_renewing_prolongs_from_now_and_keeps_the_fence(self, ledger, clock):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        clock.advance(4)
        renewed = ledger.leases.renew(lease, 10)
        assert renewed == Lease("video:1", "a", lease.fence, pytest.approx(clock.now + 10))
        clock.advance(9)
        assert ledger.leases.holder("video:1") == renewed
        assert ledger.leases.renew(lease, TTL).fence == lease.fence, "the first photograph of it is as good as the last"

    def test_a_lease_that_expired_cannot_be_renewed_even_if_nobody_took_it(self, ledger, clock):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        clock.advance(TTL)
        with pytest.raises(Fenced):
            ledger.leases.renew(lease, TTL)
        assert ledger.leases.holder("video:1") is None

    def test_renewing_after_a_takeover_is_refused_and_leaves_the_new_holder_alone(self, ledger, clock):
        old = ledger.leases.acquire("video:1", "a", TTL)
        clock.advance(TTL)
        new = ledger.leases.acquire("video:1", "b", TTL)
        with pytest.raises(Fenced):
            ledger.leases.renew(old, 100)
        with pytest.raises(Fenced):
            ledger.leases.release(old)
        assert ledger.leases.holder("video:1") == new

    def test_a_released_lease_is_free_at_once(self, ledger):
        first = ledger.leases.acquire("video:1", "a", TTL)
        ledger.leases.release(first)
        assert ledger.leases.holder("video:1") is None
        assert ledger.leases.acquire("video:1", "b", TTL).fence > first.fence

    def test_only_the_holder_can_release(self, ledger):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        with pytest.raises(Fenced):
            ledger.leases.release(replace(lease, holder="b"))
        assert ledger.leases.holder("video:1") == lease

    def test_a_lease_is_released_once(self, ledger):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        ledger.leases.release(lease)
        with pytest.raises(Fenced):
            ledger.leases.release(lease)

    def test_an_expired_lease_that_nobody_took_can_still_be_given_back(self, ledger, clock):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        clock.advance(2 * TTL)
        ledger.leases.release(lease)
        assert list(ledger.leases.sweep()) == []

    def test_a_resource_that_nobody_ever_leased_is_missing(self, ledger):
        unknown = Lease("video:1", "a", 1, math.inf)
        with pytest.raises(Missing):
            ledger.leases.release(unknown)
        with pytest.raises(Missing):
            ledger.leases.renew(unknown, TTL)
        assert ledger.leases.holder("video:1") is None

    @pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, -math.inf])
    def test_a_ttl_that_is_no_time_span_is_refused(self, ledger, ttl):
        with pytest.raises(BadInput, match="ttl"):
            ledger.leases.acquire("video:1", "a", ttl)
        assert ledger.leases.holder("video:1") is None
        lease = ledger.leases.acquire("video:1", "a", TTL)
        with pytest.raises(BadInput, match="ttl"):
            ledger.leases.renew(lease, ttl)
        assert ledger.leases.holder("video:1") == lease
        job = ledger.jobs.submit(request(), run_id="run-1")
        with unchanged(ledger, job.id), pytest.raises(BadInput, match="ttl"):
            ledger.jobs.start(job.id, 1, "run-1", ttl)

    @pytest.mark.parametrize(("resource", "holder"), [("", "a"), ("video:1", "")])
    def test_a_lease_needs_a_resource_and_a_holder(self, ledger, resource, holder):
        with pytest.raises(BadInput):
            ledger.leases.acquire(resource, holder, TTL)

    def test_the_sweep_ends_expired_leases_under_a_new_fence_and_no_others(self, ledger, clock):
        dead = ledger.leases.acquire("video:1", "dead", TTL)
        clock.advance(TTL)
        alive = ledger.leases.acquire("video:2", "alive", TTL)
        given_back = ledger.leases.acquire("video:3", "gone", TTL)
        ledger.leases.release(given_back)
        assert list(ledger.leases.sweep()) == [dead]
        assert list(ledger.leases.sweep()) == []
        assert ledger.leases.holder("video:2") == alive
        assert ledger.leases.acquire("video:1", "next", TTL).fence > dead.fence + 1
        with pytest.raises(Fenced):
            ledger.leases.release(dead)


class SubmitContract(Sound):
    def test_a_request_becomes_a_queued_job_that_says_what_was_asked(self, ledger, clock):
        asked = request(params={"b": [1, None, "ü"], "a": {"x": 1.5}}, max_attempts=5, base=12.5, boost=3, aging=False)
        job = ledger.jobs.submit(asked)
        assert (job.tenant, job.kind, job.subject) == ("acme", "ingest-media", "video-1")
        assert job.params == asked.params
        assert (job.max_attempts, job.base, job.boost, job.aging) == (5, 12.5, 3.0, False)
        assert (job.state, job.attempt, job.crashes, job.fence, job.control) == (JobState.QUEUED, 1, 0, 0, "")
        assert (job.message, job.error_code, job.error, job.result) == ("", "", "", None)
        assert job.created_at == job.updated_at == job.available_at == pytest.approx(clock.now)
        assert not job.final
        assert ledger.jobs.get(job.id) == job

    def test_a_job_names_the_deployment_that_runs_it(self, ledger):
        assert ledger.jobs.submit(request()).deployment == "ingest-media/cpu"
        assert ledger.jobs.submit(request(deployment="ingest-media/gpu")).deployment == "ingest-media/gpu"

    def test_the_same_key_and_request_get_the_first_answer(self, ledger, clock):
        first = ledger.jobs.submit(request(params={"a": 1, "b": 2}), key="upload-7")
        clock.advance(60)
        again = ledger.jobs.submit(request(params={"b": 2, "a": 1}), key="upload-7", run_id="another-run")
        assert again == first
        assert list(ledger.dispatch.jobs_of("another-run")) == []
        assert states(ledger, first.id) == ["QUEUED"]
        assert len(ledger.jobs.all()) == 1

    def test_the_first_answer_is_the_job_as_it_stands_now(self, ledger):
        job = ledger.jobs.submit(request(), key="upload-7")
        canceled = ledger.jobs.cancel(job.id)
        assert ledger.jobs.submit(request(), key="upload-7") == canceled

    @pytest.mark.parametrize("other", [{"kind": "captions"}, {"subject": "video-2"}, {"params": {"a": 2}}], ids=str)
    def test_the_same_key_for_another_request_is_a_conflict_and_changes_nothing(self, ledger, other):
        job = ledger.jobs.submit(request(params={"a": 1}), key="upload-7")
        with unchanged(ledger, job.id), pytest.raises(IdempotencyConflict, match=job.id):
            ledger.jobs.submit(request(**{"params": {"a": 1}, **other}), key="upload-7")
        assert len(ledger.jobs.all()) == 1

    def test_how_urgent_a_request_is_does_not_make_it_another_one(self, ledger):
        job = ledger.jobs.submit(request(), key="upload-7")
        assert ledger.jobs.submit(request(boost=9, base=1, max_attempts=9), key="upload-7") == job

    def test_keys_are_scoped_by_tenant(self, ledger):
        ours = ledger.jobs.submit(request(tenant="acme"), key="upload-7")
        theirs = ledger.jobs.submit(request(tenant="globex"), key="upload-7")
        assert ours.id != theirs.id

    def test_without_a_key_every_request_is_a_job_of_its_own(self, ledger):
        assert len({ledger.jobs.submit(request()).id for _ in range(5)}) == 5

    def test_the_same_key_from_many_clients_at_once_makes_one_job(self, ledger, another):
        def submit(number):
            own = another()
            try:
                return own.jobs.submit(request(), key="upload-7").id
            finally:
                own.close()

        assert len(set(at_once(6, submit))) == 1
        assert len(ledger.jobs.all()) == 1

    @pytest.mark.parametrize("wrong", [{"tenant": ""}, {"kind": ""}, {"subject": ""}, {"max_attempts": 0}], ids=str)
    def test_a_request_that_cannot_be_a_job_is_refused(self, ledger, wrong):
        with pytest.raises(BadInput):
            ledger.jobs.submit(request(**wrong))
        assert list(ledger.jobs.all()) == []

    @pytest.mark.parametrize("wrong", [{"boost": math.nan}, {"base": math.nan}, {"base": math.inf}], ids=str)
    def test_a_request_whose_rank_is_no_number_is_refused(self, ledger, wrong):
        with pytest.raises(BadInput):
            ledger.jobs.submit(request(**wrong))
        assert list(ledger.jobs.all()) == []

    def test_an_unknown_job_is_missing(self, ledger):
        for ask in (
            ledger.jobs.get,
            ledger.jobs.cancel,
            ledger.jobs.pause,
            ledger.jobs.resume,
            lambda job: ledger.jobs.start(job, 1, "run-1", TTL),
            lambda job: ledger.jobs.control(Lease(job_resource(job), "run-1", 1, math.inf)),
        ):
            with pytest.raises(Missing):
                ask("nobody")
        assert ledger.leases.holder(job_resource("nobody")) is None
        assert list(ledger.units.of("nobody")) == []
        assert list(ledger.outbox.of("nobody")) == []

    def test_jobs_are_listed_newest_first_by_state_and_up_to_a_limit(self, ledger, clock):
        ids = []
        for number in range(4):
            ids.append(ledger.jobs.submit(request(subject=f"video-{number}")).id)
            clock.advance(1)
        ledger.jobs.cancel(ids[1])
        assert [job.id for job in ledger.jobs.all()] == ids[::-1]
        assert [job.id for job in ledger.jobs.all(JobState.QUEUED)] == [ids[3], ids[2], ids[0]]
        assert [job.id for job in ledger.jobs.all(JobState.CANCELED)] == [ids[1]]
        assert [job.id for job in ledger.jobs.all(limit=2)] == [ids[3], ids[2]]
        assert list(ledger.jobs.all(JobState.DONE)) == []


# What must come of each order given to a job in each state. A class of error: refused, and nothing changed.
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
REFUSED = {"start": IllegalTransition, "done": Fenced, "failed": Fenced, "failed with retry": Fenced, "paused": Fenced}
ARROWS: dict[JobState, dict[str, Any]] = {
    JobState.QUEUED: {"start": JobState.RUNNING, "cancel": JobState.CANCELED, "pause": JobState.PAUSED},
    JobState.PAUSED: {"resume": JobState.QUEUED, "cancel": JobState.CANCELED},
    JobState.RUNNING: {
        "start": Held,
        "done": JobState.DONE,
        "failed": JobState.FAILED,
        "failed with retry": JobState.QUEUED,
        "paused": JobState.PAUSED,
        "cancel": JobState.CANCELED,
        "pause": JobState.RUNNING,
    },
    JobState.DONE: {},
    JobState.FAILED: {},
    JobState.CANCELED: {},
}


def outcome(state: JobState, order: str) -> Any:
    if order == "recover":
        return ARROWS[state].get(order, state)  # it finds nothing to do
    return ARROWS[state].get(order, REFUSED.get(order, IllegalTransition))


class StateContract(Sound):
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("state", list(JobState))
    def test_every_order_in_every_state_takes_its_arrow_or_changes_nothing(self, ledger, state, order):
        job, lease = in_state(ledger, state)
        if state is JobState.QUEUED:
            ledger.dispatch.next(ROOM)  # so that somebody may start it
        expected = outcome(state, order)
        if isinstance(expected, JobState):
            before = states(ledger, job.id)
            moved = ORDERS[order](ledger, job, lease)
            assert moved.state is expected
            assert moved == ledger.jobs.get(job.id)
            assert states(ledger, job.id) == before + ([expected] if expected is not state else [])
        else:
            with unchanged(ledger, job.id), pytest.raises(expected):
                ORDERS[order](ledger, job, lease)

    @pytest.mark.parametrize("order", ["done", "failed", "failed with retry", "paused"])
    def test_a_lease_alone_does_not_make_a_job_run(self, ledger, order):
        job = ledger.jobs.submit(request())
        lease = ledger.leases.acquire(job_resource(job.id), "somebody", TTL)
        with unchanged(ledger, job.id), pytest.raises(IllegalTransition):
            ORDERS[order](ledger, job, lease)
        ledger.leases.release(lease)

    def test_starting_takes_the_lease_with_it(self, ledger, clock):
        job = ledger.jobs.submit(request(), run_id="run-1")
        started, lease = ledger.jobs.start(job.id, 1, "run-1", TTL)
        assert (started.state, started.attempt, started.fence) == (JobState.RUNNING, 1, lease.fence)
        assert lease == Lease(job_resource(job.id), "run-1", lease.fence, pytest.approx(clock.now + TTL))
        assert ledger.leases.holder(job_resource(job.id)) == lease

    def test_a_run_that_the_attempt_was_not_given_to_cannot_start_it(self, ledger):
        job = ledger.jobs.submit(request(), run_id="run-1")
        with unchanged(ledger, job.id), pytest.raises(IllegalTransition):
            ledger.jobs.start(job.id, 1, "run-2", TTL)
        unclaimed = ledger.jobs.submit(request())
        with unchanged(ledger, unclaimed.id), pytest.raises(IllegalTransition):
            ledger.jobs.start(unclaimed.id, 1, "run-2", TTL)

    def test_a_claimed_attempt_whose_dispatcher_died_belongs_to_the_first_run_that_starts_it(self, ledger):
        job = ledger.jobs.submit(request())
        ledger.dispatch.next(ROOM)
        ledger.jobs.start(job.id, 1, "run-1", TTL)
        assert list(ledger.dispatch.jobs_of("run-1")) == [job.id]
        assert list(ledger.dispatch.unbound(0)) == []

    @pytest.mark.parametrize("attempt", [0, 1, 3])
    def test_only_the_current_attempt_can_be_started(self, ledger, attempt):
        job, _ = in_state(ledger, JobState.QUEUED)
        ledger.dispatch.next(ROOM)
        assert ledger.jobs.get(job.id).attempt == 2
        for run in ("run-1", "run-2"):
            with unchanged(ledger, job.id), pytest.raises(IllegalTransition):
                ledger.jobs.start(job.id, attempt, run, TTL)

    def test_a_running_job_whose_lease_expired_waits_for_its_recovery_and_cannot_be_started(self, ledger, clock):
        job, _ = running(ledger)
        clock.advance(TTL)
        with unchanged(ledger, job.id), pytest.raises(IllegalTransition):
            ledger.jobs.start(job.id, 1, "run-1", TTL)

    @pytest.mark.parametrize("result", [None, {"sheet": "a.png", "n": [1, 2.5, "ü"]}, "text", 0])
    def test_done_keeps_the_result_and_gives_the_lease_back(self, ledger, clock, result):
        job, lease = running(ledger)
        clock.advance(3)
        done = ledger.jobs.done(lease, result)
        assert (done.state, done.result, done.message, done.final) == (JobState.DONE, result, "Done", True)
        assert done.updated_at == pytest.approx(clock.now)
        assert ledger.leases.holder(job_resource(job.id)) is None

    def test_failed_keeps_the_code_and_the_reason(self, ledger):
        job, lease = running(ledger)
        failed = ledger.jobs.failed(lease, Unreadable("not media: " + "x" * 5000))
        assert (failed.state, failed.error_code, failed.crashes) == (JobState.FAILED, "unreadable", 1)
        assert failed.error.startswith("not media: xxx")
        assert len(failed.error) == 2000
        assert failed.message == "Failed"
        assert ledger.leases.holder(job_resource(job.id)) is None

    def test_a_failure_with_attempts_left_is_tried_again_after_a_rest(self, ledger, clock):
        job, lease = running(ledger)
        again = ledger.jobs.failed(lease, Injected("the network"), retry_in=30)
        assert (again.state, again.attempt, again.crashes) == (JobState.QUEUED, 2, 1)
        assert (again.error_code, again.error) == ("injected", "the network")
        assert again.message == "Trying again: the network"
        assert again.available_at == pytest.approx(clock.now + 30)
        clock.advance(29)
        assert ledger.dispatch.next(ROOM) is None
        assert list(ledger.dispatch.ranked()) == []
        clock.advance(1)
        assert start_again(ledger, job.id, "run-2")[0].attempt == 2

    def test_a_failure_in_the_last_attempt_is_final_and_says_so(self, ledger):
        job, lease = running(ledger, max_attempts=2)
        ledger.jobs.failed(lease, Injected("first"), retry_in=0)
        _, lease = start_again(ledger, job.id, "run-2")
        failed = ledger.jobs.failed(lease, Injected("second"), retry_in=0)
        assert (failed.state, failed.attempt, failed.crashes) == (JobState.FAILED, 2, 2)
        assert (failed.error_code, failed.error, failed.message) == ("injected", "second", "Failed")
        assert ledger.dispatch.next(ROOM) is None

    def test_cancel_is_final_at_once_and_frees_the_lease(self, ledger):
        job, lease = running(ledger)
        canceled = ledger.jobs.cancel(job.id)
        assert (canceled.state, canceled.message, canceled.final) == (JobState.CANCELED, "Canceled", True)
        assert ledger.leases.holder(lease.resource) is None
        assert [(run.job, run.attempt, run.ending) for run in ledger.dispatch.unshown()] == [(job.id, 1, "cancelled")]

    def test_a_cancel_just_before_the_last_unit_ends_wins(self, ledger):
        job, lease = running(ledger)
        ledger.units.begin(lease, "unit-1", "probe")
        ledger.jobs.cancel(job.id)
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            ledger.jobs.done(lease, 1)
        assert ledger.units.find("unit-1") is None

    def test_a_cancel_just_after_the_last_unit_ended_wins_too(self, ledger):
        job, lease = running(ledger)
        ledger.units.begin(lease, "unit-1", "probe")
        ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        ledger.jobs.cancel(job.id)
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            ledger.jobs.done(lease, 1)
        assert ledger.units.find("unit-1").result == 1, "finished work stays finished, for whoever asks next"

    def test_a_cancel_after_done_comes_too_late(self, ledger):
        job, lease = running(ledger)
        ledger.jobs.done(lease, 1)
        with unchanged(ledger, job.id), pytest.raises(IllegalTransition, match="DONE"):
            ledger.jobs.cancel(job.id)

    def test_cancel_and_done_at_the_same_moment_leave_one_of_them(self, ledger, another):
        for _ in range(10):
            job, lease = running(ledger)

            def act(number, job=job, lease=lease):
                own = another()
                try:
                    return (own.jobs.cancel(job.id) if number else own.jobs.done(lease, 1)).state
                except Conflict:
                    return None
                finally:
                    own.close()

            final = ledger.jobs.get(job.id).state if (ended := at_once(2, act)) else None
            assert sorted(filter(None, ended)) == [final]
            assert states(ledger, job.id) == ["QUEUED", "RUNNING", final]

    def test_pausing_a_queued_job_stops_it_at_once_and_gives_its_slot_back(self, ledger):
        job = ledger.jobs.submit(request())
        ledger.dispatch.next(Caps(1, 1))
        paused = ledger.jobs.pause(job.id)
        assert (paused.state, paused.message) == (JobState.PAUSED, "Paused")
        other = ledger.jobs.submit(request(subject="video-2"))
        assert ledger.dispatch.next(Caps(1, 1)).id == other.id
        with unchanged(ledger, job.id), pytest.raises(IllegalTransition):
            ledger.jobs.start(job.id, 1, "run-1", TTL)

    def test_a_running_job_is_told_to_pause_and_pauses_when_it_can(self, ledger):
        job, lease = running(ledger)
        told = ledger.jobs.pause(job.id)
        assert (told.state, told.control) == (JobState.RUNNING, "pause")
        assert ledger.jobs.pause(job.id).control == "pause"
        assert ledger.jobs.control(lease) == "pause"
        ledger.units.complete(lease, "in flight", "probe", "d", 1)
        paused = ledger.jobs.paused(lease)
        assert (paused.state, paused.control, paused.crashes) == (JobState.PAUSED, "", 0)
        assert ledger.leases.holder(lease.resource) is None

    def test_a_resumed_job_is_a_new_attempt_that_cost_it_none(self, ledger):
        job, lease = running(ledger, max_attempts=1)
        ledger.jobs.pause(job.id)
        ledger.jobs.paused(lease)
        resumed = ledger.jobs.resume(job.id)
        assert (resumed.state, resumed.attempt, resumed.crashes, resumed.message) == (JobState.QUEUED, 2, 0, "")
        again, lease = start_again(ledger, job.id, "run-2")
        assert (again.attempt, again.control) == (2, "")
        assert ledger.jobs.done(lease, 1).state is JobState.DONE

    def test_a_job_that_was_told_to_pause_does_not_forget_it_over_a_failure(self, ledger):
        job, lease = running(ledger)
        ledger.jobs.pause(job.id)
        paused = ledger.jobs.failed(lease, Injected("the network"), retry_in=0)
        assert (paused.state, paused.attempt, paused.crashes, paused.control) == (JobState.PAUSED, 1, 1, "")
        assert (paused.error_code, paused.error, paused.message) == ("injected", "the network", "Paused")
        assert ledger.dispatch.next(ROOM) is None
        assert ledger.jobs.resume(job.id).attempt == 2

    @pytest.mark.parametrize("retry_in", [None, 0])
    def test_a_job_that_was_told_to_pause_still_fails_when_there_is_nothing_left_to_try(self, ledger, retry_in):
        job, lease = running(ledger, max_attempts=1)
        ledger.jobs.pause(job.id)
        assert ledger.jobs.failed(lease, Injected("the network"), retry_in=retry_in).state is JobState.FAILED

    def test_the_control_word_is_what_the_holder_must_do_now(self, ledger, clock):
        job, lease = running(ledger)
        assert ledger.jobs.control(lease) == ""
        ledger.jobs.pause(job.id)
        assert ledger.jobs.control(lease) == "pause"
        ledger.jobs.cancel(job.id)
        assert ledger.jobs.control(lease) == "cancel"

    @pytest.mark.parametrize("lose", [way for way in WAYS_TO_LOSE if way is not canceled], ids=lambda way: way.__name__)
    def test_asking_for_the_control_word_without_a_lease_says_that_it_is_over(self, ledger, clock, lose):
        job, lease = running(ledger)
        lose(ledger, clock, job, lease)
        with pytest.raises(Fenced):
            ledger.jobs.control(lease)


class RecoveryContract(Sound):
    def test_a_job_whose_worker_died_is_queued_as_the_next_attempt(self, ledger, clock):
        job, lease = running(ledger)
        clock.advance(TTL)
        [back] = ledger.jobs.recover()
        assert back == ledger.jobs.get(job.id)
        assert (back.state, back.attempt, back.crashes) == (JobState.QUEUED, 2, 1)
        assert (back.message, RECOVERED) == (RECOVERED, "Recovered after restart")
        assert (back.error_code, back.error) == ("", "")
        last = ledger.outbox.of(job.id)[-1]
        assert (last.data["recovery"], last.data["attempt"], last.data["message"]) == (True, 2, RECOVERED)
        assert [(run.attempt, run.ending) for run in ledger.dispatch.unshown()] == [(1, "crashed")]
        assert start_again(ledger, job.id, "run-2")[1].fence > lease.fence

    def test_a_second_recovery_does_nothing(self, ledger, clock):
        job, _ = running(ledger)
        clock.advance(TTL)
        ledger.jobs.recover()
        clock.advance(TTL)
        with unchanged(ledger, job.id):
            assert list(ledger.jobs.recover()) == []

    def test_two_recoveries_at_once_recover_a_job_once(self, ledger, clock, another):
        ids = {running(ledger, run=f"run-{n}", subject=f"video-{n}")[0].id for n in range(5)}
        clock.advance(TTL)

        def recover(_):
            own = another()
            try:
                return [job.id for job in own.jobs.recover()]
            finally:
                own.close()

        assert sorted(flat(at_once(3, recover))) == sorted(ids)
        assert {(job.attempt, job.crashes) for job in ledger.jobs.all()} == {(2, 1)}

    def test_a_healthy_job_is_never_recovered(self, ledger, clock):
        job, lease = running(ledger)
        for _ in range(10):
            clock.advance(TTL - 0.5)
            ledger.leases.renew(lease, TTL)
            with unchanged(ledger, job.id):
                assert list(ledger.jobs.recover()) == []

    @pytest.mark.parametrize("state", sorted({*JobState} - {JobState.RUNNING}))
    def test_a_job_that_does_not_run_is_never_recovered(self, ledger, clock, state):
        job, _ = in_state(ledger, state)
        clock.advance(100 * TTL)
        with unchanged(ledger, job.id):
            assert list(ledger.jobs.recover()) == []

    def test_a_job_that_died_in_every_attempt_fails_with_its_reason(self, ledger, clock):
        job, _ = running(ledger, max_attempts=3)
        for attempt in (2, 3):
            clock.advance(TTL)
            ledger.jobs.recover()
            start_again(ledger, job.id, f"run-{attempt}")
        clock.advance(TTL)
        [spent] = ledger.jobs.recover()
        assert (spent.state, spent.attempt, spent.crashes, spent.final) == (JobState.FAILED, 3, 3, True)
        assert (spent.error_code, spent.error) == ("died", "its worker died in each of 3 attempts")
        assert spent.message == "Failed"
        assert states(ledger, job.id) == ["QUEUED", "RUNNING"] * 3 + ["FAILED"]
        assert ledger.leases.holder(job_resource(job.id)) is None
        assert [(run.attempt, run.ending) for run in ledger.dispatch.unshown()] == [(n, "crashed") for n in (1, 2, 3)]
        assert ledger.dispatch.next(ROOM) is None

    def test_deaths_and_failures_draw_on_the_same_attempts(self, ledger, clock):
        job, lease = running(ledger, max_attempts=2)
        ledger.jobs.failed(lease, Injected("first"), retry_in=0)
        start_again(ledger, job.id, "run-2")
        clock.advance(TTL)
        assert [job.state for job in ledger.jobs.recover()] == [JobState.FAILED]

    @pytest.mark.parametrize("max_attempts", [1, 3])
    def test_a_job_that_was_told_to_pause_pauses_when_its_worker_dies(self, ledger, clock, max_attempts):
        job, _ = running(ledger, max_attempts=max_attempts)
        ledger.jobs.pause(job.id)
        clock.advance(TTL)
        [paused] = ledger.jobs.recover()
        assert (paused.state, paused.attempt, paused.crashes) == (JobState.PAUSED, 1, 0)
        assert (paused.message, paused.control, paused.error_code) == ("Paused", "", "")
        assert [(run.attempt, run.ending) for run in ledger.dispatch.unshown()] == [(1, "crashed")]
        ledger.jobs.resume(job.id)
        assert start_again(ledger, job.id, "run-2")[0].attempt == 2

    def test_a_running_job_whose_lease_was_swept_or_released_is_recovered_too(self, ledger, clock):
        first, lease = running(ledger)
        ledger.leases.release(lease)
        second, _ = running(ledger, run="run-b", subject="video-2")
        assert [job.id for job in ledger.jobs.recover()] == [first.id]
        clock.advance(TTL)
        ledger.leases.sweep()
        assert [job.id for job in ledger.jobs.recover()] == [second.id]

    def test_finished_units_outlive_the_attempt_that_made_them(self, ledger, clock):
        job, lease = running(ledger)
        finished = ledger.units.complete(lease, "unit-1", "probe", "d", {"n": 1})
        clock.advance(TTL)
        ledger.jobs.recover()
        start_again(ledger, job.id, "run-2")
        assert ledger.units.find("unit-1") == finished


class UnitContract(Sound):
    def test_a_unit_is_begun_and_completed_under_its_lease(self, ledger):
        job, lease = running(ledger)
        begun = ledger.units.begin(lease, "unit-1", "probe")
        assert (begun.job, begun.key, begun.step, begun.state) == (job.id, "unit-1", "probe", "RUNNING")
        assert (begun.fence, begun.attempts, begun.reuses, begun.digest, begun.result) == (lease.fence, 1, 0, "", None)
        finished = ledger.units.complete(lease, "unit-1", "probe", "d-1", {"n": [1, "ü"]})
        assert (finished.state, finished.digest, finished.result) == ("DONE", "d-1", {"n": [1, "ü"]})
        assert (finished.fence, finished.attempts, finished.reuses) == (lease.fence, 1, 0)
        assert list(ledger.units.of(job.id)) == [finished]

    def test_find_sees_finished_units_only(self, ledger):
        _, lease = running(ledger)
        assert ledger.units.find("unit-1") is None
        ledger.units.begin(lease, "unit-1", "probe")
        assert ledger.units.find("unit-1") is None
        finished = ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        assert ledger.units.find("unit-1") == finished
        ledger.units.begin(lease, "unit-1", "probe")
        assert ledger.units.find("unit-1") is None, "it was found damaged, and is being made again"

    def test_find_returns_a_unit_whichever_job_made_it(self, ledger):
        _, first = running(ledger)
        _, second = running(ledger, run="run-2", subject="video-2")
        made = ledger.units.complete(first, "unit-1", "probe", "d", 1)
        reused = ledger.units.complete(second, "unit-1", "probe", "d", 1, reused=True)
        assert (reused.state, reused.attempts, reused.reuses) == ("REUSED", 0, 1)
        assert ledger.units.find("unit-1") == made

    def test_attempts_count_how_often_the_work_was_begun(self, ledger, clock):
        job, lease = running(ledger)
        ledger.units.begin(lease, "unit-1", "probe")
        clock.advance(TTL)
        ledger.jobs.recover()
        _, lease = start_again(ledger, job.id, "run-2")
        assert ledger.units.begin(lease, "unit-1", "probe").attempts == 2
        assert ledger.units.complete(lease, "unit-1", "probe", "d", 1).attempts == 2
        [unit] = ledger.units.of(job.id)
        assert (unit.attempts, unit.fence) == (2, lease.fence)

    def test_reusing_is_not_beginning(self, ledger):
        _, lease = running(ledger)
        ledger.units.begin(lease, "unit-1", "probe")
        ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        for count in (1, 2):
            reused = ledger.units.complete(lease, "unit-1", "probe", "d", 1, reused=True)
            assert (reused.state, reused.attempts, reused.reuses) == ("DONE", 1, count)
        assert ledger.units.find("unit-1") == reused, "one's own finished unit is still the record that others find"

    def test_a_unit_begun_here_and_finished_elsewhere_ends_as_reused(self, ledger):
        _, mine = running(ledger)
        _, other = running(ledger, run="run-2", subject="video-2")
        ledger.units.begin(mine, "unit-1", "probe")
        made = ledger.units.complete(other, "unit-1", "probe", "d", 1)
        assert ledger.units.complete(mine, "unit-1", "probe", "d", 1, reused=True).state == "REUSED"
        assert ledger.units.find("unit-1") == made

    def test_a_damaged_unit_that_is_made_again_carries_the_new_digest(self, ledger):
        _, lease = running(ledger)
        ledger.units.complete(lease, "unit-1", "probe", "old", {"v": 1})
        ledger.units.begin(lease, "unit-1", "probe")
        again = ledger.units.complete(lease, "unit-1", "probe", "new", {"v": 2})
        assert (again.state, again.digest, again.result) == ("DONE", "new", {"v": 2})
        assert ledger.units.find("unit-1") == again

    def test_units_are_listed_by_job_in_the_order_they_were_begun(self, ledger):
        job, lease = running(ledger)
        _, other = running(ledger, run="run-2", subject="video-2")
        for key in ("b", "a", "c"):
            ledger.units.begin(lease, key, "probe")
            ledger.units.begin(other, key, "probe")
        ledger.units.complete(lease, "a", "probe", "d", 1)
        assert [unit.key for unit in ledger.units.of(job.id)] == ["b", "a", "c"]
        assert {unit.job for unit in ledger.units.of(job.id)} == {job.id}

    def test_a_unit_belongs_to_a_job(self, ledger):
        lease = ledger.leases.acquire("video:1", "a", TTL)
        for write in (
            lambda: ledger.units.begin(lease, "unit-1", "probe"),
            lambda: ledger.units.complete(lease, "unit-1", "probe", "d", 1),
            lambda: ledger.calls.intend(lease, "unit-1"),
            lambda: ledger.outbox.emit(lease, "dailies.note", "once", {}),
        ):
            with pytest.raises(Missing):
                write()
        assert ledger.units.find("unit-1") is None
        assert list(ledger.outbox.pending()) == []


class CallContract(Sound):
    def test_the_intent_is_on_record_before_the_call_has_an_id(self, ledger):
        job, lease = running(ledger)
        call = ledger.calls.intend(lease, "unit-1")
        assert (call.job, call.unit, call.call_id, call.state) == (job.id, "unit-1", "", "INTENDED")

    def test_a_submission_already_known_comes_back_after_a_crash(self, ledger, clock):
        job, lease = running(ledger)
        ledger.calls.intend(lease, "unit-1")
        submitted = ledger.calls.submitted(lease, "unit-1", "call-7")
        assert (submitted.call_id, submitted.state) == ("call-7", "SUBMITTED")
        clock.advance(TTL)
        ledger.jobs.recover()
        _, lease = start_again(ledger, job.id, "run-2")
        assert ledger.calls.intend(lease, "unit-1") == submitted

    @pytest.mark.parametrize("state", ["DONE", "FAILED", "CANCELED"])
    def test_a_call_that_ended_is_known_with_its_ending(self, ledger, state):
        _, lease = running(ledger)
        ledger.calls.intend(lease, "unit-1")
        ledger.calls.submitted(lease, "unit-1", "call-7")
        ended_call = ledger.calls.ended(lease, "unit-1", state)
        assert (ended_call.call_id, ended_call.state) == ("call-7", state)
        assert ledger.calls.intend(lease, "unit-1") == ended_call

    def test_a_call_that_was_never_intended_is_missing_and_the_lease_is_not_blamed(self, ledger):
        job, lease = running(ledger)
        with unchanged(ledger, job.id):
            with pytest.raises(Missing, match="unit-1"):
                ledger.calls.submitted(lease, "unit-1", "call-7")
            with pytest.raises(Missing, match="unit-1"):
                ledger.calls.ended(lease, "unit-1", "DONE")

    def test_orphans_are_the_open_calls_of_jobs_that_are_final(self, ledger):
        _, alive = running(ledger)
        ledger.calls.intend(alive, "unit-alive")
        ids = {}
        for state in (JobState.DONE, JobState.FAILED, JobState.CANCELED, JobState.PAUSED):
            job, lease = running(ledger, run=f"run-{state}", subject=f"video-{state}")
            ids[state] = job.id
            for unit in ("intended", "submitted", "ended"):
                ledger.calls.intend(lease, unit)
            ledger.calls.submitted(lease, "submitted", f"call-{state}")
            ledger.calls.ended(lease, "ended", "DONE")
            match state:
                case JobState.DONE:
                    ledger.jobs.done(lease, 1)
                case JobState.FAILED:
                    ledger.jobs.failed(lease, Unreadable("no"))
                case JobState.CANCELED:
                    ledger.jobs.cancel(job.id)
                case JobState.PAUSED:
                    ledger.jobs.paused(lease)
        found = {(call.job, call.unit, call.call_id, call.state) for call in ledger.calls.orphans()}
        assert found == {
            (ids[state], unit, call_id, call_state)
            for state in (JobState.DONE, JobState.FAILED, JobState.CANCELED)
            for unit, call_id, call_state in (
                ("intended", "", "INTENDED"),
                ("submitted", f"call-{state}", "SUBMITTED"),
            )
        }

    def test_who_takes_the_lease_of_a_final_job_can_write_down_that_its_calls_were_cancelled(self, ledger):
        job, lease = running(ledger)
        ledger.calls.intend(lease, "unit-1")
        ledger.jobs.cancel(job.id)
        reaper = ledger.leases.acquire(job_resource(job.id), "reaper", TTL)
        ledger.calls.ended(reaper, "unit-1", "CANCELED")
        ledger.leases.release(reaper)
        assert list(ledger.calls.orphans()) == []


class GenerationContract(Sound):
    def test_what_was_never_published_has_no_current_generation(self, ledger):
        assert ledger.generations.current("catalog:1") is None
        assert list(ledger.generations.history("catalog:1")) == []

    def test_the_newest_fence_is_the_current_generation(self, ledger):
        fences = []
        for number in range(3):
            lease = ledger.leases.acquire("catalog:1", f"worker-{number}", TTL)
            ledger.generations.publish(lease, f"gen-{number}/index")
            ledger.leases.release(lease)
            fences.append(lease.fence)
        assert ledger.generations.current("catalog:1") == "gen-2/index"
        assert list(ledger.generations.history("catalog:1")) == [
            (fence, f"gen-{number}/index") for number, fence in enumerate(fences)
        ]
        assert ledger.generations.current("catalog:2") is None

    def test_an_old_fence_cannot_come_back_on_top(self, ledger, clock):
        old = ledger.leases.acquire("catalog:1", "a", TTL)
        ledger.generations.publish(old, "gen-old/index")
        clock.advance(TTL)
        new = ledger.leases.acquire("catalog:1", "b", TTL)
        with pytest.raises(Fenced):
            ledger.generations.publish(old, "gen-zombie/index")
        assert ledger.generations.current("catalog:1") == "gen-old/index"
        ledger.generations.publish(new, "gen-new/index")
        with pytest.raises(Fenced):
            ledger.generations.publish(old, "gen-zombie/index")
        assert [key for _, key in ledger.generations.history("catalog:1")] == ["gen-old/index", "gen-new/index"]

    def test_publishing_again_under_the_same_fence_replaces_the_key(self, ledger):
        lease = ledger.leases.acquire("catalog:1", "a", TTL)
        ledger.generations.publish(lease, "gen-1/first")
        ledger.generations.publish(lease, "gen-1/second")
        assert list(ledger.generations.history("catalog:1")) == [(lease.fence, "gen-1/second")]


class DispatchContract(Sound):
    def test_the_higher_tier_goes_first_then_the_older_job(self, ledger, clock):
        for tenant, tier in (("free", "free"), ("premium", "premium"), ("enterprise", "enterprise")):
            ledger.tenants.set_tier(tenant, tier)
        order = []
        for number in range(2):
            for tenant in ("nobody-knows", "enterprise", "free", "premium"):
                order.append((tenant, ledger.jobs.submit(request(tenant=tenant, subject=f"video-{number}")).id))
                clock.advance(1)
        expected = [
            job for tier in ("enterprise", "premium", ("free", "nobody-knows")) for who, job in order if who in tier
        ]
        assert [job.id for job, _ in ledger.dispatch.ranked()] == expected
        assert [ledger.dispatch.next(ROOM).id for _ in expected] == expected
        assert ledger.dispatch.next(ROOM) is None

    def test_ranked_says_the_priority_of_this_moment(self, ledger, clock):
        old = ledger.jobs.submit(request())
        clock.advance(5 * 3600)
        new = ledger.jobs.submit(request(subject="video-2", boost=3))
        steady = ledger.jobs.submit(request(subject="video-3", aging=False))
        based = ledger.jobs.submit(request(subject="video-4", base=10))
        assert [(job.id, rank) for job, rank in ledger.dispatch.ranked()] == [
            (old.id, 55),
            (new.id, 53),
            (steady.id, 50),
            (based.id, 10),
        ]
        clock.advance(100 * 3600)
        assert {job.id: rank for job, rank in ledger.dispatch.ranked()} == {
            old.id: 70,
            new.id: 73,
            steady.id: 50,
            based.id: 30,
        }
        assert ledger.dispatch.rank(old) == 70
        ledger.tenants.set_tier("acme", "enterprise")
        assert ledger.dispatch.rank(old) == 100

    def test_the_rank_of_an_unknown_job_is_missing(self, ledger):
        job = ledger.jobs.submit(request())
        with pytest.raises(Missing):
            ledger.dispatch.rank(replace(job, id="nobody"))

    def test_an_attempt_is_claimed_once(self, ledger):
        job = ledger.jobs.submit(request())
        assert ledger.dispatch.next(ROOM) == job
        assert ledger.dispatch.next(ROOM) is None
        assert list(ledger.dispatch.ranked()) == []
        assert ledger.jobs.get(job.id).state is JobState.QUEUED

    def test_a_job_that_brought_its_own_run_is_not_dispatched(self, ledger):
        job = ledger.jobs.submit(request(), run_id="run-1")
        assert ledger.dispatch.next(ROOM) is None
        assert list(ledger.dispatch.jobs_of("run-1")) == [job.id]

    def test_a_slot_is_taken_from_the_claim_on_until_the_job_ends(self, ledger, clock):
        first = ledger.jobs.submit(request())
        clock.advance(1)
        second = ledger.jobs.submit(request(subject="video-2"))
        one = Caps(total=1, per_tenant=1)
        assert ledger.dispatch.next(one).id == first.id
        clock.advance(3600)
        assert ledger.dispatch.next(one) is None
        _, lease = ledger.jobs.start(first.id, 1, "run-1", TTL)
        assert ledger.dispatch.next(one) is None
        ledger.jobs.done(lease, 1)
        assert ledger.dispatch.next(one).id == second.id

    @pytest.mark.parametrize("end", ["cancel", "pause", "give up", "retry later"])
    def test_a_slot_is_free_again_whichever_way_its_attempt_ends(self, ledger, clock, end):
        first = ledger.jobs.submit(request(boost=10))
        second = ledger.jobs.submit(request(subject="video-2"))
        one = Caps(total=1, per_tenant=1)
        ledger.dispatch.next(one)
        match end:
            case "cancel":
                ledger.jobs.cancel(first.id)
            case "pause":
                ledger.jobs.pause(first.id)
            case "give up":
                ledger.dispatch.give_up(first.id, 1, NotConfigured("no such deployment"))
            case "retry later":
                _, lease = ledger.jobs.start(first.id, 1, "run-1", TTL)
                ledger.jobs.failed(lease, Injected("again"), retry_in=60)
        assert ledger.dispatch.next(one).id == second.id

    def test_the_total_cap_counts_everybody(self, ledger):
        for number in range(5):
            ledger.jobs.submit(request(tenant=f"tenant-{number}"))
        caps = Caps(total=3, per_tenant=2)
        assert [ledger.dispatch.next(caps) is not None for _ in range(5)] == [True] * 3 + [False] * 2
        assert ledger.dispatch.next(Caps(total=0, per_tenant=2)) is None

    def test_a_tenant_at_its_cap_does_not_hold_up_the_others(self, ledger):
        ledger.tenants.set_tier("acme", "enterprise")
        ours = [ledger.jobs.submit(request(subject=f"video-{n}")).id for n in range(3)]
        theirs = ledger.jobs.submit(request(tenant="globex")).id
        caps = Caps(total=10, per_tenant=2)
        got = [ledger.dispatch.next(caps).id for _ in range(3)]
        assert set(got[:2]) < set(ours)
        assert got[2] == theirs
        assert ledger.dispatch.next(caps) is None

    def test_a_job_that_brought_its_own_run_takes_a_slot_too(self, ledger):
        ledger.jobs.submit(request(), run_id="run-1")
        ledger.jobs.submit(request(subject="video-2"))
        assert ledger.dispatch.next(Caps(total=1, per_tenant=1)) is None

    def test_many_dispatchers_never_get_the_same_attempt(self, ledger, another):
        for number in range(24):
            ledger.jobs.submit(request(tenant=f"tenant-{number % 4}", subject=f"video-{number}"))

        def take(_):
            own = another()
            got = []
            while (job := own.dispatch.next(ROOM)) is not None:
                got.append((job.id, job.attempt))
            own.close()
            return got

        claims = flat(at_once(4, take))
        assert Counter(claims) == Counter({(job.id, 1): 1 for job in ledger.jobs.all()})

    def test_many_dispatchers_together_keep_the_caps(self, ledger, another):
        for number in range(24):
            ledger.jobs.submit(request(tenant=f"tenant-{number % 4}", subject=f"video-{number}"))

        def take(_):
            own = another()
            got = []
            for _attempt in range(8):
                job = own.dispatch.next(Caps(total=7, per_tenant=2))
                if job is not None:
                    got.append(job.tenant)
            own.close()
            return got

        tenants = Counter(flat(at_once(4, take)))
        assert sum(tenants.values()) == 7
        assert max(tenants.values()) == 2

    def test_a_claim_without_a_run_is_unbound_until_one_is_written_down(self, ledger, clock):
        job = ledger.jobs.submit(request())
        assert list(ledger.dispatch.unbound(0)) == []
        ledger.dispatch.next(ROOM)
        clock.advance(5)
        assert list(ledger.dispatch.unbound(5.5)) == []
        assert list(ledger.dispatch.unbound(5)) == [job]
        assert list(ledger.dispatch.waiting(0)) == []
        ledger.dispatch.bind(job.id, 1, "run-1")
        assert list(ledger.dispatch.unbound(0)) == []
        [waiting] = ledger.dispatch.waiting(5)
        assert (waiting.job, waiting.attempt, waiting.run_id, waiting.ending) == (job.id, 1, "run-1", "")
        assert waiting.created_at == pytest.approx(clock.now - 5)
        assert list(ledger.dispatch.waiting(5.5)) == []

    def test_the_first_run_written_down_keeps_the_attempt(self, ledger):
        job = ledger.jobs.submit(request())
        ledger.dispatch.next(ROOM)
        ledger.dispatch.bind(job.id, 1, "run-1")
        ledger.dispatch.bind(job.id, 1, "run-2")
        assert list(ledger.dispatch.jobs_of("run-1")) == [job.id]
        assert list(ledger.dispatch.jobs_of("run-2")) == []

    def test_a_run_that_started_waits_no_more(self, ledger):
        running(ledger)
        assert list(ledger.dispatch.waiting(0)) == []
        assert list(ledger.dispatch.unbound(0)) == []

    def test_a_job_is_the_job_of_its_current_attempts_run_alone(self, ledger):
        job, lease = running(ledger)
        assert list(ledger.dispatch.jobs_of("run-1")) == [job.id]
        ledger.jobs.failed(lease, Injected("again"), retry_in=0)
        assert list(ledger.dispatch.jobs_of("run-1")) == []
        start_again(ledger, job.id, "run-2")
        assert list(ledger.dispatch.jobs_of("run-2")) == [job.id]
        assert list(ledger.dispatch.jobs_of("stranger")) == []

    def test_no_run_at_all_is_the_run_of_no_job(self, ledger):
        ledger.jobs.submit(request())
        ledger.dispatch.next(ROOM)
        assert list(ledger.dispatch.jobs_of("")) == []

    def test_a_run_that_never_starts_is_given_up_for_the_next_attempt(self, ledger):
        job = ledger.jobs.submit(request())
        ledger.dispatch.next(ROOM)
        ledger.dispatch.bind(job.id, 1, "run-1")
        given_up = ledger.dispatch.give_up(job.id, 1)
        assert given_up == ledger.jobs.get(job.id)
        assert (given_up.state, given_up.attempt, given_up.crashes) == (JobState.QUEUED, 2, 1)
        assert given_up.message == "Its run never started"
        assert [(run.attempt, run.run_id, run.ending) for run in ledger.dispatch.unshown()] == [(1, "run-1", "crashed")]
        assert ledger.outbox.of(job.id)[-1].data["recovery"] is True
        with unchanged(ledger, job.id), pytest.raises(IllegalTransition):
            ledger.jobs.start(job.id, 1, "run-1", TTL)
        assert start_again(ledger, job.id, "run-2")[0].attempt == 2

    def test_the_last_run_that_never_starts_is_the_end(self, ledger):
        job = ledger.jobs.submit(request(max_attempts=2))
        for attempt in (1, 2):
            ledger.dispatch.next(ROOM)
            last = ledger.dispatch.give_up(job.id, attempt)
        assert (last.state, last.attempt, last.crashes) == (JobState.FAILED, 2, 2)
        assert (last.error_code, last.error) == ("timed_out", "its runs never started")

    def test_giving_up_with_an_error_is_final_at_once(self, ledger):
        job = ledger.jobs.submit(request())
        ledger.dispatch.next(ROOM)
        failed = ledger.dispatch.give_up(job.id, 1, NotConfigured("there is no deployment x"))
        assert (failed.state, failed.attempt) == (JobState.FAILED, 1)
        assert (failed.error_code, failed.error) == ("not_configured", "there is no deployment x")

    @pytest.mark.parametrize("state", sorted({*JobState} - {JobState.QUEUED}))
    def test_what_is_not_waiting_cannot_be_given_up(self, ledger, state):
        job, _ = in_state(ledger, state)
        with unchanged(ledger, job.id):
            assert ledger.dispatch.give_up(job.id, job.attempt) is None
            assert ledger.dispatch.give_up(job.id, job.attempt, Unreadable("no")) is None

    def test_another_attempt_is_not_given_up_in_place_of_this_one(self, ledger):
        job, _ = in_state(ledger, JobState.QUEUED)
        with unchanged(ledger, job.id):
            assert ledger.dispatch.give_up(job.id, 1) is None
            assert ledger.dispatch.give_up("nobody", 1) is None

    def test_an_attempt_that_others_ended_is_unshown_until_it_was_shown(self, ledger, clock):
        crashed, _ = running(ledger, run="run-crashed")
        clock.advance(TTL)
        ledger.jobs.recover()
        canceled_job, _ = running(ledger, run="run-canceled", subject="video-2")
        ledger.jobs.cancel(canceled_job.id)
        assert [(run.run_id, run.ending) for run in ledger.dispatch.unshown()] == [
            ("run-crashed", "crashed"),
            ("run-canceled", "cancelled"),
        ]
        ledger.dispatch.shown(crashed.id, 1)
        assert [run.run_id for run in ledger.dispatch.unshown()] == ["run-canceled"]
        ledger.dispatch.shown(canceled_job.id, 1)
        assert list(ledger.dispatch.unshown()) == []

    @pytest.mark.parametrize("order", ["done", "failed", "failed with retry", "paused"])
    def test_an_attempt_that_ended_by_itself_needs_no_showing(self, ledger, order):
        job, lease = running(ledger)
        ORDERS[order](ledger, job, lease)
        assert list(ledger.dispatch.unshown()) == []


class OutboxContract(Sound):
    def test_every_transition_leaves_its_event(self, ledger, clock):
        job, lease = running(ledger)
        clock.advance(1)
        ledger.jobs.pause(job.id)
        ledger.jobs.paused(lease)
        ledger.jobs.resume(job.id)
        start_again(ledger, job.id, "run-2")
        clock.advance(TTL)
        ledger.jobs.recover()
        _, lease = start_again(ledger, job.id, "run-3")
        ledger.jobs.failed(lease, Unreadable("not media"))
        expected = [
            ("queued", 1, False),
            ("running", 1, False),
            ("paused", 1, False),
            ("queued", 2, False),
            ("running", 2, False),
            ("queued", 3, True),
            ("running", 3, False),
            ("failed", 3, False),
        ]
        events = list(ledger.outbox.of(job.id))
        assert [(e.type, e.data["attempt"], e.data["recovery"]) for e in events] == [
            (f"dailies.job.{state}", attempt, recovery) for state, attempt, recovery in expected
        ]
        assert {(e.source, e.subject, e.job) for e in events} == {("dailies/ledger", "video-1", job.id)}
        assert [e.data["state"].lower() for e in events] == [state for state, _, _ in expected]
        assert {(e.data["job"], e.data["tenant"], e.data["kind"]) for e in events} == {(job.id, "acme", "ingest-media")}
        assert events[-1].data["error_code"] == "unreadable"
        assert events[2].time == pytest.approx(events[1].time + 1)
        assert list(ledger.outbox.pending()) == events

    def test_ids_are_made_of_the_transition_alone(self, ledger):
        job, lease = running(ledger)
        ledger.jobs.failed(lease, Injected("x"), retry_in=0)
        ledger.jobs.cancel(job.id)
        events = ledger.outbox.of(job.id)
        assert [e.id for e in events] == [event_id(e.source, job.id, e.type, str(e.data["attempt"])) for e in events]
        assert len({e.id for e in events}) == 4

    def test_pending_events_come_oldest_first_until_they_are_delivered(self, ledger):
        ids = [ledger.jobs.submit(request(subject=f"video-{n}")).id for n in range(5)]
        pending = ledger.outbox.pending()
        assert [event.job for event in pending] == ids
        assert [event.seq for event in pending] == sorted({event.seq for event in pending})
        assert [event.job for event in ledger.outbox.pending(limit=2)] == ids[:2]
        ledger.outbox.delivered([pending[0].id, pending[2].id, "unknown"])
        ledger.outbox.delivered([pending[0].id])
        ledger.outbox.delivered([])
        assert [event.job for event in ledger.outbox.pending()] == [ids[1], ids[3], ids[4]]
        assert [event.id for event in ledger.outbox.of(ids[0])] == [pending[0].id], "delivered is not forgotten"

    def test_an_event_of_a_running_job_is_emitted_once_however_often_it_is_tried(self, ledger):
        job, lease = running(ledger)
        for _ in range(3):
            ledger.outbox.emit(lease, "dailies.lease.blocked", "1", {"held_by": "b", "n": [1]})
        ledger.outbox.emit(lease, "dailies.lease.blocked", "2", {})
        emitted = [event for event in ledger.outbox.of(job.id) if event.type == "dailies.lease.blocked"]
        assert [(event.subject, event.data) for event in emitted] == [
            ("video-1", {"held_by": "b", "n": [1]}),
            ("video-1", {}),
        ]
        assert emitted[0].id == event_id(emitted[0].source, job.id, "dailies.lease.blocked", "1")

    def test_the_same_occasion_in_another_job_is_another_event(self, ledger):
        _, first = running(ledger)
        _, second = running(ledger, run="run-2")
        ledger.outbox.emit(first, "dailies.note", "1", {})
        ledger.outbox.emit(second, "dailies.note", "1", {})
        assert sum(event.type == "dailies.note" for event in ledger.outbox.pending()) == 2

    def test_wait_wakes_on_a_commit_by_another(self, ledger, another):
        mark = ledger.outbox.mark()
        committed: list[float] = []

        def commit() -> None:
            own = another()
            time.sleep(0.05)
            own.jobs.submit(request())
            committed.append(time.monotonic())
            own.close()

        thread = threading.Thread(target=commit)
        thread.start()
        assert ledger.outbox.wait(mark, 10) is True
        woken = time.monotonic()
        thread.join()
        assert woken - committed[0] < 0.2

    def test_wait_does_not_sleep_through_what_was_committed_after_the_mark(self, ledger, another):
        mark = ledger.outbox.mark()
        at_once(1, lambda _: another().jobs.submit(request()))
        began = time.monotonic()
        assert ledger.outbox.wait(mark, 10) is True
        assert time.monotonic() - began < 0.2

    def test_wait_looks_once_even_without_time(self, ledger, another):
        mark = ledger.outbox.mark()
        assert ledger.outbox.wait(mark, 0) is False
        at_once(1, lambda _: another().jobs.submit(request()))
        assert ledger.outbox.wait(mark, 0) is True

    def test_wait_ends_when_nobody_commits(self, ledger):
        mark = ledger.outbox.mark()
        began = time.monotonic()
        assert ledger.outbox.wait(mark, 0.1) is False
        assert 0.09 < time.monotonic() - began < 1


class InboxContract(Sound):
    def test_an_event_is_accepted_the_first_time_only(self, ledger):
        assert [ledger.inbox.accept("dailies/ledger", "e-1") for _ in range(3)] == [True, False, False]

    def test_an_event_is_known_by_its_source_and_id_together(self, ledger):
        assert ledger.inbox.accept("a", "1")
        assert ledger.inbox.accept("b", "1")
        assert ledger.inbox.accept("a", "2")

    def test_of_many_who_get_a_copy_at_once_one_accepts_it(self, ledger, another):
        def accept(_):
            own = another()
            try:
                return own.inbox.accept("dailies/ledger", "e-1")
            finally:
                own.close()

        assert sum(at_once(6, accept)) == 1


class TenantContract(Sound):
    def test_a_tenant_that_nobody_described_is_free(self, ledger):
        assert ledger.tenants.tier("nobody") == "free"

    @pytest.mark.parametrize(
        ("written", "means"),
        [
            ("free", "free"),
            ("premium", "premium"),
            ("enterprise", "enterprise"),
            ("demo", "free"),
            ("trial", "free"),
            ("active", "premium"),
            (" Premium ", "premium"),
            ("gold", "free"),
        ],
    )
    def test_an_access_level_means_a_tier(self, ledger, written, means):
        ledger.tenants.set_tier("acme", written)
        assert ledger.tenants.tier("acme") == means

    def test_the_last_word_on_a_tier_counts(self, ledger):
        ledger.tenants.set_tier("acme", "enterprise")
        ledger.tenants.set_tier("acme", "premium")
        assert ledger.tenants.tier("acme") == "premium"
        assert ledger.tenants.tier("globex") == "free"


class AuditContract:
    def test_an_empty_ledger_is_sound(self, ledger):
        report = ledger.audit()
        assert report
        assert all(offenders == [] for offenders in report.values())

    def test_a_busy_ledger_is_sound_with_no_grace_at_all(self, ledger, clock):
        for state in JobState:
            in_state(ledger, state)
        _, lease = with_work_under_way(ledger)
        ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        video = ledger.leases.acquire("video:1", "run-1", TTL)
        ledger.generations.publish(video, "gen-1/index")
        clock.advance(TTL - 1)
        assert all(offenders == [] for offenders in ledger.audit().values())

    def test_a_dead_worker_is_red_until_it_is_swept_away_but_for_the_grace(self, ledger, clock):
        job, lease = running(ledger)
        clock.advance(TTL + 2)
        red = {rule: found for rule, found in ledger.audit().items() if found}
        assert red == {"running without a live lease": [job.id], "expired lease still held": [lease.resource]}
        assert not any(ledger.audit(grace=2.5).values())
        ledger.jobs.recover()
        assert not any(ledger.audit().values())

    def test_a_lease_that_the_sweep_ended_before_the_recovery_is_within_the_grace_too(self, ledger, clock):
        job, _ = running(ledger)
        clock.advance(TTL + 2)
        ledger.leases.sweep()
        assert ledger.audit()["running without a live lease"] == [job.id]
        assert not any(ledger.audit(grace=2.5).values())
        assert ledger.audit(grace=1)["running without a live lease"] == [job.id]


class CloseContract(Sound):
    def test_a_closed_ledger_has_lost_nothing(self, ledger, another):
        own = another()
        job = own.jobs.submit(request())
        own.close()
        own.close()
        assert ledger.jobs.get(job.id) == job

    def test_two_ledger_objects_see_the_same(self, ledger, another):
        own = another()
        job, lease = running(ledger)
        assert own.jobs.get(job.id) == job
        own.units.complete(lease, "unit-1", "probe", "d", 1)
        assert picture(own, job.id) == picture(ledger, job.id)
        own.close()
