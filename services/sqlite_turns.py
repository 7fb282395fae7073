"""How our own Prefect server shares its SQLite database among its own transactions.

With prefect 3.8.8 they compete, and three things go wrong under load (twelve processes that run flows, or kills beside
them):

- One that reads before it writes is refused at once when another has written meanwhile: no wait can mend that. Its
  client is told 503.
- One that begins another while it runs, to look something up, begins that one as a writer, too, and waits for itself.
- Who waits, looks again every tenth of a second, in no order: the unlucky starve until their clients give up.

So here whoever may write takes turns, first come, first served, as a writer from the start; what begins within it is no
writer; and who has waited for 5 s goes ahead, as everybody would without us. Nothing was refused any more in the same
load (`tests/unit/test_sqlite_turns.py` shows each of the three).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration

PATIENCE_S = 5.0


class Turns:
    """One writer at a time in each event loop."""

    def __init__(self) -> None:
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self._writers: WeakSet[asyncio.Task[Any]] = WeakSet()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        task = asyncio.current_task()
        if task is None or task in self._writers:
            yield  # within a turn of its own: to wait for itself would last for ever
            return
        lock = self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            await asyncio.wait_for(lock.acquire(), PATIENCE_S)
        except TimeoutError:
            yield
            return
        self._writers.add(task)
        try:
            yield
        finally:
            self._writers.discard(task)
            lock.release()


def take_turns() -> None:
    shorten_the_wait()
    turns = Turns()

    @asynccontextmanager
    async def begin(
        _: AioSqliteConfiguration, session: Any, with_for_update: bool = False
    ) -> AsyncGenerator[Any, None]:
        async with turns.turn():
            token = SQLITE_BEGIN_MODE.set("IMMEDIATE")
            try:
                async with session.begin() as transaction:
                    await session.connection()  # which begins, and nothing that follows may begin like that
                    SQLITE_BEGIN_MODE.set(None)
                    yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(token)

    AioSqliteConfiguration.begin_transaction = begin  # type: ignore[assignment, method-assign]


def shorten_the_wait() -> None:
    """It is written into Prefect's set-up of each connection, so it is set again behind that."""
    original = AioSqliteConfiguration.setup_sqlite

    def setup(self: AioSqliteConfiguration, connection: Any, record: Any) -> None:
        original(self, connection, record)
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {round(PATIENCE_S * 1000)}")
        cursor.close()

    AioSqliteConfiguration.setup_sqlite = setup  # type: ignore[assignment, method-assign]
