"""What the parts of job-recovery share: talks of which the text is known, jobs that are killed, what came of them."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from blocks.site import OpenSite, open_site
from dailies.events import schemas
from dailies.failpoints import fired
from dailies.ledger.records import RECOVERED, Caps, Event, Job, JobRequest, JobState, Unit
from dailies.media.keys import MediaKey
from dailies.scenarios.processes import Child
from dailies.scenarios.unreliable import FullStore
from dailies.speech.dtmf import TALLY
from dailies.speech.sample import make_talk
from dailies.store.interface import Store
from tasks import _job
from tasks._leftovers import clear_orphans, work_folder
from tasks.bad_day import open_unreliable
from tasks.caption_parts import (
    FLOW_S,
    LOOK_S,
    Killed,
    attempt_tags,
    damaged,
    files_of,
    published_bytes,
    remains,
    run_flow,
)
from tasks.contention import finish
from tasks.scenario import MANY, TENANT, Scenario
from tasks.supervision import Swept, recover

KIND = "transcribe-media"
FLOW = "flows.transcribe_media.transcribe_media"
PHRASES = 6
PARALLEL = 2
TTL_S = 1.0
# Attempts beyond those that a scenario kills: see Trial.is_starved.
SPARE = 2
AFTER_TWO = "transcribe_chunk:committed#2"


# ── talks and jobs ────────────────────────────────────────────────────────────────────────────────────────────────────

_making = threading.Lock()


def talk(run: Scenario) -> tuple[Path, str]:
    """One recording for all uploads, so that whatever is made of two of them must be alike."""
    path, text = run.place / "talk.wav", run.place / "talk.txt"
    with _making:
        if not text.exists():
            text.write_text(make_talk(path, PHRASES, run.journal.seed))
    return path, text.read_text()


@dataclass(frozen=True)
class Death:
    """When an attempt died, and the chunks that were finished by then, by the digest of their sound."""

    when: float
    done: frozenset[str]


@dataclass
class Trial:
    """One job of its own, on an upload of its own, and all that is counted of it."""

    run: Scenario
    name: str
    ttl: float = TTL_S
    max_attempts: int = 3
    deployment: str = ""
    """Of the workers that its runs are for; without one the scenario starts them itself."""
    exactly: bool = False
    """No attempts to spare: this trial is about how many there are."""
    attempts_may_differ: bool = False
    """Where a fault takes the ledger itself away, how many attempts it costs is not ours to say."""
    job: Job = field(init=False)
    key: str = field(init=False)
    children: list[Child] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    begun: int = 0
    starved: int = 0

    def __post_init__(self) -> None:
        self.key = f"{TENANT}/client/videos/{self.run.named(self.name)}/talk.wav"
        self.run.store.put_file(self.key, talk(self.run)[0])
        params = {"tenant": TENANT, "media_key": self.key, "engine": "dtmf", "parallel": PARALLEL}
        spare = 0 if self.exactly else SPARE
        attempts = self.max_attempts + spare
        request = JobRequest(TENANT, KIND, self.subject, params, self.deployment, attempts)
        self.job = self.run.ledger.jobs.submit(request)
        if not self.deployment:
            claim(self.run)

    @property
    def video(self) -> str:
        return MediaKey.parse(TENANT, self.key).video

    @property
    def subject(self) -> str:
        return f"{TENANT}/{self.video}"

    @property
    def tally(self) -> Path:
        return self.run.place / "tallies" / f"{self.name}.jsonl"

    def log(self, attempt: int) -> Path:
        return self.run.place / "faults" / f"{self.name}-{attempt}.jsonl"

    def start(self, faults: str = "", trouble: str = "") -> Child:
        """The job's current attempt, in a process of its own, as a worker gets it from the supervisor."""
        self.job = self.run.ledger.jobs.get(self.job.id)
        self.begun = self.job.attempt
        self.tally.parent.mkdir(exist_ok=True)
        name = f"{self.name}-{self.job.attempt}"
        child = self.run.nursery.spawn(
            attempt,
            {"site": self.run.site.name, **self.job.params},
            self.run.environment["PREFECT_API_URL"],
            [self.run.pool, *attempt_tags(self.job)],
            faults,
            self.log(self.job.attempt),
            self.ttl,
            self.peak(self.job.attempt),
            trouble,
            name=name,
            env={**self.run.environment, TALLY: str(self.tally)},
            log=self.run.log(name),
        )
        self.children.append(child)
        return child

    def peak(self, attempt: int) -> Path:
        return self.run.place / "peaks" / f"{self.name}-{attempt}"

    def peak_kib(self) -> int:
        return int(self.peak(self.run.ledger.jobs.get(self.job.id).attempt).read_text())

    def kill_at(self, point: str) -> Killed:
        """Let the current attempt die at that point, which its own evidence proves."""
        fault = f"killed at {point}"
        self.run.journal.fault(fault)
        child = self.start(f"{point}=kill")
        code, evidence = child.wait(FLOW_S), fired(self.log(self.job.attempt))
        if not evidence and self.is_starved():
            return self.kill_at(point)
        if not evidence:
            raise RuntimeError(f"{child.name} ended with {code} and never came to {point}: see its log")
        self.run.journal.fault(fault, fired=1, evidence=f"pid {child.pid} exit {code}, job {self.job.id}")
        return self.died(float(str(evidence[0]["time"])))

    def is_starved(self) -> bool:
        """Whether the machine kept a healthy attempt from renewing a lease of a second, so that it was replaced.

        That is the ttl's doing and no death of ours, but nothing may be lost by it either: it counts as one.
        """
        job = self.run.ledger.jobs.get(self.job.id)
        if job.message != RECOVERED or job.attempt == self.begun or job.final or self.starved == SPARE:
            return False
        self.starved += 1
        self.deaths.append(Death(time.time(), frozenset(done_chunks(self.run.ledger.units.of(job.id)))))
        claim(self.run)
        return True

    def died(self, when: float) -> Killed:
        """Write down what was finished: none of it may be done again."""
        killed = remains(self.run, self.job, when)
        self.deaths.append(Death(when, frozenset(done_chunks(killed.units))))
        return killed

    def hand_on(self, killed: Killed) -> float:
        """Until the supervisor's sweep has given the job to the next attempt; how long that took since the kill."""

        def recovered() -> bool:
            time.sleep(LOOK_S / 4)
            recover(self.run.site, Swept())
            return self.run.ledger.jobs.get(self.job.id).attempt > killed.job.attempt

        self.run.until(recovered, self.ttl + 60, f"job {self.job.id} was not recovered")
        took = time.time() - killed.time
        claim(self.run)
        return took

    def finish(self, faults: str = "", trouble: str = "") -> None:
        finish([self.start(faults, trouble)], FLOW_S)
        if not self.attempts_may_differ and self.is_starved():
            self.finish()
        self.job = self.run.ledger.jobs.get(self.job.id)

    def finish_somehow(self) -> None:
        """As many attempts as it takes: what one could not write down, the sweep finds."""

        def over() -> bool:
            time.sleep(LOOK_S)
            recover(self.run.site, Swept())
            claim(self.run)
            job = self.run.ledger.jobs.get(self.job.id)
            if job.state is JobState.QUEUED and job.attempt > self.begun and self.is_claimed(job):
                self.finish()
            return self.run.ledger.jobs.get(self.job.id).final

        self.run.until(over, FLOW_S, f"job {self.job.id} did not come to an end")
        self.job = self.run.ledger.jobs.get(self.job.id)

    def is_claimed(self, job: Job) -> bool:
        return any(one.id == job.id for one in self.run.ledger.dispatch.unbound(0))

    def events(self) -> list[Event]:
        return list(self.run.ledger.outbox.of(self.job.id))

    def heard(self) -> list[dict[str, Any]]:
        """What the engine itself wrote down, in order."""
        return [json.loads(line) for line in self.tally.read_text().splitlines()] if self.tally.exists() else []

    def files(self) -> dict[str, str]:
        """The digests of the published transcript, by file name."""
        return {file.name: file.sha256 for file in files_of(published_bytes(self.run, self.key), "transcript")}

    def working_files(self) -> list[str]:
        stored = [
            found.key
            for side in ("client", "server")
            for found in self.run.store.list(f"{TENANT}/{side}/videos/{self.video}")
            if f"/{work_folder(self.job)}/" in found.key
        ]
        scratch = self.run.place / "work" / self.job.id
        return stored + ([str(scratch)] if scratch.exists() else [])


def sweep_machine(run: Scenario) -> None:
    """What the supervisor of the machine that the runs were on removes once an hour."""
    finish([run.nursery.spawn(clear_machine, run.site.name, name="sweeper", env=run.environment)], 60)


def clear_machine(name: str) -> None:
    clear_orphans(open_site(name), 0.0)


def claim(run: Scenario) -> None:
    """Whatever waits is given to a run of ours: this scenario is its own dispatcher."""
    while run.ledger.dispatch.next(Caps(MANY, MANY)) is not None:
        pass


def done_chunks(units: Sequence[Unit]) -> list[str]:
    return [
        unit.result["facts"]["sha256"] for unit in units if unit.step == "transcribe_chunk" and unit.state == "DONE"
    ]


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
