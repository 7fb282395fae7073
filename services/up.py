"""Everything on one machine, in the foreground: server, deployments, worker, supervisor. Ctrl-C stops all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dailies.errors import NotConfigured
from dailies.home import home
from services import server
from services.environment import environment

STOP_S = 10.0
RESTART_S = 3.0


@dataclass
class Service:
    """A child that is started again when it dies, until it is told to stop."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    next_start: float = field(default=0.0)

    @property
    def log(self) -> Path:
        return home() / "logs" / f"{self.name}.log"

    def keep_up(self, say: Callable[[str], None]) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        if time.monotonic() < self.next_start:
            return
        if self.starts:
            say(f"{self.name} ended; starting it again (see {self.log})")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we stop them in order.
            self.process = subprocess.Popen(
                self.command,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1
        self.next_start = time.monotonic() + RESTART_S

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def up(say: Callable[[str], None], port: int = 4200, slots: int = 2) -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    say("starting the Prefect server …")
    url = server.connect(port)
    ours = url == server.running()
    services = [
        Service(
            "worker", [sys.executable, "-m", "prefect", "worker", "start", "--pool", "cpu", "--limit", str(slots + 2)]
        ),
        Service("supervisor", [sys.executable, "-m", "services.supervisor", "--slots", str(slots)]),
    ]
    try:
        say(f"the Prefect UI is at {url.removesuffix('/api')}; for other terminals: export PREFECT_API_URL={url}")
        for line in bootstrap():
            say(line)
        for service in services:
            service.keep_up(say)
        say(f"worker and supervisor are up; their logs are in {home() / 'logs'}. Ctrl-C stops everything.")
        while not ended.wait(1.0):
            if ours and not server.alive():
                say(f"the Prefect server ended; starting it again (see {server.folder() / 'server.log'})")
                server.start(server.port_of(url))
            for service in services:
                service.keep_up(say)
    finally:
        say("stopping …")
        for service in services:
            service.stop()
        if ours:
            say("stopped" if server.stop() else "stopped; another command still uses the Prefect server")
        else:
            say("stopped; the Prefect server is not ours and goes on")


def bootstrap() -> list[str]:
    """In a process of its own: deployments/ may import everything, and nothing imports it."""
    done = subprocess.run(
        [sys.executable, "-m", "deployments.bootstrap"], env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        why = done.stderr.strip() or told(done.stdout) or f"the process ended with {done.returncode}"
        raise NotConfigured(f"the deployments could not be applied: {why[-2000:]}")
    return done.stdout.strip().splitlines()


def told(said: str) -> str:
    """What still differs after all was applied."""
    return "; ".join(line for line in said.splitlines() if line.startswith("drift: "))
