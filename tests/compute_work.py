"""Functions for the tests of compute: a table like that of dailies.remote, and marks that count what was executed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dailies import errors
from dailies.remote import Function, Json, Task

TABLE = "tests.compute_work:FUNCTIONS"
ROOT = Path(__file__).resolve().parent.parent
SLEEP = "import time; time.sleep(600)"
SHORT_S = 1.5


def mark(task: Task) -> None:
    """One more line for one more execution; O_APPEND keeps lines of several processes whole."""
    with Path(task.payload["marks"]).open("a") as marks:
        marks.write(f"{os.getpid()}\n")


def count(task: Task) -> Json:
    mark(task)
    text = str(task.payload.get("text", ""))
    return task.made(task.store.put(task.key.server("counted", "text.txt"), text.encode()), words=len(text.split()))


def wait(task: Task) -> Json:
    """As ``count``, but not before its gate is open."""
    mark(task)
    while not Path(task.payload["gate"]).exists():
        time.sleep(0.02)
    return task.made(task.store.put(task.key.server("waited", "text.txt"), b"through"), waited=True)


def linger(task: Task) -> Json:
    """Says who it is and whom it started, and stays."""
    mark(task)
    grandchild = subprocess.Popen([sys.executable, "-c", SLEEP])
    note = Path(task.payload["note"])
    note.with_suffix(".new").write_text(f"{os.getpid()} {grandchild.pid}")
    note.with_suffix(".new").rename(note)
    time.sleep(600)
    return task.made()


def refuse(task: Task) -> Json:
    mark(task)
    made = {
        "undecodable": lambda: errors.Undecodable("not one frame: ü\n'quoted'"),
        "missing": lambda: errors.Missing("there is no upload"),
        "timed_out": lambda: errors.TimedOut("the server did not answer"),
        "held": lambda: errors.Held("video:1", "worker-7", 3),
    }
    raise made[task.payload["code"]]()


def refuse_once(task: Task) -> Json:
    mark(task)
    if len(Path(task.payload["marks"]).read_text().splitlines()) == 1:
        raise errors.Transient("the first time it does not work")
    return task.made(tries=2)


def litter(task: Task) -> Json:
    """Leaves a file where temporary files go, says where, and is killed."""
    mark(task)
    folder = Path(tempfile.mkdtemp())
    (folder / "half").write_text("done")
    Path(task.payload["note"]).write_text(str(folder))
    os.kill(os.getpid(), signal.SIGKILL)
    return task.made()


def report(task: Task) -> Json:
    """Half done until its gate is open; what is said of it meanwhile is in the store."""
    mark(task)
    while not Path(task.payload["gate"]).exists():
        task.tell(0.5)
        time.sleep(0.02)
    if task.payload.get("fail"):
        raise errors.Undecodable("not one frame")
    return task.made(through=True)


def stumble(task: Task) -> Json:
    mark(task)
    raise ZeroDivisionError("a mistake of our own")


FUNCTIONS = {
    "count": Function(count, timeout=30),
    "wait": Function(wait, timeout=60),
    "linger": Function(linger, timeout=60),
    "limited": Function(linger, timeout=SHORT_S),
    "refuse": Function(refuse, timeout=30),
    "refuse_once": Function(refuse_once, timeout=30),
    "litter": Function(litter, timeout=60),
    "report": Function(report, timeout=60),
    "stumble": Function(stumble, timeout=30),
    "on_gpu": Function(count, timeout=30, gpu="A10G"),
}
