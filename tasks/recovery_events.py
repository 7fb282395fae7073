"""The part of job-recovery that takes Redis away: jobs do not notice, and whoever listens misses nothing in the end."""

from __future__ import annotations

import json
import logging
import pkgutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks.redis import RedisStream
from blocks.site import Site, described, open_site
from dailies.errors import TimedOut
from dailies.events import schemas
from dailies.events.interface import cloud_event
from dailies.failpoints import fired
from dailies.ledger.records import Event
from dailies.scenarios.processes import Child
from dailies.scenarios.redis_server import NO_SERVER, RedisServer, redis_binary
from tasks.caption_parts import FLOW_S
from tasks.contention import part
from tasks.recovery_findings import Whole, findings, histogram, report
from tasks.recovery_parts import AFTER_TWO, Trial
from tasks.scenario import MANY, Scenario

# By name, as flows are: what the supervisor runs is above the tasks, and tests put a broken one in its place.
RELAY = "services.supervisor.relay_events"
DRAIN_S = 30.0
LATENCY_S = 0.1
NOTICED_S = 20.0
START_S = 60.0
CALM_JOBS = {False: 1, True: 8}  # by ``full``
MIDDLE = "transcribe_chunk:before#3"
# Half a second in the middle for Redis to be gone, and time at the end for it to be back before the job is over.
SLOWLY = f"{MIDDLE}=sleep(0.5);make_transcript:before=sleep(3)"


# ── the stream and what carries events there ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Entry:
    """One event as the stream has it, and when it came there by Redis' own clock."""

    at: float
    id: str
    job: str
    event: dict[str, Any]

    @property
    def latency(self) -> float:
        return max(0.0, self.at - datetime.fromisoformat(self.event["time"]).timestamp())


@dataclass
class Line:
    """A Redis, a relay that fills it from the scenario's outbox, and all that was ever in the stream."""

    run: Scenario
    server: RedisServer
    flushed: list[Entry] = field(default_factory=list)

    @property
    def stream(self) -> str:
        return self.run.named("events")

    def entries(self) -> list[Entry]:
        """In the order in which they came; also those that a FLUSHALL took away."""
        with self.server.client as client:
            return self.flushed + [as_entry(*row) for row in client.xrange(self.stream)]

    def flush(self) -> list[Entry]:
        """Empty Redis. What it had is read in the same transaction, so that nothing is lost uncounted."""
        with self.server.client as client, client.pipeline(transaction=True) as together:
            rows, _ = together.xrange(self.stream).flushall().execute()
        gone = [as_entry(*row) for row in rows]
        self.flushed += gone
        return gone

    def relay(self) -> Child:
        """As the supervisor's, with this stream beside the site's own receivers, and nobody who dispatches."""
        child = self.run.nursery.spawn(
            carry,
            RELAY,
            self.run.site.name,
            RedisStream(url=self.server.url, stream=self.stream).model_dump(),
            self.run.environment["PREFECT_API_URL"],
            name="relay",
            env=self.run.environment,
            log=self.run.log("relay"),
        )
        self.run.until(lambda: self.relays(child), START_S, "the relay did not start: does a supervisor run here?")
        return child

    def relays(self, child: Child) -> bool:
        """Only one at a time may; another one would take events past this stream."""
        lease = self.run.ledger.leases.holder("relay")
        return lease is not None and lease.holder.endswith(f":{child.pid}")

    def complaints(self) -> list[str]:
        """What the relay said when Redis did not answer."""
        log = self.run.log("relay").read_text(errors="replace")
        return [line for line in log.splitlines() if "action=later" in line and self.stream in line]

    def owed(self) -> set[str]:
        return {event.id for event in self.run.ledger.outbox.pending(MANY)}

    def drained(self, owed: set[str]) -> float | None:
        """How long it takes until none of these is pending; None where it takes too long."""
        begin = time.monotonic()
        got = in_time(self.run, lambda: not owed & self.owed(), DRAIN_S)
        return round(time.monotonic() - begin, 3) if got else None


def as_entry(entry: str, fields: dict[str, str]) -> Entry:
    milliseconds = int(entry.partition("-")[0])
    return Entry(milliseconds / 1000, fields["id"], fields["job"], json.loads(fields["event"]))


