"""Calls as processes of this machine: each in a folder and a group of its own, alive as long as it holds its lock."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dailies import remote
from dailies.canonical import canonical_json, digest, write_atomically
from dailies.compute.interface import Canceled, StillRunning, UnknownCall
from dailies.compute.shim import CANCEL, LOG, PID, REQUEST, RESULT, write_result
from dailies.errors import NotConfigured, Transient

LOCK = "lock"
DOOR = ".door"
LOOK_S = 0.05
CANCEL_S = 1.5


class LocalCompute:
    """A call's id is made of its unit, so that it is known even to who died before the reply.

    ``store`` describes the store that the functions work on (as ``remote.store_of`` takes it); None: the environment
    does. ``table`` is where the functions are, as ``module:name``.
    """

    def __init__(self, folder: Path, store: Mapping[str, Any] | None = None, table: str = remote.TABLE) -> None:
        self.folder = folder
        self._store = store
        self._table = table
        self._children: list[subprocess.Popen[bytes]] = []

    def submit(self, function: str, payload: Mapping[str, Any], unit: str) -> str:
        limit = remote.lookup(function, self._table).timeout
        call_id = id_of(unit)
        place = self.folder / call_id
        with self._door():
            if self._goes_on(place):
                return call_id
            asked = {"name": function, "payload": payload, "unit": unit, "call": call_id, "table": self._table}
            self._start(place, canonical_json({"arguments": asked, "timeout": limit}))
        return call_id

    def result(self, call_id: str, timeout: float) -> Any:
        place = self._place(call_id)
        deadline = time.monotonic() + timeout
        self._reap()
        while (said := answer(place)) is None:
            if not is_alive(place):
                said = answer(place)  # it may have been written between the two looks
                break
            if time.monotonic() >= deadline:
                raise StillRunning(f"call {call_id} is not over yet")
            time.sleep(LOOK_S)
        if said is None:
            raise Transient(f"the process of call {call_id} was killed{last_words(place)}")
        if "canceled" in said:
            raise Canceled(f"call {call_id} was cancelled")
        return remote.said(said)

    def cancel(self, call_id: str) -> None:
        place = self._place(call_id)
        if answer(place) is not None:
            return
        (place / CANCEL).touch()
        if not await_end(place, CANCEL_S):
            put_down(place)
            await_end(place, CANCEL_S)
        self._reap()
        with self._door():
            if answer(place) is None and not is_alive(place):
                write_result(place, {"canceled": True})

    def find(self, unit: str) -> str | None:
        call_id = id_of(unit)
        return call_id if (self.folder / call_id / REQUEST).exists() else None

    def check(self) -> None:
        try:
            with self._door():
                return
        except OSError as error:
            raise NotConfigured(f"the folder of the calls, {self.folder}, cannot be used: {error.strerror}") from error

    def clean(self, older_than: float) -> int:
        removed = 0
        for place in list(self.folder.glob("*/")):
            with self._door():
                if is_alive(place) or time.time() - last_change(place) < older_than:
                    continue
                shutil.rmtree(place)
                removed += 1
        return removed

    def _goes_on(self, place: Path) -> bool:
        """Whether this unit needs no new process: one is at work, or has finished and its files are still there."""
        if is_alive(place) and answer(place) is None and not (place / CANCEL).exists():
            return True
        if not await_end(place, CANCEL_S):
            put_down(place)
            await_end(place, CANCEL_S)
        said = answer(place) or {}
        return "result" in said and remote.whole(remote.store_of(self._settings()), said["result"])

    def _start(self, place: Path, request: bytes) -> None:
        self._reap()
        place.mkdir(exist_ok=True)
        lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # nobody else starts anything: at most somebody looks, and goes
            for name in (RESULT, CANCEL, PID):
                (place / name).unlink(missing_ok=True)
            write_atomically(place / REQUEST, [request])
            with (place / LOG).open("wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "dailies.compute.shim", str(place), str(lock)],
                    env={**os.environ, remote.STORE: json.dumps(self._settings())},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    start_new_session=True,
                )
        finally:
            os.close(lock)  # the lock itself lives on in the process that inherited it
        self._children.append(child)

    def _reap(self) -> None:
        """What we started is our child until we die; without this it would stay a zombie until then."""
        self._children = [child for child in self._children if child.poll() is None]

    def _settings(self) -> Mapping[str, Any]:
        return self._store if self._store is not None else remote.settings()

    def _place(self, call_id: str) -> Path:
        place = self.folder / call_id
        if not (call_id.isalnum() and (place / REQUEST).exists()):
            raise UnknownCall(f"there is no call {call_id!r} in {self.folder}")
        return place

    @contextmanager
    def _door(self) -> Iterator[None]:
        """One at a time decides what is started and what is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / DOOR).open("a") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            yield


def id_of(unit: str) -> str:
    return digest(unit)[:32]


def answer(place: Path) -> dict[str, Any] | None:
    try:
        said: dict[str, Any] = json.loads((place / RESULT).read_bytes())
    except FileNotFoundError:
        return None
    return said


def is_alive(place: Path) -> bool:
    """Whether its lock is held. Looking shares the lock, so that any number may look at the same time."""
    try:
        with (place / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def await_end(place: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(place) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return not is_alive(place)


def put_down(place: Path) -> None:
    """Kill a shim that does not listen (frozen, say); its child sees its end and goes with all that it started.

    The handle is opened before the lock is looked at: a lock still held says that the number was not reused before.
    """
    with suppress(OSError, ValueError):
        handle = os.pidfd_open(int((place / PID).read_text()))
        try:
            if is_alive(place):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def last_change(place: Path) -> float:
    return max((path.stat().st_mtime for path in (place / RESULT, place / REQUEST) if path.exists()), default=0.0)


def last_words(place: Path) -> str:
    try:
        lines = (place / LOG).read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return f"; it last said: {lines[-1][:200]}" if lines else ""
