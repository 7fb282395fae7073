"""crop-infer-e2e: from an approved layout to published captions, killed at every step and approved twice at once."""

from __future__ import annotations

from typing import Any

from prefect import flow
from pydantic import PositiveInt

from flows import crop_and_infer, process_video
from tasks._step import Step
from tasks.caption_parts import COMPUTE_POINTS, Starts
from tasks.crop_infer import (
    chosen,
    crash_everywhere,
    keep_the_old,
    recover_approval,
    two_approvals,
    undisturbed,
)
from tasks.scenario import Mode, scenario

LANES = 4
CROWD = 4
STEPS = [step for step in vars(crop_and_infer).values() if isinstance(step, Step)]
POINTS = sorted([point for step in STEPS for point in step.points] + list(COMPUTE_POINTS))
CRASHES = {"quick": 3, "full": len(POINTS)}
PRELOADED = (__name__, process_video.__name__)


@flow(name="crop-infer-e2e", persist_result=False, timeout_seconds=1800)
def crop_infer_e2e(mode: Mode = "quick", site: str = "local", crashes: PositiveInt | None = None, seed: int = 0) -> Any:
    """Prove that an approval leads to exact captions, once, whatever dies on the way.

    Args:
        mode: quick (three crash points, about a minute) or full (all of them, with a worker and a supervisor killed).
        site: Where: 'local', or the name of a 'Dailies site' block that is open to scenarios and serves nothing else.
        crashes: At how many points a run is killed, chosen by the seed; by default what the mode says.
        seed: Drives every random choice; the journal names it, to replay a run.
    """
    full, parameters = mode == "full", {"mode": mode, "crashes": crashes}
    points = chosen(POINTS, crashes or CRASHES[mode], seed)
    with scenario("crop-infer-e2e", seed, parameters, site, PRELOADED) as run, Starts(run) as starts:
        whole = undisturbed(run, starts)
        beside = [two_approvals.submit(run, whole, CROWD if full else 0), keep_the_old.submit(run, whole)]
        crash_everywhere(run, whole, starts, points, LANES)
        for part in beside:
            part.result()
        if full:  # alone: this supervisor would dispatch the others' jobs as well
            recover_approval(run, whole, starts)
        run.journal.metric("executions", starts.all if starts.known else None)
    return run.state
