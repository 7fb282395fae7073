"""What job-recovery makes of records: each fault of a history, of a hearing and of a report of progress is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.states import Completed, Crashed

from dailies.canonical import canonical_json
from dailies.errors import DailiesError, TimedOut, Transient
from dailies.events import schemas
from dailies.ledger.records import Event, Lease
from dailies.scenarios.journal import Journal
from dailies.scenarios.processes import Nursery
from tasks.recovery_findings import FIXES, Whole, event_faults, findings, hearing_faults, resume_faults
from tasks.recovery_parts import SPARE, Death, Trial, claim
from tasks.scenario import Scenario, of_its_own

pytestmark = [pytest.mark.recovery]
ENDED, FILES, WHOLE, HEARD, TOLD, LEFT, CLEARED = FIXES
CHUNKS = 3
CRASH = Death(0.0, frozenset())


def told(*types: str) -> list[Event]:
    """Events of these types, each with the fields that it needs."""
    return [
        Event(seq, f"id-{seq}", "test", kind, "acme/v1", float(seq), dict(DATA.get(kind, {})), "j")
        for seq, kind in enumerate(types)
    ]


QUEUED, RUNNING, DONE = "dailies.job.queued", "dailies.job.running", "dailies.job.done"
DATA: Mapping[str, Mapping[str, Any]] = {
    schemas.CHUNKS_CREATED: {"event": "chunks_created", "job_id": "j", "chunk_count": 0, "chunks": []},
    schemas.TRANSCRIPTION_STARTED: {"event": "transcription_started", "job_id": "j", "message": "it begins"},
    schemas.TRANSCRIPT_PROCESSING: {"event": "transcript_processing_started", "job_id": "j"},
    schemas.TRANSCRIPTION_COMPLETED: {
        "event": "transcription_completed",
        "job_id": "j",
        "transcript": "1",
        "normalized_transcript": "1",
        "metadata": {},
        "result_key": "k",
        "transcript_file": "f",
    },
    schemas.RECOVERY_STARTED: {
        "event": "recovery_started",
        "job_id": "j",
        "attempt": 2,
        "message": "m",
        "recovery": True,
        "recovery_type": "lease_expired",
    },
    schemas.RECOVERY_COMPLETED: {
        "event": "recovery_completed",
        "job_id": "j",
        "attempt": 2,
        "message": "m",
        "recovery": True,
        "recovery_result": "success",
    },
}


def chunk(seq: int, number: int) -> Event:
    data = {
        "event": "chunk_transcribed",
        "job_id": "j",
        "chunk_index": number,
        "chunk_text": "1",
        "processing_time": 0.1,
        "retry_count": 0,
    }
    return Event(seq, f"chunk-{seq}", "test", schemas.CHUNK_TRANSCRIBED, "acme/v1", float(seq), data, "j")


def history() -> list[Event]:
    before = told(QUEUED, RUNNING, schemas.CHUNKS_CREATED, schemas.TRANSCRIPTION_STARTED)
    again = told(QUEUED, schemas.RECOVERY_STARTED, RUNNING)
    after = told(schemas.TRANSCRIPT_PROCESSING, schemas.TRANSCRIPTION_COMPLETED, DONE, schemas.RECOVERY_COMPLETED)
    row = [*before, chunk(0, 0), *again, chunk(0, 1), chunk(0, 2), *after]
    return [replace(event, seq=seq, id=f"id-{seq}") for seq, event in enumerate(row)]


def without(kind: str) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [event for event in events if event.type != kind]


def again(kind: str) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [*events, *(replace(event, id="again") for event in events if event.type == kind)]


def later(kind: str) -> Callable[[list[Event]], list[Event]]:
    return lambda events: [*without(kind)(events), *(event for event in events if event.type == kind)]


def numbered_alike(events: list[Event]) -> list[Event]:
    return [
        replace(event, data={**event.data, "chunk_index": 0}) if event.type == schemas.CHUNK_TRANSCRIBED else event
        for event in events
    ]


def without_a_field(events: list[Event]) -> list[Event]:
    return [
        replace(event, data={"event": "transcription_started"})
        if event.type == schemas.TRANSCRIPTION_STARTED
        else event
        for event in events
    ]


def test_a_history_that_is_complete_has_no_faults():
    assert event_faults(history(), CHUNKS, [CRASH]) == []
    assert event_faults(history(), CHUNKS, None) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (without(schemas.CHUNKS_CREATED), "dailies.chunks.created 0 times instead of 1"),
        (again(schemas.TRANSCRIPTION_STARTED), "dailies.transcription.started 2 times instead of 1"),
        (without(schemas.CHUNK_TRANSCRIBED), "dailies.chunk.transcribed 0 times instead of 3"),
        (without(schemas.TRANSCRIPT_PROCESSING), "dailies.transcript.processing 0 times instead of 1"),
        (without(schemas.TRANSCRIPTION_COMPLETED), "dailies.transcription.completed 0 times instead of 1"),
        (without(DONE), "dailies.job.done 0 times instead of 1"),
        (again(schemas.RECOVERY_STARTED), "dailies.recovery.started 2 times instead of 1"),
        (without(schemas.RECOVERY_COMPLETED), "dailies.recovery.completed 0 times instead of 1"),
        (again(RUNNING), "dailies.job.running 4 times instead of 2"),
        (without(QUEUED), "dailies.job.queued 0 times instead of 2"),
        (lambda events: [*events, events[0]], "an id twice"),
        (numbered_alike, "1 of 3 chunks told"),
        (without_a_field, "dailies.transcription.started: 'job_id' is a required property"),
        (later(schemas.CHUNKS_CREATED), "out of order"),
        (later(schemas.CHUNK_TRANSCRIBED), "out of order"),
        (later(schemas.TRANSCRIPT_PROCESSING), "out of order"),
    ],
)
def test_each_fault_of_a_history_is_named(change, fault):
    assert any(found.startswith(fault) for found in event_faults(change(history()), CHUNKS, [CRASH]))


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    """A job of the scenario's, on a ledger and a store of its own, that nobody works on."""
    with Nursery() as nursery:
        run = Scenario(Journal(scenario="job-recovery"), tmp_path, nursery, *of_its_own(tmp_path))
        trial = Trial(run, "by-hand")
        trial.tally.parent.mkdir()
        yield trial
        for ledger in run.ledgers().values():
            ledger.close()


