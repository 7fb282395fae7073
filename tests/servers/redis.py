"""A real Redis for tests: the one that scenarios break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dailies.scenarios.processes import Nursery, free_port
from dailies.scenarios.redis_server import NO_SERVER, RedisServer, redis_binary

__all__ = ["RedisServer", "free_port", "serving_redis"]


@contextmanager
def serving_redis(folder: Path, password: str = "", *options: str) -> Iterator[RedisServer]:
    if redis_binary() is None:
        pytest.skip(NO_SERVER)
    with Nursery() as nursery:
        server = RedisServer(nursery, folder, password, *options)
        server.start()
        yield server
