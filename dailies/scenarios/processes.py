"""Real child processes for scenarios: started, killed, frozen and always cleaned up.

Every child leads its own session, so that a signal to its group reaches what it started and nothing else. Nothing is
signalled by its pid alone, and nothing that a nursery did not start.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import psutil

from dailies.errors import BadInput, Missing, TimedOut
from dailies.scenarios.undertaker import MARKER, Stray, birth, bury, strike, trace

BIRTH_S = 60.0  # a forkserver that has to load its modules first takes seconds
REAP_S = 10.0
_LETTERS = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
}
_CONTEXT = multiprocessing.get_context("forkserver")
# Any start polls every forked child of this process, and of two polls at once one gets the exit code and one gets 255.
_FORKS = threading.RLock()


class _Ending(Protocol):
    """How a child's end is noticed."""

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int | None: ...


class _ProgramEnding:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


class _ForkEnding:
    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self._sentinel = process.sentinel

    def poll(self) -> int | None:
        with _FORKS:
            return self._process.exitcode

    def wait(self, timeout: float) -> int | None:
        wait([self._sentinel], timeout)
        return self.poll()


@dataclass(frozen=True)
class Child:
    """One process that a nursery started, known by its pid *and* its start time (seconds since boot).

    Signals go to its whole group, and only while that process lives: ``Missing`` says that nothing was signalled.
    """

    name: str
    pid: int
    started: float
    _ending: _Ending = field(repr=False, compare=False)

    @property
    def exitcode(self) -> int | None:
        """As in ``subprocess``: negative for a signal, None while it lives."""
        return self._ending.poll()

    @property
    def alive(self) -> bool:
        return self.exitcode is None and birth(self.pid) == self.started

    @property
    def state(self) -> str:
        """The letter of ``ps``: R, S, D, T when stopped, Z; empty when it is gone."""
        try:
            return _LETTERS.get(psutil.Process(self.pid).status(), "?") if self.alive else ""
        except psutil.NoSuchProcess:
            return ""

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def revive(self) -> None:
        self._signal(signal.SIGCONT)

    def terminate(self, grace: float = 5.0) -> int:
        """Asks, then kills; returns the exit code, also of a child that had ended before."""
        with suppress(Missing):
            self._signal(signal.SIGTERM)
            with suppress(TimedOut):
                return self.wait(grace)
            self.kill()
        return self.wait(REAP_S)

    def wait(self, timeout: float) -> int:
        code = self._ending.wait(timeout)
        if code is None:
            raise TimedOut(f"{self.name} (pid {self.pid}) still runs after {timeout:g} s")
        return code

    def wait_frozen(self, timeout: float) -> None:
        """Returns when no thread of the group can take another step: SIGSTOP reaches them one after another."""
        deadline = time.monotonic() + timeout
        while not (self.alive and _group_is_stopped(self.pid)):
            if not self.alive:
                raise Missing(f"{self.name} (pid {self.pid}) ended instead of freezing")
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.name} (pid {self.pid}) is not frozen after {timeout:g} s")
            time.sleep(0.005)

    def _signal(self, sign: signal.Signals) -> None:
        if not self.alive:
            raise Missing(
                f"{self.name} (pid {self.pid}) is gone, or its number is another's now: nothing was signalled"
            )
        strike(self.pid, self.started, sign, group=True)


def _group_is_stopped(group: int) -> bool:
    return all(_is_stopped(pid) for pid in psutil.pids() if _group_of(pid) == group)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return -1


def _is_stopped(pid: int) -> bool:
    try:
        # The name in front of the letter may hold spaces and brackets of its own.
        threads = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(letter in "TtZX" for letter in threads or _LETTERS.get(psutil.Process(pid).status(), "?"))
    except (OSError, psutil.NoSuchProcess):
        return True


