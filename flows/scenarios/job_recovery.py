"""job-recovery: transcriptions killed, frozen, starved and poisoned, which all come to the same transcript."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from dailies.errors import BadInput
from tasks import transcription
from tasks._step import REGISTRY
from tasks.job_recovery import crash_points, killed_everywhere, plans, recovered_alone, undisturbed
from tasks.recovery_crowds import crowds_and_chains
from tasks.recovery_damage import damaged_files, no_room_no_ledger
from tasks.recovery_events import redis_away
from tasks.recovery_parts import PARALLEL
from tasks.recovery_workers import real_workers
from tasks.scenario import Mode, scenario

# As the flow passes them: they are defined in that order.
STEPS = [step for step in REGISTRY.values() if step.function.__module__ == transcription.__name__]
POINTS = crash_points(STEPS)
JOBS = {"quick": 4, "full": 90}
AWAY_S = {"quick": 3.0, "full": 60.0}
BESIDE = {"files": damaged_files, "crowds": crowds_and_chains}
WORKER_JOBS = {"quick": 1, "full": 9}
PARTS = ("kills", *BESIDE, "events", "workers", "room")
IN_QUICK = ("kills", *BESIDE, "events", "room")
PRELOADED = (__name__, "flows.transcribe_media")
Lanes = Annotated[int, Field(ge=1, le=16)]


@flow(name="job-recovery", persist_result=False, timeout_seconds=1800)
def job_recovery(mode: Mode = "quick", site: str = "local", parallel: Lanes = 4, only: str = "", seed: int = 0) -> Any:
    """Prove that a job whose worker dies is finished by another, which does nothing again that was done.

    Args:
        mode: quick (a dozen kills, about a minute) or full (at least 200, some of them of real workers).
        site: Where: 'local', or the name of a 'Dailies site' block that is open to scenarios and serves nothing else.
        parallel: How many jobs are killed side by side.
        only: Parts to play, by name and separated by commas: kills, files, crowds, events, workers, room. Empty: all of
            them; quick leaves the workers out.
        seed: Drives every random choice; the journal names it, to replay a run.
    """
    parts = chosen_parts(only, mode)
    with scenario("job-recovery", seed, {"mode": mode, "parallel": parallel, "only": only}, site, PRELOADED) as run:
        run.width = PARALLEL
        whole = undisturbed(run)
        recovered_alone(run, whole)
        beside = [part.submit(run, whole, mode == "full") for name, part in BESIDE.items() if name in parts]
        if "kills" in parts:
            killed_everywhere(run, whole, plans(POINTS, JOBS[mode], seed), parallel)
        for part in beside:
            part.result()
        if "events" in parts:  # alone: it measures how soon an event is there
            redis_away(run, whole, mode == "full")
        if "workers" in parts:  # alone: this supervisor would dispatch the others' jobs as well
            real_workers(run, whole, plans(POINTS, WORKER_JOBS[mode], seed + 1))
        if "room" in parts:  # alone: it takes the ledger from everybody
            no_room_no_ledger(run, whole, AWAY_S[mode])
    return run.state


def chosen_parts(only: str, mode: str) -> list[str]:
    parts = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in parts if name not in PARTS]:
        raise BadInput(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return parts or list(PARTS if mode == "full" else IN_QUICK)
