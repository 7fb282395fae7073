"""The process that serves a catalogue, stopped and started around the moment in which another generation comes.

Only where that is asked for: a server that opens the catalogue anew for each request needs none of it.

    none                     nothing is stopped
    systemd:UNIT             `systemctl stop UNIT` and `systemctl start UNIT`
    process:COMMAND          a process of ours, which is told by $DAILIES_GENERATION what to serve
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from dailies.canonical import canonical_json, write_atomically
from dailies.errors import BadInput, NotConfigured, TimedOut, Transient

GENERATION = "DAILIES_GENERATION"
STOP_S = 10.0
SYSTEMCTL_S = 60.0


class Service(Protocol):
    def stop(self) -> None:
        """Whatever serves now. Stopping what is stopped does nothing."""

    def start(self, generation: Path) -> None:
        """Starting what is running does nothing."""


class NoService:
    def stop(self) -> None:
        return

    def start(self, generation: Path) -> None:
        return


class SystemdUnit:
    def __init__(self, unit: str) -> None:
        self.unit = unit

    def stop(self) -> None:
        self._systemctl("stop")

    def start(self, generation: Path) -> None:
        self._systemctl("start")

    def _systemctl(self, verb: str) -> None:
        program = shutil.which("systemctl")
        if program is None:
            raise NotConfigured(
                f"there is no systemctl here to {verb} {self.unit}: use service=none or process:COMMAND"
            )
        try:
            done = subprocess.run(
                [program, verb, self.unit], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
            )
        except subprocess.TimeoutExpired as late:
            raise TimedOut(f"systemctl {verb} {self.unit} did not end within {SYSTEMCTL_S:g} s") from late
        if done.returncode != 0:
            raise Transient(f"systemctl {verb} {self.unit} failed: {(done.stderr or done.stdout).strip()}")


class OwnProcess:
    """Known again by pid and birth, which ``note`` keeps: a pid alone may be somebody else's by now."""

    def __init__(self, command: str, note: Path) -> None:
        self.command = shlex.split(command)
        self.note = note
        if not self.command:
            raise BadInput("service=process: needs a command after the colon")

    def stop(self) -> None:
        running = self._running()
        if running is not None:
            running.terminate()
            try:
                running.wait(STOP_S)
            except psutil.TimeoutExpired:
                running.kill()
                running.wait(STOP_S)
        self.note.unlink(missing_ok=True)

    def start(self, generation: Path) -> None:
        if self._running() is not None:
            return
        try:
            process = subprocess.Popen(
                self.command,
                env={**os.environ, GENERATION: str(generation)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise NotConfigured(f"cannot start {self.command[0]}: {error.strerror or error}") from error
        born = psutil.Process(process.pid).create_time()
        write_atomically(self.note, [canonical_json({"pid": process.pid, "born": born})])

    def _running(self) -> psutil.Process | None:
        if not self.note.is_file():
            return None
        known = json.loads(self.note.read_bytes())
        try:
            found = psutil.Process(known["pid"])
            same = found.create_time() == known["born"] and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if same else None


def service(how: str, prod: Path) -> Service:
    kind, _, rest = how.partition(":")
    kinds: dict[str, Callable[[], Service]] = {
        "none": NoService,
        "systemd": lambda: SystemdUnit(rest),
        "process": lambda: OwnProcess(rest, prod / "service.json"),
    }
    if kind not in kinds or (kind != "none") != bool(rest):
        raise BadInput(f"service is none, systemd:UNIT or process:COMMAND, not {how!r}")
    return kinds[kind]()
