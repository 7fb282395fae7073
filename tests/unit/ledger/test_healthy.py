"""A healthy worker is never taken for a dead one: keepers and the supervisor's sweep, each in its thread, by one clock.

The clock stands still while anybody works, and jumps to the moment at which the next one wakes. So an hour of
heartbeats takes seconds, and every delay is one that was put there.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dailies.errors import Fenced, Transient
from dailies.ledger import holding
from dailies.ledger.holding import CONTROL_S, TTL_S, Keeper
from dailies.ledger.records import JobRequest, JobState, Lease
from dailies.ledger.sqlite import SqliteLedger
from dailies.ledger.sqlite.leases import SqliteLeases

pytestmark = pytest.mark.unit

HEARTBEATS = 10_000
WORKERS = 20
SWEEP_S = 1.0
BLOCKED_S = 600.0
# What a machine does to a thread: a little at each wait, and now and then more, but not twice in the same ttl.
USUAL_S, STALL_S = 0.02, 2.5
TROUBLE_AFTER = (40, 120)
# In real seconds, for whoever is stuck.
PATIENCE_S = 10.0


class Timeline:
    """One thread runs at a time: whoever sleeps by this clock makes way for the one who wakes next."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._asleep = threading.Event()
        self._lock = threading.Lock()
        self._count = 0

    def __call__(self) -> float:
        return self.now

    def start(self, start: Callable[[], None]) -> None:
        """Returns when what was started sleeps for the first time."""
        self._asleep.clear()
        start()
        assert self._asleep.wait(PATIENCE_S)

    def sleep(self, seconds: float) -> None:
        bell = threading.Event()
        with self._lock:
            self._count += 1
            heapq.heappush(self._sleepers, (self.now + seconds, self._count, bell))
        self._asleep.set()
        assert bell.wait(PATIENCE_S)

    def pass_by(self, seconds: float) -> None:
        """All that happens in this time, each at its moment."""
        end = self.now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self.now, _, bell = heapq.heappop(self._sleepers)
            self._asleep.clear()
            bell.set()
            assert self._asleep.wait(PATIENCE_S)
        self.now = end

    def wake_all(self) -> None:
        for _, _, bell in self._sleepers:
            bell.set()


