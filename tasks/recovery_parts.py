"""What the parts of job-recovery share: talks of which the text is known, and jobs that are killed on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

from blocks.site import open_site
from dailies.errors import Transient
from dailies.failpoints import fired
from dailies.ledger.interface import Ledger
from dailies.ledger.records import RECOVERED, Caps, Event, Job, JobRequest, JobState, Unit
from dailies.ledger.sqlite import SqliteLedger
from dailies.media.keys import MediaKey
from dailies.scenarios.processes import Child
from dailies.speech.dtmf import TALLY
from dailies.speech.sample import make_talk
from tasks._leftovers import clear_orphans, work_folder
from tasks.caption_parts import FLOW_S, LOOK_S, attempt_tags, files_of, published_bytes
from tasks.contention import finish
from tasks.recovery_attempt import attempt
from tasks.scenario import MANY, TENANT, Scenario
from tasks.supervision import Swept, recover

KIND = "transcribe-media"
PHRASES = 6
PARALLEL = 2
# Attempts beyond those that a scenario kills: see Trial.is_lost.
SPARE = 2
# As a run says that its lease was over, and a job why it will be tried again.
SUPERSEDED = "Superseded"
FROM_PREFECT = ("Trying again: PrefectHTTPStatusError", "'503 ")
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


def ttl_of(ledger: Ledger) -> float:
    """Short, for a night to have time for hundreds of deaths; but a healthy run has to renew it in time.

    A ledger behind HTTP takes longer for that, the more so while others use it too.
    """
    return 1.0 if isinstance(ledger, SqliteLedger) else 3.0


@dataclass(frozen=True)
class Death:
    """When an attempt died, and the chunks that were finished by then, by the digest of their sound."""

    when: float
    done: frozenset[str]
    put_off: bool = False
    """It ended by itself, and said that it would be tried again: nobody had to recover it."""


@dataclass
class Trial:
    """One job of its own, on an upload of its own, and all that is counted of it."""

    run: Scenario
    name: str
    ttl: float = 0.0
    """Of its leases; left out, the shortest that the ledger can hold."""
    max_attempts: int = 3
    deployment: str = ""
    """Of the workers that its runs are for; without one the scenario starts them itself."""
    exactly: bool = False
    """No attempts to spare: this trial is about how many there are."""
    attempts_may_differ: bool = False
    """Where a fault takes the ledger itself away, how many attempts it costs is not ours to say."""
    job: Job = field(init=False)
    key: str = field(init=False)
    deaths: list[Death] = field(default_factory=list)
    begun: int = 0
    starved: int = 0

    def __post_init__(self) -> None:
        self.ttl = self.ttl or ttl_of(self.run.ledger)
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
        return self.run.nursery.spawn(
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

    def peak(self, attempt: int) -> Path:
        return self.run.place / "peaks" / f"{self.name}-{attempt}"

    def peak_kib(self) -> int:
        return int(self.peak(self.run.ledger.jobs.get(self.job.id).attempt).read_text())

    def kill_at(self, point: str) -> Death:
        """Let the current attempt die at that point, which its own evidence proves."""
        fault = f"killed at {point}"
        self.run.journal.fault(fault)
        child = self.start(f"{point}=kill")
        code, evidence = child.wait(FLOW_S), fired(self.log(self.job.attempt))
        if not evidence and self.is_lost():
            return self.kill_at(point)
        if not evidence:
            raise RuntimeError(f"{child.name} ended with {code} and never came to {point}: see its log")
        self.run.journal.fault(fault, fired=1, evidence=f"pid {child.pid} exit {code}, job {self.job.id}")
        return self.died(float(str(evidence[0]["time"])))

    def is_lost(self) -> bool:
        """Whether a healthy attempt ended without our doing, so that another one follows.

        Either the machine kept it from renewing its short lease, or Prefect's server did not answer it. That is no
        death of ours, but nothing may be lost by it either: it counts as one.
        """
        if self.has_lost_its_lease():
            self.run.until(self.is_recovered, self.ttl + 60, f"job {self.job.id} was not recovered")
        job = self.run.ledger.jobs.get(self.job.id)
        put_off = job.error_code == Transient.code and all(word in job.message for word in FROM_PREFECT)
        if not (job.message == RECOVERED or put_off) or job.attempt == self.begun or job.final:
            return False
        if self.starved + self.put_off == SPARE:
            return False
        done = frozenset(done_chunks(self.run.ledger.units.of(job.id)))
        self.deaths.append(Death(time.time(), done, put_off))
        self.starved += not put_off
        self.run.until(lambda: self.is_claimed(job), FLOW_S, f"job {job.id} did not become due again")
        return True

    def has_lost_its_lease(self) -> bool:
        """Whether the attempt that ended says that it did for this, and nobody has looked after its job since."""
        job = self.run.ledger.jobs.get(self.job.id)
        if job.state is not JobState.RUNNING or job.attempt != self.begun:
            return False
        ours = FlowRunFilter(tags=FlowRunFilterTags(all_=attempt_tags(job)))
        with get_client(sync_client=True) as client:
            states = [found.state for found in client.read_flow_runs(flow_run_filter=ours)]
        return any(state is not None and state.name == SUPERSEDED for state in states)

    @property
    def put_off(self) -> int:
        return sum(death.put_off for death in self.deaths)

    def died(self, when: float) -> Death:
        """Write down what was finished: none of it may be done again.

        A request that was on its way to a server still counts when it comes there, as long as the lease lasts.
        """
        if not isinstance(self.run.ledger, SqliteLedger):
            time.sleep(max(0.0, when + self.ttl - time.time()))
        self.deaths.append(Death(when, frozenset(done_chunks(self.run.ledger.units.of(self.job.id)))))
        return self.deaths[-1]

    def hand_on(self, death: Death) -> float:
        """Until the supervisor's sweep has given the job to the next attempt; how long that took since the death."""
        self.run.until(self.is_recovered, self.ttl + 60, f"job {self.job.id} was not recovered")
        took = time.time() - death.when
        claim(self.run)
        return took

    def is_recovered(self) -> bool:
        time.sleep(LOOK_S / 4)
        recover(self.run.site, Swept())
        return self.run.ledger.jobs.get(self.job.id).attempt > self.begun

    def finish(self, faults: str = "", trouble: str = "") -> None:
        finish([self.start(faults, trouble)], FLOW_S)
        if not self.attempts_may_differ and self.is_lost():
            self.finish()
        self.job = self.run.ledger.jobs.get(self.job.id)

    def finish_somehow(self) -> None:
        """As many attempts as it takes: what one could not write down, the sweep finds."""

        def over() -> bool:
            time.sleep(LOOK_S)
            recover(self.run.site, Swept())
            job = self.run.ledger.jobs.get(self.job.id)
            if job.state is JobState.QUEUED and job.attempt > self.begun and self.is_claimed(job):
                self.finish()
            return self.run.ledger.jobs.get(self.job.id).final

        self.run.until(over, FLOW_S, f"job {self.job.id} did not come to an end")
        self.job = self.run.ledger.jobs.get(self.job.id)

    def is_claimed(self, job: Job) -> bool:
        claim(self.run)
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
