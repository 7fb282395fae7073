"""Who goes first, and who gives an attempt to which run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dailies.errors import (
    IllegalTransition,
    Injected,
    Missing,
    NotConfigured,
    Unreadable,
)
from dailies.ledger.records import (
    Caps,
    JobState,
)
from tests.unit.ledger.contract.world import (
    ORDERS,
    ROOM,
    TTL,
    Sound,
    at_once,
    flat,
    in_state,
    request,
    running,
    start_again,
    unchanged,
)


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

    def test_the_reason_to_give_up_is_of_bounded_length(self, ledger):
        job = ledger.jobs.submit(request())
        ledger.dispatch.next(ROOM)
        failed = ledger.dispatch.give_up(job.id, 1, NotConfigured("x\0" * 2000))
        assert failed.error == "x\N{REPLACEMENT CHARACTER}" * 1000

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
