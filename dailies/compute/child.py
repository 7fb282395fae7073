"""Run one function in a process of its own, so that it can really be stopped.

A Python thread cannot be interrupted inside a decoder; a process group can. The child notices the death of its parent
by the end of its standard input, and goes.

The function takes and returns plain JSON values and is named ``module:function``, so that the child imports only what
it needs. It reports progress by calling ``progress(0.0 to 1.0)`` when it has such a parameter.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

from dailies import errors
from dailies.errors import BadInput, Conflict, DailiesError, NotConfigured, TimedOut, Transient

LOOK_S = 0.1


class TooLate(Exception):
    """Our own deadline: not to be confused with a ``TimedOut`` that the function itself reports."""


def run_in_child(
    function: str,
    *,
    timeout: float,
    stopped: threading.Event | None = None,
    progress: Callable[[float], None] = lambda part: None,
    **arguments: Any,
) -> Any:
    """The function's result, or its typed error. No process of it is left when this returns, whichever way."""
    child = Child(function)
    try:
        return child.call(arguments, timeout, stopped, progress)
    finally:
        child.end()


class Child:
    """A process for one function, called any number of times: what it has loaded stays loaded."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dailies.compute.child", function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def call(
        self,
        arguments: Mapping[str, Any],
        timeout: float,
        stopped: threading.Event | None = None,
        progress: Callable[[float], None] = lambda part: None,
    ) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        try:
            self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Transient(died(self.process)) from None
        try:
            return converse(self.process, self.process.stdout, deadline, stopped or threading.Event(), progress)
        except TooLate:
            raise TimedOut(f"{self.function} did not end within {timeout:g} s and was stopped") from None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        try:
            self.kill()
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            self.process.wait()


class Children:
    """Processes that are kept for the next call of the same function, as many as are called at once."""

    def __init__(self) -> None:
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._lock = threading.Lock()
        self._closed = False

    def call(
        self,
        function: str,
        *,
        timeout: float,
        stopped: threading.Event | None = None,
        progress: Callable[[float], None] = lambda part: None,
        **arguments: Any,
    ) -> Any:
        child = self._take(function)
        fit = False
        try:
            result = child.call(arguments, timeout, stopped, progress)
            fit = True
            return result
        except (BadInput, NotConfigured):  # its word on what it was given: it can take the next
            fit = True
            raise
        except Transient:
            if self._closed:  # we ended it: there is nothing to try again
                raise Conflict("stopped") from None
            raise
        finally:
            self._give_back(child, fit)

    def warm(self, function: str, count: int) -> None:
        """Start so many already, which then import what they need while something else is done."""
        with self._lock:
            self._idle += [Child(function) for _ in range(count)]

    def close(self) -> None:
        """End all of them. Whoever waits for one that is at work gets an error, and clears it away."""
        with self._lock:
            self._closed = True
            for child in self._busy:
                child.kill()
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _take(self, function: str) -> Child:
        with self._lock:
            if self._closed:
                raise Conflict("stopped")
            child = next((child for child in self._idle if child.function == function), None)
            if child is None:
                child = Child(function)
            else:
                self._idle.remove(child)
            self._busy.add(child)
            return child

    def _give_back(self, child: Child, fit: bool) -> None:
        with self._lock:
            self._busy.discard(child)
            if fit and not self._closed:
                self._idle.append(child)
                return
        child.end()


def converse(
    child: subprocess.Popen[bytes],
    out: IO[bytes],
    deadline: float,
    stopped: threading.Event,
    progress: Callable[[float], None],
) -> Any:
    for line in lines(out, deadline, stopped):
        said = json.loads(line)
        if "progress" in said:
            progress(said["progress"])
        elif "error" in said:
            raise rebuilt(by_code(said["error"]), said["message"])
        else:
            return said["result"]
    raise Transient(died(child))


def died(child: subprocess.Popen[bytes]) -> str:
    return f"the process that ran it ended without an answer (exit status {child.wait()})"


def lines(out: IO[bytes], deadline: float, stopped: threading.Event) -> Any:
    """Lines as they come; looks up ten times a second to see whether it must stop."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while True:
            if stopped.is_set():
                raise Transient("stopped")
            if time.monotonic() > deadline:
                raise TooLate
            if not selector.select(LOOK_S):
                continue
            data = os.read(out.fileno(), 1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from whole


def rebuilt(kind: type[DailiesError], message: str) -> DailiesError:
    """Not by its constructor, which may ask for more than the message that came over."""
    error = kind.__new__(kind)
    error.args = (message,)
    return error


def by_code(code: str) -> type[DailiesError]:
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, DailiesError) and kind.code == code:
            return kind
    return DailiesError


def main(function: str) -> None:
    # Whatever a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    asked: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=listen, args=(asked,), daemon=True).start()
    module, name = function.split(":")
    target = getattr(importlib.import_module(module), name)
    tells = "progress" in inspect.signature(target).parameters
    while True:
        arguments = asked.get()
        if tells:
            arguments["progress"] = lambda part: say(answers, {"progress": part})
        try:
            say(answers, {"result": target(**arguments)})
        except DailiesError as error:
            say(answers, {"error": error.code, "message": str(error)})


def say(answers: IO[str], what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")


def listen(asked: SimpleQueue[dict[str, Any]]) -> None:
    """Until the parent is gone; then the whole group goes: what the work started must not outlive it either."""
    for line in sys.stdin:
        asked.put(json.loads(line))
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
