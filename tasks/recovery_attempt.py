"""What runs in the child of a trial of job-recovery: one attempt of the production flow, with a trouble of its own."""

from __future__ import annotations

import resource
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from blocks.site import OpenSite, open_site
from dailies.scenarios.unreliable import FullStore
from dailies.store.interface import Store
from tasks import _job
from tasks.bad_day import open_unreliable
from tasks.caption_parts import run_flow

FLOW = "flows.transcribe_media.transcribe_media"
FULL, FORGETFUL = "disk full", "replies lost"


def attempt(
    parameters: dict[str, Any],
    api_url: str,
    tagged: list[str],
    faults: str,
    log: Path,
    ttl: float,
    peak: Path,
    trouble: str,
) -> None:
    """In a child: the production flow, with the scenario's ttl, so that a night has time for hundreds of deaths.

    ``trouble``: the store has no room for a while, or the connections have failpoints.
    """
    vars(_job)["TTL_S"] = ttl
    if trouble == FORGETFUL:
        vars(_job)["open_site"] = open_unreliable
    if trouble == FULL:
        vars(_job)["open_site"] = partial(open_full, log=log)
    try:
        run_flow(FLOW, parameters, api_url, tagged, faults, log)
    finally:
        peak.parent.mkdir(exist_ok=True)
        peak.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def open_full(name: str, log: Path) -> OpenSite:
    site = open_site(name)
    log.parent.mkdir(exist_ok=True)
    return replace(site, store=cast(Store, FullStore(site.store, times=2, log=log)))
