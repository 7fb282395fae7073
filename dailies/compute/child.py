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
from collections.abc import Callable
from typing import IO, Any

from dailies import errors
from dailies.errors import DailiesError, TimedOut, Transient

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
    child = subprocess.Popen(
        [sys.executable, "-m", "dailies.compute.child", function],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(arguments).encode() + b"\n")
        child.stdin.flush()
        return converse(child, child.stdout, time.monotonic() + timeout, stopped or threading.Event(), progress)
    except TooLate:
        raise TimedOut(f"{function} did not end within {timeout:g} s and was stopped") from None
    finally:
        end_group(child)


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
    raise Transient(f"the process that ran it ended without an answer (exit status {child.wait()})")


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


def end_group(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        child.wait()


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
    arguments = json.loads(sys.stdin.readline())
    threading.Thread(target=leave_with_parent, daemon=True).start()
    module, name = function.split(":")
    target = getattr(importlib.import_module(module), name)
    if "progress" in inspect.signature(target).parameters:
        arguments["progress"] = lambda part: say(answers, {"progress": part})
    try:
        say(answers, {"result": target(**arguments)})
    except DailiesError as error:
        say(answers, {"error": error.code, "message": str(error)})


def say(answers: IO[str], what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")


def leave_with_parent() -> None:
    """With the whole group: what the work started must not outlive it either."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
