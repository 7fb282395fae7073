"""Leases on SQLite. ``HELD`` is the one condition that every fenced statement of the ledger ends with."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from dailies.errors import Fenced, Held, Missing
from dailies.ledger.checks import check_lease, positive
from dailies.ledger.records import Lease
from dailies.ledger.sqlite.database import Database, Transaction

# A current fence is enough, also past its ttl: as long as nobody took over, nobody else can be writing.
HELD = """EXISTS (
    SELECT 1 FROM leases AS lease
    WHERE lease.resource = :resource AND lease.fence = :fence AND lease.holder = :holder)"""


# A run that lost its job may be alive, and gets nothing more.
LOST_ITS_JOB = """SELECT 1 FROM runs WHERE run_id = :holder GROUP BY run_id
    HAVING sum(ending IN ('crashed', 'cancelled')) > 0 AND sum(ending = '') = 0"""


def held(lease: Lease) -> dict[str, Any]:
    return {"resource": lease.resource, "fence": lease.fence, "holder": lease.holder}


def take(tx: Transaction, resource: str, holder: str, ttl: float) -> Lease:
    row = tx.maybe(
        """
        INSERT INTO leases (resource, holder, fence, expires_at) VALUES (:resource, :holder, 1, clock() + :ttl)
        ON CONFLICT (resource) DO UPDATE
            SET holder = excluded.holder, fence = leases.fence + 1, expires_at = excluded.expires_at
            WHERE leases.holder IS NULL OR leases.expires_at <= clock()
        RETURNING fence, expires_at
        """,
        resource=resource,
        holder=holder,
        ttl=positive(ttl),
    )
    if row is None:
        rival = tx.one("SELECT holder, expires_at - clock() AS rest FROM leases WHERE resource = :r", r=resource)
        raise Held(resource, rival["holder"], max(rival["rest"], 0.0))
    return Lease(resource, holder, row["fence"], row["expires_at"])


def free(tx: Transaction, resource: str) -> None:
    """End whatever lease there is, under a new fence, so that its holder can write nothing more."""
    tx.run("UPDATE leases SET holder = NULL, fence = fence + 1 WHERE resource = :resource", resource=resource)


def as_lease(row: sqlite3.Row) -> Lease:
    return Lease(row["resource"], row["holder"], row["fence"], row["expires_at"])


class SqliteLeases:
    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, resource: str, holder: str, ttl: float) -> Lease:
        check_lease(resource, holder, ttl)
        with self._database.transaction() as tx:
            if tx.maybe(LOST_ITS_JOB, holder=holder):
                raise Fenced(f"run {holder} has lost its job, so it cannot lease {resource}")
            return take(tx, resource, holder, ttl)

    def renew(self, lease: Lease, ttl: float) -> Lease:
        with self._database.transaction() as tx:
            row = tx.maybe(
                """
                UPDATE leases SET expires_at = clock() + :ttl
                WHERE resource = :resource AND fence = :fence AND holder = :holder AND expires_at > clock()
                RETURNING expires_at
                """,
                ttl=positive(ttl),
                **held(lease),
            )
            if row is None:
                raise over(tx, lease, "renewed")
            return Lease(lease.resource, lease.holder, lease.fence, row["expires_at"])

    def release(self, lease: Lease) -> None:
        with self._database.transaction() as tx:
            changed = tx.run(
                "UPDATE leases SET holder = NULL WHERE resource = :resource AND fence = :fence AND holder = :holder",
                **held(lease),
            )
            if not changed:
                raise over(tx, lease, "released")

    def sweep(self) -> Sequence[Lease]:
        with self._database.transaction() as tx:
            rows = tx.all("SELECT * FROM leases WHERE holder IS NOT NULL AND expires_at <= clock()")
            for row in rows:
                free(tx, row["resource"])
            return [as_lease(row) for row in rows]

    def holder(self, resource: str) -> Lease | None:
        row = self._database.one(
            "SELECT * FROM leases WHERE resource = :r AND holder IS NOT NULL AND expires_at > clock()", r=resource
        )
        return None if row is None else as_lease(row)


def holds(tx: Transaction, lease: Lease) -> bool:
    """Whether the lease was the reason of a refusal: asked after the decision, never to decide."""
    return bool(tx.one(f"SELECT {HELD} AS held", **held(lease))["held"])


def over(tx: Transaction, lease: Lease, what: str) -> Fenced | Missing:
    """Why this lease could not be used: said after the decision, never to decide."""
    row = tx.maybe(
        "SELECT holder, fence, expires_at <= clock() AS late FROM leases WHERE resource = :r", r=lease.resource
    )
    if row is None:
        return Missing(f"{lease.resource} was never leased, so it cannot be {what}")
    if row["fence"] > lease.fence:
        reason = f"it was taken over (fence {row['fence']} is past {lease.fence})"
    elif row["holder"] is None:
        reason = "it was released"
    elif row["holder"] != lease.holder:
        reason = f"it belongs to {row['holder']}"
    else:
        reason = "it expired" if row["late"] else "no such fence was given out"
    return Fenced(f"the lease of {lease.holder} on {lease.resource} cannot be {what}: {reason}")