WANTED = Whole({}, frozenset({"one", "two"}), 0)


def heard(trial: Trial, *lines: tuple[float, str], pid: int | None = None) -> list[str]:
    """By a process of its own each, unless they are all one's."""
    said = [{"at": at, "pid": pid or number, "sound": sound} for number, (at, sound) in enumerate(lines)]
    trial.tally.write_bytes(b"".join(canonical_json(line) + b"\n" for line in said))
    return hearing_faults(trial, WANTED)


def test_a_chunk_that_is_lost_or_heard_again_or_too_often_is_named(trial):
    trial.deaths = [Death(5.0, frozenset({"one"}))]
    trial.run.ledger.jobs.start(trial.job.id, 1, "run", 60)
    assert heard(trial, (1, "one"), (6, "two")) == []
    assert heard(trial, (1, "one")) == ["lost two"]
    assert heard(trial, (1, "one"), (6, "one"), (7, "two")) == [
        "finished and heard again one",
        "heard more often than there were attempts one",
    ]
    assert heard(trial, (1, "one"), (2, "one"), (6, "two")) == ["heard more often than there were attempts one"]
    assert heard(trial, (1, "one"), (6, "two"), (6, "two"), pid=7) == [
        "heard twice by one process two",
        "heard more often than there were attempts two",
    ]


def going_on(trial: Trial) -> Lease:
    return trial.run.ledger.jobs.start(trial.job.id, 1, "run", 60)[1]


def resumed(trial: Trial, lease: Lease, occasion: str, left: int, done: int) -> list[str]:
    data = {"remaining_chunks": left, "completed_chunks": done}
    trial.run.ledger.outbox.emit(lease, schemas.PROCESSING_RESUMED, occasion, data)
    return resume_faults(trial, CHUNKS)


def test_who_goes_on_without_a_word_or_with_a_wrong_one_is_named(trial):
    assert resume_faults(trial, CHUNKS) == [], "one that never died has nothing to say"
    lease = going_on(trial)
    trial.deaths = [Death(5.0, frozenset({"one"}))]
    assert resume_faults(trial, CHUNKS) == ["it never said that it went on"]
    assert resumed(trial, lease, "2", 2, 1) == []
    (wrong,) = resumed(trial, lease, "3", 5, 1)
    assert wrong.endswith("of 3")
    assert resumed(trial, lease, "4", 3, 0)[1:] == ["progress goes back: [1, 1, 0]", "0 told as done instead of 1"]


def test_findings_name_every_check_and_the_trial_on_a_job_of_which_nothing_came(trial):
    found = findings(trial, Whole({"transcript.json": "0" * 64}, frozenset({"one"}), 0))
    trial.run.store.put(f"{trial.key.rpartition('/')[0]}/work-{trial.job.id}/left", b"")
    left = findings(trial, WANTED)[CLEARED]
    assert list(found) == list(FIXES)
    assert found[ENDED] == ["by-hand: ('QUEUED', 1) instead of ('DONE', 1): "]
    assert found[FILES] == ["by-hand: transcript.json"]
    assert found[HEARD] == ["by-hand: lost one"]
    assert "by-hand: dailies.job.done 0 times instead of 1" in found[TOLD]
    assert (found[LEFT], found[WHOLE], found[CLEARED]) == ([], [], [])
    assert [fault.rpartition("/")[2] for fault in left] == ["left"]


