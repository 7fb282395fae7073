"""The embedded ledger: one SQLite file that any number of processes on one machine share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dailies.ledger.priority import tier_of
from dailies.ledger.sqlite.audit import audit
from dailies.ledger.sqlite.database import Database
from dailies.ledger.sqlite.dispatch import SqliteDispatch
from dailies.ledger.sqlite.jobs import SqliteJobs
from dailies.ledger.sqlite.leases import SqliteLeases
from dailies.ledger.sqlite.messages import SqliteInbox, SqliteOutbox
from dailies.ledger.sqlite.units import SqliteCalls, SqliteGenerations, SqliteUnits
from dailies.ledger.sqlite.videos import SqliteVideos


class SqliteTenants:
    def __init__(self, database: Database) -> None:
        self._database = database

    def set_tier(self, tenant: str, tier: str) -> None:
        with self._database.transaction() as tx:
            tx.run(
                "INSERT INTO tenants VALUES (:t, :tier) ON CONFLICT DO UPDATE SET tier = excluded.tier",
                t=tenant,
                tier=tier,
            )

    def tier(self, tenant: str) -> str:
        row = self._database.one("SELECT tier FROM tenants WHERE tenant = :t", t=tenant)
        return tier_of(row["tier"] if row else None)


class SqliteLedger:
    """``clock`` is for tests; everybody else shares the machine's."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._database = Database(path, clock)
        self.leases = SqliteLeases(self._database)
        self.jobs = SqliteJobs(self._database)
        self.dispatch = SqliteDispatch(self._database)
        self.units = SqliteUnits(self._database)
        self.calls = SqliteCalls(self._database)
        self.generations = SqliteGenerations(self._database)
        self.outbox = SqliteOutbox(self._database)
        self.inbox = SqliteInbox(self._database)
        self.tenants = SqliteTenants(self._database)
        self.videos = SqliteVideos(self._database)

    def __reduce__(self) -> tuple[type[SqliteLedger], tuple[Path]]:
        """Sent to another process, it opens its own connections there, by the clock that everybody shares."""
        return SqliteLedger, (self.path,)

    def check(self) -> None:
        self._database.version()

    def audit(self, grace: float = 0.0) -> dict[str, list[str]]:
        return audit(self._database, grace)

    def close(self) -> None:
        self._database.close()
