"""The ledger as a whole: sound, and closed."""

from __future__ import annotations

from dailies.ledger.records import (
    JobState,
)
from tests.unit.ledger.contract.world import (
    TTL,
    Sound,
    in_state,
    picture,
    request,
    running,
    with_work_under_way,
)


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
