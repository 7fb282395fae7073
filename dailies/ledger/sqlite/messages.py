"""Outbox and inbox on SQLite: at-least-once delivery out, once-only effects in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dailies.ledger.checks import as_text
from dailies.ledger.records import Event, Lease, event_id
from dailies.ledger.sqlite.database import Database, Transaction
from dailies.ledger.sqlite.leases import HELD, held, holds, over

SOURCE = "dailies/ledger"
LOOK_S = 0.02


def write_event(
    tx: Transaction,
    job: str,
    kind: str,
    subject: str,
    occasion: str,
    data: Mapping[str, Any],
    condition: str = "TRUE",
    **values: Any,
) -> int:
    """Rows written: none when ``condition`` fails, or when this very event is there already."""
    return tx.run(
        f"""
        INSERT INTO outbox (id, source, type, subject, job, time, data)
        SELECT :event, '{SOURCE}', :type, :subject, :job, clock(), :data WHERE {condition}
        ON CONFLICT (id) DO NOTHING
        """,
        event=event_id(SOURCE, job, kind, occasion),
        type=kind,
        subject=subject,
        job=job,
        data=as_text(dict(data)),
        **values,
    )


def as_event(row: Any) -> Event:
    return Event(
        row["seq"],
        row["id"],
        row["source"],
        row["type"],
        row["subject"],
        row["time"],
        json.loads(row["data"]),
        row["job"],
    )


class SqliteOutbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def emit(self, lease: Lease, kind: str, occasion: str, data: Mapping[str, Any]) -> None:
        job_id = lease.resource.removeprefix("job:")
        with self._database.transaction() as tx:
            job = tx.maybe("SELECT subject FROM jobs WHERE id = :id", id=job_id)
            subject = job["subject"] if job else ""
            written = write_event(tx, job_id, kind, subject, occasion, data, HELD, **held(lease))
            if not written and not holds(tx, lease):
                raise over(tx, lease, "used to emit an event")

    def pending(self, limit: int = 100) -> Sequence[Event]:
        rows = self._database.all("SELECT * FROM outbox WHERE delivered = 0 ORDER BY seq LIMIT :limit", limit=limit)
        return [as_event(row) for row in rows]

    def delivered(self, ids: Iterable[str]) -> None:
        with self._database.transaction() as tx:
            for event in ids:
                tx.run("UPDATE outbox SET delivered = 1 WHERE id = :id", id=event)

    def mark(self) -> int:
        return self._database.version()

    def wait(self, mark: int, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self._database.version() == mark:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def of(self, job_id: str) -> Sequence[Event]:
        rows = self._database.all("SELECT * FROM outbox WHERE job = :job ORDER BY seq", job=job_id)
        return [as_event(row) for row in rows]


class SqliteInbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    def accept(self, source: str, event_id: str) -> bool:
        with self._database.transaction() as tx:
            return (
                tx.run("INSERT INTO inbox VALUES (:source, :id) ON CONFLICT DO NOTHING", source=source, id=event_id)
                == 1
            )
