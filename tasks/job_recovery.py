"""The parts of the scenario job-recovery: whatever dies, the job comes to the same end, and does nothing twice."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from blocks.site import open_site
from dailies.events import schemas
from dailies.failpoints import fired
from dailies.ledger.interface import Ledger
from dailies.ledger.sqlite import SqliteLedger
from dailies.scenarios.contenders import until
from dailies.speech.sample import talk_of
from tasks._step import Step
from tasks.caption_parts import FLOW_S, LOOK_S, files_of, published_bytes
from tasks.contention import finish, part
from tasks.recovery_parts import (
    FIXES,
    FORGETFUL,
    FULL,
    PHRASES,
    TTL_S,
    Trial,
    Whole,
    claim,
    event_faults,
    findings,
    report,
    sweep_machine,
    talk,
)
from tasks.scenario import SWEEP_S, Scenario
from tasks.supervision import Swept, recover

Plan = tuple[str, ...]

AFTER_TWO = "transcribe_chunk:committed#2"
# A quick run shares its machine with other tests; at night it is alone.
RESUMED_S = {True: 1.0, False: 3.0}
COMPLETED_S, MORE_MEMORY = 5.0, 0.1
APART_S = 0.02
ENDED, SAME, _FILES, HEARD, *_REST = FIXES


@part("undisturbed")
def undisturbed(run: Scenario) -> Whole:
    """Upload, chunks, words, transcript: what everything that follows must come to."""
    trial = Trial(run, "undisturbed")
    with run.journal.span("undisturbed", "transcribe-media"):
        trial.finish()
    _, text = talk(run)
    found = files_of(published_bytes(run, trial.key), "transcript")
    shown = [json.loads(run.store.get(file.key)) for file in found if file.name == "transcript.json"]
    said = "".join(shown[0]["text"].split()) if shown else ""
    run.journal.expect("undisturbed: the text is the ground truth", said, "".join(text.split()), "see dailies/speech")
    run.journal.expect_at_most("undisturbed: words from where they are said (s)", apart(run, shown), APART_S)
    coverage = shown[0]["coverage"] if shown else {}
    parts = sum(coverage.get(f"{name}_us", 0) for name in ("speech", "silence", "failed"))
    run.journal.expect(
        "undisturbed: speech, silence and failed add up to the duration",
        (parts, coverage.get("failed_us")),
        (coverage.get("duration_us"), 0),
        "see stitch",
    )
    sounds = [line["sound"] for line in trial.heard()]
    run.journal.expect("undisturbed: every chunk is heard once", (len(sounds), len(set(sounds))), (PHRASES, PHRASES))
    run.journal.expect("undisturbed: events are complete", event_faults(trial.events(), PHRASES, 0), [])
    return Whole(trial.files(), frozenset(sounds), text, trial.peak_kib())


def apart(run: Scenario, shown: Sequence[dict[str, Any]]) -> float | None:
    """The farthest that a word lies from its place in the recording."""
    truth = talk_of(PHRASES, run.journal.seed).words
    found = [word for one in shown for part in one["segments"] for word in part["words"]]
    if len(found) != len(truth):
        return None
    return float(max(abs(word["start_us"] - said.start_us) for word, said in zip(found, truth, strict=True))) / 1e6


@part("recovered-alone")
def recovered_alone(run: Scenario, whole: Whole, full: bool) -> None:
    """One death with nothing else going on: what a recovery costs, in time and in memory."""
    trial = Trial(run, "alone")
    with run.journal.span("alone", "killed after two chunks"):
        trial.hand_on(trial.kill_at(AFTER_TWO))
        trial.finish()
    report(run, "alone", [findings(trial, whole)])
    at = {event.type: event.time for event in trial.events()}
    started, taken_up = at[schemas.RECOVERY_STARTED], at["dailies.job.running"]
    units = [
        event.time for event in trial.events() if event.type == schemas.CHUNK_TRANSCRIBED and event.time > taken_up
    ]
    resumed = units[0] - taken_up if units else None
    ended = at.get(schemas.RECOVERY_COMPLETED, float("nan")) - started
    fix = "what does an attempt do before its first unit?"
    run.journal.expect_at_most("alone: taken up to first resumed unit (s)", resumed, RESUMED_S[full], fix)
    run.journal.expect_at_most("alone: recovery started to completed (s)", ended, COMPLETED_S)
    more = trial.peak_kib() / whole.peak_kib - 1
    run.journal.expect_at_most("alone: memory of a recovery over an undisturbed run", round(more, 4), MORE_MEMORY)
    costs = {"taken_up_s": taken_up - started, "resumed_s": resumed, "completed_s": ended, "more_memory": more}
    run.journal.metric("recovery_alone", costs)


# ── killed everywhere ─────────────────────────────────────────────────────────────────────────────────────────────────

CHUNKS_PUT = "chunks.put"
CHUNK = "transcribe_chunk"


def crash_points(steps: Sequence[Step[...]]) -> list[str]:
    """In the order in which a job passes them; of a step that many chunks pass, any passage may be the one."""
    points = [point for step in steps for point in step.points]
    return [points[0], CHUNKS_PUT, *points[1:]]


def plans(points: Sequence[str], count: int, seed: int) -> list[Plan]:
    """For each job the two points that its attempts die at. No point comes again before each has come.

    What is finished is reused, and passes its points no more: so the second lies behind the first.
    """
    chance = random.Random(seed)
    drawn: list[str] = []
    made: list[Plan] = []
    while len(made) < count:
        if len(drawn) < 3:
            drawn += chance.sample(list(points), len(points))
        if drawn[0] == drawn[1]:  # the last of one round and the first of the next
            drawn[1], drawn[2] = drawn[2], drawn[1]
        first, second = sorted((drawn.pop(0), drawn.pop(0)), key=points.index)
        made.append((passage(first, chance, second), passage(second, chance, first)))
    return made


def passage(point: str, chance: random.Random, other: str) -> str:
    """Which chunk's passage: early where another death among the chunks is to follow, else any, the last one too."""
    if not point.startswith((CHUNK, CHUNKS_PUT)):
        return point
    most = 2 if other.startswith(point.partition(":")[0]) else PHRASES
    return f"{point}#{chance.randint(1, most)}"


