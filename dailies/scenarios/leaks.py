"""What a scenario may not leave behind: processes, half-written files, listening ports."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from dailies.scenarios.journal import Check, expect
from dailies.scenarios.processes import Nursery, port_in_use

SETTLE_S = 1.0


def no_processes(nursery: Nursery, settle: float = SETTLE_S) -> Check:
    left = [str(stray) for stray in nursery.leftovers(settle)]
    return expect("no process left", left, [], "end it where it is started, or start it in its parent's group")


def no_files(folder: Path, allowed: Collection[str] = ()) -> Check:
    """No temporary file of an interrupted write; ``allowed`` are patterns relative to the folder."""
    name, fix = "no temporary file left", "remove it where the write fails, or sweep it at the next start"
    if not folder.is_dir():
        return Check(name, False, [], f"no such folder: {folder.name}", "look where the files are written")
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.tmp"))
    return expect(name, [path for path in found if not any(fnmatch(path, each) for each in allowed)], [], fix)


def no_ports(ports: Collection[int]) -> Check:
    left = [port for port in sorted(ports) if port_in_use(port)]
    return expect("no port left open", left, [], "close the server before its process is done, or end the process")
