"""Events out and in, and tenants."""

from __future__ import annotations

import threading
import time

import pytest

from dailies.errors import (
    Injected,
    Unreadable,
)
from dailies.ledger.records import (
    event_id,
)
from tests.unit.ledger.contract.world import (
    TTL,
    Sound,
    at_once,
    request,
    running,
    start_again,
    told,
)


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
        assert list(ledger.outbox.pending()) == list(ledger.outbox.of(job.id))
        events = told(ledger, job.id, "job")
        assert [(e.type, e.data["attempt"], e.data["recovery"]) for e in events] == [
            (f"dailies.job.{state}", attempt, recovery) for state, attempt, recovery in expected
        ]
        assert {(e.source, e.subject, e.job) for e in events} == {("dailies/ledger", "video-1", job.id)}
        assert [e.data["state"].lower() for e in events] == [state for state, _, _ in expected]
        assert {(e.data["job"], e.data["tenant"], e.data["kind"]) for e in events} == {(job.id, "acme", "ingest-media")}
        assert events[-1].data["error_code"] == "unreadable"
        assert events[2].time == pytest.approx(events[1].time + 1)

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
