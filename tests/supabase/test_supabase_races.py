"""PostgreSQL lets others commit between two statements: who decides first holds the lock, and the rest find out."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from dailies.errors import DailiesError, Fenced, Held, IllegalTransition, Transient, Unreadable
from dailies.ledger.records import Caps, JobState, Lease, VideoState, video_resource
from dailies.ledger.supabase import SupabaseLedger
from tests.supabase.servers import SERVICE_KEY, instead
from tests.unit.ledger.contract.world import (
    FENCED_WRITES,
    TTL,
    at_once,
    picture,
    recoveries_of,
    request,
    running,
    unchanged,
    with_work_under_way,
)

pytestmark = pytest.mark.supabase


@pytest.fixture
def rival(postgres, database) -> Iterator[psycopg.Connection]:
    """Somebody whose transaction a test can hold open."""
    with postgres.connect("ledger") as connection:
        yield connection


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def until_somebody_waits(database: psycopg.Connection, count: int = 1) -> None:
    deadline = time.monotonic() + 10
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'ledger' AND wait_event_type = 'Lock'"
    while database.execute(waiting).fetchone()[0] < count:
        assert time.monotonic() < deadline, "nobody waits for a lock"
        time.sleep(0.01)


# ── one winner ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_sixteen_who_ask_at_the_same_moment_one_gets_the_lease(ledger, another):
    ledgers = [another() for _ in range(16)]

    def ask(number):
        try:
            return ledgers[number].leases.acquire("video:1", f"worker-{number}", TTL)
        except Held as held:
            return held.by

    answers = at_once(16, ask)
    [winner] = [answer for answer in answers if isinstance(answer, Lease)]
    assert winner.fence == 1
    assert [answer for answer in answers if answer != winner] == [winner.holder] * 15
    assert ledger.leases.holder("video:1") == winner


def test_two_dispatchers_do_not_count_the_same_free_slot(ledger, another, rival, database):
    for number in range(2):
        ledger.jobs.submit(request(subject=f"video-{number}"))
    first, second = claim_while_another_is_under_way(ledger, rival, database, until_somebody_waits)
    assert first is not None
    assert second is None


def test_without_their_lock_two_dispatchers_fill_one_slot_twice(ledger, rival, database):
    """The control of the test above."""
    for number in range(2):
        ledger.jobs.submit(request(subject=f"video-{number}"))
    turn = "PERFORM pg_advisory_xact_lock(hashtext('dailies'), hashtext('dispatch'));"
    with instead(database, "dispatch_claim", turn, ""):
        first, second = claim_while_another_is_under_way(ledger, rival, database, lambda _: time.sleep(0.3))
    assert first is not None
    assert second is not None


def claim_while_another_is_under_way(ledger, rival, database, wait) -> tuple[Any, Any]:
    """What each of two claims for the only slot was answered, the second begun before the first was committed."""
    first, second = ([[job.id, job.attempt, job.tenant]] for job, _ in ledger.dispatch.ranked())
    rival.execute("BEGIN")
    [answer] = rival.execute("SELECT dailies.dispatch_claim(%s, %s, 1, 1)", [uuid4(), json.dumps(first)]).fetchone()
    claim = {"wanted": json.dumps(second), "total": 1, "per_tenant": 1}
    with meanwhile(lambda: ledger._api.tell("dispatch_claim", **claim)) as late:
        wait(database)
        rival.execute("COMMIT")
        return json.loads(answer), late.result(10)


# ── frozen, and taken over ────────────────────────────────────────────────────────────────────────────────────────────

TAKE_OVER = "UPDATE dailies.leases SET holder = 'the next one', fence = fence + 1 WHERE resource = %s"


@pytest.mark.parametrize("write", FENCED_WRITES)
def test_a_write_that_waited_while_a_takeover_was_committed_is_refused(ledger, rival, database, write):
    job, lease = with_work_under_way(ledger)
    with unchanged_but_for_the_holder(ledger, job.id):
        rival.execute("BEGIN")
        rival.execute(TAKE_OVER, [lease.resource])
        with meanwhile(lambda: FENCED_WRITES[write](ledger, lease)) as late:
            until_somebody_waits(database)
            rival.execute("COMMIT")
            with pytest.raises(Fenced, match="taken over"):
                late.result(10)


def test_a_video_is_not_changed_by_who_waited_while_it_was_taken_over(ledger, rival, database):
    _, lease = running(ledger)
    before = ledger.videos.register("acme", "v1", "key")
    video = ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)
    rival.execute("BEGIN")
    rival.execute(TAKE_OVER, [video.resource])
    with meanwhile(lambda: ledger.videos.update(video, state=VideoState.PROCESSING)) as late:
        until_somebody_waits(database)
        rival.execute("COMMIT")
        with pytest.raises(Fenced, match="taken over"):
            late.result(10)
    assert ledger.videos.get("acme", "v1") == before


def test_without_its_lock_the_fence_lets_a_late_write_through(ledger, rival, database):
    """The control of the tests above: looking is not holding."""
    job, lease = with_work_under_way(ledger)
    with instead(database, "hold", " FOR NO KEY UPDATE", ""):
        rival.execute("BEGIN")
        rival.execute(TAKE_OVER, [lease.resource])
        ledger.units.complete(lease, "unit-1", "probe", "d-late", 1)
        rival.execute("COMMIT")
    assert [unit.digest for unit in ledger.units.of(job.id)] == ["d-late"]


@contextmanager
def unchanged_but_for_the_holder(ledger: SupabaseLedger, job_id: str) -> Iterator[None]:
    def seen() -> tuple[object, ...]:
        parts = list(picture(ledger, job_id))
        parts[3] = None
        return tuple(parts)

    before = seen()
    yield
    assert seen() == before


def test_a_takeover_waits_for_a_write_that_is_under_way_and_comes_after_it(ledger, clock, rival, database):
    job, lease = with_work_under_way(ledger)
    clock.advance(TTL)
    rival.execute("BEGIN")
    complete = "SELECT dailies.unit_complete(%s, %s, %s, %s, 'unit-1', 'probe', 'd-1', '1', false)"
    rival.execute(complete, [uuid4(), lease.resource, lease.holder, lease.fence])
    with meanwhile(lambda: ledger.leases.acquire(lease.resource, "the next one", TTL)) as next_one:
        until_somebody_waits(database)
        assert not next_one.done()
        rival.execute("COMMIT")
        assert next_one.result(10).fence > lease.fence
    assert [unit.digest for unit in ledger.units.of(job.id)] == ["d-1"]


def test_time_spent_waiting_for_a_lock_is_not_taken_from_the_lease(ledger, clock, rival, database):
    """The clock is read after the wait: a lease given out late still has its whole ttl."""
    lease = ledger.leases.acquire("video:1", "a", TTL)
    rival.execute("BEGIN")
    rival.execute("SELECT 1 FROM dailies.leases FOR UPDATE")
    with meanwhile(lambda: ledger.leases.acquire("video:1", "b", TTL)) as late:
        until_somebody_waits(database)
        clock.advance(10 * TTL)
        rival.execute("COMMIT")
        taken = late.result(10)
    assert taken.fence == lease.fence + 1
    assert taken.expires_at == pytest.approx(clock.now + TTL)


def test_recovery_leaves_a_job_alone_that_somebody_is_busy_with(ledger, clock, rival):
    job, lease = running(ledger)
    other, _ = running(ledger, run="run-2", subject="video-2")
    clock.advance(TTL)
    rival.execute("BEGIN")
    rival.execute("SELECT 1 FROM dailies.leases WHERE resource = %s FOR NO KEY UPDATE", [lease.resource])
    with unchanged(ledger, job.id):
        assert [lost.id for lost in ledger.jobs.recover()] == [other.id]
        assert [swept.resource for swept in ledger.leases.sweep()] == []
    rival.execute("COMMIT")
    assert [lost.id for lost in ledger.jobs.recover()] == [job.id]


def test_a_recovery_that_meets_one_under_way_leaves_the_job_to_it(ledger, clock, rival):
    job, _ = running(ledger)
    clock.advance(TTL)
    rival.execute("BEGIN")
    rival.execute("SELECT dailies.job_recover(%s)", [uuid4()])
    assert list(ledger.jobs.recover()) == []
    assert recoveries_of(ledger, job.id) == []
    rival.execute("COMMIT")
    assert list(ledger.jobs.recover()) == []
    assert recoveries_of(ledger, job.id) == [("started", 2)]


def test_a_recovery_that_does_not_compare_before_it_sets_tells_of_two(ledger, clock, rival, database):
    """The control of the test above."""
    job, _ = running(ledger)
    clock.advance(TTL)
    with (
        instead(database, "job_recover", "FOR NO KEY UPDATE SKIP LOCKED", ""),
        instead(
            database, "job_recover", "WHERE id = lost AND state = 'RUNNING' RETURNING", "WHERE id = lost RETURNING"
        ),
    ):
        rival.execute("BEGIN")
        rival.execute("SELECT dailies.job_recover(%s)", [uuid4()])
        with meanwhile(ledger.jobs.recover) as second:
            until_somebody_waits(database)
            rival.execute("COMMIT")
            second.result(10)
    assert recoveries_of(ledger, job.id) == [("started", 2), ("started", 3)]


# ── a video left behind, and whoever works on it next ─────────────────────────────────────────────────────────────────


@pytest.fixture
def left_behind(ledger) -> tuple[Any, Lease]:
    """The job of a video that says processing, canceled; and the lease on the video, which it lost by that."""
    job, lease = running(ledger, subject="acme/v1")
    ledger.videos.register("acme", "v1", "key")
    held = ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)
    ledger.videos.update(held, state=VideoState.PROCESSING)
    ledger.jobs.cancel(job.id)
    return job, held


@pytest.mark.parametrize("busy", ["the lease on it", "the job that ended"])
def test_settling_leaves_a_video_alone_that_somebody_is_busy_with(ledger, left_behind, rival, busy):
    job, held = left_behind
    before = ledger.videos.get("acme", "v1")
    rival.execute("BEGIN")
    if busy == "the lease on it":
        rival.execute("SELECT 1 FROM dailies.leases WHERE resource = %s FOR NO KEY UPDATE", [held.resource])
    else:
        rival.execute("SELECT 1 FROM dailies.jobs WHERE id = %s FOR NO KEY UPDATE", [job.id])
    assert list(ledger.videos.settle()) == []
    assert ledger.videos.get("acme", "v1") == before
    rival.execute("COMMIT")
    assert [video.error_code for video in ledger.videos.settle()] == ["canceled"]


def test_the_next_run_of_a_video_waits_for_a_settling_that_is_under_way_and_begins_from_there(
    ledger, left_behind, rival, database
):
    rival.execute("BEGIN")
    rival.execute("SELECT dailies.video_settle(%s)", [uuid4()])
    with meanwhile(lambda: begin_again(ledger)) as next_run:
        until_somebody_waits(database)
        rival.execute("COMMIT")
        _, _, video = next_run.result(10)
    assert (video.state, video.version) == (VideoState.PROCESSING, 3), "after the error"
    assert list(ledger.videos.settle()) == []


LOCK_OF_THE_JOB = "PERFORM 1 FROM dailies.jobs WHERE id = stuck.owner FOR NO KEY UPDATE SKIP LOCKED;"
HELD_UP = f"PERFORM pg_advisory_xact_lock_shared(7); {LOCK_OF_THE_JOB}"


def begin_again(ledger: SupabaseLedger) -> tuple[Lease, Lease, Any]:
    """Another job of the video is asked for, started, and says that it is at work."""
    _, lease = running(ledger, "run-2", subject="acme/v1")
    held = ledger.leases.acquire(video_resource("acme", "v1"), "run-2", TTL)
    return lease, held, ledger.videos.update(held, state=VideoState.PROCESSING)


def come_and_gone(ledger: SupabaseLedger) -> None:
    lease, held, _ = begin_again(ledger)
    ledger.videos.update(held, state=VideoState.READY)
    ledger.leases.release(held)
    ledger.jobs.done(lease, 1)


COMES_MEANWHILE: dict[str, tuple[Callable[[SupabaseLedger], Any], VideoState]] = {
    "asked for": (lambda ledger: ledger.jobs.submit(request(subject="acme/v1")), VideoState.PROCESSING),
    "at work": (begin_again, VideoState.PROCESSING),
    "come and gone": (come_and_gone, VideoState.READY),
}


@pytest.mark.parametrize("how", COMES_MEANWHILE)
def test_a_job_that_comes_while_a_settling_looks_is_not_overlooked(ledger, left_behind, database, rival, how):
    """Whoever settles has seen that nobody works on the video, and is held up before it writes: it must look again."""
    come, state = COMES_MEANWHILE[how]
    with held_up(ledger, rival, database) as late:
        come(ledger)
    assert list(late.result()) == []
    assert ledger.videos.get("acme", "v1").state is state


def test_a_job_that_ends_while_a_settling_looks_is_the_one_that_is_told_of(ledger, left_behind, clock, rival, database):
    with held_up(ledger, rival, database) as late:
        lease, held, _ = begin_again(ledger)
        clock.advance(1)
        ledger.leases.release(held)
        ledger.jobs.failed(lease, Unreadable("not media"))
    assert list(late.result()) == [], "left for the next time"
    assert [video.error_code for video in ledger.videos.settle()] == ["unreadable"]


@contextmanager
def held_up(ledger: SupabaseLedger, rival: psycopg.Connection, database: psycopg.Connection) -> Iterator[Future[Any]]:
    """A settling that is kept between its first look and its decision as long as the block goes on, and then ends."""
    with instead(database, "video_settle", LOCK_OF_THE_JOB, HELD_UP):
        rival.execute("SELECT pg_advisory_lock(7)")
        with meanwhile(ledger.videos.settle) as late:
            try:
                until_somebody_waits(database)
                yield late
            finally:
                rival.execute("SELECT pg_advisory_unlock(7)")
            late.result(10)


# ── the events of one job ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("other", ["cancel", "another event"])
def test_the_events_of_a_job_become_visible_in_the_order_of_their_numbers(ledger, rival, database, other):
    job, lease = running(ledger)
    rival.execute("BEGIN")
    emit = "SELECT dailies.outbox_emit(%s, %s, %s, %s, 'dailies.note', '1', '{}')"
    rival.execute(emit, [uuid4(), lease.resource, lease.holder, lease.fence])
    acts = {
        "cancel": lambda: ledger.jobs.cancel(job.id),
        "another event": lambda: ledger.outbox.emit(lease, "dailies.note", "2", {}),
    }
    with meanwhile(acts[other]) as later:
        until_somebody_waits(database)
        assert [event.type for event in ledger.outbox.of(job.id)] == ["dailies.job.queued", "dailies.job.running"]
        rival.execute("COMMIT")
        later.result(10)
    events = ledger.outbox.of(job.id)
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert [event.type for event in events[2:]] == [
        "dailies.note",
        "dailies.job.canceled" if other == "cancel" else "dailies.note",
    ]


LOCK_TO_TELL = "SELECT subject INTO about FROM dailies.jobs WHERE id = unit.job FOR NO KEY UPDATE;"


def test_the_event_of_a_unit_keeps_its_place_before_one_that_needs_no_lease_on_the_job(ledger, rival, database):
    job, lease, video = with_a_video(ledger)
    rival.execute("BEGIN")
    rival.execute(COMPLETE_AND_TELL, [uuid4(), lease.resource, lease.holder, lease.fence])
    with meanwhile(lambda: ledger.videos.update(video, state=VideoState.PROCESSING)) as later:
        until_somebody_waits(database)
        rival.execute("COMMIT")
        later.result(10)
    events = ledger.outbox.of(job.id)[2:]
    assert [event.type for event in events] == ["dailies.chunk.done", "dailies.video.processing"]


def test_without_its_lock_the_event_of_a_unit_comes_after_one_with_a_higher_number(ledger, rival, database):
    """The control of the test above: who reads up to the highest number would never see it."""
    job, lease, video = with_a_video(ledger)
    with instead(database, "unit_complete", LOCK_TO_TELL, LOCK_TO_TELL.replace(" FOR NO KEY UPDATE", "")):
        rival.execute("BEGIN")
        rival.execute(COMPLETE_AND_TELL, [uuid4(), lease.resource, lease.holder, lease.fence])
        ledger.videos.update(video, state=VideoState.PROCESSING)
        early = [event.type for event in ledger.outbox.of(job.id)[2:]]
        rival.execute("COMMIT")
    assert early == ["dailies.video.processing"]
    assert [event.type for event in ledger.outbox.of(job.id)[2:]] == ["dailies.chunk.done", "dailies.video.processing"]


COMPLETE_AND_TELL = (
    "SELECT dailies.unit_complete(%s, %s, %s, %s, 'unit-1', 'probe', 'd', '1', false, 'dailies.chunk.done', '{}')"
)


def with_a_video(ledger: SupabaseLedger) -> tuple[Any, Lease, Lease]:
    job, lease = running(ledger)
    ledger.videos.register("acme", "v1", "key")
    return job, lease, ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)


def test_an_event_committed_after_a_later_one_of_another_job_is_neither_lost_nor_slept_through(ledger, rival, database):
    _, slow = running(ledger)
    _, quick = running(ledger, run="run-2", subject="video-2")
    ledger.outbox.delivered([event.id for event in ledger.outbox.pending()])
    rival.execute("BEGIN")
    emit = "SELECT dailies.outbox_emit(%s, %s, %s, %s, 'dailies.slow', '1', '{}')"
    rival.execute(emit, [uuid4(), slow.resource, slow.holder, slow.fence])
    ledger.outbox.emit(quick, "dailies.quick", "1", {})
    mark = ledger.outbox.mark()
    [event] = ledger.outbox.pending()
    assert event.type == "dailies.quick"
    assert ledger.outbox.wait(mark, 0.1) is False
    rival.execute("COMMIT")
    assert ledger.outbox.wait(mark, 5) is True
    assert [event.type for event in ledger.outbox.pending()] == ["dailies.slow", "dailies.quick"]


# ── the first lease of a job ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("patience", [0, 10])
def test_a_cancel_that_meets_the_very_first_start_begins_anew_and_does_not_wait_in_a_ring(
    ledger, api, rival, database, patience
):
    """The lease did not exist when the cancel looked for it, so it is locked after the job: against the order."""
    job = ledger.jobs.submit(request(), run_id="run-1")
    canceling = SupabaseLedger(api.url, SERVICE_KEY, patience=patience)
    rival.execute("BEGIN")
    rival.execute("SELECT dailies.job_start(%s, %s, 1, 'run-1', 60)", [uuid4(), job.id])
    with meanwhile(lambda: canceling.jobs.cancel(job.id)) as cancel:
        until_somebody_waits(database)
        rival.execute("COMMIT")
        if patience:
            assert cancel.result(10).state is JobState.CANCELED
        else:
            with pytest.raises(Transient, match="this very moment"):
                cancel.result(10)
    canceling.close()
    lease = Lease(f"job:{job.id}", "run-1", 1, 0)
    if patience:
        with pytest.raises(Fenced):
            ledger.jobs.done(lease, 1)
    else:
        assert ledger.jobs.done(lease, 1).state is JobState.DONE


# ── everybody at once ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_whatever_they_do_at_once_nobody_waits_in_a_ring(ledger, api, clock, database):
    """Eight clients that never try twice: a deadlock would end one of them, and is told."""
    for number in range(4):
        ledger.videos.register("acme", f"v{number}", "key")
    deadline = time.monotonic() + 4
    told: list[str] = []
    done: list[str] = []

    def work(number: int) -> None:
        own = SupabaseLedger(api.url, SERVICE_KEY, patience=0)
        choose = random.Random(number)
        while time.monotonic() < deadline:
            name = choose.choice(sorted(ACTS))
            try:
                ACTS[name](own, choose, f"run-{number}-{choose.randrange(3)}")
                done.append(name)
            except Transient as error:
                told.append(str(error))
            except DailiesError:
                continue
        own.close()

    turning = threading.Event()
    time_flies = threading.Thread(target=lambda: [clock.advance(1) for _ in iter(lambda: turning.wait(0.05), True)])
    time_flies.start()
    try:
        at_once(8, work)
    finally:
        turning.set()
        time_flies.join()
    assert [error for error in told if "this very moment" not in error] == []
    assert set(done) == set(ACTS), "each of them came off at least once"
    clock.advance(100 * TTL)
    ledger.jobs.recover()
    ledger.leases.sweep()
    for job in under_way(ledger):
        ledger.jobs.cancel(job.id)
    ledger.videos.settle()
    assert VideoState.PROCESSING not in {video.state for video in ledger.videos.all("acme")}
    assert not any(ledger.audit().values())


def under_way(ledger: SupabaseLedger) -> list[Any]:
    return [job for job in ledger.jobs.all() if not job.final]


def some_job(ledger: SupabaseLedger, choose: random.Random, state: JobState) -> Any:
    return choose.choice(ledger.jobs.all(state, limit=5) or [None])


def act_submit(ledger: SupabaseLedger, choose: random.Random, run: str) -> None:
    ledger.jobs.submit(request(subject=f"acme/v{choose.randrange(4)}", max_attempts=9))


def act_run(ledger: SupabaseLedger, choose: random.Random, run: str) -> None:
    job = ledger.dispatch.next(Caps(6, 6))
    if job is None:
        return
    ledger.dispatch.bind(job.id, job.attempt, run)
    _, lease = ledger.jobs.start(job.id, job.attempt, run, TTL)
    with suppress(DailiesError):
        video = ledger.leases.acquire(f"video:{job.subject}", run, TTL)
        ledger.videos.update(video, state=VideoState.PROCESSING)
        if choose.random() < 0.5:
            ledger.videos.update(video, state=VideoState.READY)
        ledger.generations.publish(video, f"gen-{video.fence}")
    ledger.units.begin(lease, "unit-1", "probe")
    ledger.outbox.emit(lease, "dailies.note", str(job.attempt), {})
    ledger.units.complete(lease, "unit-1", "probe", "d", 1, event=("dailies.chunk.done", {}))
    if choose.random() < 0.5:
        ledger.jobs.done(lease, 1)


def act_cancel(ledger: SupabaseLedger, choose: random.Random, run: str) -> None:
    if (job := some_job(ledger, choose, JobState.RUNNING)) is not None:
        ledger.jobs.cancel(job.id)


def act_pause(ledger: SupabaseLedger, choose: random.Random, run: str) -> None:
    if (job := some_job(ledger, choose, JobState.QUEUED)) is not None:
        ledger.jobs.pause(job.id)
        ledger.jobs.resume(job.id)


def act_settle(ledger: SupabaseLedger, choose: random.Random, run: str) -> None:
    subject = f"acme/v{choose.randrange(4)}"
    for job in [job for job in under_way(ledger) if job.subject == subject]:
        with suppress(IllegalTransition):
            ledger.jobs.cancel(job.id)
    ledger.videos.settle()


def act_deliver(ledger: SupabaseLedger, choose: random.Random, run: str) -> None:
    pending = ledger.outbox.pending()
    ledger.outbox.delivered([event.id for event in choose.sample(pending, len(pending) // 2)])


ACTS: dict[str, Callable[[SupabaseLedger, random.Random, str], Any]] = {
    "submit": act_submit,
    "run": act_run,
    "cancel": act_cancel,
    "pause": act_pause,
    "recover": lambda ledger, choose, run: ledger.jobs.recover(),
    "sweep": lambda ledger, choose, run: ledger.leases.sweep(),
    "settle": act_settle,
    "deliver": act_deliver,
}
