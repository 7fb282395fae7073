"""A stand-in for the objects of ``modal`` that ModalCompute uses: what it runs is real, only the cloud is not.

    cloud = Cloud(tmp_path / "cloud", {"DAILIES_STORE": "…"})
    ModalCompute("dailies", client=cloud)

A container is a process of its own session that runs ``dailies.remote.execute`` and outlives whoever spawned it. What
is raised are the classes of the real ``modal.exception``. ``faults`` are for the next spawns, one each; what can happen
to a call (``preempt``, ``crash``, ``expire``) is a method. tests/integration/test_modal_compute.py compares every
signature with the installed client's.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal.exception as known

from dailies.canonical import write_atomically
from dailies.remote import TABLE, execute, lookup

POLL_S = 0.02


class Method:
    """A method as the client has it: with ``aio`` for who waits in an event loop, which is how it is asked here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.aio = function
        self.__signature__ = inspect.signature(function)

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else Method(self.aio.__get__(instance, owner))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return asyncio.run(self.aio(*args, **kwargs))


class Cloud:
    exception = known

    def __init__(self, folder: Path, secret: dict[str, str], table: str = TABLE) -> None:
        self.folder = folder
        self.secret = secret
        self.table = table
        self.apps = {("dailies", None)}
        self.tokens = {("ak-good", "as-good")}
        self.configured = True
        self.faults: list[str] = []
        self.spawned: list[str] = []
        self.containers: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.Function = SimpleNamespace(from_name=self._function)
        self.FunctionCall = SimpleNamespace(from_id=self._call)
        self.Client = SimpleNamespace(from_credentials=Method(self._from_credentials))

    def _function(
        self,
        app_name: str,
        name: str,
        *,
        version: int | None = None,
        environment_name: str | None = None,
        client: Any = None,
    ) -> Function:
        return Function(self, app_name, name, environment_name, client)

    def _call(self, function_call_id: str, client: Any = None) -> FunctionCall:
        return FunctionCall(self, function_call_id, client)

    async def _from_credentials(self, token_id: str, token_secret: str) -> Any:
        return SimpleNamespace(token=(token_id, token_secret))

    def authenticate(self, client: Any) -> None:
        if client is None and not self.configured:
            raise known.AuthError("Token missing. Could not authenticate client.")
        if client is not None and client.token not in self.tokens:
            raise known.AuthError("Token validation failed")

    def next_fault(self) -> str:
        return self.faults.pop(0) if self.faults else ""

    # ── containers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, name: str, args: tuple[Any, ...]) -> str:
        call_id = f"fc-{uuid.uuid4().hex}"
        asked = {"name": name, "args": args, "call": call_id, "table": self.table}
        write_atomically(self.folder / call_id / "input.json", [json.dumps(asked).encode()])
        self.spawned.append(call_id)
        self.container(call_id)
        return call_id

    def container(self, call_id: str) -> None:
        place = self.folder / call_id
        with (place / "log").open("ab") as log:
            container = subprocess.Popen(
                [sys.executable, "-m", "tests.modal_stand_in", str(place)],
                env={**os.environ, **self.secret},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.containers[call_id] = container

    def kill(self, call_id: str) -> None:
        container = self.containers[call_id]
        with suppress(ProcessLookupError):
            os.killpg(container.pid, signal.SIGKILL)  # not waited for yet, so that the number is still its own
        container.wait()

    def preempt(self, call_id: str) -> None:
        """The machine is taken away; another one starts on the same input."""
        self.kill(call_id)
        self.container(call_id)

    def crash(self, call_id: str) -> None:
        self.kill(call_id)
        answer(self.folder / call_id, known.InternalFailure("the container was lost"))

    def expire(self, call_id: str) -> None:
        (self.folder / call_id / "expired").touch()

    def shut_down(self) -> None:
        for call_id in self.containers:
            self.kill(call_id)


class Function:
    def __init__(self, cloud: Cloud, app: str, name: str, environment: str | None, client: Any) -> None:
        self._cloud, self._app, self._name, self._environment, self._client = cloud, app, name, environment, client

    @Method
    async def hydrate(self, client: Any = None) -> Function:
        """Looks the function up, and starts nothing."""
        await self._look_up(self._cloud.next_fault())
        return self

    @Method
    async def spawn(self, *args: Any, **kwargs: Any) -> FunctionCall:
        cloud = self._cloud
        fault = cloud.next_fault()
        await self._look_up(fault)
        if fault == "no_gpu":
            raise known.ResourceExhaustedError("no capacity for this GPU")
        if fault == "unavailable":
            raise known.ServiceError("upstream connect error")
        if fault == "lost":
            raise known.ConnectionError("Deadline exceeded")
        call_id = cloud.start(self._name, args)
        if fault == "lose_reply":
            raise known.ConnectionError("the stream was reset")
        return FunctionCall(cloud, call_id, self._client)

    async def _look_up(self, fault: str) -> None:
        if fault == "hang":
            await asyncio.sleep(3600)
        self._cloud.authenticate(self._client)
        if (self._app, self._environment) not in self._cloud.apps:
            raise known.NotFoundError(f"Lookup failed for Function '{self._name}' from the '{self._app}' app")
        try:
            lookup(self._name, self._cloud.table)
        except Exception as error:
            raise known.NotFoundError(f"Lookup failed for Function '{self._name}'") from error
        if fault == "forbidden":
            raise known.PermissionDeniedError("not your workspace")


class FunctionCall:
    def __init__(self, cloud: Cloud, call_id: str, client: Any) -> None:
        self._cloud, self.object_id, self._client = cloud, call_id, client

    @Method
    async def get(self, timeout: float | None = None, *, index: int = 0) -> Any:
        place = self._place()
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not (place / "output").exists():
            if time.monotonic() >= deadline:
                raise known.TimeoutError
            await asyncio.sleep(POLL_S)
        if (place / "expired").exists():
            raise known.OutputExpiredError
        value = pickle.loads((place / "output").read_bytes())
        if isinstance(value, BaseException):
            raise value
        return value

    @Method
    async def cancel(self, terminate_containers: bool = False) -> None:
        """Alone it interrupts only what hears an exception; a decoder does not."""
        place = self._place()
        if (place / "output").exists():
            return
        if terminate_containers:
            self._cloud.kill(self.object_id)
        answer(place, known.RemoteError(""))  # a terminated input has a status and no message

    def _place(self) -> Path:
        self._cloud.authenticate(self._client)
        place = self._cloud.folder / self.object_id
        if not place.is_dir():
            raise known.NotFoundError(f"FunctionCall with id {self.object_id} not found")
        return place


def answer(place: Path, value: Any) -> None:
    write_atomically(place / "output", [pickle.dumps(value)])


def main(place: Path) -> None:
    asked = json.loads((place / "input.json").read_bytes())
    limit = lookup(asked["name"], asked["table"]).timeout
    threading.Thread(target=watch, args=(place, limit), daemon=True).start()
    payload, unit = asked["args"]
    try:
        value: Any = execute(asked["name"], payload, unit, call=asked["call"], table=asked["table"])
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever asks gets it
        value = error
    answer(place, value)
    os.killpg(0, signal.SIGKILL)


def watch(place: Path, limit: float) -> None:
    time.sleep(limit)
    answer(place, known.FunctionTimeoutError(f"Task's current input hit its timeout of {limit:g}s"))
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
