"""The work as the flow transcribe-media. Importing this imports Prefect, whose settings must stand by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

import flows.transcribe_media  # noqa: F401 - in the process that the children are forked from
from benchmarks._flows import bare_tasks
from benchmarks._talk import ENGINE, timed
from blocks.site import OpenSite, open_site
from dailies.ledger.records import Caps, Job, JobRequest, JobState
from dailies.media.keys import MediaKey
from tasks._step import Output
from tasks.caption_parts import attempt_tags
from tasks.published import published
from tasks.recovery_parts import KIND, attempt, done_chunks
from tasks.supervision import Swept, recover

TENANT = "benchmark"
TTL_S = 1.0
ANY = Caps(1000, 1000)


def worker(job: Job, api_url: str, faults: str, log: Path, times: Path) -> None:
    """In a child: one attempt of the job, as a worker gets it from the supervisor."""
    with timed(times):
        attempt(
            {"site": "local", **job.params}, api_url, attempt_tags(job), faults, log, TTL_S, log.with_suffix(".kib"), ""
        )


def empty_flow(tasks: int, api_url: str, times: Path) -> None:
    with (
        temporary_settings({PREFECT_API_URL: api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        timed(times),
    ):
        bare_tasks(tasks)


class Records:
    """What the ledger has on record of a job, and the part of the supervisor that hands jobs on."""

    def __init__(self) -> None:
        self.site: OpenSite = open_site("local")
        self.jobs: dict[str, str] = {}

    def submit(self, name: str, talk: Path) -> Job:
        key = f"{TENANT}/client/videos/{name}/talk.wav"
        self.site.store.put_file(key, talk)
        params = {"tenant": TENANT, "media_key": key, "engine": ENGINE, "parallel": 1}
        job = self.site.ledger.jobs.submit(JobRequest(TENANT, KIND, f"{TENANT}/{name}", params))
        self.jobs[name] = job.id
        return self.claim(name)

    def job(self, name: str) -> Job:
        return self.site.ledger.jobs.get(self.jobs[name])

    def claim(self, name: str) -> Job:
        """Give whatever waits to a run of ours: this benchmark is its own dispatcher."""
        while self.site.ledger.dispatch.next(ANY) is not None:
            pass
        return self.job(name)

    def sweep(self, name: str, died: Job) -> bool:
        recover(self.site, Swept())
        return self.job(name).attempt > died.attempt

    def finished(self, name: str) -> frozenset[str]:
        return frozenset(done_chunks(list(self.site.ledger.units.of(self.jobs[name]))))

    def done_at(self, name: str) -> float:
        job = self.job(name)
        if job.state is not JobState.DONE:
            raise RuntimeError(f"the job {job.id} is {job.state}: {job.error}")
        return job.updated_at

    def subtitles(self, name: str) -> str:
        key = MediaKey.parse(TENANT, str(self.job(name).params["media_key"]))
        manifest: dict[str, Any] = published(self.site, key)
        return self.site.store.get(Output.from_json(manifest["transcript"]).file("transcript.srt").key).decode()

    def close(self) -> None:
        self.site.ledger.close()
