"""Our own Prefect server, for whoever has none: started by the first command that needs it, left for the next.

A fresh server takes 10 to 20 s, so it stays. Every command that uses it holds a shared lock on ``clients.lock``; the
server itself stops when it could hold the exclusive one for ten minutes: nobody was there.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import psutil

from dailies.canonical import canonical_json, write_atomically
from dailies.errors import NotConfigured
from dailies.home import home
from services.environment import SETTINGS, environment

IDLE_S = float(os.environ.get("DAILIES_SERVER_IDLE_S", "600"))
START_S = 120.0
STOP_S = 15.0
LOOK_S = 0.2

_clients: IO[str] | None = None


def folder() -> Path:
    return home() / "prefect"


def connect(port: int = 0, quiet: bool = False) -> str:
    """The API of the server that is configured, or of our own; from now on this process's Prefect uses it.

    ``quiet`` keeps Prefect's log off the terminal; the UI has it all the same.
    """
    apply_settings({**SETTINGS, **({"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"} if quiet else {})})
    url = configured()
    if url:
        if not healthy(url):
            raise NotConfigured(f"the Prefect server at {url} does not answer: start it, or unset PREFECT_API_URL")
        return url
    use_own()
    url = running()
    if url and port and port_of(url) != port and stop():  # left by another command on a port of its own
        use_own()
        url = ""
    url = url or start(port)
    apply_settings({"PREFECT_API_URL": url})
    return url


def apply_settings(settings: Mapping[str, str]) -> None:
    """Prefect reads its settings when it is imported, which may have been before."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    refresh_global_settings_context()
    setup_logging()


def configured() -> str:
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"]
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or ""


def running() -> str:
    """The address of our own server, if it is up."""
    url = str(record().get("url", ""))
    return url if url and healthy(url) else ""


def record() -> dict[str, object]:
    """What our server wrote about itself; nothing when it is down, or the file is not its."""
    try:
        found = json.loads((folder() / "server.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def alive() -> bool:
    """Whether the process is there, which costs less to ask than whether it answers."""
    return psutil.pid_exists(int(str(record().get("pid", 0))))


def port_of(url: str) -> int:
    return httpx.URL(url).port or 80


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def use_own() -> None:
    """Hold the shared lock for as long as this process lives."""
    global _clients
    if _clients is None:
        folder().mkdir(parents=True, exist_ok=True)
        _clients = (folder() / "clients.lock").open("a")
        fcntl.flock(_clients, fcntl.LOCK_SH)


def start(port: int = 0) -> str:
    with locked(folder() / "start.lock"):
        if url := running():
            return url  # somebody else was faster
        (folder() / "server.json").unlink(missing_ok=True)
        with (folder() / "server.log").open("ab") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "services.server", str(port)],
                env=environment(PREFECT_HOME=str(folder()), PREFECT_LOGGING_SERVER_LEVEL="WARNING"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not (url := running()) or record().get("pid") != server.pid:
            if server.poll() is not None or time.monotonic() > deadline:
                where = f" on port {port}" if port else ""
                raise NotConfigured(f"the Prefect server did not start{where}: see {folder() / 'server.log'}")
            time.sleep(LOOK_S)
        return url


def stop() -> bool:
    """Stop our own server unless some other command still uses it."""
    global _clients
    if _clients is not None:
        _clients.close()
        _clients = None
    with locked(folder() / "start.lock"), (folder() / "clients.lock").open("a") as clients:
        if not try_exclusive(clients):
            return False
        try:
            server = psutil.Process(int(str(record().get("pid", ""))))
        except (ValueError, psutil.NoSuchProcess):
            return True
        if "services.server" in server.cmdline():  # a stale file may name a process that is somebody else's by now
            end(server)
        return True


def end(server: psutil.Process) -> None:
    server.terminate()
    try:
        server.wait(STOP_S)
    except psutil.TimeoutExpired:
        server.kill()
        server.wait(STOP_S)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_exclusive(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def serve(port: int) -> None:
    """The server process: one process, so that one signal ends all of it."""
    listening = socket.create_server(("127.0.0.1", port))  # first of all: a taken port is somebody else's server
    port = listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_SERVER_UI_API_URL"] = url  # before the import, which reads it: or the UI asks port 4200
    import uvicorn
    from prefect.server.api.server import create_app

    from services.sqlite_turns import take_turns

    take_turns()
    server = uvicorn.Server(uvicorn.Config(create_app(final=True), log_level="warning"))
    threading.Thread(target=stop_when_idle, args=(server,), daemon=True).start()
    write_atomically(folder() / "server.json", [canonical_json({"url": url, "pid": os.getpid()})])
    try:
        server.run(sockets=[listening])
    finally:
        (folder() / "server.json").unlink(missing_ok=True)


def stop_when_idle(server: object) -> None:
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < IDLE_S:
        time.sleep(min(5.0, IDLE_S / 4))
        with (folder() / "clients.lock").open("a") as clients:
            if not try_exclusive(clients):
                quiet_since = time.monotonic()
    server.should_exit = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    serve(int(sys.argv[1]))
