"""The process around one local call: ``python -m dailies.compute.shim FOLDER LOCK``.

Its sign of life is a lock that it was born with (a descriptor, inherited from whoever submitted), so that there is no
moment at which a call has been started and seems dead. It outlives its submitter, runs the function in a child of its
own group, and ends that group when the call is cancelled, when the function is over its limit, and when it dies itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, write_atomically
from dailies.compute.child import run_in_child
from dailies.errors import DailiesError, TimedOut

REQUEST, RESULT, CANCEL, LOG, PID, TEMP = "request.json", "result.json", "cancel", "log", "pid", "tmp"
LOOK_S = 0.1


def main(folder: Path, lock: int) -> None:
    os.set_inheritable(lock, False)  # whoever else held it would make a dead call look alive
    (folder / PID).write_text(str(os.getpid()))
    request = json.loads((folder / REQUEST).read_bytes())
    with temporary(folder / TEMP):
        write_result(folder, answer(folder, request))


@contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Where the function puts what it needs for a while: killed half way, it cannot clear up after itself."""
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier shim left that was killed as well
    folder.mkdir()
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    told = threading.Event()
    threading.Thread(target=listen, args=(folder, told), daemon=True).start()
    try:
        said: dict[str, Any] = run_in_child(
            "dailies.remote:execute", timeout=request["timeout"], stopped=told, **request["arguments"]
        )
    except TimedOut:
        said = {"error": TimedOut.code, "message": over(request)}
    except DailiesError as error:
        said = {"error": error.code, "message": str(error)}
    # It may have ended by itself just before it was told to: the mark decides, so that no two readers disagree.
    return {"canceled": True} if (folder / CANCEL).exists() else said


def listen(folder: Path, told: threading.Event) -> None:
    while not (folder / CANCEL).exists():
        time.sleep(LOOK_S)
    told.set()


def over(request: dict[str, Any]) -> str:
    return f"{request['arguments']['name']} did not end within {request['timeout']:g} s and was stopped"


def write_result(folder: Path, said: dict[str, Any]) -> None:
    write_atomically(folder / RESULT, [canonical_json(said)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
