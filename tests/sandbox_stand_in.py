"""Modal without Modal: each sandbox is a child process in a group of its own, on this machine.

What is called is checked against modal's own signatures, what is raised are modal's own exceptions, and how an exit
becomes a code is worked out by modal's own functions, so a new version of modal that differs shows in the tests.

Being here, such a sandbox would reach the loopback address that a real one cannot. The worker must refuse that one, so
the tests name their server `PUBLIC`, and the stand-in plays the network in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import signal
import string
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import psutil
from modal.exception import NotFoundError
from modal.sandbox._common import _result_returncode, raise_for_wait_result
from modal_proto.api_pb2 import GenericResult

from deployments.modal_worker import ModalWorker

PUBLIC = "https://prefect.example/api"
BASE62 = string.digits + string.ascii_letters
TICK_S = 0.05
KILL_S = 5.0
INSIDE = "SANDBOX_STAND_IN"


def as_in(owner: Any) -> Callable[[Callable[..., Any]], property]:
    """Makes a method callable as the one of the same name of ``owner``: through `.aio`, and with arguments it takes."""

    def wrap(function: Callable[..., Any]) -> property:
        real = getattr(owner, function.__name__)
        assert callable(real.aio)
        signature = inspect.signature(real)

        def bound(self: Any) -> SimpleNamespace:
            def aio(*args: Any, **options: Any) -> Any:
                signature.bind(*([self] if "self" in signature.parameters else []), *args, **options)
                return function(self, *args, **options)

            return SimpleNamespace(aio=aio)

        return property(bound)

    return wrap


class Sandbox:
    """What `modal.Sandbox.create` gives."""

    def __init__(self, cloud: Cloud, command: tuple[str, ...], env: Mapping[str, str], timeout: int) -> None:
        self.object_id = "sb-" + "".join(secrets.choice(BASE62) for _ in range(22))
        self.cloud = cloud
        self.tags: dict[str, str] = {}
        self.result = GenericResult()
        self.ends = time.monotonic() + timeout
        self.terminated = 0
        self.process = subprocess.Popen(
            command,
            env={**env, INSIDE: self.object_id},
            cwd=cloud.folder,
            stdin=subprocess.DEVNULL,
            stdout=cloud.log,
            stderr=cloud.log,
            start_new_session=True,
        )

    @property
    def returncode(self) -> int | None:
        return _result_returncode(self.result)

    @as_in(modal.Sandbox)
    async def poll(self) -> int | None:
        await self.cloud.answer(self.object_id)
        self.look()
        return self.returncode

    @as_in(modal.Sandbox)
    async def wait(self, raise_on_termination: bool = True) -> None:
        while self.returncode is None:
            self.look()
            await asyncio.sleep(TICK_S)
        raise_for_wait_result(self.object_id, self.result, raise_on_termination)

    @as_in(modal.Sandbox)
    async def terminate(self, *, wait: bool = False) -> int | None:
        await self.cloud.answer(self.object_id)
        self.terminated += 1
        self.end(GenericResult.GENERIC_STATUS_TERMINATED)
        return self.returncode if wait else None

    @as_in(modal.Sandbox)
    async def get_tags(self) -> dict[str, str]:
        return self.tags

    def look(self) -> None:
        """Record what has happened to the process meanwhile, in the words of Modal's server."""
        if self.returncode is not None:
            return
        if time.monotonic() > self.ends:
            self.end(GenericResult.GENERIC_STATUS_TIMEOUT)
        elif (code := self.process.poll()) is not None:
            status = GenericResult.GENERIC_STATUS_FAILURE if code else GenericResult.GENERIC_STATUS_SUCCESS
            self.result = GenericResult(status=status, exitcode=code if code >= 0 else 128 - code)

    def end(self, status: Any) -> None:
        """Kill the whole group; what had ended by itself keeps its own result, as with Modal."""
        if status != GenericResult.GENERIC_STATUS_TIMEOUT:
            self.look()
        self.kill()
        if self.returncode is None:
            self.result = GenericResult(status=status)

    def kill(self) -> None:
        """SIGKILL to all that was started inside, as the end of a container is; a group of its own is no way out."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + KILL_S
        while inside := self.processes():
            assert time.monotonic() < end, f"what was killed is still there: {inside}"
            for process in inside:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)

    def processes(self) -> list[psutil.Process]:
        """Whatever runs inside: all of it has the sandbox's id in its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(INSIDE) == self.object_id and alive(process.pid):
                    found.append(process)
        return found


