"""Leases, and that nobody writes under one that is over."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from dailies.errors import (
    BadInput,
    Fenced,
    Held,
    Missing,
)
from dailies.ledger.records import (
    Lease,
    job_resource,
)
from tests.unit.ledger.contract.world import (
    FENCED_WRITES,
    TTL,
    WAYS_TO_LOSE,
    Sound,
    at_once,
    canceled,
    recovered,
    request,
    running,
    start_again,
    unchanged,
    with_work_under_way,
)


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

    @pytest.mark.parametrize("lose", [canceled, recovered], ids=lambda lose: lose.__name__)
    def test_a_run_that_lost_its_job_gets_no_other_lease_either(self, ledger, clock, lose):
        job, lease = running(ledger)
        lose(ledger, clock, job, lease)
        with pytest.raises(Fenced, match="lost its job"):
            ledger.leases.acquire("video:acme/v1", lease.holder, TTL)
        assert ledger.leases.holder("video:acme/v1") is None

    def test_a_run_that_works_for_its_job_again_gets_leases_again(self, ledger, clock):
        job, lease = running(ledger)
        recovered(ledger, clock, job, lease)
        start_again(ledger, job.id, lease.holder)
        assert ledger.leases.acquire("video:acme/v1", lease.holder, TTL).holder == lease.holder

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
