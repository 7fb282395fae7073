"""The faults of video-processing-e2e, and the site that they break: process-video as it is, on a bad day."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from blocks.compute import store_settings
from blocks.site import OpenSite, Site, described, open_site
from dailies.compute.local import LocalCompute
from dailies.errors import BadInput
from dailies.ledger.interface import Ledger
from dailies.scenarios import unreliable
from dailies.store.interface import Store
from tasks import _job
from tasks._step import REGISTRY

DONE = (("DONE", ""), ("awaiting_layout", ""))
IN_QUICK = 3

Seen = tuple[tuple[str, str], tuple[str, str]]


def waiting(code: str, video: str = "processing") -> Seen:
    """What the user sees while the next attempt is to come: the reason is on the job, and the video is worked on."""
    return ("QUEUED", code), (video, "")


def over(code: str) -> Seen:
    return ("FAILED", code), ("error", code)


UNBROKEN = ("processing", "awaiting_layout")


@dataclass(frozen=True)
class Fault:
    """What is broken in a process-video of its own, and what its user is to see right after. ``worked`` counts how
    often compute begins until a later run has mended it."""

    arm: str
    seen: Seen
    worked: int = 1
    attempts: int = 3
    states: tuple[str, ...] = UNBROKEN


AFTER_AN_ERROR = ("processing", "error", "processing", "awaiting_layout")
FAULTS: Mapping[str, Fault] = {
    "compute fails": Fault("work.refused=raise", over("undecodable"), 2, states=AFTER_AN_ERROR),
    "compute killed": Fault("work.put:full_frames#5=kill", waiting("transient"), 2),
    "compute hangs": Fault("work.begun=hang", waiting("timed_out"), 2),
    "no GPU free": Fault("compute.submit=raise", waiting("injected")),
    "store refuses": Fault("store.put:layout.png=raise", over("injected"), attempts=1, states=AFTER_AN_ERROR),
    "ledger refuses": Fault("ledger.units.complete#3=raise", over("injected"), attempts=1, states=AFTER_AN_ERROR),
    "store loses a reply": Fault("store.put:published=lose_reply", waiting("timed_out")),
    "ledger loses a reply": Fault("ledger.generations.publish:reply#2=lose_reply", waiting("timed_out")),
    # The rest is for the full mode.
    "compute's store refuses": Fault("work.put:raw-ocr.db.gz=raise", waiting("injected"), 2),
    "compute's store loses a reply": Fault("work.put:raw-ocr.db.gz:reply=lose_reply", waiting("timed_out"), 2),
    "compute loses the reply to a submission": Fault("compute.submit:reply=lose_reply", waiting("timed_out")),
    "ledger loses the reply to a call's id": Fault("ledger.calls.submitted:reply=lose_reply", waiting("timed_out")),
    "ledger loses the reply to a unit": Fault("ledger.units.complete:reply#3=lose_reply", waiting("timed_out")),
    "ledger loses the reply to a lease": Fault(
        "ledger.leases.acquire:reply=lose_reply", waiting("timed_out", "uploaded")
    ),
    "ledger loses the reply to the status": Fault(
        "ledger.videos.update:reply#3=lose_reply",
        waiting("timed_out", "awaiting_layout"),
        states=("processing", "awaiting_layout", "processing", "awaiting_layout"),
    ),
    "ledger loses the reply to the end": Fault("ledger.jobs.done:reply=lose_reply", DONE),
    "ledger goes away": Fault("ledger.calls.submitted:away=raise", (("RUNNING", ""), ("processing", ""))),
}
QUICK = tuple(FAULTS)[:8]
NO_VIDEO = "no video"


def chosen(names: str, mode: str, seed: int) -> list[str]:
    """Those that were asked for, or what the mode says."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in found if name not in (*FAULTS, NO_VIDEO)]:
        raise BadInput(f"there is no fault {unknown[0]!r}: choose from {', '.join((*FAULTS, NO_VIDEO))}")
    by_mode = list(FAULTS) if mode == "full" else random.Random(seed).sample(QUICK, IN_QUICK)
    return found or [*by_mode, NO_VIDEO]


# ── the flow on a site that breaks ────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def bad_day() -> Iterator[None]:
    """This process's flows get a site with failpoints in it, and a step that fails in passing is not tried again.

    Two tries more would mend what fails once before anybody saw it; what is to be seen is what is left when they do
    not. So one fault ends one attempt.
    """
    opening, retries = vars(_job), {name: step.task.retries for name, step in REGISTRY.items()}
    before, opening["open_site"] = opening["open_site"], open_unreliable
    for step in REGISTRY.values():
        step.task.retries = 0
    try:
        yield
    finally:
        opening["open_site"] = before
        for name, step in REGISTRY.items():
            step.task.retries = retries[name]


def open_unreliable(name: str = "local") -> OpenSite:
    """Modal's machines have no failpoints: there the way to them breaks, and not they."""
    site, compute = open_site(name), None
    if isinstance(site.compute, LocalCompute):
        block = Site() if name == "local" else described(name)
        compute = LocalCompute(site.compute.folder, store_settings(block.store), unreliable.TABLE)
    return replace(
        site,
        store=cast(Store, unreliable.UnreliableStore(site.store, "store")),
        ledger=cast(Ledger, unreliable.UnreliableLedger(site.ledger)),
        compute=cast(Any, unreliable.UnreliableCompute(compute or site.compute)),
    )