@part("killed-everywhere")
def killed_everywhere(run: Scenario, whole: Whole, chosen: Sequence[Plan], lanes: int) -> None:
    """Killed at these points, attempt after attempt, each job comes to the undisturbed run's end."""
    with run.journal.span("kills", f"{len(chosen)} jobs"), ThreadPoolExecutor(lanes) as pool:
        trials = list(pool.map(lambda numbered: killed(run, *numbered), enumerate(chosen)))
    found = [findings(trial, whole) for trial, _ in trials]
    report(run, "kills", found)
    delays = sorted(delay for _, each in trials for delay in each)
    limit = TTL_S + SWEEP_S
    run.journal.expect_at_most("kills: given to the next attempt within ttl + sweep (s)", delays[-1], limit + 1.0)
    run.journal.metric("kills", len(delays))
    run.journal.metric("unrecovered", bounded(ended_wrong(found), len(delays)))
    run.journal.metric("duplicates_or_losses", bounded(heard_wrong(found), len(delays)))
    run.journal.metric("attempts_starved_of_their_lease", sum(trial.starved for trial, _ in trials))
    run.journal.metric("takeover_s", histogram(delays))
    resumed = sorted(delay for trial, _ in trials for delay in resume_delays(trial))
    run.journal.metric("recovery_start_to_first_resumed_unit_s", histogram(resumed))


def ended_wrong(found: Sequence[Mapping[str, list[str]]]) -> int:
    return sum(bool(one[ENDED] or one[SAME]) for one in found)


def heard_wrong(found: Sequence[Mapping[str, list[str]]]) -> int:
    return sum(len(one[HEARD]) for one in found)


def bounded(seen: int, tried: int) -> dict[str, float | int]:
    """A zero says no more than how often it was tried: at 95 % the true share is below three in so many."""
    return {"seen": seen, "n": tried, "upper_bound_95": round(3 / max(tried, 1), 4)}


def killed(run: Scenario, number: int, points: Plan) -> tuple[Trial, list[float]]:
    trial = Trial(run, f"killed-{number}")
    delays = [trial.hand_on(trial.kill_at(point)) for point in points]
    trial.finish()
    run.ledger.close()  # this thread's connection
    return trial, delays


def resume_delays(trial: Trial) -> list[float]:
    """From each start of a recovery to the first unit that was finished after it."""
    starts = [event.time for event in trial.events() if event.type == schemas.RECOVERY_STARTED]
    ends = [event.time for event in trial.events() if event.type in (schemas.CHUNK_TRANSCRIBED, schemas.CHUNKS_CREATED)]
    return [min(later) - start for start in starts if (later := [end for end in ends if end > start])]


def histogram(values: Sequence[float]) -> dict[str, float | int]:
    """Sorted values as a reader wants them; with nothing seen there is nothing to say."""
    if not values:
        return {"n": 0}
    at = {
        f"p{percent}": round(values[min(len(values) - 1, len(values) * percent // 100)], 3) for percent in (50, 95, 99)
    }
    return {"n": len(values), **at, "worst": round(values[-1], 3)}


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


# ── several at once, several in a row, and what cannot be recovered ───────────────────────────────────────────────────


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
    """All of them see the same dead job at the same moment."""
    trial = Trial(run, "five-recoverers")
    trial.kill_at("start_stitching:before")
    time.sleep(trial.ttl + LOOK_S)
    gate = run.place / "gate"
    children = [
        run.nursery.spawn(recover_at_once, run.site.name, gate, name=f"recoverer-{n}", env=run.environment)
        for n in range(5)
    ]
    gate.touch()
    finish(children, 60)
    claim(run)
    trial.finish()
    return trial


def recover_at_once(name: str, gate: Path) -> None:
    site = open_site(name)
    until(gate.exists, 60, "the gate did not open")
    recover(site, Swept())


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
    last = trial.kill_at("transcribe_chunk:before")

    def over() -> bool:
        time.sleep(LOOK_S)
        recover(run.site, Swept())
        return run.ledger.jobs.get(trial.job.id).final

    run.until(over, FLOW_S, f"job {last.job.id} was not given up")
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


# ── no room, no ledger ────────────────────────────────────────────────────────────────────────────────────────────────


@part("no-room-no-ledger")
def no_room_no_ledger(run: Scenario, whole: Whole, away_s: float) -> None:
    full = Trial(run, "disk-full", attempts_may_differ=True)
    child = full.start(trouble=FULL)
    code = child.wait(FLOW_S)
    job = run.ledger.jobs.get(full.job.id)
    run.journal.fault(
        "no room for files", fired=int(not job.final), evidence=f"exit {code}, then {job.state}: {job.error}"
    )
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
