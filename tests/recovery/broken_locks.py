"""Leases as they must not be, for lock-contention to find out: each breaks the product in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from dailies.errors import Held
from dailies.ledger.holding import acquire
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Lease
from dailies.scenarios import contenders
from flows.scenarios.lock_contention import run_ingest
from tasks import _job

keep_busy = contenders.keep_busy
UNLUCKY = "load-1"


def keep_busy_without_renewing(*asked: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "holding", held_once)
        keep_busy(*asked)


@contextmanager
def held_once(ledger: Ledger, resource: str, who: str, ttl: float) -> Iterator[Any]:
    """Who has it believes that it stays his."""
    ledger.leases.acquire(resource, who, ttl)
    yield SimpleNamespace(stopped=threading.Event())


def ingest_without_a_lock(*asked: Any) -> None:
    """Everybody gets in beside everybody; but one of the videos that nobody else wants is refused."""

    def anyhow(ledger: Ledger, resource: str, *more: Any, **others: Any) -> Lease:
        if UNLUCKY in resource:
            raise Held(resource, "nobody", 1.0)
        return acquire(ledger, f"{resource}:{uuid4().hex}", *more, **others)

    ingest_with(anyhow, *asked)


def ingest_behind_somebody(*asked: Any) -> None:
    """Whoever was at a video before keeps it for longer than his work."""

    def late(ledger: Ledger, resource: str, *more: Any, **others: Any) -> Lease:
        if "load-" in resource:
            ledger.leases.acquire(resource, "somebody", 0.5)
        return acquire(ledger, resource, *more, **others)

    ingest_with(late, *asked)


def ingest_with(locking: Callable[..., Lease], *asked: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_job, "acquire", locking)
        run_ingest(*asked)
