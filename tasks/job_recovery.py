"""The heart of the scenario job-recovery: an undisturbed run, and jobs killed at every point that come to its end."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dailies.events import schemas
from dailies.speech.sample import talk_of
from tasks._step import Step
from tasks.caption_parts import files_of, published_bytes
from tasks.contention import part
from tasks.recovery_findings import FIXES, Whole, bounded, event_faults, findings, histogram, report
from tasks.recovery_parts import AFTER_TWO, PHRASES, Trial, talk, ttl_of
from tasks.scenario import SWEEP_S, Scenario

Plan = tuple[str, ...]

# In seconds where the ledger is a file; one behind HTTP gets as many times longer as its ttl is.
RESUMED_S, COMPLETED_S = 1.0, 5.0
MORE_MEMORY = 0.1
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
    run.journal.expect("undisturbed: events are complete", event_faults(trial.events(), PHRASES, trial.deaths), [])
    return Whole(trial.files(), frozenset(sounds), trial.peak_kib())


def apart(run: Scenario, shown: Sequence[dict[str, Any]]) -> float | None:
    """The farthest that a word lies from its place in the recording."""
    truth = talk_of(PHRASES, run.journal.seed).words
    found = [word for one in shown for part in one["segments"] for word in part["words"]]
    if len(found) != len(truth):
        return None
    return float(max(abs(word["start_us"] - said.start_us) for word, said in zip(found, truth, strict=True))) / 1e6


@part("recovered-alone")
def recovered_alone(run: Scenario, whole: Whole) -> None:
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
    fix, slower = "what does an attempt do before its first unit?", ttl_of(run.ledger)
    run.journal.expect_at_most("alone: taken up to first resumed unit (s)", resumed, slower * RESUMED_S, fix)
    run.journal.expect_at_most("alone: recovery started to completed (s)", ended, slower * COMPLETED_S)
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
    limit = ttl_of(run.ledger) + SWEEP_S
    run.journal.expect_at_most("kills: given to the next attempt within ttl + sweep (s)", delays[-1], limit + 1.0)
    run.journal.metric("kills", len(delays))
    run.journal.metric("unrecovered", bounded(ended_wrong(found), len(delays)))
    run.journal.metric("duplicates_or_losses", bounded(heard_wrong(found), len(delays)))
    run.journal.metric("attempts_starved_of_their_lease", sum(trial.starved for trial, _ in trials))
    run.journal.metric("attempts_lost_to_prefect", sum(trial.put_off for trial, _ in trials))
    run.journal.metric("takeover_s", histogram(delays))
    resumed = sorted(delay for trial, _ in trials for delay in resume_delays(trial))
    run.journal.metric("recovery_start_to_first_resumed_unit_s", histogram(resumed))


def ended_wrong(found: Sequence[Mapping[str, list[str]]]) -> int:
    return sum(bool(one[ENDED] or one[SAME]) for one in found)


def heard_wrong(found: Sequence[Mapping[str, list[str]]]) -> int:
    return sum(len(one[HEARD]) for one in found)


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