def in_time(run: Scenario, true: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true. What does not is for a check to say, not for the end of the scenario."""
    try:
        run.until(true, seconds, "")
    except TimedOut:
        if run.over.is_set():
            raise
        return False
    return True


def carry(relay: str, site_name: str, stream: dict[str, Any], api_url: str) -> None:
    """In a child, until it is asked to end."""
    # Whoever forked us may have set logging up already, for an output that is not ours.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with temporary_settings({PREFECT_API_URL: api_url}):
        block = Site() if site_name == "local" else described(site_name)
        with_stream = block.model_copy(update={"stream": RedisStream(**stream)})
        pkgutil.resolve_name(relay)(replace(open_site(site_name), events=with_stream.open_events()), ended)


# ── the trials ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Heard:
    """One job, and how Redis fared meanwhile."""

    trial: Trial
    answers_lost: bool = False
    """Only then may an event stand in the stream twice."""
    drain: float | None = 0.0
    told_without: int | None = None
    """How many events the job told while there was no Redis; None where it was there all the time."""
    marked_without: list[str] = field(default_factory=list)


@part("redis-away")
def redis_away(run: Scenario, whole: Whole, full: bool) -> None:
    """Redis down, killed, frozen, emptied: the events of each job are there in the end, each in its place."""
    if redis_binary() is None:
        run.journal.metric("events", f"skipped: {NO_SERVER}")
        run.journal.mark("events", "skipped, no redis-server here")
        return
    with run.journal.span("events", "Redis comes and goes"), a_line(run) as line:
        calm, latencies = up_all_the_time(line, CALM_JOBS[full])
        heard = [*calm, killed_in_the_middle(line), down_all_along(line)]
        if full:
            heard += [frozen_in_the_middle(line), worker_dies_meanwhile(line), emptied_in_the_middle(line)]
        judge(run, whole, heard, line.entries(), latencies)


@contextmanager
def a_line(run: Scenario) -> Iterator[Line]:
    """Both processes are gone before the scenario looks for what is left."""
    line = Line(run, RedisServer(run.nursery, run.place / "redis"))
    line.server.start()
    relay = line.relay()
    try:
        yield line
    finally:
        relay.terminate()
        line.server.kill()


def up_all_the_time(line: Line, jobs: int) -> tuple[list[Heard], list[float]]:
    """How long each event takes from its own time to the stream, whoever's event it is."""
    line.drained(line.owed())  # what others told before there was a relay
    since = time.time()
    trials = [Trial(line.run, f"redis-up-{number}") for number in range(jobs)]
    for trial in trials:
        trial.finish()
    heard = [Heard(trial, drain=line.drained(line.owed())) for trial in trials]
    return heard, sorted(entry.latency for entry in line.entries() if entry.at - entry.latency >= since)


def killed_in_the_middle(line: Line) -> Heard:
    trial, child = in_the_middle(line, "redis-killed")
    with away(line, trial, "Redis killed in mid-job", line.server.kill, line.server.start) as heard:
        heard.answers_lost = True
    return ended(line, heard, child)


def frozen_in_the_middle(line: Line) -> Heard:
    """For longer than the relay waits for an answer: its complaint is the proof."""
    trial, child = in_the_middle(line, "redis-frozen")

    def freeze() -> None:
        line.server.freeze()
        line.server.process.wait_frozen(NOTICED_S)

    with away(line, trial, "Redis frozen in mid-job", freeze, line.server.revive) as heard:
        heard.answers_lost = True
    return ended(line, heard, child)


def down_all_along(line: Line) -> Heard:
    """Gone before the job is submitted, and back after its end."""
    line.server.stop()
    trial = Trial(line.run, "redis-down")
    with away(line, trial, "Redis down from before the job to after it", line.server.stop, line.server.start) as heard:
        trial.finish()
    return ended(line, heard)


def worker_dies_meanwhile(line: Line) -> Heard:
    """What is told of the recovery stands behind what the dead attempt told, wherever Redis was."""
    line.server.kill()
    trial = Trial(line.run, "redis-and-worker")
    with away(line, trial, "Redis down while a worker dies", line.server.kill, line.server.start) as heard:
        trial.hand_on(trial.kill_at(AFTER_TWO))
    trial.finish()
    return ended(line, heard)


def emptied_in_the_middle(line: Line) -> Heard:
    """What it had is Redis' to lose; what comes after is there, and nothing of it comes from before."""
    fault = "Redis emptied in mid-job"
    line.run.journal.fault(fault)
    trial, child = in_the_middle(line, "redis-emptied")
    line.drained({event.id for event in trial.events()})
    gone = [entry for entry in line.flush() if entry.job == trial.job.id]
    heard = ended(line, Heard(trial), child)
    kept = [entry for entry in line.entries()[len(line.flushed) :] if entry.job == trial.job.id]
    evidence = f"job {trial.job.id}: {len(gone)} events flushed, {len(kept)} came after them"
    line.run.journal.fault(fault, fired=int(bool(gone and kept)), evidence=evidence)
    line.run.journal.metric("events_flushed", len(gone))
    return heard


def in_the_middle(line: Line, name: str) -> tuple[Trial, Child]:
    """A job that is under way, with chunks done and chunks to do."""
    trial = Trial(line.run, name)
    child = trial.start(SLOWLY)
    line.run.until(lambda: bool(fired(trial.log(1))), FLOW_S, f"job {trial.job.id} did not come to {MIDDLE}")
    return trial, child


@contextmanager
def away(
    line: Line, trial: Trial, fault: str, take: Callable[[], None], bring_back: Callable[[], None]
) -> Iterator[Heard]:
    """No Redis inside; it comes back when the job has told more and the relay has tried to pass that on.

    To ``take`` what is gone already is no harm.
    """
    heard = Heard(trial)
    line.run.journal.fault(fault)
    said = len(line.complaints())
    with line.run.journal.span("redis", "away"):
        take()
        before = {event.id for event in trial.events()}
        yield heard
        in_time(line.run, lambda: len(trial.events()) > len(before), NOTICED_S)
        unheard = len(line.complaints())
        in_time(line.run, lambda: len(line.complaints()) > unheard, NOTICED_S)
        evidence = [f"pid {line.server.process.pid}, state {line.server.process.state or 'gone'}"]
        told = {event.id for event in trial.events()} - before
        owed = line.owed()
        bring_back()
    heard.told_without, heard.marked_without = len(told), sorted(told - owed)
    heard.drain = line.drained(owed)
    evidence += line.complaints()[said : said + 1]
    line.run.journal.fault(fault, fired=len(evidence) - 1, evidence="; ".join(evidence))


def ended(line: Line, heard: Heard, child: Child | None = None) -> Heard:
    """When its last event should have arrived."""
    if child is not None and (code := child.wait(FLOW_S)):
        raise RuntimeError(f"{child.name} ended with {code}: see its log")
    line.drained({event.id for event in heard.trial.events()})
    return heard


# ── what was heard ────────────────────────────────────────────────────────────────────────────────────────────────────

FIXES = {
    "nothing is lost": "mark an event as delivered only when Redis has answered for it",
    "the first copies come in the job's order": "publish the oldest first, and nothing past what was not answered for",
    "copies only where an answer was lost": "see the script in dailies/events/redis_stream.py",
    "each event is the outbox's, as its schema says": "see dailies/events/schemas.py and cloud_event",
    "nothing counts as delivered while there is no Redis": "mark after publishing, not before",
    "everything is delivered at the end": "see logs/relay.log",
    "the job goes on without Redis": "work writes to the outbox only, and waits for no receiver",
}


def judge(
    run: Scenario, whole: Whole, heard: Sequence[Heard], entries: Sequence[Entry], latencies: Sequence[float]
) -> None:
    report(run, "events", [findings(one.trial, whole) for one in heard])
    owed = {event.id for event in run.ledger.outbox.pending(MANY)}
    found = [listening_faults(one, entries, owed) for one in heard]
    for check, fix in FIXES.items():
        run.journal.expect(f"events: {check}", [fault for one in found for fault in one[check]], [], fix)
    drains = [one.drain for one in heard if one.told_without is not None]
    worst = None if None in drains else max(filter(None, drains), default=0.0)
    run.journal.expect_at_most("events: drained after Redis is back (s)", worst, DRAIN_S, "see logs/relay.log")
    shown = histogram(latencies)
    run.journal.expect_at_most("events: latency p99 (s)", shown.get("p99"), LATENCY_S, "what wakes the relay?")
    run.journal.metric("event_latency_s", shown)
    run.journal.metric("events_drained_s", {one.trial.name: one.drain for one in heard if one.told_without is not None})
    run.journal.metric("events_told_without_redis", {one.trial.name: one.told_without for one in heard})
    told, lost = sum(len(one.trial.events()) for one in heard), sum(len(one["nothing is lost"]) for one in found)
    run.journal.metric("events_lost", {"lost": lost, "told": told, "upper_bound_95": round(3 / max(told, 1), 5)})


def listening_faults(heard: Heard, entries: Sequence[Entry], owed: set[str]) -> dict[str, list[str]]:
    """By check, what a listener to the stream could not make sense of; nothing wrong is an empty list."""
    told = heard.trial.events()
    ours = [entry for entry in entries if entry.job == heard.trial.job.id]
    first = {entry.id: entry for entry in reversed(ours)}
    arrived = list(dict.fromkeys(entry.id for entry in ours))
    wanted = [event.id for event in told if event.id in first]
    copies = len(ours) - len(arrived)
    found = (
        [f"{event.type} ({event.seq})" for event in told if event.id not in first],
        [] if arrived == wanted else [f"{places(arrived, told)} instead of the outbox's order"],
        [f"{copies} copies"] if copies and not heard.answers_lost else [],
        [fault for entry in ours for fault in entry_faults(entry, told)],
        heard.marked_without,
        [f"{event.type} ({event.seq})" for event in told if event.id in owed],
        ["it told nothing meanwhile"] if heard.told_without == 0 else [],
    )
    return {
        check: [f"{heard.trial.name}: {fault}" for fault in faults] for check, faults in zip(FIXES, found, strict=True)
    }


def places(ids: Sequence[str], told: Sequence[Event]) -> list[int]:
    """Where in the outbox each of these stands, as a reader can see what is out of order."""
    known = [event.id for event in told]
    return [known.index(id) if id in known else -1 for id in ids]


def entry_faults(entry: Entry, told: Sequence[Event]) -> list[str]:
    event = next((event for event in told if event.id == entry.id), None)
    if event is None:
        return [f"{entry.id} is not in the outbox"]
    changed = (
        [] if entry.event == json.loads(json.dumps(cloud_event(event))) else [f"{event.type} is not what was told"]
    )
    kind, data = str(entry.event.get("type")), entry.event.get("data", {})
    return changed + [f"{kind}: {fault}" for fault in schemas.faults_of(kind, data)]
