"""Connections and transactions to one SQLite file, shared by many processes."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from dailies.errors import DailiesError, Missing, NotConfigured, Transient

BUSY_S = 15.0
PASSING = ("locked", "busy", "disk i/o", "full")


class Database:
    """One connection for each thread and process; every commit reaches the disk before it returns (FULL).

    Writers take the lock when they begin (IMMEDIATE), so that ``clock()`` is read after any wait for it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.clock = clock
        self._local = threading.local()
        self._prepare()

    def all(self, sql: str, **values: Any) -> list[sqlite3.Row]:
        with typed_errors(self.path):
            return self._connection().execute(sql, values).fetchall()

    def one(self, sql: str, **values: Any) -> sqlite3.Row | None:
        rows = self.all(sql, **values)
        return rows[0] if rows else None

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        connection = self._connection()
        with typed_errors(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # on a full disk SQLite may have ended it by itself
                    connection.execute("ROLLBACK")
                raise

    def version(self) -> int:
        """A number that changes whenever another connection commits."""
        return int(self._connection().execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Closes this thread's connection; the other threads' go when they end."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        # A connection must not cross a fork: SQLite's locks belong to the process that opened the file.
        if getattr(self._local, "pid", None) != os.getpid() or self._local.connection is None:
            self._local.connection = self._connect()
            self._local.pid = os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection

    # Whoever turns a new file to WAL locks out the others without letting them wait: they must come back.
    @retry(
        retry=retry_if_exception_type(Transient), stop=stop_after_delay(BUSY_S), wait=wait_random(0, 0.1), reraise=True
    )
    def _connect(self) -> sqlite3.Connection:
        with typed_errors(self.path):
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            connection.create_function("clock", 0, self.clock)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            return connection

    def _prepare(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotConfigured(f"cannot create the ledger's folder {self.path.parent}: {error.strerror}") from error
        with self.transaction() as tx:
            found, scripts = int(tx.one("PRAGMA user_version")[0]), schema()
            if found > len(scripts):
                raise NotConfigured(
                    f"{self.path} has ledger schema {found}, this version of dailies knows {len(scripts)}: "
                    "use the dailies that wrote it, or another DAILIES_HOME"
                )
            for script in scripts[found:]:
                tx.script(script)
            tx.run(f"PRAGMA user_version = {len(scripts)}")


def schema() -> list[str]:
    """The scripts that lead from an empty file to the present schema; a ledger's version is how many it has had."""
    folder = files(__package__) / "schema"
    return [script.read_text() for script in sorted(folder.iterdir(), key=lambda script: script.name)]


class Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, sql: str, **values: Any) -> int:
        """The number of rows changed."""
        return self._connection.execute(sql, values).rowcount

    def all(self, sql: str, **values: Any) -> list[sqlite3.Row]:
        return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, **values: Any) -> sqlite3.Row:
        return self.all(sql, **values)[0]

    def maybe(self, sql: str, **values: Any) -> sqlite3.Row | None:
        rows = self.all(sql, **values)
        return rows[0] if rows else None

    def script(self, sql: str) -> None:
        # Not executescript(): that commits first, and two processes would both create the tables.
        statement = ""
        for line in sql.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                self._connection.execute(statement)
                statement = ""


@contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if any(word in text.lower() for word in PASSING):
            raise Transient(f"the ledger {path} cannot take a write now: {text}") from error
        if "unable to open" in text or "readonly" in text:
            raise NotConfigured(f"the ledger {path} cannot be opened for writing: {text}") from error
        raise
    except sqlite3.IntegrityError as error:
        if "FOREIGN KEY" in str(error):
            raise Missing(f"the ledger {path} has no such job to write under") from error
        raise
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) or "not a database" in str(error):
            raise DailiesError(f"the ledger {path} is damaged ({error}): restore it from a copy") from error
        raise
