"""How long our own Prefect server waits for its database's lock.

With prefect 3.8.8 on SQLite a transaction can come to wait for another one of the same server, which ends only when the
waiting one gives up: after 60 s, in which nothing is written and every flow stands still (seen twice in about fifty
runs of a scenario on two cores). With 5 s the client is told 503, tries again, and goes on.
"""

from __future__ import annotations

from typing import Any

from prefect.server.database.configurations import AioSqliteConfiguration

PATIENCE_MS = 5_000


def shorten() -> None:
    """The wait is written into Prefect's set-up of each connection, so it is set again behind that."""
    original = AioSqliteConfiguration.setup_sqlite

    def setup(self: AioSqliteConfiguration, connection: Any, record: Any) -> None:
        original(self, connection, record)
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
        cursor.close()

    AioSqliteConfiguration.setup_sqlite = setup  # type: ignore[assignment, method-assign]
