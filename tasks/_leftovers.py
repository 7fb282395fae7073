"""Working files: what a job writes for itself alone, in the store and on the machine, and who removes it.

    {tenant}/client/videos/{video}/work-{job}/…    what may be read before the job is done
    {tenant}/server/videos/{video}/work-{job}/…    the rest
    $DAILIES_HOME/work/{job}/…                     of the machine that the run is on

They bear the name of their job, so that who finds them can ask the ledger whether it is over. A job that is not over
keeps them whatever became of its runs: the next attempt goes on with them.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from blocks.site import OpenSite
from dailies.errors import DailiesError, Missing
from dailies.home import home
from dailies.ledger.records import FINAL, Job

log = logging.getLogger("dailies.supervisor")


def work_folder(job: Job) -> str:
    """The name of the job's folder beside its video's results."""
    return f"work-{job.id}"


def scratch_of(job_id: str, *, create: bool = False) -> Path:
    folder = home() / "work" / job_id
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear(site: OpenSite, job: Job) -> int:
    """Of a job that is over nothing is left but its results; returns how many objects went.

    What cannot be removed now is found by the next sweep.
    """
    tenant, _, rest = job.subject.partition("/")
    video = rest.partition("/")[0]
    removed = 0
    try:
        for side in ("client", "server") if video else ():
            removed += site.store.delete(f"{tenant}/{side}/videos/{video}/{work_folder(job)}")
        shutil.rmtree(scratch_of(job.id), ignore_errors=True)
    except (DailiesError, OSError) as error:
        log.warning("action=later job=%s error=%s", job.id, error)
    return removed


def clear_orphans(site: OpenSite, since: float) -> int:
    """Once more for every job that ended since: its last run may have written after it was told that it is over."""
    ended = [job for state in FINAL for job in site.ledger.jobs.all(state) if job.updated_at >= since]
    removed = sum(clear(site, job) for job in ended)
    folder = home() / "work"
    for found in folder.iterdir() if folder.is_dir() else ():
        if is_over(site, found.name):
            shutil.rmtree(found, ignore_errors=True)
            removed += 1
    return removed


def is_over(site: OpenSite, job_id: str) -> bool:
    """A job that this ledger does not know is somebody else's: two sites may share a machine."""
    try:
        return site.ledger.jobs.get(job_id).final
    except Missing:
        return False