class Nursery:
    """Starts children and outlives them: leaving it ends every process that came of them, frozen ones too.

    Should this process be killed, its undertaker does the same. ``preload`` names modules that the forkserver imports
    once for all children; one forkserver serves the whole process, so that only the first nursery's list counts.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self.children: list[Child] = []
        self._token = uuid.uuid4().hex
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._closed = False
        self._undertaker: subprocess.Popen[bytes] | None = None
        _CONTEXT.set_forkserver_preload(["__main__", __name__, *preload])
        atexit.register(self.cleanup)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, tb: TracebackType | None) -> None:
        self.cleanup()

    def spawn(
        self,
        target: Callable[..., object],
        *args: Any,
        name: str = "",
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> Child:
        """A module-level function in a fresh process, with this process's environment as it is now, and ``env``."""
        if "<" in target.__qualname__:
            raise BadInput(f"{target.__qualname__} cannot be found by name in another process: use a module's function")
        with self._lock:
            self._refuse_if_closed()
            ours, theirs = _CONTEXT.Pipe()
            with ours, theirs:
                job = (theirs, target, args, self._environment(env), log)
                process = _CONTEXT.Process(target=_live, args=job, name=name or target.__name__)
                with _FORKS:
                    process.start()
                theirs.close()
                _await_birth(ours, process.name)
                child = self._enrol(process.name, process.pid or 0, _ForkEnding(process))
                ours.send("live")
            return child

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
    ) -> Child:
        """A program with this process's environment, and ``env`` on top."""
        name = name or Path(argv[0]).name
        with self._lock:
            self._refuse_if_closed()
            output = log.open("ab") if log else None
            try:
                process = subprocess.Popen(
                    argv,
                    env=self._environment(env),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output and subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError as why:
                raise Missing(f"cannot start {name}: no {why.filename}") from None
            finally:
                if output:
                    output.close()
            return self._enrol(name, process.pid, _ProgramEnding(process))

    def leftovers(self, settle: float = 0.0) -> list[Stray]:
        """Who came of this nursery and is alive, children included; ``settle`` gives the dying time to be gone."""
        deadline = time.monotonic() + settle
        while (found := self._trace()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def cleanup(self) -> list[Stray]:
        """Ends and reaps everything and returns what had to be killed; a second call finds nothing to do."""
        if os.getpid() != self._owner:
            return []
        with self._lock:
            self._closed = True
            killed = bury(self._trace)
            for child in self.children:
                child.wait(REAP_S)
            self._dismiss()
        atexit.unregister(self.cleanup)
        return killed

    def _trace(self) -> list[Stray]:
        return trace({child.pid: child.started for child in self.children}, self._token)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BadInput("this nursery was cleaned up: open another one")

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        """Tokens add up, so that what a scenario inside a scenario starts is found by both."""
        marks = "/".join(filter(None, (os.environ.get(MARKER), self._token)))
        return {**os.environ, **(extra or {}), MARKER: marks}

    def _enrol(self, name: str, pid: int, ending: _Ending) -> Child:
        # A child that has already ended has no birth to know it by; the pid alone must never be signalled.
        child = Child(name, pid, birth(pid) or -1.0, ending)
        self.children.append(child)
        self._tell_undertaker(child)
        return child

    def _tell_undertaker(self, child: Child) -> None:
        if self._undertaker is None:
            self._undertaker = _hire(self._token)
        stdin = self._undertaker.stdin
        if stdin is None or self._undertaker.poll() is not None:
            raise Missing("the undertaker is gone: children would outlive this process")
        stdin.write(f"{child.pid} {child.started}\n".encode())
        stdin.flush()

    def _dismiss(self) -> None:
        if self._undertaker is not None:
            self._undertaker.kill()
            self._undertaker.communicate()
            self._undertaker = None


def _hire(token: str) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "dailies.scenarios.undertaker", token]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _await_birth(gate: Connection, name: str) -> None:
    try:
        if not gate.poll(BIRTH_S):
            raise TimedOut(f"{name} was not born within {BIRTH_S:g} s")
        gate.recv()
    except EOFError:
        raise BadInput(f"{name} died while it was started: can its module be imported by name?") from None


def _live(
    gate: Connection, target: Callable[..., object], args: tuple[Any, ...], env: dict[str, str], log: Path | None
) -> None:
    """Goes to work only when it is enrolled: until then nobody would end it if the scenario's process died."""
    os.setsid()
    if log:
        _send_output_to(log)
    with gate:
        gate.send("born")
        try:
            gate.recv()
        except EOFError:
            return
    # The forkserver's environment is that of its start, maybe another scenario's.
    os.environ.clear()
    os.environ.update(env)
    target(*args)


def _send_output_to(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        os.dup2(file, number)
        # A killed child flushes nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.close(file)


def free_port() -> int:
    """Free a moment ago; only whoever binds it knows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_in_use(port: int) -> bool:
    """Whether somebody listens on this TCP port. Looks it up: a trial connection would leave a trace in their log."""
    listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    return any(each.laddr and each.laddr.port == port for each in listening)
