"""A federation of PeerTube-like hosts on 127.0.0.1, made up from a seed, for the crawl to be tested on.

It is served by a process of its own, ``python -m dailies.scenarios.federation SETUP`` (JSON), so that its work is not
the crawler's, and it ends with whoever started it. What a correct crawl finds is known without it: federation_truth.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dailies.errors import BadInput, DailiesError, Missing, TimedOut
from dailies.scenarios.federation_content import Scale, as_of
from dailies.scenarios.federation_plan import Behaviour, Setup
from dailies.scenarios.federation_server import CONTROL, COUNTERS, WHITELIST, serve
from dailies.scenarios.federation_truth import Truth, mini_production, truth

START_S = 20.0
STOP_S = 5.0
SECRET = "DAILIES_FEDERATION_SECRET"


class Federation:
    """A context manager, or ``start`` and ``stop``. Started again, it has the same addresses and shows the same day."""

    def __init__(
        self,
        seed: int = 0,
        hosts: int = 6,
        videos: int = 3000,
        plan: Mapping[int, Behaviour] | None = None,
        *,
        day: int = 0,
        latency_s: float = 0.002,
        log: Path | None = None,
        **scale: Any,
    ) -> None:
        self.setup = Setup(
            Scale(seed=seed, hosts=hosts, videos=videos, **scale),
            plan or {},
            day,
            latency_s,
            str(log) if log else "",
        )
        self.hosts: list[str] = []
        self._index = ""
        self._secret = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def whitelist_url(self) -> str:
        return f"http://{self._index}{WHITELIST}?count=5000&healthy=true"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise Missing("this federation was not started")
        return self._process.pid

    @property
    def day(self) -> int:
        return self.setup.day

    @property
    def as_of(self) -> int:
        return as_of(self.day)

    def start(self) -> None:
        if self._process is not None:
            raise BadInput("this federation runs already")
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(self.setup.to_json())],
            env={**os.environ, "PYTHONPATH": path, SECRET: self._secret},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            told = self._first_words(self._process)
        except BaseException:
            self.stop()
            raise
        self._index, self.hosts = told["index"], told["hosts"]
        ports = tuple(int(name.rpartition(":")[2]) for name in (self._index, *self.hosts))
        self.setup = replace(self.setup, ports=ports)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
        if process.stdout is not None:
            process.stdout.close()

    def counters(self) -> dict[str, Any]:
        return self._ask("GET", COUNTERS)

    def forget(self) -> None:
        """Counters begin anew; what is shown stays."""
        self._ask("POST", CONTROL, {"action": "forget"})

    def evolve(self, days: int = 1) -> None:
        """On to another day."""
        self.show(self.day + days)

    def show(self, day: int) -> None:
        """This day from its beginning: also today's once more, with what has shifted or failed since put back."""
        changed = replace(self.setup, day=day)
        if self._process is not None:
            self._ask("POST", CONTROL, {"action": "show", "day": day})
        self.setup = changed

    def behave(self, host: int, behaviour: Behaviour) -> None:
        """From now on, and from the beginning of the day; to die or to rise again, while the federation is stopped."""
        changed = replace(self.setup, plan={**self.setup.plan, host: behaviour})
        if self._process is not None:
            self._ask("POST", CONTROL, {"action": "behave", "host": host, "behaviour": asdict(behaviour)})
        self.setup = changed

    def truth(self) -> Truth:
        return truth(self.setup, self.hosts)

    def mini_production(self, path: Path, **limits: Any) -> dict[str, int]:
        return mini_production(path, self.setup, self.hosts, **limits)

    def _ask(self, method: str, path: str, order: dict[str, Any] | None = None) -> dict[str, Any]:
        if self._process is None:
            raise Missing("this federation was not started")
        connection = HTTPConnection(self._index, timeout=START_S)
        try:
            connection.request(method, path, body=json.dumps({**order, "secret": self._secret}) if order else None)
            answer = connection.getresponse()
            said: dict[str, Any] = json.loads(answer.read())
        except OSError as error:
            raise Missing(f"the federation does not answer: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise BadInput(f"the federation refused: {said['detail']}")
        return said

    @staticmethod
    def _first_words(process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """One line, within ``START_S``: where it listens, or why it does not."""
        if process.stdout is None:
            raise Missing("the federation was started without a way to hear it")
        late = threading.Timer(START_S, process.kill)
        late.start()
        try:
            line = process.stdout.readline()
        finally:
            late.cancel()
        if not line:
            raise TimedOut(f"the federation did not start within {START_S:g} s, or it died")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise BadInput(told["error"])
        return told


def main(setup: str) -> int:
    try:
        asyncio.run(serve(Setup.from_json(json.loads(setup)), os.environ.get(SECRET, "")))
    except DailiesError as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
