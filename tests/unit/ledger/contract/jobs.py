"""Jobs: what is accepted, which way it may go, and how a lost one comes back."""

from __future__ import annotations

import math
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
    Unreadable,
)
from dailies.ledger.records import (
    RECOVERED,
    Caps,
    JobState,
    Lease,
    job_resource,
)
from tests.unit.ledger.contract.world import (
    ORDERS,
    ROOM,
    TTL,
    WAYS_TO_LOSE,
    Sound,
    at_once,
    canceled,
    flat,
    in_state,
    request,
    running,
    start_again,
    states,
    told,
    unchanged,
)


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


class HandBackContract(Sound):
    def test_a_job_whose_worker_was_told_to_stop_goes_on_at_no_cost(self, ledger):
        job, lease = running(ledger)
        for attempt in range(2, 6):  # more often than it may crash
            back = ledger.jobs.hand_back(lease, "Its worker was told to stop")
            assert (back.state, back.attempt, back.crashes) == (JobState.QUEUED, attempt, 0)
            job, lease = start_again(ledger, job.id, f"run-{attempt}")
        assert ledger.jobs.done(lease, {}).state is JobState.DONE

    def test_what_went_wrong_before_is_not_said_of_a_job_that_is_done(self, ledger):
        job, lease = running(ledger)
        ledger.jobs.failed(lease, Injected("once"), retry_in=0)
        _, lease = start_again(ledger, job.id, "run-2")
        done = ledger.jobs.done(lease, {})
        assert (done.error_code, done.error) == ("", "")


class RecoveryContract(Sound):
    def test_a_job_whose_worker_died_is_queued_as_the_next_attempt(self, ledger, clock):
        job, lease = running(ledger)
        clock.advance(TTL)
        [back] = ledger.jobs.recover()
        assert back == ledger.jobs.get(job.id)
        assert (back.state, back.attempt, back.crashes) == (JobState.QUEUED, 2, 1)
        assert (back.message, RECOVERED) == (RECOVERED, "Recovered after restart")
        assert (back.error_code, back.error) == ("", "")
        last = told(ledger, job.id, "job")[-1]
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
