"""The part of job-recovery with real workers, a real supervisor and the ttl of production: they die, too."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

from dailies import failpoints
from dailies.events import schemas
from dailies.failpoints import fired
from dailies.ledger.holding import TTL_S
from dailies.ledger.records import Event, JobState, Unit
from dailies.scenarios.processes import Child
from dailies.scenarios.undertaker import strike
from dailies.speech.dtmf import TALLY
from tasks.caption_parts import FLOW_S
from tasks.contention import RESCUE_S, part
from tasks.job_recovery import Plan
from tasks.recovery_attempt import FLOW
from tasks.recovery_events import in_time
from tasks.recovery_findings import Whole, findings, histogram, report
from tasks.recovery_parts import KIND, Death, Trial, done_chunks
from tasks.scenario import Scenario

SLOTS = 2
WORKER = "worker"
LONG_S = 40
RESUMED_S = 12.0
# Prefect's worker waits for its runs; who shuts a machine down kills it after a while.
DRAIN_S = 10.0
HANDED_BACK_S = 5.0


@dataclass
class Crew:
    """One worker and one supervisor, always under the same names: who comes back is who was there."""

    run: Scenario
    worker: Child = field(init=False)
    supervisor: Child = field(init=False)

    def __post_init__(self) -> None:
        self.hire_worker()
        self.hire_supervisor()

    def hire_worker(self) -> None:
        self.worker = self.run.worker(WORKER)

    def hire_supervisor(self) -> None:
        self.supervisor = self.run.supervisor("supervisor", SLOTS)


def submitted(run: Scenario, name: str, faults: str) -> Trial:
    tally = run.place / "tallies" / f"{name}.jsonl"
    tally.parent.mkdir(exist_ok=True)
    armed = failpoints.environment(faults, run.place / "faults" / f"{name}-1.jsonl")
    deployment = run.deploy(KIND, FLOW, {**armed, TALLY: str(tally)}, name)
    return Trial(run, name, TTL_S, deployment=deployment)


@part("real-workers")
def real_workers(run: Scenario, whole: Whole, chosen: Sequence[Plan]) -> None:
    """Worker, supervisor and runs killed under a supervisor's eyes: each job is done, with nothing done twice."""
    crew = Crew(run)
    with run.journal.span("workers", "one by one"):
        alone = [worker_killed(run, crew), all_killed(run, crew), drained(run, crew)]
    with run.journal.span("workers", f"{len(chosen)} jobs killed twice"):
        together = [
            submitted(run, f"worker-{number}", "; ".join(f"{point}=kill" for point in plan))
            for number, plan in enumerate(chosen)
        ]
        for trial in together:
            run.until(partial(is_over, trial), 3 * FLOW_S, f"job {trial.job.id} did not come to an end")
            count_deaths(trial)
    report(run, "workers", [findings(trial, whole) for trial in (*alone, *together)])
    measure(run, together)
    for child in (crew.worker, crew.supervisor):
        child.terminate(DRAIN_S)


def is_over(trial: Trial) -> bool:
    return trial.run.ledger.jobs.get(trial.job.id).final


def wait_for_the_end(trial: Trial) -> Trial:
    trial.run.until(lambda: is_over(trial), FLOW_S, f"job {trial.job.id} did not come to an end")
    trial.job = trial.run.ledger.jobs.get(trial.job.id)
    return trial


def count_deaths(trial: Trial) -> None:
    """From the evidence that each run left before it killed itself, and what was told before another one took over.

    Not only before it died: a request that was on its way to a server still counts when it comes there.
    """
    fault = "killed under a worker"
    trial.run.journal.fault(fault)
    events = trial.events()
    for entry in fired(trial.log(1)):
        when = float(str(entry["time"]))
        told = {event.data["chunk_index"] for event in told_until_the_next_run(events, when)}
        units = [unit for unit in trial.run.ledger.units.of(trial.job.id) if number_of(unit) in told]
        trial.deaths.append(Death(when, frozenset(done_chunks(units))))
        evidence = f"pid {entry['pid']} at {entry['name']}, job {trial.job.id}"
        trial.run.journal.fault(fault, fired=1, evidence=evidence)


def told_until_the_next_run(events: Sequence[Event], died: float) -> list[Event]:
    """The chunks' events, up to the first run that began after this moment."""
    own = takewhile(lambda event: event.type != "dailies.job.running" or event.time <= died, events)
    return [event for event in own if event.type == schemas.CHUNK_TRANSCRIBED]


def number_of(unit: Unit) -> int | None:
    found = (unit.result or {}).get("facts", {}).get("number")
    return int(found) if found is not None else None


# ── one by one ────────────────────────────────────────────────────────────────────────────────────────────────────────


