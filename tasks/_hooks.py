"""State hooks. Prefect's worker calls them by keyword: they must be named exactly (flow, flow_run, state)."""

from __future__ import annotations

from typing import Any

from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun

from blocks.site import open_site
from dailies.errors import Conflict, Missing


def cancel_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Canceling the run in Prefect cancels the job: otherwise the supervisor would faithfully start it again."""
    ledger = open_site(flow_run.parameters.get("site", "local")).ledger
    for job in ledger.dispatch.jobs_of(str(flow_run.id)):
        try:
            ledger.jobs.cancel(job)
        except (Conflict, Missing):
            continue  # final already
