"""orchestrator-smoke: the whole update of a catalogue, on a federation that misbehaves, killed wherever it hurts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from dailies.catalog.clusters import assigner
from dailies.catalog.embedders import embedder
from dailies.errors import BadInput, NotConfigured
from tasks import smoke_report
from tasks.orchestrator_smoke import Settings, smoke
from tasks.scenario import Mode, scenario
from tasks.smoke_failures import fail_everywhere
from tasks.smoke_plan import failures

LANES = 2
VIDEOS = {"quick": 1500, "full": 6000}
VIDEOS_OF_A_LANE = {"quick": 400, "full": 800}
PARTS = ("smoke", "failures")
PRELOADED = (__name__, "flows.update_catalog")
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]


@flow(name="orchestrator-smoke", persist_result=False, timeout_seconds=1800)
def orchestrator_smoke(
    mode: Mode = "quick",
    site: str = "local",
    gpu: bool = False,
    keep_workdir: bool = False,
    skip_failure_checks: bool = False,
    use_systemctl: bool = False,
    systemd_unit: str = "",
    source_db: str = "",
    max_instances: Count = 0,
    max_channels: Count = 30,
    max_videos_pages: Count = 0,
    seed_videos_limit: AtLeastOne = 2000,
    concurrency: AtLeastOne = 4,
    nlist: Count = 0,
    only: str = "",
    seed: int = 0,
) -> Any:
    """Prove that an update makes what it says, and that nobody ever sees half of it, whatever dies on the way.

    Args:
        mode: quick (seven failures, within a minute) or full (SIGKILL and an error at every point
            of every step, and a full disk wherever one is written to).
        site: Where: only 'local'. Updates write to a folder of one machine, and a trial keeps to its own.
        gpu: Vectors and index on a GPU; where there is none the scenario is skipped, and says why.
        keep_workdir: Keep the catalogues of the run beside its report.
        skip_failure_checks: Leave the failures out.
        use_systemctl: Stop and start a service around the publication.
        systemd_unit: Which one.
        source_db: Copy the beginning from this production database. Empty: from the scenario's own federation.
        max_instances: Ask so many hosts at most; 0 for all.
        max_channels: So many channels at most, of the beginning and of a host; 0 for all.
        max_videos_pages: So many pages of a channel at most; 0 for all, but of a host that never ends.
        seed_videos_limit: So many videos to begin with.
        concurrency: Hosts at once.
        nlist: Cells of a large index; 0 chooses by the number of videos. The original's smoke test has 256.
        only: Parts to play, by name and separated by commas: smoke, failures. Empty: both.
        seed: Drives every random choice; the journal names it, to replay a run.
    """
    parts = chosen_parts(only, skip_failure_checks)
    if site != "local":
        raise BadInput(f"orchestrator-smoke runs on the site 'local' alone, not on {site!r}: leave it out")
    if use_systemctl and not systemd_unit:
        raise BadInput("use_systemctl needs the name of the service: set systemd_unit")
    if source_db and not Path(source_db).is_file():
        raise BadInput(f"source_db: there is no database at {source_db}")
    settings = Settings(
        videos=VIDEOS[mode],
        gpu=gpu,
        max_instances=max_instances,
        max_channels=max_channels,
        max_videos_pages=max_videos_pages,
        seed_videos_limit=seed_videos_limit,
        concurrency=concurrency,
        nlist=nlist,
        source_db=source_db,
        service=f"systemd:{systemd_unit}" if use_systemctl else "none",
        original=mode == "full",
    )
    parameters = {
        "mode": mode,
        "gpu": gpu,
        "keep_workdir": keep_workdir,
        "skip_failure_checks": skip_failure_checks,
        "use_systemctl": use_systemctl,
        "systemd_unit": systemd_unit,
        "source_db": source_db,
        "max_instances": max_instances,
        "max_channels": max_channels,
        "max_videos_pages": max_videos_pages,
        "seed_videos_limit": seed_videos_limit,
        "concurrency": concurrency,
        "nlist": nlist,
        "only": only,
    }
    with scenario("orchestrator-smoke", seed, parameters, site, PRELOADED) as run:
        smoke_report.begin(run.journal)
        run.store.check()
        try:
            if why := lacking(settings, use_systemctl):
                run.journal.skip(why)
            else:
                play(run, settings, parts, mode)
        finally:
            smoke_report.save(run, keep_workdir)
    smoke_report.finish(run.journal)
    return run.state


def play(run: Any, settings: Settings, parts: list[str], mode: Mode) -> None:
    chosen = failures(mode == "full")
    lanes = [
        fail_everywhere.submit(run, chosen[number::LANES], number, VIDEOS_OF_A_LANE[mode])
        for number in (range(LANES) if "failures" in parts else ())
    ]
    if "smoke" in parts:
        smoke(run, settings)
    for each in lanes:
        run.journal.smoke["failure_scenarios"] |= each.result()


def lacking(settings: Settings, use_systemctl: bool) -> str:
    """Why this cannot be played here; empty where it can."""
    if use_systemctl and shutil.which("systemctl") is None:
        return "there is no systemctl here to stop and start the service with"
    if settings.gpu:
        try:
            assigner("gpu")
            embedder(settings.model, "cuda")
        except NotConfigured as error:
            return f"no GPU to work on: {error}"
    return ""


def chosen_parts(only: str, skip_failure_checks: bool) -> list[str]:
    parts = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in parts if name not in PARTS]:
        raise BadInput(f"there is no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    return [name for name in parts or PARTS if not (name == "failures" and skip_failure_checks)]
