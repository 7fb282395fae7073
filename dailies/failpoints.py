"""Named places where a test can make this process die, freeze, fail or stall.

    DAILIES_FAILPOINTS="probe_media:after=kill; make_sheet:before#3=sleep(2); ledger.after_claim=stop"

``name``, optionally ``#hit`` (the how-manyth passage acts; default 1), and an action:

    kill        SIGKILL to this process      raise       an ``Injected`` error (transient)
    stop        SIGSTOP to this process      sleep(s)    a delay
    hang        sleep for ever               lose_reply  the work is done, and ``TimedOut`` is reported

Passages are counted over all processes in the locked file ``DAILIES_FAILPOINTS_LOG`` (default: failpoints.jsonl in
DAILIES_HOME). A point writes what it is about to do there, and syncs it, before it does it: so the file is proof that
the fault happened. It acts once for each file.
Nothing armed costs one look into an empty dictionary.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from dailies.errors import BadInput, Injected, TimedOut
from dailies.home import home

SPEC = "DAILIES_FAILPOINTS"
LOG = "DAILIES_FAILPOINTS_LOG"
ACTIONS = ("kill", "stop", "raise", "sleep", "hang", "lose_reply")
PART = re.compile(r"(?P<name>[\w.:-]+)(?:#(?P<hit>[1-9]\d*))?=(?P<action>\w+)(?:\((?P<seconds>\d+(?:\.\d+)?)\))?")


@dataclass(frozen=True)
class Arming:
    name: str
    hit: int
    action: str
    seconds: float


def parse(spec: str) -> dict[str, Arming]:
    armed = {}
    for part in filter(None, (part.strip() for part in spec.split(";"))):
        match = PART.fullmatch(part)
        if match is None or match["action"] not in ACTIONS or (match["action"] == "sleep") != bool(match["seconds"]):
            raise BadInput(f"failpoint {part!r} is not name[#hit]=action with one of {', '.join(ACTIONS)}")
        if match["name"] in armed:
            raise BadInput(f"failpoint {match['name']} is armed twice: one of the two would be forgotten")
        armed[match["name"]] = Arming(
            match["name"], int(match["hit"] or 1), match["action"], float(match["seconds"] or 0)
        )
    return armed


_armed = parse(os.environ.get(SPEC, ""))
_log = Path(os.environ.get(LOG) or home() / "failpoints.jsonl")


def arm(spec: str, log: Path) -> None:
    """Arm this process (its children are armed through the environment). An empty ``spec`` disarms it."""
    global _armed, _log
    _armed, _log = parse(spec), log


def environment(spec: str, log: Path) -> dict[str, str]:
    parse(spec)
    return {SPEC: spec, LOG: str(log)}


def failpoint(name: str) -> None:
    if name in _armed:
        _pass(_armed[name])


def fired(log: Path) -> list[dict[str, object]]:
    """The passages that acted, in order."""
    return [entry for entry in passages(log) if entry["acted"]]


def passages(log: Path) -> list[dict[str, object]]:
    """All of armed points, in order."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _pass(arming: Arming) -> None:
    if _count(arming):
        _act(arming)


def _count(arming: Arming) -> bool:
    """Write this passage down; True when it is the one that acts."""
    _log.parent.mkdir(parents=True, exist_ok=True)
    with _log.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        hit = 1 + sum(entry["name"] == arming.name for entry in passages(_log))
        acts = hit == arming.hit
        entry = {"name": arming.name, "hit": hit, "action": arming.action, "acted": acts, "pid": os.getpid()}
        file.write(json.dumps({**entry, "time": time.time()}) + "\n")
        file.flush()
        os.fsync(file.fileno())
        return acts


def _act(arming: Arming) -> None:
    match arming.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise Injected(f"failpoint {arming.name}")
        case "lose_reply":
            raise TimedOut(f"failpoint {arming.name} lost the reply")
        case "sleep":
            time.sleep(arming.seconds)
        case "hang":
            while True:
                time.sleep(60)