def worker_killed(run: Scenario, crew: Crew) -> Trial:
    """Its runs go on without it: what is healthy is not recovered."""
    trial = submitted(run, "worker-killed", "transcribe_chunk:after#2=sleep(5)")
    run.until(lambda: bool(fired(trial.log(1))), FLOW_S, "the run did not come to its second chunk")
    kill(run, "worker killed", crew.worker)
    crew.hire_worker()
    return wait_for_the_end(trial)


def all_killed(run: Scenario, crew: Crew) -> Trial:
    """Run and worker together; and the supervisor in the middle of the recovery."""
    trial = submitted(run, "all-killed", "make_transcript:after=kill")
    run.until(lambda: bool(fired(trial.log(1))), FLOW_S, "the run did not come to its transcript")
    kill(run, "worker killed", crew.worker)
    run.until(lambda: has_told(trial, schemas.RECOVERY_STARTED), FLOW_S, "no recovery was started")
    kill(run, "supervisor killed in mid-recovery", crew.supervisor)
    crew.hire_supervisor()
    crew.hire_worker()
    wait_for_the_end(trial)
    count_deaths(trial)
    return trial


def drained(run: Scenario, crew: Crew) -> Trial:
    """A run that is told to stop hands its job back, at no cost; then its worker is told, too.

    Not at the same moment: Prefect's worker then kills its runs before they can say anything, which is a crash.
    """
    trial = submitted(run, "drained", f"transcribe_chunk:after#2=sleep({LONG_S})")
    trial.attempts_may_differ = True
    run.until(lambda: bool(fired(trial.log(1))), FLOW_S, "the run did not come to its second chunk")
    asked, (entry, *_) = time.time(), fired(trial.log(1))
    told = [stray for stray in run.nursery.leftovers() if stray.pid == entry["pid"]]
    for stray in told:
        strike(stray.pid, stray.born, signal.SIGTERM)
    in_time(run, lambda: job_state(trial) is not JobState.RUNNING, DRAIN_S)
    code = crew.worker.terminate(DRAIN_S)
    evidence = f"run {entry['pid']} and worker {crew.worker.pid}, exit {code}"
    run.journal.fault("run and worker told to stop", fired=len(told), evidence=evidence)
    crew.hire_worker()
    check_drained(wait_for_the_end(trial), asked)
    return trial


def check_drained(trial: Trial, asked: float) -> None:
    """What is on record of a job that was handed back once, by a run that was asked to."""
    journal, job = trial.run.journal, trial.run.ledger.jobs.get(trial.job.id)
    back = [event.time - asked for event in trial.events() if event.type == "dailies.job.queued" and event.time > asked]
    journal.expect_at_most("drained: handed back within (s)", back[0] if back else None, HANDED_BACK_S)
    recovered = has_told(trial, schemas.RECOVERY_STARTED)
    journal.expect("drained: it is no crash", (job.attempt, job.crashes, recovered), (2, 0, False), "see hand_back")


def job_state(trial: Trial) -> JobState:
    return trial.run.ledger.jobs.get(trial.job.id).state


def has_told(trial: Trial, kind: str) -> bool:
    return any(event.type == kind for event in trial.events())


def kill(run: Scenario, fault: str, child: Child) -> None:
    child.kill()
    code = child.wait(FLOW_S)
    run.journal.fault(fault, fired=1, evidence=f"{child.name} pid {child.pid} exit {code}")


# ── how long it took ──────────────────────────────────────────────────────────────────────────────────────────────────


def measure(run: Scenario, trials: Sequence[Trial]) -> None:
    """Of those whose worker and supervisor were there all the time: a new one has to start first."""
    deaths = sorted(delay for trial in trials for delay in death_to_running(trial))
    resumed = sorted(delay for trial in trials for delay in started_to_resumed(trial))
    run.journal.metric("worker_kills", len(deaths))
    run.journal.metric("worker_death_to_running_s", histogram(deaths))
    run.journal.metric("worker_recovery_start_to_resumed_s", histogram(resumed))
    fix = "is the worker polling every second, and the machine not overloaded?"
    run.journal.expect_at_most("workers: running elsewhere within (s)", worst(deaths), RESCUE_S, fix)
    run.journal.expect_at_most("workers: resumed after its start within (s), p95", p95(resumed), RESUMED_S, fix)


def death_to_running(trial: Trial) -> list[float]:
    running = [event.time for event in trial.events() if event.type == "dailies.job.running"]
    return [later[0] - death.when for death in trial.deaths if (later := [at for at in running if at > death.when])]


def started_to_resumed(trial: Trial) -> list[float]:
    starts = [event.time for event in trial.events() if event.type == schemas.RECOVERY_STARTED]
    resumed = [event.time for event in trial.events() if event.type == schemas.PROCESSING_RESUMED]
    return [later[0] - start for start in starts if (later := [at for at in resumed if at > start])]


def worst(values: Sequence[float]) -> float | None:
    return round(values[-1], 2) if values else None


def p95(values: Sequence[float]) -> float | None:
    return round(values[min(len(values) - 1, len(values) * 95 // 100)], 2) if values else None
