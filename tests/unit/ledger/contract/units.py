"""What a job leaves behind: units, calls, generations."""

from __future__ import annotations

import pytest

from dailies.errors import (
    Fenced,
    Missing,
    Unreadable,
)
from dailies.ledger.interface import Ledger
from dailies.ledger.records import (
    JobState,
    Lease,
    event_id,
)
from tests.unit.ledger.contract.world import (
    TTL,
    Sound,
    at_once,
    running,
    start_again,
    told,
    unchanged,
)


def chunk_done(ledger: Ledger, lease: Lease, key: str, number: int, *, reused: bool = False) -> None:
    event = ("dailies.chunk.done", {"number": number})
    ledger.units.complete(lease, key, "probe", "d", number, reused=reused, event=event)


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

    def test_a_step_that_is_tried_again_by_the_same_holder_has_not_begun_anew(self, ledger):
        job, lease = running(ledger)
        first = ledger.units.begin(lease, "unit-1", "probe")
        assert [ledger.units.begin(lease, "unit-1", "probe") for _ in range(2)] == [first, first]
        ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        assert [unit.attempts for unit in ledger.units.of(job.id)] == [1]

    @pytest.mark.parametrize(("reused", "before"), [(False, 1), (True, 0)])
    def test_a_finished_unit_that_is_begun_has_begun_anew(self, ledger, reused, before):
        """It was found damaged."""
        _, lease = running(ledger)
        if not reused:
            ledger.units.begin(lease, "unit-1", "probe")
        finished = ledger.units.complete(lease, "unit-1", "probe", "d", 1, reused=reused)
        assert (finished.state, finished.attempts) == ("REUSED" if reused else "DONE", before)
        assert ledger.units.begin(lease, "unit-1", "probe").attempts == before + 1
        assert ledger.units.begin(lease, "unit-1", "probe").attempts == before + 1

    def test_a_run_of_the_same_name_under_a_new_fence_begins_anew(self, ledger):
        job, lease = running(ledger)
        ledger.units.begin(lease, "unit-1", "probe")
        ledger.jobs.hand_back(lease, "told to stop")
        _, lease = start_again(ledger, job.id, "run-1")
        assert ledger.units.begin(lease, "unit-1", "probe").attempts == 2

    @pytest.mark.parametrize("reused", [False, True])
    def test_a_unit_tells_its_event_when_it_is_done_and_not_before(self, ledger, clock, reused):
        job, lease = running(ledger)
        ledger.units.begin(lease, "unit-1", "probe")
        assert told(ledger, job.id, "chunk") == []
        clock.advance(2)
        said = {"text": "ü", "n": [1, None], "a": {"b": 0.5}}
        ledger.units.complete(lease, "unit-1", "probe", "d", 1, reused=reused, event=("dailies.chunk.done", said))
        [event] = told(ledger, job.id, "chunk")
        assert (event.type, event.subject, event.job, event.data) == ("dailies.chunk.done", "video-1", job.id, said)
        assert event.id == event_id("dailies/ledger", job.id, "dailies.chunk.done", "unit-1")
        assert event.time == pytest.approx(clock.now)
        assert ledger.outbox.pending()[-1] == event

    def test_a_unit_of_a_job_tells_its_event_once_however_often_it_is_completed(self, ledger, clock):
        job, lease = running(ledger)
        for number, reused in enumerate((False, False, True)):
            chunk_done(ledger, lease, "unit-1", number, reused=reused)
        ledger.units.begin(lease, "unit-1", "probe")
        chunk_done(ledger, lease, "unit-1", 3)
        clock.advance(TTL)
        ledger.jobs.recover()
        _, lease = start_again(ledger, job.id, "run-2")
        chunk_done(ledger, lease, "unit-1", 4, reused=True)
        assert [event.data for event in told(ledger, job.id, "chunk")] == [{"number": 0}]
        assert [unit.reuses for unit in ledger.units.of(job.id)] == [2], "each was recorded"

    def test_each_unit_and_each_job_tells_its_own_event(self, ledger):
        job, lease = running(ledger)
        other_job, other = running(ledger, run="run-2", subject="video-2")
        chunk_done(ledger, lease, "unit-1", 1)
        chunk_done(ledger, lease, "unit-2", 2)
        chunk_done(ledger, other, "unit-1", 3, reused=True)
        assert [event.data["number"] for event in told(ledger, job.id, "chunk")] == [1, 2]
        assert [(e.data["number"], e.subject) for e in told(ledger, other_job.id, "chunk")] == [(3, "video-2")]

    def test_a_unit_completed_first_in_silence_can_tell_later(self, ledger):
        job, lease = running(ledger)
        ledger.units.complete(lease, "unit-1", "probe", "d", 1)
        chunk_done(ledger, lease, "unit-1", 1, reused=True)
        assert [event.data for event in told(ledger, job.id, "chunk")] == [{"number": 1}]

    def test_units_that_end_at_once_each_tell_their_event_once(self, ledger, another):
        job, lease = running(ledger)

        def complete(number):
            own = another()
            for each in (number, number + 1):
                chunk_done(own, lease, f"unit-{each % 4}", each)
            own.close()

        at_once(4, complete)
        events = told(ledger, job.id, "chunk")
        assert sorted(event.data["number"] % 4 for event in events) == [0, 1, 2, 3]
        assert {event.id for event in events} == {
            event_id("dailies/ledger", job.id, "dailies.chunk.done", unit.key) for unit in ledger.units.of(job.id)
        }

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
            lambda: chunk_done(ledger, lease, "unit-1", 1),
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

    def test_a_call_that_is_done_is_known_with_its_id(self, ledger):
        _, lease = running(ledger)
        ledger.calls.intend(lease, "unit-1")
        ledger.calls.submitted(lease, "unit-1", "call-7")
        done = ledger.calls.ended(lease, "unit-1", "DONE")
        assert (done.call_id, done.state) == ("call-7", "DONE")
        assert ledger.calls.intend(lease, "unit-1") == done

    @pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
    def test_a_call_that_came_to_nothing_is_intended_anew(self, ledger, state):
        job, lease = running(ledger)
        ledger.calls.intend(lease, "unit-1")
        ledger.calls.submitted(lease, "unit-1", "call-7")
        ended_call = ledger.calls.ended(lease, "unit-1", state)
        assert (ended_call.call_id, ended_call.state) == ("call-7", state)
        again = ledger.calls.intend(lease, "unit-1")
        assert (again.call_id, again.state) == ("", "INTENDED")
        ledger.jobs.cancel(job.id)
        assert list(ledger.calls.orphans()) == [again], "it may have been submitted, so somebody has to look"

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

    def test_a_reaped_orphan_is_an_orphan_no_more(self, ledger):
        job, lease = running(ledger)
        ledger.calls.intend(lease, "unit-1")
        ledger.calls.intend(lease, "unit-2")
        ledger.jobs.cancel(job.id)
        first, second = sorted(ledger.calls.orphans(), key=lambda call: call.unit)
        ledger.calls.reap(first)
        ledger.calls.reap(first)
        assert list(ledger.calls.orphans()) == [second]

    def test_only_an_orphan_can_be_reaped(self, ledger):
        _, lease = running(ledger)
        intended = ledger.calls.intend(lease, "unit-1")
        ledger.calls.reap(intended)
        assert ledger.calls.intend(lease, "unit-1") == intended, "its job is still running"
        done = ledger.calls.ended(lease, "unit-1", "DONE")
        ledger.jobs.done(lease, 1)
        ledger.calls.reap(done)
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
