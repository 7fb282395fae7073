"""The part of job-recovery with several recoverers, deaths in a row, zombies, and what cannot be recovered at all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from blocks.site import open_site
from dailies.events import schemas
from dailies.failpoints import fired
from dailies.scenarios.contenders import until
from tasks.caption_parts import FLOW_S, LOOK_S
from tasks.contention import finish, part
from tasks.recovery_attempt import FORGETFUL
from tasks.recovery_damage import nobody_writing
from tasks.recovery_findings import Whole, findings, report
from tasks.recovery_parts import Trial, claim, sweep_machine
from tasks.scenario import Scenario
from tasks.supervision import Swept, recover


@part("crowds-and-chains")
def crowds_and_chains(run: Scenario, whole: Whole, full: bool) -> None:
    lost = LOST_REPLIES if full else LOST_REPLIES[:1]
    plays = [five_recoverers, three_in_a_row, frozen, *(partial(reply_lost, point=point) for point in lost)]
    with ThreadPoolExecutor(2) as pool:
        trials = list(pool.map(lambda play: play(run), plays))
    report(run, "crowds and chains", [findings(trial, whole) for trial in trials])
    poisoned(run)
    killed_after_the_end(run, whole)


def five_recoverers(run: Scenario) -> Trial:
    """All of them look again and again, from before its death on, until the job has another attempt: that is one."""
    fault = "five recoverers at once"
    run.journal.fault(fault)
    trial = Trial(run, "five-recoverers")
    gate = run.place / "gate"
    args = (run.site.name, gate, trial.job.id)
    children = [
        run.nursery.spawn(recover_at_once, *args, name=f"recoverer-{number}", env=run.environment)
        for number in range(5)
    ]
    gate.touch()
    opened = time.time()
    trial.kill_at("start_stitching:before")
    finish(children, 60)
    found = [event.time for event in trial.events() if event.type == schemas.RECOVERY_STARTED]
    if found and opened <= found[0]:
        run.journal.fault(fault, fired=1, evidence=f"job {trial.job.id} was found {found[0] - opened:.2f} s after")
    claim(run)
    trial.finish()
    return trial


def recover_at_once(name: str, gate: Path, job_id: str) -> None:
    site = open_site(name)
    until(gate.exists, FLOW_S, "the gate did not open")
    over = time.monotonic() + FLOW_S
    while site.ledger.jobs.get(job_id).attempt == 1 and time.monotonic() < over:
        recover(site, Swept())
        time.sleep(LOOK_S / 4)


def three_in_a_row(run: Scenario) -> Trial:
    trial = Trial(run, "three-in-a-row", max_attempts=4)
    for point in ("chunks.put#3", "transcribe_chunk:after#2", "make_transcript:after"):
        trial.hand_on(trial.kill_at(point))
    trial.finish()
    return trial


def frozen(run: Scenario) -> Trial:
    """Past its ttl, and back when another has taken over: what it then writes must not count."""
    trial = Trial(run, "frozen")
    zombie = trial.start("transcribe_chunk:after#2=sleep(2)")
    run.until(lambda: bool(fired(trial.log(1))), FLOW_S, "the run did not come to its second chunk")
    with nobody_writing(run.ledger):
        zombie.freeze()
        zombie.wait_frozen(FLOW_S)
    killed = trial.died(time.time())
    run.journal.fault("run frozen past its ttl", fired=1, evidence=f"pid {zombie.pid} stopped, job {trial.job.id}")
    trial.hand_on(killed)
    second = trial.start()
    zombie.revive()
    finish([second], FLOW_S)
    zombie.wait(FLOW_S)
    return trial


LOST_REPLIES = ("units.complete:reply#3", "generations.publish:reply", "outbox.emit:reply", "jobs.done:reply")


def reply_lost(run: Scenario, point: str) -> Trial:
    """The write happened, and its answer did not come: trying again must find that out."""
    trial = Trial(run, f"lost-{point.partition(':')[0].replace('.', '-')}")
    trial.finish(f"ledger.{point}=lose_reply", FORGETFUL)
    evidence = fired(trial.log(1))
    run.journal.fault(f"reply lost: {point}", fired=len(evidence), evidence=str(evidence))
    return trial


def poisoned(run: Scenario) -> None:
    """An input that kills whoever works on it: it ends, with the reason, and is not tried for ever."""
    trial = Trial(run, "poison", exactly=True)
    for attempt in (1, 2):
        trial.hand_on(trial.kill_at(f"transcribe_chunk:before#{attempt}"))
    trial.kill_at("transcribe_chunk:before")

    def over() -> bool:
        time.sleep(LOOK_S)
        recover(run.site, Swept())
        return run.ledger.jobs.get(trial.job.id).final

    run.until(over, FLOW_S, f"job {trial.job.id} was not given up")
    job = run.ledger.jobs.get(trial.job.id)
    said = [event.type for event in trial.events()][-2:]
    run.journal.expect(
        "poison: the job failed after its attempts, and says why",
        (job.state.value, job.attempt, job.error),
        ("FAILED", 3, "its worker died in each of 3 attempts"),
    )
    run.journal.expect("poison: it is told", said, ["dailies.job.failed", schemas.RECOVERY_FAILED])
    sweep_machine(run)
    run.journal.expect("poison: no working file is left", trial.working_files(), [])


def killed_after_the_end(run: Scenario, whole: Whole) -> None:
    """Done in the ledger, dead before it could clear its files away: the sweep does."""
    trial = Trial(run, "after-the-end")
    child = trial.start("job.done=kill")
    code, evidence = child.wait(FLOW_S), fired(trial.log(1))
    run.journal.fault("killed at job.done", fired=len(evidence), evidence=f"pid {child.pid} exit {code}")
    left = trial.working_files()
    run.journal.expect("killed after the end: there was something to clear away", bool(left), True)
    sweep_machine(run)
    report(run, "killed after the end", [findings(trial, whole)])
