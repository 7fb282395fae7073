"""The parts of the scenario lock-contention. Each breaks the lease in its own way and checks what came of it."""

from __future__ import annotations

import functools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

from dailies import failpoints
from dailies.errors import Held, TimedOut
from dailies.ledger.records import RECOVERED, Job, JobRequest, JobState
from dailies.media.sample import make_clip
from dailies.scenarios import contenders
from dailies.scenarios.exclusion import EffectLog, examine, read_history
from dailies.scenarios.journal import Check
from dailies.scenarios.processes import Child
from tasks.scenario import SWEEP_S, TENANT, Scenario
from tasks.verdict import show_png

LANES = 16
RESCUE_S = 20.0
CRASH_POINT = "probe_media:committed"


def part(name: str) -> Callable[[Callable[..., Any]], Any]:
    """No timeout of Prefect's: it cannot interrupt a thread. Every wait in a part has its own."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)


@part("race-for-one-lease")
def race(run: Scenario, contenders_count: int, rounds: int, ttl: float) -> None:
    """Many processes, one lease: never two inside, everyone served."""
    log = run.place / "race.jsonl"
    resource, seed = run.named("race"), run.journal.seed
    with run.journal.span("race", f"{contenders_count} contenders"):
        children = [
            run.nursery.spawn(contenders.race, run.trial, log, f"racer-{n}", resource, rounds, max(ttl, 10.0), seed)
            for n in range(contenders_count)
        ]
        finish(children, 300)
    found = examine(read_history(log))
    run.journal.add(*prefixed("race", found.checks()))
    run.journal.expect("race: every contender had every turn", set(found.turns.values()), {rounds})
    run.journal.metric("race_contenders", contenders_count)
    run.journal.metric("race_turns", sum(found.turns.values()))
    run.journal.metric("race_longest_wait_s", found.longest_wait)


@part("kill-the-holder")
def kill_the_holder(run: Scenario, times: int, ttl: float) -> None:
    """A killed holder's lease is another's within ttl + sweep."""
    run.journal.fault("holder killed")
    delays = [kill_once(run, n, ttl) for n in range(times)]
    limit = ttl + SWEEP_S
    run.journal.expect_at_most("kill: taken over within ttl + sweep (s)", max(delays), limit, "is the sweep running?")
    run.journal.metric("takeover_after_kill_s", [round(delay, 3) for delay in delays])


def kill_once(run: Scenario, number: int, ttl: float) -> float:
    log, resource = run.place / f"kill-{number}.jsonl", run.named(f"kill-{number}")
    holder = run.nursery.spawn(contenders.hold_for_ever, run.trial, log, "holder", resource, ttl, name="holder")
    run.until(lambda: entered(log, "holder"), 30, "the holder did not get its lease")
    rival = run.nursery.spawn(contenders.take_over, run.trial, log, "rival", resource, ttl, name="rival")
    run.until(lambda: "rival" in said(log), 30, "the rival did not come")
    time.sleep(ttl)  # long enough for a lease that nobody renews to be lost
    run.journal.expect("kill: a living holder keeps its lease", entered(log, "rival"), False)
    with EffectLog(log) as effects:
        holder.kill()
        killed = time.monotonic()
        effects.append("holder", "died")
    code = holder.wait(10)
    run.journal.fault("holder killed", fired=1, evidence=f"pid {holder.pid} exit {code}")
    finish([rival], ttl + SWEEP_S + 30)
    history = read_history(log)
    run.journal.add(*prefixed(f"kill {number}", examine(history).checks()))
    return next(event.t for event in history.events if event.who == "rival" and event.what == "enter") - killed


def said(log: Path) -> set[str]:
    return {event.who for event in read_history(log).events}


def entered(log: Path, who: str) -> bool:
    return log.exists() and any(event.who == who and event.what == "enter" for event in read_history(log).events)


@part("freeze-and-revive")
def freeze_and_revive(run: Scenario, trials: int, ttl: float) -> None:
    """A holder frozen past its ttl and revived can write nothing; a careless one, written on purpose, can."""
    run.journal.fault("holder frozen past its ttl")
    with run.journal.span("freeze", f"{trials} trials"):
        landed = trials_in_lanes(run, trials, ttl, contenders.freeze_and_write, take_over_fenced, "frozen")
    stale = [f"{kind} in trial {number}" for number, kinds in enumerate(landed) for kind in kinds]
    run.journal.fault("holder frozen past its ttl", fired=len(landed), evidence=f"{len(landed)} holders seen stopped")
    run.journal.expect("freeze: no stale write landed", stale, [], "carry the fence in the statement that writes")
    run.journal.metric("stale_writes", {"landed": len(stale), "tried": 8 * len(landed), "trials": len(landed)})
    run.journal.metric("stale_trials_upper_bound_95", round(3 / max(len(landed), 1), 5))
    control(run, max(3, trials // 50), ttl)


def control(run: Scenario, trials: int, ttl: float) -> None:
    """The negative control: the same trial must catch an implementation that checks and then writes."""
    landed = trials_in_lanes(run, trials, ttl, contenders.check_then_write, take_over_careless, "careless")
    caught = sum(bool(kinds) for kinds in landed)
    run.journal.expect("freeze: check-then-write is caught", caught, trials, "the trial does not freeze in the gap")


def trials_in_lanes(
    run: Scenario, trials: int, ttl: float, program: Callable[..., None], trial: Callable[..., list[str]], name: str
) -> list[list[str]]:
    """Several holders side by side, each with a thread here that takes over from it; what landed, trial by trial."""
    lanes = min(LANES, trials)
    shares = [trials // lanes + (lane < trials % lanes) for lane in range(lanes)]

    def drive(lane: int) -> list[list[str]]:
        out = run.place / f"{name}-{lane}.jsonl"
        args = (run.trial, out, run.named(f"{name}-{lane}"), shares[lane], ttl)
        holder = run.nursery.spawn(program, *args, name=f"{name}-{lane}", log=run.log(f"{name}-{lane}"))
        landed = [trial(run, holder, out, number, ttl) for number in range(shares[lane])]
        finish([holder], 30)
        run.trial.close()  # this thread's connection
        return landed

    with ThreadPoolExecutor(lanes) as pool:
        return [kinds for lane in pool.map(drive, range(lanes)) for kinds in lane]


def take_over_fenced(run: Scenario, holder: Child, out: Path, number: int, ttl: float) -> list[str]:
    claim = frozen_claim(run, holder, out, number)
    lease = contenders.succeed(run.trial, claim["job"], claim["video"], ttl + 30)
    holder.revive()
    landed = told(run, out, number)["landed"]
    unit = next(unit for unit in run.trial.units.of(claim["job"]) if unit.key == "unit")
    landed += ["unit by content"] * (unit.result != "fresh")
    landed += ["generation by content"] * (run.trial.generations.current(claim["video"]) != "fresh")
    landed += ["job by content"] * (run.trial.jobs.get(claim["job"]).state is not JobState.RUNNING)
    run.trial.jobs.done(lease, "fresh")
    release(run, claim["video"])
    return [str(kind) for kind in landed]


def take_over_careless(run: Scenario, holder: Child, out: Path, number: int, ttl: float) -> list[str]:
    resource = frozen_claim(run, holder, out, number)["video"]
    contenders.publish(run.trial, resource, "rival", ttl + 30)
    holder.revive()
    told(run, out, number)
    stale = run.trial.generations.current(resource) == "stale"
    release(run, resource)
    return ["generation by content"] * stale


def release(run: Scenario, resource: str) -> None:
    lease = run.trial.leases.holder(resource)
    if lease is not None:
        run.trial.leases.release(lease)


def frozen_claim(run: Scenario, holder: Child, out: Path, number: int) -> dict[str, Any]:
    claim = told(run, out.with_suffix(".claims"), number)
    run.until(lambda: holder.state == "T", 30, f"{holder.name} did not freeze")
    return claim


def told(run: Scenario, path: Path, number: int) -> dict[str, Any]:
    """The line of that number, as soon as it is there."""

    def lines() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    run.until(lambda: len(lines()) > number, 60, f"nothing more was written to {path.name}")
    line: dict[str, Any] = json.loads(lines()[number])
    return line


@part("keep-while-busy")
def keep_while_busy(run: Scenario, ttl: float, ttls: int = 10) -> None:
    """A healthy holder keeps its lease for ten ttls, with a blocked event loop and a busy thread as well."""
    outs = {how: run.place / f"busy-{how.replace(' ', '-')}.json" for how in contenders.WORK}
    with run.journal.span("busy", f"{ttls} ttls"):
        children = [
            run.nursery.spawn(
                contenders.keep_busy, run.trial, how, run.named(how), ttl, ttls, how, out, name=f"busy {how}"
            )
            for how, out in outs.items()
        ]
        for how in outs:
            run.until(functools.partial(is_held, run, how), 30, f"the holder with {how} did not start")
        thefts = dict.fromkeys(outs, 0)
        while any(child.alive for child in children):
            for how, out in outs.items():
                thefts[how] += steal(run, how) and not out.exists()
            time.sleep(ttl / 4)
        finish(children, 10)
    for how, out in outs.items():
        kept = {"kept": True, "fence": 1}
        run.journal.expect(f"busy: {how} keeps its lease", json.loads(out.read_text()), kept, "renew from a thread")
        run.journal.expect(f"busy: nobody got in beside {how}", thefts[how], 0)


def is_held(run: Scenario, name: str) -> bool:
    return run.trial.leases.holder(run.named(name)) is not None


def steal(run: Scenario, name: str) -> bool:
    try:
        run.trial.leases.release(run.trial.leases.acquire(run.named(name), "thief", 60))
    except Held:
        return False
    return True


@part("refuse-misuse")
def refuse_misuse(run: Scenario) -> None:
    """Wrong uses of a lease get a typed error and change nothing."""
    codes = contenders.misuses(run.trial, run.named(""))
    for name, code in contenders.MISUSE_CODES.items():
        run.journal.expect(f"misuse: {name}", codes.get(name), code)
    swept = [lease.resource for lease in run.trial.leases.sweep()]
    run.journal.expect("misuse: an expired lease is cleaned up", swept, [run.named("gone")])


@part("two-flows-one-video")
def two_flows_one_video(run: Scenario, run_ingest: Callable[..., None], load: int) -> dict[str, Any]:
    """One runs; the others fail at once or wait their turn, as they were told. Ordinary load blocks nobody."""
    clip, working = upload(run, "shared"), run.place / "working.jsonl"

    def ingest(name: str, keys: list[str], patience: float, faults: str = "") -> Child:
        args = (run.site.name, keys, patience, run.environment["PREFECT_API_URL"], run.pool, faults, working)
        return run.nursery.spawn(run_ingest, *args, name=name, env=run.environment, log=run.log(name))

    with run.journal.span("two flows", "one video"):
        # Long enough for the two others to come to the door on a busy machine.
        first = ingest("first", [clip], 1.0, "make_contact_sheet:before=sleep(8)")
        run.until(lambda: bool(failpoints.fired(working)), 90, "the first flow did not get to work")
        finish([first, ingest("impatient", [clip], 0.0), ingest("patient", [clip], 60.0)], 120)
    jobs = {job.params["patience_s"]: job for job in jobs_on(run, clip)}
    states = {patience: (job.state.value, job.error_code) for patience, job in jobs.items()}
    wanted = {1.0: ("DONE", ""), 0.0: ("FAILED", "held"), 60.0: ("DONE", "")}
    run.journal.expect("two flows: each followed its policy", states, wanted, "see take in tasks/_job.py")
    run.journal.expect("two flows: the blocked ones are counted", blocked(run, clip), 2)
    with run.journal.span("load", f"{load} flows"):
        clips = [upload(run, f"load-{number}") for number in range(load)]
        random.Random(run.journal.seed).shuffle(clips)
        finish([ingest(f"runner-{n}", clips[n::2], 30.0) for n in range(2)], 300)
    ended = sum(job.state is JobState.DONE for clip in clips for job in jobs_on(run, clip))
    run.journal.expect("load: every flow ended well", ended, load)
    share = sum(blocked(run, clip) for clip in clips) / load
    run.journal.expect_at_most("load: share of blocked flows", share, 0.01, "who holds leases longer than its work?")
    run.journal.metric("blocked_share_at_default_load", {"share": share, "flows": load})
    result: dict[str, Any] = jobs[1.0].result or {}
    return result


def upload(run: Scenario, video: str) -> str:
    key = f"{TENANT}/client/videos/{run.named(video)}/clip.mp4"
    run.store.put_file(key, sample(run))
    return key


_making = threading.Lock()


def sample(run: Scenario) -> Path:
    """One clip for all uploads, so that all contact sheets must be alike."""
    path = run.place / "clip.mp4"
    with _making:
        return path if path.exists() else make_clip(path, seconds=4)


def jobs_on(run: Scenario, key: str) -> list[Job]:
    return [job for _, job in run.jobs() if job.params.get("media_key") == key]


def blocked(run: Scenario, key: str) -> int:
    events = [event for job in jobs_on(run, key) for event in run.ledger.outbox.of(job.id)]
    return sum(event.type == "dailies.lease.blocked" for event in events)


@part("recover-ingest")
def recover_ingest(run: Scenario) -> dict[str, Any]:
    """A worker killed between two units: the supervisor gives the job to another, which redoes nothing finished."""
    fault, log = "worker killed between two units", run.place / "crash.jsonl"
    run.journal.fault(fault)
    key = upload(run, "recovered")
    armed = failpoints.environment(f"{CRASH_POINT}=kill", log)
    deployment = run.deploy("ingest-media", "flows.ingest_media.ingest_media", armed)
    params = {"tenant": TENANT, "media_key": key}
    job = run.ledger.jobs.submit(
        JobRequest(TENANT, "ingest-media", f"{TENANT}/{run.named('recovered')}", params, deployment)
    )
    supervisor, worker = run.supervisor(), run.worker("worker-1")
    with run.journal.span("recovery", "attempt 1"):
        # The pool's other worker comes when the run is taken, so that it cannot be the one that takes it.
        run.until(lambda: shown(job.id) not in ([], ["SCHEDULED"]), 120, "the job was not dispatched to a worker")
        rescuer = run.worker("worker-2")
        run.until(lambda: bool(failpoints.fired(log)), 120, "the job's first attempt did not reach its crash point")
        worker.kill()
    killed = time.time()
    entry = failpoints.fired(log)[0]
    run.journal.fault(
        fault, fired=1, evidence=f"{entry['name']} killed pid {entry['pid']}, and worker {worker.pid} too"
    )
    with run.journal.span("recovery", "attempt 2"):
        run.until(lambda: run.ledger.jobs.get(job.id).final, 120, "the job did not come to an end")
    check_recovery(run, job.id, killed)
    for child in (supervisor, rescuer):
        child.terminate(10)
    result: dict[str, Any] = run.ledger.jobs.get(job.id).result or {}
    if result:
        show_png(run.store.get(result["contact_sheet"]["key"]), "contact-sheet", "The recovered job's contact sheet")
    return result


def check_recovery(run: Scenario, job_id: str, killed: float) -> None:
    job = run.ledger.jobs.get(job_id)
    units = {unit.step: (unit.state, unit.attempts, unit.reuses) for unit in run.ledger.units.of(job_id)}
    run.journal.expect("recover: the job is done, in its second attempt", (job.state.value, job.attempt), ("DONE", 2))
    wanted = {"probe_media": ("DONE", 1, 1), "make_contact_sheet": ("DONE", 1, 0)}
    run.journal.expect("recover: the finished unit was reused, once", units, wanted, "was its result recorded?")
    events = run.ledger.outbox.of(job_id)
    said = [event.data["message"] for event in events if event.type == "dailies.job.queued"]
    run.journal.expect("recover: it says why", said, ["", RECOVERED])
    again = [event.time for event in events if event.type == "dailies.job.running"]
    delay = again[1] - killed if len(again) > 1 else None
    run.journal.expect_at_most("recover: running elsewhere within 20 s", delay, RESCUE_S, "see the supervisor's log")
    run.journal.metric("worker_death_to_running_s", delay)
    run.until(lambda: not run.ledger.outbox.pending(), 10, "events were not delivered")
    wanted_states = ["CRASHED", "COMPLETED"]
    with suppress(TimedOut):  # a flow tells Prefect of its end after the ledger, and the supervisor of the dead one's
        run.until(lambda: shown(job_id) == wanted_states, 10, "")
    run.journal.expect("recover: Prefect shows both attempts as they were", shown(job_id), wanted_states)


def shown(job_id: str) -> list[str]:
    ours = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"job:{job_id}"]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=ours)
    created = sorted((run.created, run.state_type.value) for run in runs if run.created and run.state_type)
    return [state for _, state in created]


def finish(children: Sequence[Child], seconds: float) -> None:
    """Wait for all of them; one that failed by itself makes the scenario fail, with its log named."""
    deadline = time.monotonic() + seconds
    for child in children:
        code = child.wait(max(deadline - time.monotonic(), 0.1))
        if code != 0:
            raise RuntimeError(f"{child.name} ended with {code}: see its log")


def prefixed(name: str, checks: Sequence[Check]) -> list[Check]:
    return [Check(f"{name}: {check.name}", check.passed, check.expected, check.actual, check.fix) for check in checks]