# ── an attempt that ends without anybody's doing ──────────────────────────────────────────────────────────────────────

AWAY = "PrefectHTTPStatusError: Server error '503 Service Unavailable' for url 'http://127.0.0.1:4200/api/task_runs/'"
PUT_OFF = Death(0.0, frozenset(), put_off=True)


def put_off(trial: Trial, error: DailiesError) -> bool:
    """The job's attempt ends by itself, with this error; whether the trial starts another one in its place."""
    trial.begun = trial.run.ledger.jobs.get(trial.job.id).attempt
    _, lease = trial.run.ledger.jobs.start(trial.job.id, trial.begun, f"run-{trial.begun}", 60)
    trial.run.ledger.jobs.failed(lease, error, retry_in=0.0)
    claim(trial.run)
    return trial.is_lost()


def test_an_attempt_that_prefect_did_not_answer_is_tried_again_but_not_for_ever(trial):
    assert [put_off(trial, Transient(AWAY)) for _ in range(SPARE)] == [True] * SPARE
    assert trial.run.ledger.jobs.get(trial.job.id).attempt == 1 + SPARE
    assert (trial.put_off, trial.starved) == (SPARE, 0)
    assert not put_off(trial, Transient(AWAY))
    assert (trial.put_off, len(trial.deaths)) == (SPARE, SPARE)


@pytest.mark.parametrize(
    "error",
    [
        Transient("OSError: no space left on device"),
        Transient(AWAY.replace("503", "404")),
        Transient("the ledger does not answer: 503 Service Unavailable"),
        TimedOut(AWAY),
    ],
)
def test_whatever_else_ends_an_attempt_is_the_products_doing(trial, error):
    assert not put_off(trial, error)
    assert (trial.put_off, trial.starved, trial.deaths) == (0, 0, [])


@flow(name="attempt-that-ended")
def ended() -> None:
    """Stands for a run of a trial in Prefect's records."""


def ends_in(trial: Trial, state: State[Any], attempt: int = 1) -> bool:
    """A run of the job's first attempt ends like this, and the job stays as it was; whether the trial goes on."""
    trial.begun = 1
    trial.run.ledger.jobs.start(trial.job.id, 1, "run-1", 0.3)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(ended, tags=[f"job:{trial.job.id}", f"attempt:{attempt}"])
        client.set_flow_run_state(run.id, state, force=True)
    return trial.is_lost()


@pytest.mark.usefixtures("fast_api")
def test_an_attempt_that_lost_its_lease_is_waited_for_until_a_sweep_has_recovered_its_job(trial):
    assert ends_in(trial, Crashed(name="Superseded"))
    assert (trial.starved, trial.put_off, len(trial.deaths)) == (1, 0, 1)
    assert trial.run.ledger.jobs.get(trial.job.id).attempt == 2
    assert trial.is_claimed(trial.job)


@pytest.mark.usefixtures("fast_api")
@pytest.mark.parametrize(("state", "attempt"), [(Completed(), 1), (Crashed(), 1), (Crashed(name="Superseded"), 2)])
def test_an_attempt_that_ended_without_a_word_to_the_ledger_is_no_lost_one(trial, state, attempt):
    assert not ends_in(trial, state, attempt)
    assert (trial.starved, trial.put_off, trial.deaths) == (0, 0, [])


def test_who_was_put_off_is_started_once_more_and_not_recovered():
    kinds = (schemas.RECOVERY_STARTED, schemas.RECOVERY_COMPLETED)
    events = [event for event in history() if event.type not in kinds]
    assert event_faults(events, CHUNKS, [PUT_OFF]) == []
    assert event_faults(events, CHUNKS, []) == [
        "dailies.job.running 2 times instead of 1",
        "dailies.job.queued 2 times instead of 1",
    ]
    assert event_faults(events, CHUNKS, [CRASH]) == [f"{kind} 0 times instead of 1" for kind in kinds]


def test_who_was_put_off_has_nothing_to_say_of_it_and_does_nothing_again(trial):
    trial.deaths = [Death(5.0, frozenset({"one"}), put_off=True)]
    assert resume_faults(trial, CHUNKS) == []
    assert "finished and heard again one" in heard(trial, (1, "one"), (6, "one"), (7, "two"))
