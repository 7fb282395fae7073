"""One Supabase project for the session; each test finds it empty, and its clock where the contract begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import psycopg
import pytest

from dailies.ledger.supabase import SupabaseLedger
from tests.supabase.servers import (
    COMMAND,
    HERE,
    MIGRATIONS,
    SERVICE_KEY,
    Api,
    Postgres,
    migrate,
    running_api,
    running_postgres,
)

pytest.register_assert_rewrite("tests.unit.ledger.contract")
from tests.unit.ledger.contract.world import Clock  # noqa: E402 - its assertions are to say what differs

TABLES = ("answers", "videos", "inbox", "outbox", "generations", "calls", "units", "leases", "runs", "jobs", "tenants")
# Not TRUNCATE: making new files takes four hundred times as long as deleting a few rows.
CLEAN = "".join(f"DELETE FROM dailies.{table};" for table in TABLES) + "UPDATE tests.clock SET now = 1000000;"


class DatabaseClock(Clock):
    """The clock that the database's own functions read."""

    def __init__(self, database: psycopg.Connection) -> None:
        super().__init__()
        self._database = database

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._database.execute("UPDATE tests.clock SET now = %s", [self.now])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if shutil.which("node") is None or not COMMAND.exists():
        pytest.skip("no Supabase server: tests/supabase/install.sh installs it, with npm")
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def project(postgres: Postgres) -> Iterator[psycopg.Connection]:
    """The owner's connection to the database that the API serves."""
    with postgres.database("ledger") as connection:
        migrate(connection, MIGRATIONS)
        connection.execute((HERE / "clock.sql").read_text())
        yield connection


@pytest.fixture(scope="session")
def api(postgres: Postgres, project: psycopg.Connection) -> Iterator[Api]:
    with running_api(postgres, "ledger") as server:
        yield server


@pytest.fixture
def database(project: psycopg.Connection) -> psycopg.Connection:
    project.execute(CLEAN)
    return project


@pytest.fixture
def clock(database: psycopg.Connection) -> DatabaseClock:
    return DatabaseClock(database)


@pytest.fixture
def another(api: Api) -> Callable[[], SupabaseLedger]:
    return lambda: SupabaseLedger(api.url, SERVICE_KEY)


@pytest.fixture(scope="session")
def one_ledger(api: Api) -> Iterator[SupabaseLedger]:
    """Making a client costs as much as ten calls."""
    ledger = SupabaseLedger(api.url, SERVICE_KEY)
    yield ledger
    ledger.close()


@pytest.fixture
def ledger(one_ledger: SupabaseLedger, clock: DatabaseClock) -> SupabaseLedger:
    return one_ledger
