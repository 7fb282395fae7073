"""Transactions of Prefect's server on one SQLite file: as shipped they get in each other's way, as ours they do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from services import sqlite_turns

pytestmark = pytest.mark.unit


@pytest.fixture
def on_a_database(tmp_path, monkeypatch) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """Runs a coroutine function with a database of its own, and undoes what was changed in Prefect."""
    for name in ("setup_sqlite", "begin_transaction"):
        monkeypatch.setattr(AioSqliteConfiguration, name, getattr(AioSqliteConfiguration, name))

    def run(function: Callable[..., Awaitable[Any]]) -> Any:
        async def body() -> Any:
            database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}")
            engine = await database.engine()
            async with engine.connect() as connection:
                await connection.execute(text("CREATE TABLE IF NOT EXISTS counted (number INTEGER)"))
                await connection.execute(text("INSERT INTO counted SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counted)"))
                await connection.commit()
            try:
                return await function(database, engine)
            finally:
                await engine.dispose()

        return asyncio.run(body())

    return run


async def patience(database: AioSqliteConfiguration, engine: Any) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("PRAGMA busy_timeout"))).scalar_one())


async def count(database: AioSqliteConfiguration, engine: Any) -> None:
    """Read, think, write."""
    async with await database.session(engine) as session, database.begin_transaction(session):
        found = (await session.execute(text("SELECT number FROM counted"))).scalar_one()
        await asyncio.sleep(0.01)
        await session.execute(text("UPDATE counted SET number = :next"), {"next": found + 1})


async def twenty_count(database: AioSqliteConfiguration, engine: Any) -> tuple[int, int]:
    outcomes = await asyncio.gather(*(count(database, engine) for _ in range(20)), return_exceptions=True)
    async with engine.connect() as connection:
        counted = (await connection.execute(text("SELECT number FROM counted"))).scalar_one()
    return sum(isinstance(outcome, OperationalError) for outcome in outcomes), counted


async def look_something_up_within(database: AioSqliteConfiguration, engine: Any) -> float:
    begun = time.monotonic()
    async with await database.session(engine) as outer, database.begin_transaction(outer, with_for_update=True):
        await outer.execute(text("UPDATE counted SET number = 5"))
        async with await database.session(engine) as inner:
            await inner.execute(text("SELECT number FROM counted"))
    return time.monotonic() - begun


async def nested(database: AioSqliteConfiguration, engine: Any) -> str:
    session = database.session
    async with await session(engine) as outer, database.begin_transaction(outer), await session(engine) as inner:
        with pytest.raises(OperationalError, match="locked"):
            async with database.begin_transaction(inner):
                await inner.execute(text("UPDATE counted SET number = 6"))
    return "the writer within a writer was refused"


def test_our_server_waits_five_seconds_for_its_database(on_a_database):
    assert on_a_database(patience) == 60_000
    sqlite_turns.take_turns()
    assert on_a_database(patience) == 5_000


def test_as_shipped_who_reads_and_then_writes_is_refused(on_a_database):
    refused, counted = on_a_database(twenty_count)
    assert refused > 0
    assert counted == 20 - refused


def test_in_turns_nobody_is_refused_and_nothing_is_lost(on_a_database):
    sqlite_turns.take_turns()
    assert on_a_database(twenty_count) == (0, 20)


def test_as_shipped_who_looks_something_up_within_a_transaction_waits_for_himself(on_a_database, monkeypatch):
    monkeypatch.setattr(sqlite_turns, "PATIENCE_S", 0.5)
    sqlite_turns.shorten_the_wait()
    with pytest.raises(OperationalError, match="locked"):
        on_a_database(look_something_up_within)


def test_who_looks_something_up_within_a_transaction_does_not_wait_for_himself(on_a_database, monkeypatch):
    sqlite_turns.take_turns()
    assert on_a_database(look_something_up_within) < 1.0


def test_a_writer_within_a_writer_is_refused_after_the_patience_and_does_not_hang(on_a_database, monkeypatch):
    monkeypatch.setattr(sqlite_turns, "PATIENCE_S", 0.2)
    sqlite_turns.take_turns()
    assert on_a_database(nested)


def test_who_has_waited_long_enough_goes_ahead(monkeypatch):
    monkeypatch.setattr(sqlite_turns, "PATIENCE_S", 0.05)
    turns, seen = sqlite_turns.Turns(), []

    async def hold() -> None:
        async with turns.turn():
            await asyncio.sleep(0.3)
            seen.append("held")

    async def impatient() -> None:
        await asyncio.sleep(0)
        async with turns.turn():
            seen.append("went ahead")

    async def both() -> None:
        await asyncio.gather(hold(), impatient())

    asyncio.run(both())
    assert seen == ["went ahead", "held"]