def alive(pid: int) -> bool:
    """Whether it runs: what is dead and not yet buried by a parent has still a pid."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Cloud:
    """Modal as a whole: what runs there, and what goes wrong there."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder = folder
        self.log = (folder / "sandboxes.log").open("ab")
        self.api = api
        self.running: dict[str, Sandbox] = {}
        self.created: list[dict[str, Any]] = []
        self.lost: set[str] = set()
        self.fail: list[Exception] = []  # each is raised by one question, the first one first
        self.silent = 0  # so many questions get no answer at all
        self.refuse: Exception | None = None  # raised instead of creating
        self.capacity = asyncio.Event()  # until it is set, no machine is free
        self.capacity.set()
        self.waiting = 0
        self.timeout_s: float | None = None  # instead of what was asked for, which is a minute at least

    @property
    def client(self) -> SimpleNamespace:
        """What the worker uses of the module `modal`: calls go to the stand-in, what only describes is the real one."""
        return SimpleNamespace(
            Sandbox=self,
            App=Apps(),
            Image=modal.Image,
            Secret=modal.Secret,
            Volume=modal.Volume,
            exception=modal.exception,
        )

    @as_in(modal.Sandbox)
    async def create(self, *command: str, **options: Any) -> Sandbox:
        if self.refuse:
            raise self.refuse
        self.waiting += 1
        try:
            await self.capacity.wait()
        finally:
            self.waiting -= 1
        self.created.append({"command": command, **options})
        sandbox = Sandbox(self, command, self.environment(options["env"]), self.timeout_s or options["timeout"])
        sandbox.tags = dict(options["tags"])
        self.running[sandbox.object_id] = sandbox
        return sandbox

    @as_in(modal.Sandbox)
    async def from_id(self, sandbox_id: str) -> Sandbox:
        await self.answer(sandbox_id)
        return self.running[sandbox_id]

    @as_in(modal.Sandbox)
    async def list(self, *, app_id: str, tags: dict[str, str]) -> AsyncIterator[Sandbox]:
        assert app_id == Apps.app_id
        for sandbox in self.running.values():
            sandbox.look()
            if tags.items() <= sandbox.tags.items() and sandbox.returncode is None:
                yield sandbox

    async def answer(self, sandbox_id: str) -> None:
        if self.silent:
            self.silent -= 1
            await asyncio.sleep(3600)
        if self.fail:
            raise self.fail.pop(0)
        if sandbox_id in self.lost or sandbox_id not in self.running:
            raise NotFoundError(f"Sandbox with ID {sandbox_id} not found")

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """A machine of its own: nothing of the worker's environment is there, but the image's programs are."""
        image = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}", "HOME": str(self.folder)}
        image["PREFECT_HOME"] = str(self.folder / "prefect")
        reached = {name: value.replace(PUBLIC, self.api) for name, value in given.items()}
        return {**image, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", **reached}

    def close(self) -> None:
        for sandbox in self.running.values():
            sandbox.kill()
        self.log.close()


class Apps:
    app_id = "ap-stand-in"

    @as_in(modal.App)
    async def lookup(self, name: str, *, environment_name: str | None = None, create_if_missing: bool = False) -> Apps:
        return self


class StandInWorker(ModalWorker):
    """The real worker with less patience, whose client is the stand-in's; a type of its own, so as to replace none."""

    type = "modal-stand-in"
    poll_s, pause_s, look_s, grace_s = 0.1, 0.4, 0.3, 15.0
    cloud: Cloud

    def modal(self) -> SimpleNamespace:
        return self.cloud.client
