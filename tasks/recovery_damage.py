"""The parts of job-recovery in which files are damaged or gone, and there is no room for new ones, or no ledger."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from dailies.events import schemas
from dailies.failpoints import fired
from dailies.ledger.interface import Ledger
from dailies.ledger.sqlite import SqliteLedger
from tasks.caption_parts import FLOW_S
from tasks.contention import part
from tasks.recovery_attempt import FULL
from tasks.recovery_findings import Whole, findings, report
from tasks.recovery_parts import AFTER_TWO, Trial
from tasks.scenario import Scenario

# ── working files that are not what they were ─────────────────────────────────────────────────────────────────────────

GONE, FLIPPED, CUT = "gone", "flipped", "cut short"


@part("damaged-files")
def damaged_files(run: Scenario, whole: Whole, full: bool) -> None:
    """What is left of the working files may be damaged or gone: that is seen, and only what is not done is done."""

    def mixed(keys: Sequence[str]) -> None:
        for number, how in enumerate((GONE, FLIPPED, CUT)):
            spoil(run, keys[number::3], how)

    trials = [damaged_between(run, "mixed", mixed)]
    if full:
        trials += [damaged_between(run, how, partial(spoil, run, how=how)) for how in (GONE, FLIPPED, CUT)]
        trials += [inconsistent(run)]
    report(run, "damaged files", [findings(trial, whole) for trial in trials])
    source_gone(run)


def damaged_between(run: Scenario, name: str, damage: Callable[[Sequence[str]], None]) -> Trial:
    trial = Trial(run, f"files-{name.replace(' ', '-')}")
    killed = trial.kill_at(AFTER_TWO)
    keys = sorted(key for key in trial.working_files() if key.endswith(".f32"))
    run.journal.fault(f"chunks: {name}", fired=len(keys), evidence=f"job {trial.job.id}, {len(keys)} files were there")
    damage(keys)
    trial.hand_on(killed)
    trial.finish()
    return trial


def spoil(run: Scenario, keys: Sequence[str], how: str) -> None:
    for key in keys:
        data = bytearray(run.store.get(key))
        if how == GONE:
            run.store.delete(key)
            continue
        data[len(data) // 2] ^= 0x10
        run.store.put(key, bytes(data if how == FLIPPED else data[:-100]))


def inconsistent(run: Scenario) -> Trial:
    """The ledger says that all is done, and nothing that it names is there: neither chunks nor transcript."""
    trial = Trial(run, "inconsistent")
    killed = trial.kill_at("publish_transcript:before")
    made = [
        artifact["key"]
        for unit in run.ledger.units.of(trial.job.id)
        for artifact in (unit.result or {}).get("artifacts", ())
    ]
    for key in made:
        run.store.delete(key)
    run.journal.fault("everything recorded is gone", fired=len(made), evidence=f"job {trial.job.id}: {len(made)} files")
    trial.hand_on(killed)
    trial.finish()
    return trial


def source_gone(run: Scenario) -> None:
    trial = Trial(run, "source-gone")
    killed = trial.kill_at(AFTER_TWO)
    run.store.delete(trial.key)
    trial.hand_on(killed)
    trial.finish()
    said = [event.type for event in trial.events()][-2:]
    run.journal.fault("source deleted", fired=1, evidence=f"job {trial.job.id}")
    run.journal.expect(
        "source gone: the job failed, and says why",
        (trial.job.state.value, trial.job.error),
        ("FAILED", f"there is no upload {trial.key}: put the file there first"),
    )
    run.journal.expect("source gone: it is told", said, ["dailies.job.failed", schemas.RECOVERY_FAILED])
    run.journal.expect("source gone: no working file is left", trial.working_files(), [])


# ── no room, no ledger ────────────────────────────────────────────────────────────────────────────────────────────────


@part("no-room-no-ledger")
def no_room_no_ledger(run: Scenario, whole: Whole, away_s: float) -> None:
    full = Trial(run, "disk-full", attempts_may_differ=True)
    child = full.start(trouble=FULL)
    code = child.wait(FLOW_S)
    job, refused = run.ledger.jobs.get(full.job.id), full.log(1).exists()
    run.journal.fault("no room for files", fired=int(refused), evidence=f"exit {code}, then {job.state}: {job.error}")
    full.finish_somehow()
    trials = [full]
    if isinstance(run.ledger, SqliteLedger):
        trials.append(ledger_away(run, away_s))
    report(run, "no room, no ledger", [findings(trial, whole) for trial in trials])


def ledger_away(run: Scenario, seconds: float) -> Trial:
    """Somebody holds the database's lock: nobody can write, and no lease be renewed."""
    trial = Trial(run, "ledger-away", attempts_may_differ=True)
    child = trial.start("transcribe_chunk:before#3=sleep(1)")
    run.until(lambda: bool(fired(trial.log(1))), FLOW_S, "the run did not come to its third chunk")
    with nobody_writing(run.ledger), run.journal.span("ledger away", f"{seconds:g} s"):
        time.sleep(seconds)
    run.journal.fault("ledger refuses writes", fired=1, evidence=f"locked for {seconds:g} s")
    child.wait(FLOW_S)
    trial.finish_somehow()
    return trial


@contextmanager
def nobody_writing(ledger: Ledger) -> Iterator[None]:
    """Who is frozen in the midst of a write to SQLite keeps all others from writing: known, and not this trial's."""
    if not isinstance(ledger, SqliteLedger):
        yield
        return
    with closing(sqlite3.connect(ledger.path, timeout=60, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        yield
        blocker.execute("ROLLBACK")
