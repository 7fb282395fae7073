"""What is told of a job that came back: that it did, and once, how it went."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dailies.errors import Fenced, Injected, NotConfigured, Unreadable
from dailies.ledger.interface import Ledger
from dailies.ledger.records import RECOVERED, Job, JobState, Lease, event_id
from tests.unit.ledger.contract.world import (
    ROOM,
    TTL,
    Clock,
    Sound,
    at_once,
    recoveries_of,
    request,
    running,
    running_again,
    start_again,
    told,
    unchanged,
)


def is_done(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> Job:
    return ledger.jobs.done(lease, 1)


def fails_for_good(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> Job:
    return ledger.jobs.failed(lease, Unreadable("not media"))


def fails_in_its_last_attempt(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> Job:
    ledger.jobs.failed(lease, Injected("once"), retry_in=0)
    _, lease = start_again(ledger, job.id, "run-3")
    return ledger.jobs.failed(lease, Injected("again"), retry_in=0)


def is_given_up(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> Job:
    job = ledger.jobs.hand_back(lease, "told to stop")
    ledger.dispatch.next(ROOM)
    given_up = ledger.dispatch.give_up(job.id, job.attempt, NotConfigured("no such deployment"))
    assert given_up is not None
    return given_up


def never_starts_again(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> Job:
    job = ledger.jobs.hand_back(lease, "told to stop")
    for _ in range(2):
        ledger.dispatch.next(ROOM)
        job = ledger.dispatch.give_up(job.id, job.attempt) or job
    return job


def dies_in_its_last_attempt(ledger: Ledger, clock: Clock, job: Job, lease: Lease) -> Job:
    clock.advance(TTL)
    ledger.jobs.recover()
    start_again(ledger, job.id, "run-3")
    clock.advance(TTL)
    [spent] = ledger.jobs.recover()
    return spent


Ending = Callable[[Ledger, Clock, Job, Lease], Job]
# How a job ends, and why: of a job in its second attempt, whose first worker died.
FAILURES: dict[Ending, str] = {
    fails_for_good: "not media",
    fails_in_its_last_attempt: "again",
    is_given_up: "no such deployment",
    never_starts_again: "its runs never started",
    dies_in_its_last_attempt: "its worker died in each of 3 attempts",
}


class RecoveryEventContract(Sound):
    def test_a_recovery_is_told_right_after_the_state_that_it_leads_to(self, ledger, clock):
        job, _ = running(ledger)
        clock.advance(TTL)
        ledger.jobs.recover()
        *_, queued, started = ledger.outbox.of(job.id)
        assert (queued.type, started.type) == ("dailies.job.queued", "dailies.recovery.started")
        assert (started.source, started.subject, started.job) == ("dailies/ledger", "video-1", job.id)
        assert started.id == event_id("dailies/ledger", job.id, "dailies.recovery.started", "2")
        assert started.time == pytest.approx(clock.now)
        assert started.data == {
            "event": "recovery_started",
            "job_id": job.id,
            "attempt": 2,
            "recovery": True,
            "message": RECOVERED,
            "recovery_type": "lease_expired",
        }

    def test_a_recovered_job_that_is_done_tells_so_right_after(self, ledger, clock):
        job, lease = running_again(ledger, clock)
        ledger.jobs.done(lease, 1)
        *_, done, completed = ledger.outbox.of(job.id)
        assert (done.type, completed.type) == ("dailies.job.done", "dailies.recovery.completed")
        assert (completed.source, completed.subject, completed.job) == ("dailies/ledger", "video-1", job.id)
        assert completed.id == event_id("dailies/ledger", job.id, "dailies.recovery.completed", "2")
        assert completed.data == {
            "event": "recovery_completed",
            "job_id": job.id,
            "attempt": 2,
            "recovery": True,
            "message": "Recovery completed",
            "recovery_result": "success",
        }

    @pytest.mark.parametrize("fails", FAILURES, ids=lambda fails: fails.__name__)
    def test_a_recovered_job_that_fails_for_good_tells_so_right_after(self, ledger, clock, fails):
        job, lease = running_again(ledger, clock, max_attempts=3)
        ended = fails(ledger, clock, job, lease)
        assert ended.state is JobState.FAILED
        *_, state, failed = ledger.outbox.of(job.id)
        assert (state.type, failed.type) == ("dailies.job.failed", "dailies.recovery.failed")
        assert (failed.source, failed.subject, failed.job) == ("dailies/ledger", "video-1", job.id)
        assert failed.id == event_id("dailies/ledger", job.id, "dailies.recovery.failed", str(ended.attempt))
        assert failed.data == {
            "event": "recovery_failed",
            "job_id": job.id,
            "attempt": ended.attempt,
            "recovery": True,
            "message": f"Recovery failed: {FAILURES[fails]}",
            "recovery_result": "failed",
        }
        assert [what for what, _ in recoveries_of(ledger, job.id)].count("failed") == 1

    def test_a_job_that_dies_and_gets_no_other_attempt_tells_that_it_could_not_be_recovered(self, ledger, clock):
        job, _ = running(ledger, max_attempts=1)
        clock.advance(TTL)
        ledger.jobs.recover()
        assert [event.type for event in ledger.outbox.of(job.id)][-2:] == [
            "dailies.job.failed",
            "dailies.recovery.failed",
        ]
        assert recoveries_of(ledger, job.id) == [("failed", 1)]

    def test_a_job_that_was_told_to_pause_is_not_recovered_but_paused(self, ledger, clock):
        job, _ = running(ledger)
        ledger.jobs.pause(job.id)
        clock.advance(TTL)
        ledger.jobs.recover()
        ledger.jobs.resume(job.id)
        _, lease = start_again(ledger, job.id, "run-2")
        ledger.jobs.done(lease, 1)
        assert recoveries_of(ledger, job.id) == []

    def test_a_job_that_never_died_tells_of_no_recovery(self, ledger):
        for name, end in (
            ("done", lambda job, lease: ledger.jobs.done(lease, 1)),
            ("failed", lambda job, lease: ledger.jobs.failed(lease, Unreadable("not media"))),
            ("spent", lambda job, lease: ledger.jobs.failed(lease, Injected("x"), retry_in=0)),
            ("canceled", lambda job, lease: ledger.jobs.cancel(job.id)),
        ):
            job, lease = running(ledger, run=f"run-{name}", subject=name, max_attempts=1)
            assert end(job, lease).final
            assert recoveries_of(ledger, job.id) == []
        job = ledger.jobs.submit(request(subject="given up", max_attempts=1))
        ledger.dispatch.next(ROOM)
        assert ledger.dispatch.give_up(job.id, 1).state is JobState.FAILED
        assert recoveries_of(ledger, job.id) == []

    def test_a_run_that_never_started_had_nothing_to_recover(self, ledger):
        """Its job is queued again, but no worker of it died."""
        job, lease = running(ledger)
        again = ledger.jobs.hand_back(lease, "told to stop")
        ledger.dispatch.next(ROOM)
        assert ledger.dispatch.give_up(job.id, again.attempt).state is JobState.QUEUED
        _, lease = start_again(ledger, job.id, "run-3")
        ledger.jobs.done(lease, 1)
        assert recoveries_of(ledger, job.id) == []

    def test_another_job_that_was_recovered_is_none_of_this_ones_business(self, ledger, clock):
        running_again(ledger, clock)
        job, lease = running(ledger, run="run-b", subject="video-2")
        ledger.jobs.done(lease, 1)
        assert recoveries_of(ledger, job.id) == []

    def test_a_recovered_job_that_is_canceled_tells_no_outcome(self, ledger, clock):
        job, _ = running_again(ledger, clock)
        ledger.jobs.cancel(job.id)
        assert recoveries_of(ledger, job.id) == [("started", 2)]

    @pytest.mark.parametrize("detour", ["retry", "hand back", "pause"])
    def test_a_recovery_that_takes_a_detour_is_completed_in_a_later_attempt(self, ledger, clock, detour):
        job, lease = running_again(ledger, clock)
        match detour:
            case "retry":
                ledger.jobs.failed(lease, Injected("once"), retry_in=0)
            case "hand back":
                ledger.jobs.hand_back(lease, "told to stop")
            case "pause":
                ledger.jobs.paused(lease)
                ledger.jobs.resume(job.id)
        assert recoveries_of(ledger, job.id) == [("started", 2)], "it goes on"
        _, lease = start_again(ledger, job.id, "run-3")
        ledger.jobs.done(lease, 1)
        assert recoveries_of(ledger, job.id) == [("started", 2), ("completed", 3)]

    def test_three_recoveries_in_a_row_are_each_told_and_come_to_one_end(self, ledger, clock):
        job, lease = running(ledger, max_attempts=4)
        for attempt in (2, 3, 4):
            clock.advance(TTL)
            ledger.jobs.recover()
            ledger.jobs.recover()
            _, lease = start_again(ledger, job.id, f"run-{attempt}")
        ledger.jobs.done(lease, 1)
        assert recoveries_of(ledger, job.id) == [("started", 2), ("started", 3), ("started", 4), ("completed", 4)]

    def test_who_lost_the_job_tells_nothing_of_its_recovery(self, ledger, clock):
        job, lease = running(ledger)
        clock.advance(TTL)
        ledger.jobs.recover()
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            ledger.jobs.done(lease, 1)
        with unchanged(ledger, job.id), pytest.raises(Fenced):
            ledger.jobs.failed(lease, Unreadable("late"))

    @pytest.mark.parametrize(("max_attempts", "expected"), [(3, [("started", 2)]), (1, [("failed", 1)])])
    def test_five_who_recover_at_once_tell_it_once(self, ledger, clock, another, max_attempts, expected):
        jobs = [
            running(ledger, run=f"run-{n}", subject=f"video-{n}", max_attempts=max_attempts)[0].id for n in range(3)
        ]
        clock.advance(TTL)

        def recover(_):
            own = another()
            try:
                return own.jobs.recover()
            finally:
                own.close()

        at_once(5, recover)
        ledger.jobs.recover()
        for job in jobs:
            assert recoveries_of(ledger, job) == expected
            assert len(told(ledger, job, "job")) == 3
