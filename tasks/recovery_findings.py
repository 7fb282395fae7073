"""What came of a trial of job-recovery: by check all that is wrong with one job, and figures as a reader wants them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dailies.events import schemas
from dailies.ledger.records import Event, JobState
from tasks.caption_parts import damaged, published_bytes
from tasks.recovery_parts import Death, Trial
from tasks.scenario import Scenario

TOLD_ONCE = (
    schemas.CHUNKS_CREATED,
    schemas.TRANSCRIPTION_STARTED,
    schemas.TRANSCRIPT_PROCESSING,
    schemas.TRANSCRIPTION_COMPLETED,
    "dailies.job.done",
)


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run makes and says."""

    files: Mapping[str, str]
    sounds: frozenset[str]
    peak_kib: int


FIXES = {
    "the job is done, in the attempt after the last death": "see the log of its last child",
    "transcript and coverage are the undisturbed run's, byte for byte": "compare the two transcript.json",
    "every published file has its bytes": "write files before the pointer to them",
    "every chunk is heard, and no finished one again": "look a unit up by its content before working",
    "events are complete, once each and in order": "write an event in the transaction that it tells of",
    "what is left to do is told right": "count the units, not the events",
    "no working file is left": "see tasks/_leftovers.py",
}


def findings(trial: Trial, whole: Whole) -> dict[str, list[str]]:
    """By check, what is wrong with one job; nothing wrong is an empty list."""
    job = trial.run.ledger.jobs.get(trial.job.id)
    attempts = job.attempt if trial.attempts_may_differ else 1 + len(trial.deaths)
    ended, wanted = (job.state.value, job.attempt), (JobState.DONE.value, attempts)
    manifest = published_bytes(trial.run, trial.key)
    found = (
        [] if ended == wanted else [f"{ended} instead of {wanted}: {job.error}"],
        sorted(name for name, sha256 in whole.files.items() if trial.files().get(name) != sha256),
        damaged(trial.run, manifest),
        hearing_faults(trial, whole),
        event_faults(trial.events(), len(whole.sounds), None if trial.attempts_may_differ else trial.deaths),
        resume_faults(trial, len(whole.sounds)),
        trial.working_files(),
    )
    return {check: [f"{trial.name}: {fault}" for fault in faults] for check, faults in zip(FIXES, found, strict=True)}


def hearing_faults(trial: Trial, whole: Whole) -> list[str]:
    heard = trial.heard()
    lost = whole.sounds - {line["sound"] for line in heard}
    again = [
        line["sound"]
        for death in trial.deaths
        for line in heard
        if line["sound"] in death.done and line["at"] > death.when
    ]
    most = trial.run.ledger.jobs.get(trial.job.id).attempt
    twice = [pair for pair, times in Counter((line["sound"], line["pid"]) for line in heard).items() if times > 1]
    often = [sound for sound, times in Counter(line["sound"] for line in heard).items() if times > most]
    return (
        [f"lost {sound[:12]}" for sound in sorted(lost)]
        + [f"finished and heard again {sound[:12]}" for sound in again]
        + [f"heard twice by one process {sound[:12]}" for sound, _ in twice]
        + [f"heard more often than there were attempts {sound[:12]}" for sound in often]
    )


def event_faults(events: Sequence[Event], chunks: int, deaths: Sequence[Death] | None) -> list[str]:
    """What a listener could not make sense of. ``deaths``: None where they are not ours to count."""
    types = [event.type for event in events]
    counts = Counter(types)
    wanted = dict.fromkeys(TOLD_ONCE, 1) | {schemas.CHUNK_TRANSCRIBED: chunks, schemas.RECOVERY_FAILED: 0}
    if deaths is not None:
        crashes = sum(not death.put_off for death in deaths)
        wanted |= {
            schemas.RECOVERY_STARTED: crashes,
            schemas.RECOVERY_COMPLETED: int(crashes > 0),
            "dailies.job.running": 1 + len(deaths),
            "dailies.job.queued": 1 + len(deaths),
        }
    faults = [
        f"{kind} {counts[kind]} times instead of {times}" for kind, times in wanted.items() if counts[kind] != times
    ]
    if len({event.id for event in events}) != len(events):
        faults.append("an id twice")
    numbers = {event.data["chunk_index"] for event in events if event.type == schemas.CHUNK_TRANSCRIBED}
    if len(numbers) != chunks:
        faults.append(f"{len(numbers)} of {chunks} chunks told")
    faults += [f"{event.type}: {fault}" for event in events for fault in schemas.faults_of(event.type, event.data)]
    order = [*TOLD_ONCE[:2], schemas.CHUNK_TRANSCRIBED, *TOLD_ONCE[2:]]
    places = [(types.index(kind), len(types) - 1 - types[::-1].index(kind)) for kind in order if kind in counts]
    if any(before[1] > after[0] for before, after in pairwise(places)):
        faults.append(f"out of order: {types}")
    return faults


def resume_faults(trial: Trial, chunks: int) -> list[str]:
    """An attempt that goes on says how much is left: what was done when the one before it died, and not less."""
    told = [event.data for event in trial.events() if event.type == schemas.PROCESSING_RESUMED]
    if not told:
        silent = any(not death.put_off for death in trial.deaths)
        return ["it never said that it went on"] if silent else []
    done = [one["completed_chunks"] for one in told]
    faults = [f"{one} of {chunks}" for one in told if one["remaining_chunks"] + one["completed_chunks"] != chunks]
    if done != sorted(done):
        faults.append(f"progress goes back: {done}")
    if trial.deaths and done[-1] != len(trial.deaths[-1].done):
        faults.append(f"{done[-1]} told as done instead of {len(trial.deaths[-1].done)}")
    return faults


def report(run: Scenario, group: str, found: Sequence[Mapping[str, list[str]]]) -> None:
    """One check of each kind over all trials of a group: each fault names its trial."""
    for check, fix in FIXES.items():
        run.journal.expect(f"{group}: {check}", [fault for one in found for fault in one[check]], [], fix)


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def bounded(seen: int, tried: int) -> dict[str, float | int]:
    """A zero says no more than how often it was tried: at 95 % the true share is below three in so many."""
    return {"seen": seen, "n": tried, "upper_bound_95": round(3 / max(tried, 1), 4)}


def histogram(values: Sequence[float]) -> dict[str, float | int]:
    """Sorted values as a reader wants them; with nothing seen there is nothing to say."""
    if not values:
        return {"n": 0}
    at = {
        f"p{percent}": round(values[min(len(values) - 1, len(values) * percent // 100)], 3) for percent in (50, 95, 99)
    }
    return {"n": len(values), **at, "worst": round(values[-1], 3)}
