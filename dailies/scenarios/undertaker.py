"""Finds the processes of a nursery and ends them; as a program, does so when the scenario's process has died.

A death signal on the parent (PR_SET_PDEATHSIG) follows the *thread* that started the child, does not reach
grandchildren, and for a forkserver's children names the wrong parent; a watching thread inside the child sleeps while
the child is frozen. One small process outside, which holds the other end of a pipe, has none of these gaps.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import psutil

from dailies.errors import Missing, TimedOut

MARKER = "DAILIES_SCENARIO"


class Stray(NamedTuple):
    """A process by its identity, and what it runs."""

    pid: int
    born: float
    what: str

    def __str__(self) -> str:
        return f"{self.what} (pid {self.pid})"


def birth(pid: int) -> float | None:
    """When this process started, in seconds since boot: unlike a date, no step of the clock moves it."""
    try:
        boot = psutil.boot_time()
        return round(psutil.Process(pid).create_time() - boot, 2)
    except psutil.NoSuchProcess:
        return None


def strike(pid: int, born: float, sign: signal.Signals, group: bool = False) -> None:
    """Signals the process that was meant or nothing: a number that was given to another process is refused."""
    if birth(pid) != born:
        raise Missing(f"process {pid} is not the one that was started: it is gone, or its number is another's now")
    with suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(pid, sign)


def trace(sessions: Mapping[int, float], token: str) -> list[Stray]:
    """Who is alive of these sessions (leader's pid → its birth), of this token's bearers, and of their children."""
    everyone = {process.pid: process for process in _processes() if _is_alive(process)}
    ours = {pid for pid, process in everyone.items() if _in_session(pid, sessions) or _bears(process, token)}
    parents = {pid: _parent(process) for pid, process in everyone.items()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return [stray for pid in sorted(ours) if (stray := _stray(everyone[pid]))]


def _processes() -> Iterator[psutil.Process]:
    """Fresh looks: ``psutil.process_iter`` remembers processes, and would confuse two that had the same number."""
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _in_session(pid: int, sessions: Mapping[int, float]) -> bool:
    try:
        leader = os.getsid(pid)
    except OSError:
        return False
    # A session keeps its leader's number reserved as long as it has a member, also when the leader is gone.
    return leader in sessions and birth(leader) in (None, sessions[leader])


def _bears(process: psutil.Process, token: str) -> bool:
    try:
        return token in process.environ().get(MARKER, "").split("/")
    except (psutil.Error, OSError):
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def _stray(process: psutil.Process) -> Stray | None:
    born = birth(process.pid)
    if born is None:
        return None
    try:
        return Stray(process.pid, born, " ".join(process.cmdline())[:200] or process.name())
    except psutil.Error:
        return Stray(process.pid, born, "unnamed process")


def bury(find: Callable[[], list[Stray]], patience: float = 10.0) -> list[Stray]:
    """Kills what ``find`` finds until it finds nothing: the last round's dead may have forked while they died."""
    struck: dict[Stray, None] = {}
    deadline = time.monotonic() + patience
    while found := find():
        if time.monotonic() > deadline:
            raise TimedOut(f"still alive {patience:g} s after SIGKILL: {', '.join(map(str, found))}")
        for stray in found:
            with suppress(Missing):
                strike(stray.pid, stray.born, signal.SIGKILL)
                struck[stray] = None
        # Not waited for with waitpid: the exit codes belong to whoever started them.
        time.sleep(0.02)
    return list(struck)


def main(token: str) -> None:
    """Reads one session a line; the end of the input is the death of the scenario's process."""
    sessions: dict[int, float] = {}
    for line in sys.stdin:
        pid, born = line.split()
        sessions[int(pid)] = float(born)
    bury(lambda: trace(sessions, token))


if __name__ == "__main__":
    main(sys.argv[1])
