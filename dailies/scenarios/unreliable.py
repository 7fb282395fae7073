"""A site's connections with failpoints in them, for a scenario to break: production code has none in these places.

    store.put:KIND              a write of the flow; KIND is what the key is of: ``layout.png``, ``published``
    ledger.SECTION.METHOD       a write of the flow
    compute.submit              work handed over
    work.begun · work.refused   the function itself, on the machine that runs it; ``refused`` is a typed error
    work.put:KIND               a write of the function

A write has two points more: ``…:again`` follows ``…``, so that a place can fail twice (a point acts once), and
``…:reply`` comes when the write has happened, for ``lose_reply``. A write of the ledger has a third before them: to
raise at ``…:away`` takes the ledger away for the rest of this process.
"""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from dailies import failpoints, remote
from dailies.compute.interface import Compute
from dailies.errors import DailiesError, Injected, Transient, Undecodable
from dailies.failpoints import failpoint
from dailies.home import home
from dailies.ledger.interface import Ledger
from dailies.remote import Function, Json, Task
from dailies.store.interface import Artifact, Store

TABLE = "dailies.scenarios.unreliable:FUNCTIONS"
EXECUTIONS = "executions.jsonl"
# Time enough to come to where it hangs, on a busy machine.
HUNG_S = 12.0

WRITES = {
    "calls": {"intend", "submitted", "ended"},
    "generations": {"publish"},
    "jobs": {"submit", "start", "done", "failed"},
    "leases": {"acquire", "release"},
    "outbox": {"emit"},
    "units": {"begin", "complete"},
    "videos": {"register", "update"},
}


def attempted(point: str, write: Callable[[], Any]) -> Any:
    failpoint(point)
    failpoint(f"{point}:again")
    done = write()
    failpoint(f"{point}:reply")
    return done


def kind_of(key: str) -> str:
    """What an object is of, whichever video and generation it belongs to."""
    place = key.split("/")[4:]
    return place[1] if len(place) > 1 and place[0].startswith("gen-") else place[0] if place else key


# ── the connections of a flow ─────────────────────────────────────────────────────────────────────────────────────────


class UnreliableStore:
    """``who`` writes: the points of a flow's store and of a function's have different names."""

    def __init__(self, store: Store, who: str) -> None:
        self._store = store
        self._who = who

    def put(self, key: str, data: bytes) -> Artifact:
        return self._attempted(key, lambda: self._store.put(key, data))

    def put_file(self, key: str, path: Path) -> Artifact:
        return self._attempted(key, lambda: self._store.put_file(key, path))

    def put_stream(self, key: str, file: BinaryIO) -> Artifact:
        return self._attempted(key, lambda: self._store.put_stream(key, file))

    def _attempted(self, key: str, write: Callable[[], Artifact]) -> Artifact:
        return cast(Artifact, attempted(f"{self._who}.put:{kind_of(key)}", write))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class FullStore:
    """A store with no room left: the kernel refuses what would make a file longer than ``ROOM``, in mid-write.

    For the first ``times`` writes of this process; then somebody has made room.
    """

    ROOM = 1 << 12

    def __init__(self, store: Store, times: int, log: Path) -> None:
        self._store = store
        self._left = times
        self._log = log
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes) -> Artifact:
        return self._cramped(lambda: self._store.put(key, data))

    def put_file(self, key: str, path: Path) -> Artifact:
        return self._cramped(lambda: self._store.put_file(key, path))

    def put_stream(self, key: str, file: BinaryIO) -> Artifact:
        return self._cramped(lambda: self._store.put_stream(key, file))

    def _cramped(self, write: Callable[[], Artifact]) -> Artifact:
        with self._lock:
            if not self._left:
                return write()
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.ROOM, before[1]))
            try:
                return write()
            except (OSError, DailiesError) as error:
                self._left -= 1
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                with self._log.open("a") as file:
                    file.write(json.dumps({"error": str(error)}) + "\n")
                raise
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class UnreliableLedger:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.away = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        return Section(self, name, found) if name in WRITES else found


class Section:
    """``ledger.units`` and its sisters."""

    def __init__(self, ledger: UnreliableLedger, name: str, section: Any) -> None:
        self._ledger, self._name, self._section = ledger, name, section

    def __getattr__(self, method: str) -> Callable[..., Any]:
        function = getattr(self._section, method)
        point = f"ledger.{self._name}.{method}" if method in WRITES[self._name] else ""

        def asked(*args: Any, **kwargs: Any) -> Any:
            self._go_away(point)
            if not point:
                return function(*args, **kwargs)
            return attempted(point, lambda: function(*args, **kwargs))

        return asked

    def _go_away(self, point: str) -> None:
        try:
            if point:
                failpoint(f"{point}:away")
        except Injected:
            self._ledger.away = True
        if self._ledger.away:
            raise Transient("the ledger does not answer")


class UnreliableCompute:
    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    def submit(self, function: str, payload: Mapping[str, Any], unit: str) -> str:
        return str(attempted("compute.submit", lambda: self._compute.submit(function, payload, unit)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compute, name)


# ── the machine that works ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Watched(Mapping[str, Function]):
    """The functions of a table, each with points in it; what begins to work is written down before it does."""

    functions: Mapping[str, Function]

    def __getitem__(self, name: str) -> Function:
        function = self.functions[name]
        run = function.run

        def watched(task: Task) -> Json:
            write_down(name, task)
            failpoint("work.begun")
            refuse("work.refused")
            return run(replace(task, store=cast(Store, UnreliableStore(task.store, "work"))))

        return replace(function, run=watched, timeout=HUNG_S if will_hang() else function.timeout)

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def __len__(self) -> int:
        return len(self.functions)


FUNCTIONS = Watched(remote.FUNCTIONS)


def refuse(point: str) -> None:
    try:
        failpoint(point)
    except Injected as error:
        raise Undecodable(f"not one frame decodes: {error}") from None


def will_hang() -> bool:
    armed = failpoints.parse(os.environ.get(failpoints.SPEC, "")).get("work.begun")
    return armed is not None and armed.action == "hang" and not failpoints.fired(Path(os.environ[failpoints.LOG]))


def write_down(name: str, task: Task) -> None:
    """O_APPEND keeps the lines of several processes whole."""
    line = {"function": name, "media_key": str(task.key), "pid": os.getpid(), "unit": task.unit}
    with (home() / EXECUTIONS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def media_keys(folder: Path) -> list[str]:
    """The upload of each execution that was begun below this home, however it ended."""
    path = folder / EXECUTIONS
    return [json.loads(line)["media_key"] for line in path.read_text().splitlines()] if path.exists() else []
