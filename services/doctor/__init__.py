"""What is here, what answers, and what to do about what does not.

    for finding in examine("local"): ...

Each examination is a generator of findings and runs in a thread of its own: one that raises or hangs becomes a finding,
and the others go on. Nothing is started and nothing is kept: what is written for a test is deleted again.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from rich.console import Console

from services.doctor.configuration import configuration, hide_secrets
from services.doctor.finding import Examination, Finding, Visit, healthy, render, to_json
from services.doctor.machine import gpu, media, paths, versions
from services.doctor.orchestrator import drift, look_for_server, prefect
from services.doctor.site import compute, events, failures, jobs, ledger, scenarios, store, stream
from services.environment import SETTINGS

__all__ = ["Finding", "examine", "render", "run", "to_json"]

LIMIT_S = 12.0
SERVER_S = 6.0
EXAMINATIONS: tuple[tuple[str, Callable[[Visit], Iterable[Finding]]], ...] = (
    ("versions", versions),
    ("paths", paths),
    ("store", store),
    ("ledger", ledger),
    ("compute", compute),
    ("events", events),
    ("stream", stream),
    ("prefect", prefect),
    ("drift", drift),
    ("jobs", jobs),
    ("failures", failures),
    ("scenarios", scenarios),
    ("media", media),
    ("gpu", gpu),
    ("configuration", configuration),
)


def run(site: str, as_json: bool) -> int:
    """What `dailies doctor` does; 0 when nothing is wrong."""
    os.environ.setdefault("DO_NOT_TRACK", SETTINGS["DO_NOT_TRACK"])
    findings = examine(site)
    if as_json:
        sys.stdout.write(to_json(findings) + "\n")
    else:
        Console().print(render(findings))
    return 0 if healthy(findings) else 1


def examine(site: str) -> list[Finding]:
    visit = Visit(site, time.monotonic() + LIMIT_S)
    # Imported once, here: threads that import the same cycle at the same time may see half of it. What is wrong with it
    # is said by each examination that needs it.
    with suppress(Exception):
        importlib.import_module("blocks.site")
    first = Examination("prefect", partial(look_for_server, visit))
    first.start()
    about_server = first.result(min(visit.deadline, time.monotonic() + SERVER_S))
    examinations = [Examination(area, partial(function, visit)) for area, function in EXAMINATIONS]
    for examination in examinations:
        examination.start()
    found = {examination.name: examination.result(visit.deadline) for examination in examinations}
    found["prefect"] = about_server + found["prefect"]
    return hide_secrets([finding for area in found for finding in found[area]])
