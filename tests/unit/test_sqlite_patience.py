import asyncio

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text

from services import sqlite_patience

pytestmark = pytest.mark.unit


async def patience_of(database: str) -> int:
    engine = await AioSqliteConfiguration(f"sqlite+aiosqlite:///{database}").engine()
    async with engine.connect() as connection:
        found = (await connection.execute(text("PRAGMA busy_timeout"))).scalar_one()
    await engine.dispose()
    return found


def test_our_server_waits_five_seconds_for_its_database(tmp_path, monkeypatch):
    monkeypatch.setattr(AioSqliteConfiguration, "setup_sqlite", AioSqliteConfiguration.setup_sqlite)
    assert asyncio.run(patience_of(tmp_path / "as-shipped.db")) == 60_000
    sqlite_patience.shorten()
    assert asyncio.run(patience_of(tmp_path / "ours.db")) == 5_000
