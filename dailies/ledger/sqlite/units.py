"""Units, calls and generations on SQLite: what a job leaves behind, each row under its fence."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from dailies.errors import Missing
from dailies.ledger.checks import as_text
from dailies.ledger.records import Call, Lease, Unit
from dailies.ledger.sqlite.database import Database, Transaction
from dailies.ledger.sqlite.leases import HELD, held, holds, over
from dailies.ledger.sqlite.messages import write_event

ORPHAN = """calls.state IN ('INTENDED', 'SUBMITTED') AND EXISTS (
    SELECT 1 FROM jobs WHERE jobs.id = calls.job AND jobs.state IN ('DONE', 'FAILED', 'CANCELED'))"""


def as_unit(row: sqlite3.Row) -> Unit:
    return Unit(
        row["job"],
        row["key"],
        row["step"],
        row["state"],
        row["fence"],
        row["attempts"],
        row["reuses"],
        row["digest"],
        json.loads(row["result"]),
    )


def as_call(row: sqlite3.Row) -> Call:
    return Call(row["unit"], row["job"], row["call_id"], row["state"])


def fenced(tx: Transaction, lease: Lease, what: str, sql: str, **values: Any) -> sqlite3.Row:
    """Run a statement that ends in HELD; no row means that the lease is over."""
    row = tx.maybe(sql, job=lease.resource.removeprefix("job:"), **held(lease), **values)
    if row is None:
        raise over(tx, lease, what)
    return row


def tell(tx: Transaction, unit: Unit, kind: str, data: Mapping[str, Any]) -> None:
    job = tx.one("SELECT subject FROM jobs WHERE id = :id", id=unit.job)
    write_event(tx, unit.job, kind, job["subject"], unit.key, data)


class SqliteUnits:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key: str) -> Unit | None:
        row = self._database.one(
            "SELECT * FROM units WHERE key = :key AND state = 'DONE' ORDER BY updated_at DESC LIMIT 1", key=key
        )
        return None if row is None else as_unit(row)

    def begin(self, lease: Lease, key: str, step: str) -> Unit:
        with self._database.transaction() as tx:
            row = fenced(
                tx,
                lease,
                "used to begin a unit",
                f"""
                INSERT INTO units (job, key, step, state, fence, attempts, updated_at)
                SELECT :job, :key, :step, 'RUNNING', :fence, 1, clock() WHERE {HELD}
                ON CONFLICT (job, key) DO UPDATE
                    SET state = 'RUNNING', fence = excluded.fence, updated_at = clock(),
                        attempts = units.attempts + (units.state != 'RUNNING' OR units.fence != excluded.fence)
                RETURNING *
                """,
                key=key,
                step=step,
            )
            return as_unit(row)

    def complete(
        self,
        lease: Lease,
        key: str,
        step: str,
        digest: str,
        result: Any,
        *,
        reused: bool = False,
        event: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Unit:
        # Reusing one's own finished unit leaves it DONE: it is still the record that others find.
        with self._database.transaction() as tx:
            row = fenced(
                tx,
                lease,
                "used to complete a unit",
                f"""
                INSERT INTO units (job, key, step, state, fence, attempts, reuses, digest, result, updated_at)
                SELECT :job, :key, :step, :state, :fence, 0, :reused, :digest, :result, clock() WHERE {HELD}
                ON CONFLICT (job, key) DO UPDATE
                    SET state = CASE WHEN units.state = 'DONE' THEN 'DONE' ELSE excluded.state END,
                        fence = excluded.fence, reuses = units.reuses + excluded.reuses, digest = excluded.digest,
                        result = excluded.result, updated_at = clock()
                RETURNING *
                """,
                key=key,
                step=step,
                state="REUSED" if reused else "DONE",
                reused=int(reused),
                digest=digest,
                result=as_text(result),
            )
            unit = as_unit(row)
            if event is not None:
                tell(tx, unit, *event)
            return unit

    def of(self, job_id: str) -> Sequence[Unit]:
        return [
            as_unit(row) for row in self._database.all("SELECT * FROM units WHERE job = :j ORDER BY rowid", j=job_id)
        ]


class SqliteCalls:
    def __init__(self, database: Database) -> None:
        self._database = database

    def intend(self, lease: Lease, unit: str) -> Call:
        return self._write(
            lease,
            f"""
            INSERT INTO calls (unit, job, state, fence) SELECT :unit, :job, 'INTENDED', :fence WHERE {HELD}
            ON CONFLICT (job, unit) DO UPDATE SET
                call_id = CASE WHEN calls.state IN ('FAILED', 'CANCELED') THEN '' ELSE calls.call_id END,
                state = CASE WHEN calls.state IN ('FAILED', 'CANCELED') THEN 'INTENDED' ELSE calls.state END,
                fence = excluded.fence
            RETURNING *
            """,
            unit=unit,
        )

    def submitted(self, lease: Lease, unit: str, call_id: str) -> Call:
        return self._write(
            lease,
            f"""UPDATE calls SET call_id = :call, state = 'SUBMITTED'
                WHERE job = :job AND unit = :unit AND {HELD} RETURNING *""",
            unit=unit,
            call=call_id,
        )

    def ended(self, lease: Lease, unit: str, state: str) -> Call:
        return self._write(
            lease,
            f"UPDATE calls SET state = :state WHERE job = :job AND unit = :unit AND {HELD} RETURNING *",
            unit=unit,
            state=state,
        )

    def orphans(self) -> Sequence[Call]:
        rows = self._database.all(
            f"SELECT * FROM calls WHERE {ORPHAN}",
        )
        return [as_call(row) for row in rows]

    def reap(self, call: Call) -> None:
        with self._database.transaction() as tx:
            tx.run(
                f"UPDATE calls SET state = 'CANCELED' WHERE job = :job AND unit = :unit AND {ORPHAN}",
                job=call.job,
                unit=call.unit,
            )

    def _write(self, lease: Lease, sql: str, **values: Any) -> Call:
        with self._database.transaction() as tx:
            row = tx.maybe(sql, job=lease.resource.removeprefix("job:"), **held(lease), **values)
            if row is None and holds(tx, lease):
                raise Missing(f"no call was intended for unit {values['unit']} of {lease.resource}")
            if row is None:
                raise over(tx, lease, "used to record a call")
            return as_call(row)


class SqliteGenerations:
    def __init__(self, database: Database) -> None:
        self._database = database

    def publish(self, lease: Lease, key: str) -> None:
        with self._database.transaction() as tx:
            fenced(
                tx,
                lease,
                "used to publish",
                f"""
                INSERT INTO generations (resource, fence, key) SELECT :resource, :fence, :key WHERE {HELD}
                ON CONFLICT (resource, fence) DO UPDATE SET key = excluded.key
                RETURNING *
                """,
                key=key,
            )

    def current(self, resource: str) -> str | None:
        history = self.history(resource)
        return history[-1][1] if history else None

    def history(self, resource: str) -> Sequence[tuple[int, str]]:
        rows = self._database.all("SELECT fence, key FROM generations WHERE resource = :r ORDER BY fence", r=resource)
        return [(row["fence"], row["key"]) for row in rows]
