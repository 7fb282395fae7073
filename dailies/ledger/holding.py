"""Keep leases alive while the work is going on, and learn at once when they are lost.

The keeper is a thread, not a task of the event loop: a blocked loop must not cost a healthy worker its lease. And not a
process of its own either: it has to freeze and die with the work, or a dead worker would keep its lease for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_random_exponential,
)

from dailies.errors import DailiesError, Fenced, Held, Stopped, Transient
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Lease

TTL_S = 6.0
CONTROL_S = 0.5


class Keeper:
    """Renews its leases at a third of their ttl and reads the job's control word twice a second.

    ``stopped`` is set when the work must end now (a lease is lost, the job was canceled); ``check()`` also raises when
    it may not begin anything new (paused).
    """

    def __init__(self, ledger: Ledger, ttl: float) -> None:
        self.stopped = threading.Event()
        self._ledger = ledger
        self._ttl = ttl
        self._leases: list[Lease] = []
        self._job: Lease | None = None
        self._word = ""
        self._why: DailiesError | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.append(lease)
            if lease.resource.startswith("job:"):
                self._job = lease

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._leases = [kept for kept in self._leases if kept.resource != lease.resource]
            if self._job is not None and self._job.resource == lease.resource:
                self._job = None

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raise if nothing new may be begun."""
        if self._why is not None:
            raise self._why
        if self._word and self._job is not None:
            raise Stopped(self._job.resource.removeprefix("job:"), self._word)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(min(CONTROL_S, self._ttl / 3)):
            try:
                self._listen()
                if time.monotonic() >= due:
                    self._renew()
                    due = time.monotonic() + self._ttl / 3
            except Transient:
                continue  # the ledger is busy: tried again at the next look, until the lease has expired
            except DailiesError as error:
                self._stop(error)
            except Exception as error:  # noqa: BLE001 - a keeper that dies unheard leaves work without a lease
                self._stop(DailiesError(f"the lease could not be kept: {error}"))
        self._ledger.close()

    def _listen(self) -> None:
        job = self._job
        if job is None:
            return
        self._word = self._ledger.jobs.control(job)
        if self._word == "cancel":
            self._stop(Stopped(job.resource.removeprefix("job:"), "cancel"))

    def _renew(self) -> None:
        with self._lock:
            for lease in self._leases:
                self._ledger.leases.renew(lease, self._ttl)

    def _stop(self, why: DailiesError) -> None:
        if self._why is None:
            self._why = why
        self.stopped.set()


@contextmanager
def keeping(ledger: Ledger, ttl: float = TTL_S) -> Iterator[Keeper]:
    keeper = Keeper(ledger, ttl)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.end()


@contextmanager
def holding(ledger: Ledger, resource: str, holder: str, ttl: float = TTL_S, wait: float = 0.0) -> Iterator[Keeper]:
    """Hold one lease for the length of the block; give it back at the end unless it was lost meanwhile."""
    lease = acquire(ledger, resource, holder, ttl, wait)
    with keeping(ledger, ttl) as keeper:
        keeper.add(lease)
        try:
            yield keeper
        finally:
            give_back(ledger, keeper, lease)


def give_back(ledger: Ledger, keeper: Keeper, lease: Lease) -> None:
    keeper.drop(lease)
    with suppress(Fenced):  # lost on the way: it is somebody else's to give back
        ledger.leases.release(lease)


def acquire(
    ledger: Ledger,
    resource: str,
    holder: str,
    ttl: float = TTL_S,
    wait: float = 0.0,
    blocked: Callable[[Held], None] = lambda held: None,
    stopped: threading.Event | None = None,
) -> Lease:
    """Fail at once when ``wait`` is 0, else try again with jitter until that many seconds are over.

    ``blocked`` is told once, the first time somebody else is there; ``stopped`` ends the waiting early.
    """
    try:
        return ledger.leases.acquire(resource, holder, ttl)
    except Held as held:
        blocked(held)
        if wait <= 0:
            raise
    stopped = stopped or threading.Event()
    retrying = Retrying(
        retry=retry_if_exception_type(Held),
        wait=wait_random_exponential(multiplier=0.1, max=min(1.0, ttl)),
        stop=stop_after_delay(wait) | stop_when_event_set(stopped),
        sleep=sleep_using_event(stopped),
        reraise=True,
    )
    return retrying(ledger.leases.acquire, resource, holder, ttl)