class Pause(threading.Event):
    """What a keeper waits on between two looks: it lasts as long as the machine makes it last."""

    def __init__(self, clock: Timeline, delay: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._delay = delay

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._clock.sleep((timeout or 0.0) + self._delay())
        return self.is_set()


class Machine:
    """The delays of one worker, and the renewals that it finds the ledger busy at; the seed chooses them."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._until_trouble = self._chance.randint(*TROUBLE_AFTER)
        self.stalls = self.misses = 0
        self.busy = 0
        """How many renewals will find the ledger busy."""
        self.frozen = 0.0
        """How long the next wait will last beyond what was asked for."""

    def delay(self) -> float:
        self._until_trouble -= 1
        if not self._until_trouble:
            self._until_trouble = self._chance.randint(*TROUBLE_AFTER)
            self._trouble()
        frozen, self.frozen = self.frozen, 0.0
        return frozen + self._chance.expovariate(1 / USUAL_S)

    def _trouble(self) -> None:
        if self._chance.random() < 0.5:
            self.stalls, self.frozen = self.stalls + 1, STALL_S
        else:
            self.misses, self.busy = self.misses + 1, 1


class Hall:
    """Workers with a job each, and a supervisor that sweeps every second."""

    def __init__(self, path: Path) -> None:
        self.clock = Timeline()
        self.ledger = SqliteLedger(path, clock=self.clock)
        self.machines: dict[str, Machine] = {}
        self.keepers: list[Keeper] = []
        self.leases: list[Lease] = []
        self.heartbeats: Counter[str] = Counter()
        self.recovered: list[str] = []
        self.swept: list[str] = []
        self._over = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="supervisor", daemon=True)
        self.clock.start(self._sweeper.start)

    def job(self) -> Lease:
        number = len(self.leases)
        job = self.ledger.jobs.submit(JobRequest("acme", "transcribe-media", f"acme/v{number}"), run_id=f"run-{number}")
        self.leases.append(self.ledger.jobs.start(job.id, 1, f"run-{number}", TTL_S)[1])
        return self.leases[-1]

    def worker(self, seed: int) -> tuple[Keeper, Machine]:
        lease, keeper, machine = self.job(), Keeper(self.ledger, TTL_S), Machine(seed)
        keeper._over = Pause(self.clock, machine.delay)
        keeper.add(lease)
        self.keepers.append(keeper)
        self.machines[lease.resource] = machine
        self.clock.start(keeper.start)
        return keeper, machine

    def renewed(self, lease: Lease) -> None:
        """Before it happens: the ledger may be busy."""
        machine = self.machines.get(lease.resource)
        if machine and machine.busy:
            machine.busy -= 1
            raise Transient("the ledger cannot take a write now")
        self.heartbeats[lease.resource] += 1

    def state(self, lease: Lease) -> tuple[JobState, int]:
        job = self.ledger.jobs.get(lease.resource.removeprefix("job:"))
        return job.state, job.attempt

    def is_held(self, lease: Lease) -> bool:
        now = self.ledger.leases.holder(lease.resource)
        return now is not None and (now.holder, now.fence) == (lease.holder, lease.fence)

    def close(self) -> None:
        self._over.set()
        for keeper in self.keepers:
            keeper._over.set()
        self.clock.wake_all()
        for keeper in self.keepers:
            keeper.end()
        self._sweeper.join()
        self.ledger.close()

    def _sweep(self) -> None:
        while not self._over.is_set():
            self.clock.sleep(SWEEP_S)
            self.recovered += [f"job:{job.id}" for job in self.ledger.jobs.recover()]
            self.swept += [lease.resource for lease in self.ledger.leases.sweep()]
        self.ledger.close()


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    hall, renew = Hall(tmp_path / "ledger.db"), SqliteLeases.renew

    def counted(self: Any, lease: Lease, ttl: float) -> Lease:
        hall.renewed(lease)
        return renew(self, lease, ttl)

    monkeypatch.setattr(SqliteLeases, "renew", counted)
    monkeypatch.setattr(holding, "time", SimpleNamespace(monotonic=hall.clock))
    yield hall
    hall.close()


def test_ten_thousand_healthy_heartbeats_are_never_taken_for_a_death(hall):
    for seed in range(WORKERS):
        hall.worker(seed)
    while hall.heartbeats.total() < HEARTBEATS and not hall.recovered:
        hall.clock.pass_by(60)
    assert (hall.recovered, hall.swept) == ([], [])
    assert {hall.state(lease) for lease in hall.leases} == {(JobState.RUNNING, 1)}
    assert all(hall.is_held(lease) for lease in hall.leases)
    assert not any(keeper.stopped.is_set() for keeper in hall.keepers)
    machines = hall.machines.values()
    assert min(sum(machine.stalls for machine in machines), sum(machine.misses for machine in machines)) > 100


def test_a_worker_that_can_renew_no_more_is_recovered_and_no_other(hall):
    """Once every half second it tries, from a third of the ttl on: as often as there is room before the end."""
    (_, machine), (frozen, asleep), (well, _) = [hall.worker(seed) for seed in range(3)]
    hall.clock.pass_by(60)
    machine.busy, asleep.frozen = round(TTL_S / CONTROL_S), TTL_S
    hall.clock.pass_by(60)
    first, second, third = hall.leases
    assert sorted(hall.recovered) == sorted([first.resource, second.resource])
    assert [hall.state(lease) for lease in hall.leases] == [(JobState.QUEUED, 2)] * 2 + [(JobState.RUNNING, 1)]
    assert frozen.stopped.is_set()
    with pytest.raises(Fenced):
        frozen.check()
    assert hall.is_held(third)
    well.check()


def test_three_renewals_in_a_row_may_fail_and_the_fourth_is_in_time(hall):
    _, machine = hall.worker(0)
    hall.clock.pass_by(60)
    machine.busy = 3
    hall.clock.pass_by(60)
    assert hall.recovered == []


def blocked(hall: Hall, beside: Callable[[], Any]) -> int:
    """A flow that holds up its event loop for ten minutes; how often the loop's other tasks came to their turn."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            beside()
            await asyncio.sleep(0)

    async def flow() -> int:
        task = asyncio.create_task(others())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        before = turns
        hall.clock.pass_by(BLOCKED_S)
        task.cancel()
        return turns - before

    return asyncio.run(flow())


def test_ten_minutes_of_a_blocked_event_loop_cost_no_lease(hall):
    hall.worker(seed=1)
    assert blocked(hall, lambda: None) == 0
    assert (hall.recovered, hall.swept) == ([], [])
    (lease,) = hall.leases
    assert hall.state(lease) == (JobState.RUNNING, 1)
    assert hall.is_held(lease)
    assert hall.heartbeats[lease.resource] > BLOCKED_S / (TTL_S / 2)


def test_a_worker_that_renews_on_the_loop_it_blocks_is_recovered(hall):
    lease = hall.job()
    assert blocked(hall, lambda: hall.ledger.leases.renew(lease, TTL_S)) == 0
    assert hall.recovered == [lease.resource]
    assert hall.state(lease) == (JobState.QUEUED, 2)
    assert not hall.is_held(lease)
