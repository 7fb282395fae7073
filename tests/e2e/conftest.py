"""A machine of its own for each test: its own home, its own server, nothing left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from services.environment import SETTINGS

DAILIES = Path(sys.executable).with_name("dailies")
PREFECT = Path(sys.executable).with_name("prefect")


class Machine:
    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DAILIES_"))}
        self.env = {
            **kept,
            **SETTINGS,
            "DAILIES_HOME": str(home / "dailies"),
            "PREFECT_HOME": str(home / "prefect"),
            "DAILIES_SERVER_IDLE_S": "60",
        }

    @property
    def dailies(self) -> Path:
        return self.home / "dailies"

    def run(self, *words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, words)], env=self.env, capture_output=True, text=True, timeout=timeout)

    @contextmanager
    def up(self, port: int) -> Iterator[str]:
        """`dailies up`, ended with Ctrl-C; gives the API's address."""
        log = self.home / "up.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [DAILIES, "up", "--port", str(port)], env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        try:
            wait_for(lambda: "are up" in log.read_text() or process.poll() is not None, 120)
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/api"
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, log.read_text()

    def processes(self) -> list[str]:
        """Whoever still runs with this machine's home in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DAILIES_HOME") == self.env["DAILIES_HOME"]:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def server(self) -> int | None:
        address = self.dailies / "prefect" / "server.json"
        return json.loads(address.read_text())["pid"] if address.exists() else None

    def stop_server(self) -> None:
        pid = self.server()
        if pid is not None and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not psutil.pid_exists(pid), 30)


def wait_for(true, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.stop_server()
