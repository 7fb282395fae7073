"""Leases that are kept alive by a thread, in real time with short ttls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from dailies.errors import Fenced, Held, Injected, Stopped
from dailies.ledger.holding import Keeper, acquire, give_back, holding, keeping
from dailies.ledger.records import JobRequest, JobState, Lease
from dailies.ledger.sqlite import SqliteLedger, database

pytestmark = pytest.mark.unit

TTL = 0.3
PATIENCE = 5.0


@pytest.fixture
def ledger(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def running(ledger: SqliteLedger, ttl: float = TTL) -> Lease:
    job = ledger.jobs.submit(JobRequest("acme", "ingest-media", "video-1"), run_id="run-1")
    return ledger.jobs.start(job.id, 1, "run-1", ttl)[1]


def eventually(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def spin(until: threading.Event) -> None:
    """Pure Python that never waits for anything: the worst neighbour that a thread can have."""
    number = 0
    while not until.is_set():
        number = (number * 31 + 7) % 1_000_003


def word_of(keeper: Keeper) -> str:
    try:
        keeper.check()
    except Stopped as stopped:
        return stopped.word
    return ""


@pytest.mark.parametrize("spinning", [False, True], ids=["idle", "beside a thread that spins"])
def test_a_lease_is_kept_alive_over_several_ttls(ledger, spinning):
    ended = threading.Event()
    spinner = threading.Thread(target=spin, args=(ended,))
    if spinning:
        spinner.start()
    try:
        with holding(ledger, "video:1", "a", ttl=TTL) as keeper:
            before = ledger.leases.holder("video:1")
            deadline = time.monotonic() + 4 * TTL
            while time.monotonic() < deadline:
                held = ledger.leases.holder("video:1")
                assert held is not None
                assert (held.holder, held.fence) == ("a", before.fence)
                time.sleep(0.02)
            assert held.expires_at > before.expires_at + 2 * TTL
            assert not keeper.stopped.is_set()
            keeper.check()
        assert ledger.leases.holder("video:1") is None
    finally:
        ended.set()
        if spinning:
            spinner.join()


def test_a_lease_is_given_back_when_the_block_fails(ledger):
    with pytest.raises(Injected), holding(ledger, "video:1", "a", ttl=TTL):
        raise Injected("in the block")
    assert ledger.leases.acquire("video:1", "b", TTL).holder == "b"


def test_a_lost_lease_stops_the_work_and_the_new_holder_keeps_it(ledger):
    with holding(ledger, "video:1", "a", ttl=TTL) as keeper:
        mine = ledger.leases.holder("video:1")
        ledger.leases.release(mine)  # as if frozen for longer than the ttl
        theirs = ledger.leases.acquire("video:1", "b", 60)
        assert keeper.stopped.wait(PATIENCE)
        with pytest.raises(Fenced, match="taken over"):
            keeper.check()
    assert ledger.leases.holder("video:1") == theirs


def test_the_first_reason_to_stop_is_the_one_that_is_told(ledger):
    with keeping(ledger, TTL) as keeper:
        keeper.add(Lease("video:1", "a", 1, 0.0))
        assert keeper.stopped.wait(PATIENCE)
        keeper.add(running(ledger))
        ledger.jobs.cancel(ledger.jobs.all()[0].id)
        time.sleep(2 * TTL / 3)
        with pytest.raises(Exception, match="video:1 was never leased"):
            keeper.check()


def test_one_keeper_keeps_several_leases(ledger):
    with keeping(ledger, TTL) as keeper:
        job = running(ledger)
        keeper.add(job)
        video = ledger.leases.acquire("video:1", "run-1", TTL)
        keeper.add(video)
        first = ledger.leases.holder("video:1").expires_at
        assert eventually(lambda: ledger.leases.holder("video:1").expires_at > first + TTL)
        assert ledger.leases.holder(job.resource).fence == job.fence
        give_back(ledger, keeper, video)
        assert ledger.leases.holder("video:1") is None
        keeper.drop(job)
        ledger.jobs.done(job, None)
        time.sleep(TTL / 2)
        assert not keeper.stopped.is_set(), "what was given back is nobody's loss"
        keeper.check()


def test_a_canceled_job_stops_its_work(ledger):
    lease = running(ledger)
    with keeping(ledger, TTL) as keeper:
        keeper.add(lease)
        ledger.jobs.cancel(lease.resource.removeprefix("job:"))
        assert keeper.stopped.wait(PATIENCE)
        assert word_of(keeper) == "cancel"


def test_a_cancel_is_heard_within_a_second_however_long_the_ttl(ledger):
    lease = running(ledger, ttl=60)
    with keeping(ledger, 60) as keeper:
        keeper.add(lease)
        assert not keeper.stopped.wait(1.1), "it looks twice in this time, and renews once"
        began = time.monotonic()
        ledger.jobs.cancel(lease.resource.removeprefix("job:"))
        assert keeper.stopped.wait(PATIENCE)
        assert time.monotonic() - began < 1.5


def test_a_paused_job_begins_nothing_new_but_ends_what_it_does(ledger):
    lease = running(ledger)
    with keeping(ledger, TTL) as keeper:
        keeper.add(lease)
        ledger.jobs.pause(lease.resource.removeprefix("job:"))
        assert eventually(lambda: word_of(keeper) == "pause")
        assert not keeper.stopped.is_set()
        ledger.units.complete(lease, "in flight", "probe", "d", 1)
        keeper.drop(lease)
        keeper.check()
        assert ledger.jobs.paused(lease).state is JobState.PAUSED


def test_a_recovered_job_stops_the_work_of_the_old_attempt(ledger):
    lease = running(ledger)
    ledger.leases.release(lease)
    ledger.jobs.recover()
    with keeping(ledger, TTL) as keeper:
        keeper.add(lease)
        assert keeper.stopped.wait(PATIENCE)
        with pytest.raises(Fenced):
            keeper.check()


def test_a_ledger_that_is_busy_for_a_moment_costs_no_lease(ledger, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    with holding(ledger, "video:1", "a", ttl=3 * TTL) as keeper:
        before = ledger.leases.holder("video:1").expires_at
        with ledger._database.transaction():
            time.sleep(0.15)
            time.sleep(0.15)
            time.sleep(0.15)  # the keeper's renewal falls in here, and cannot write
        assert eventually(lambda: ledger.leases.holder("video:1").expires_at > before)
        assert not keeper.stopped.is_set()


def test_without_patience_a_held_resource_is_refused_at_once(ledger):
    ledger.leases.acquire("video:1", "a", 60)
    told = []
    began = time.monotonic()
    with pytest.raises(Held) as refused:
        acquire(ledger, "video:1", "b", ttl=TTL, blocked=told.append)
    assert time.monotonic() - began < 0.2
    assert (refused.value.by, [held.by for held in told]) == ("a", ["a"])
    with pytest.raises(Held), holding(ledger, "video:1", "b", ttl=TTL):
        pytest.fail("the block must not be entered")


def test_a_free_resource_is_got_without_a_word(ledger):
    told = []
    assert acquire(ledger, "video:1", "b", ttl=TTL, wait=5, blocked=told.append).holder == "b"
    assert told == []


def test_patience_ends_with_held_and_is_told_of_the_holder_once(ledger):
    ledger.leases.acquire("video:1", "a", 60)
    told = []
    began = time.monotonic()
    with pytest.raises(Held) as refused:
        acquire(ledger, "video:1", "b", ttl=TTL, wait=0.4, blocked=told.append)
    assert 0.4 <= time.monotonic() - began < 2
    assert refused.value.by == "a"
    assert [held.resource for held in told] == ["video:1"]


def test_who_waits_gets_the_lease_when_it_is_released(ledger):
    held = ledger.leases.acquire("video:1", "a", 60)

    def release() -> None:
        ledger.leases.release(held)
        ledger.close()

    timer = threading.Timer(0.1, release)
    timer.start()
    lease = acquire(ledger, "video:1", "b", ttl=TTL, wait=PATIENCE)
    timer.join()
    assert (lease.holder, lease.fence > held.fence) == ("b", True)


def test_who_waits_gets_the_lease_of_a_dead_holder_when_it_expires(ledger):
    ledger.leases.acquire("video:1", "dead", TTL)
    began = time.monotonic()
    assert acquire(ledger, "video:1", "b", ttl=TTL, wait=PATIENCE).holder == "b"
    assert time.monotonic() - began < 2


def test_many_who_wait_all_get_their_turn_and_never_two_at_once(ledger, tmp_path):
    inside, most, turns = [0], [0], []
    guard = threading.Lock()

    def work(number: int) -> None:
        own = SqliteLedger(tmp_path / "ledger.db")
        with holding(own, "video:1", f"worker-{number}", ttl=TTL, wait=20):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with guard:
                inside[0] -= 1
                turns.append(number)
        own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turns) == list(range(5))
    assert most == [1]


def test_a_stop_ends_the_waiting_early(ledger):
    ledger.leases.acquire("video:1", "a", 60)
    stopped = threading.Event()
    threading.Timer(0.1, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(Held):
        acquire(ledger, "video:1", "b", ttl=TTL, wait=30, stopped=stopped)
    assert time.monotonic() - began < 2


def test_a_stop_from_before_waits_for_nobody(ledger):
    ledger.leases.acquire("video:1", "a", 60)
    stopped = threading.Event()
    stopped.set()
    began = time.monotonic()
    with pytest.raises(Held):
        acquire(ledger, "video:1", "b", ttl=TTL, wait=30, stopped=stopped)
    assert time.monotonic() - began < 0.5
