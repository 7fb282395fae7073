"""Redis comes and goes while jobs run: every event is heard in its order, and a relay that is broken is found out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect import flow

from dailies.events import schemas
from dailies.events.interface import cloud_event
from dailies.ledger.records import Event
from dailies.scenarios import redis_server
from dailies.scenarios.journal import Journal, read
from dailies.scenarios.verdict import judge
from flows.scenarios import job_recovery
from tasks import recovery_events
from tasks.job_recovery import undisturbed
from tasks.recovery_events import FIXES, LATENCY_S, Entry, Heard, listening_faults, redis_away
from tasks.recovery_parts import PARALLEL, Trial
from tasks.scenario import scenario
from tests.integration import conftest as integration

pytestmark = [pytest.mark.recovery]
home = integration.home
BROKEN = "tests.recovery.broken_relays"
real = pytest.mark.usefixtures("fast_api")
KILLED, DOWN = "Redis killed in mid-job", "Redis down from before the job to after it"
FROZEN, WORKER, EMPTIED = "Redis frozen in mid-job", "Redis down while a worker dies", "Redis emptied in mid-job"


@flow(name="redis-away-alone", persist_result=False)
def alone(full: bool = False) -> Any:
    """The part by itself, as job-recovery plays it."""
    with scenario("redis-away-alone", 0, {"full": full}, "local", job_recovery.PRELOADED) as run:
        run.width = PARALLEL
        redis_away(run, undisturbed(run), full)
    return run.state


def judged(**parameters: Any) -> Journal:
    alone(**parameters, return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "redis-away-alone.json")


def failures(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


# ── whole ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@real
def test_no_event_is_lost_or_out_of_order_while_redis_is_killed_and_down(home):
    journal = judged()
    # How late events are depends on what else this machine does: the scenario's own run holds it to its limit.
    assert failures(journal) <= {"events: latency p99 (s)"}
    assert journal.error is None
    faults = {fault.name: fault for fault in journal.faults}
    assert {name: fault.fired for name, fault in faults.items()} == {KILLED: 1, DOWN: 1}
    assert all("cannot append" in fault.evidence for fault in faults.values())
    latency = journal.metrics["event_latency_s"]
    assert latency["n"] >= 10
    assert 0 < latency["p50"] <= latency["p99"] < 10 * LATENCY_S
    assert set(journal.metrics["events_drained_s"]) == {"redis-killed", "redis-down"}
    told = journal.metrics["events_told_without_redis"]
    assert told["redis-up-0"] is None
    assert told["redis-killed"] >= 1
    assert told["redis-down"] >= 10
    assert journal.metrics["events_lost"]["lost"] == 0
    assert journal.metrics["events_lost"]["told"] >= 30


@pytest.mark.slow
@real
def test_no_event_is_lost_or_out_of_order_while_redis_is_frozen_emptied_and_away_when_a_worker_dies(home, monkeypatch):
    monkeypatch.setattr(recovery_events, "CALM_JOBS", {True: 1})
    journal = judged(full=True)
    assert failures(journal) <= {"events: latency p99 (s)"}
    assert journal.error is None
    faults = {fault.name: fault for fault in journal.faults}
    killed = {"killed at transcribe_chunk:committed#2"}
    assert set(faults) == {KILLED, DOWN, FROZEN, WORKER, EMPTIED} | killed
    assert all(fault.fired == 1 for fault in faults.values())
    assert "imeout" in faults[FROZEN].evidence
    assert journal.metrics["events_flushed"] > 0


@real
def test_without_a_redis_server_the_part_says_so_and_checks_nothing(home, monkeypatch):
    monkeypatch.setattr(recovery_events, "redis_binary", lambda: None)
    journal = judged()
    assert (journal.error, failures(journal)) == (None, set())
    assert journal.metrics["events"] == f"skipped: {redis_server.NO_SERVER}"
    assert [mark.what for mark in journal.timeline if mark.lane == "events"] == ["skipped, no redis-server here"]
    assert not [check for check in journal.checks if check.name.startswith("events")]


# ── broken on purpose ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@real
def test_a_relay_that_marks_before_it_publishes_is_seen(home, monkeypatch):
    monkeypatch.setattr(recovery_events, "RELAY", f"{BROKEN}.marks_first")
    journal = judged()
    assert journal.error is None
    assert failures(journal) - {"events: latency p99 (s)"} == {
        "events: nothing is lost",
        "events: nothing counts as delivered while there is no Redis",
    }
    assert judge(journal) == "violated"


@pytest.mark.slow
@real
def test_a_relay_that_publishes_the_newest_first_is_seen(home, monkeypatch):
    monkeypatch.setattr(recovery_events, "RELAY", f"{BROKEN}.newest_first")
    journal = judged()
    assert journal.error is None
    assert failures(journal) - {"events: latency p99 (s)"} == {"events: the first copies come in the job's order"}
    assert judge(journal) == "violated"


@pytest.mark.slow
@real
def test_a_relay_that_is_late_repeats_itself_changes_what_it_carries_and_keeps_the_last_is_seen(home, monkeypatch):
    monkeypatch.setattr(recovery_events, "RELAY", f"{BROKEN}.careless")
    monkeypatch.setattr(recovery_events, "DRAIN_S", 3.0)
    journal = judged()
    assert journal.error is None
    assert failures(journal) == {
        "events: nothing is lost",
        "events: copies only where an answer was lost",
        "events: each event is the outbox's, as its schema says",
        "events: everything is delivered at the end",
        "events: drained after Redis is back (s)",
        "events: latency p99 (s)",
    }


# ── what a listener makes of it ───────────────────────────────────────────────────────────────────────────────────────


AS_TOLD = "each event is the outbox's, as its schema says"


def told() -> list[Event]:
    kinds = ["dailies.job.running", schemas.TRANSCRIPTION_STARTED, schemas.TRANSCRIPT_PROCESSING, "dailies.job.done"]
    said = {
        schemas.TRANSCRIPTION_STARTED: {"event": "transcription_started", "job_id": "j", "message": "12 chunks"},
        schemas.TRANSCRIPT_PROCESSING: {"event": "transcript_processing_started", "job_id": "j"},
    }
    return [
        Event(number, f"{number:032x}", "dailies/ledger", kind, "acme/v", 1.7e9 + number, said.get(kind, {}), "j")
        for number, kind in enumerate(kinds)
    ]


def entry(event: Event) -> Entry:
    return Entry(event.time + 0.01, event.id, event.job, json.loads(json.dumps(cloud_event(event))))


def faults_of(entries: Sequence[Entry], owed: Sequence[str] = (), **fared: Any) -> dict[str, int]:
    """How many faults each check has, of those that have any."""
    trial = SimpleNamespace(name="t", events=told, job=SimpleNamespace(id="j"))
    found = listening_faults(Heard(cast(Trial, trial), **fared), entries, set(owed))
    assert list(found) == list(FIXES)
    return {check: len(faults) for check, faults in found.items() if faults}


def test_a_stream_that_is_as_the_outbox_has_no_faults_and_other_jobs_are_not_looked_at():
    entries = [entry(event) for event in told()]
    stranger = replace(entries[0], id="f" * 32, job="other")
    assert faults_of([*entries, stranger]) == {}
    assert faults_of([*entries, *entries], answers_lost=True) == {}
    assert faults_of(entries, told_without=3) == {}
    assert entries[0].latency == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "check", "count"),
    [
        (lambda all: all[:1] + all[2:], "nothing is lost", 1),
        (lambda all: [], "nothing is lost", 4),
        (lambda all: all[::-1], "the first copies come in the job's order", 1),
        (lambda all: [all[1], *all], "the first copies come in the job's order", 1),
        (lambda all: [*all, all[0], all[2]], "copies only where an answer was lost", 1),
        (lambda all: [*all, replace(all[0], id="f" * 32)], AS_TOLD, 1),
        (
            lambda all: [*all[:3], replace(all[3], event=all[2].event)],
            "each event is the outbox's, as its schema says",
            1,
        ),
        (lambda all: [all[0], with_data(all[1], {}), *all[2:]], AS_TOLD, 4),
    ],
)
def test_each_fault_of_a_stream_turns_its_check_red(spoil: Callable[[list[Entry]], list[Entry]], check, count):
    found = faults_of(spoil([entry(event) for event in told()]))
    assert found[check] == count


def with_data(entry: Entry, data: dict[str, Any]) -> Entry:
    return replace(entry, event={**entry.event, "data": data})


def test_what_is_owed_or_marked_too_early_or_not_told_without_redis_turns_its_check_red():
    entries = [entry(event) for event in told()]
    assert faults_of(entries, owed=[entries[3].id]) == {"everything is delivered at the end": 1}
    early = {"marked_without": [entries[2].id], "told_without": 1}
    assert faults_of(entries, **early) == {"nothing counts as delivered while there is no Redis": 1}
    assert faults_of(entries, told_without=0) == {"the job goes on without Redis": 1}
