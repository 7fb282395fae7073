"""The site: does each connection answer, and what its ledger and journals say of the work."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dailies.canonical import digest
from dailies.errors import BadInput, NotConfigured
from dailies.home import home
from services.doctor.finding import Finding, Visit, one_line
from services.doctor.orchestrator import talking_to

if TYPE_CHECKING:
    from blocks.site import Site
    from dailies.ledger.interface import Ledger

STUCK_S = 60.0
# A worker that is late by one renewal, or a sweep that is just about to come, is no finding.
GRACE_S = 10.0
MANY = 10_000
SHOWN = 5
SWEPT_RULES = ("running without a live lease", "expired lease still held")
SWEEP_FIX = "start the supervisor with `dailies up`, or run the flow recover-jobs once"
RULE_FIX = "stop what writes to it, keep a copy of the ledger, and report this: such a row should be impossible"


def store(visit: Visit) -> Iterator[Finding]:
    """The examination that writes: an object of its own, deleted at the end."""
    with talking_to(visit):
        objects = connections(visit).store.open()
    objects.check()
    key, data = f"doctor-{uuid.uuid4().hex}", b"dailies doctor was here"
    try:
        objects.put(key, data)
        same = objects.get(key) == data
    finally:
        deleted = objects.delete(key)
    value = "writes, reads back and deletes" if same and deleted else "does not give back what was written"
    yield Finding("store", f"site {visit.site}", value, same and deleted == 1)


def ledger(visit: Visit) -> Iterator[Finding]:
    with opened_ledger(visit) as book:
        book.check()
        rules = book.audit(GRACE_S)
    broken = {rule: offenders for rule, offenders in rules.items() if offenders}
    if not broken:
        yield Finding("ledger", f"site {visit.site}", f"opens; all {len(rules)} rules hold", True)
    for rule, offenders in broken.items():
        yield Finding("ledger", rule, some(offenders), False, SWEEP_FIX if rule in SWEPT_RULES else RULE_FIX)


def events(visit: Visit) -> Iterator[Finding]:
    """The way that the relay takes, with the same key. A fixed id, so that asking twice adds no second event."""
    from dailies.ledger.records import Event

    with talking_to(visit):
        described = connections(visit).events
        sink = described.open()
    if sink is None:
        yield Finding("events", f"site {visit.site}", "no Prefect server yet: events wait in the outbox")
        return
    if not described.api_url and not visit.answers:
        value = "the Prefect server does not answer: events wait in the outbox"
        yield Finding("events", f"site {visit.site}", value, False)
        return
    probe = Event(
        0, digest("dailies doctor")[:32], "dailies/doctor", "dailies.doctor.asked", "doctor", time.time(), {}, ""
    )
    sink.publish([probe])
    yield Finding("events", f"site {visit.site}", "the API takes them", True)


def compute(visit: Visit) -> Iterator[Finding]:
    with talking_to(visit):
        found = connections(visit)
        found.compute.open(found.store).check()
    yield Finding("compute", f"site {visit.site}", f"{found.compute.get_block_type_name()} takes work", True)


def stream(visit: Visit) -> Iterator[Finding]:
    with talking_to(visit):
        described = connections(visit).stream
    if described is None:
        yield Finding("stream", f"site {visit.site}", "no Redis stream: events go to Prefect alone")
        return
    described.open().check()
    yield Finding("stream", f"site {visit.site}", f"{described.stream} takes events", True)


def jobs(visit: Visit) -> Iterator[Finding]:
    from dailies.ledger.records import JobState

    with opened_ledger(visit) as book:
        by_state = {state: book.jobs.all(state, MANY) for state in JobState}
        waiting = book.outbox.pending(MANY)
        expired = book.audit()["expired lease still held"]
    yield Finding("jobs", "states", " · ".join(f"{state} {count(found)}" for state, found in by_state.items()))
    queued = [job.available_at for job in by_state[JobState.QUEUED]]
    age = time.time() - min(queued, default=time.time())
    stuck = age > STUCK_S and not by_state[JobState.RUNNING]
    value = f"{span(age)}, and nothing is running" if stuck else span(age) if queued else "none"
    yield Finding("jobs", "oldest QUEUED", value, False if stuck else None, SWEEP_FIX if stuck else "")
    late = f" (oldest {span(time.time() - waiting[0].time)})" if waiting else ""
    yield Finding("jobs", "events not yet delivered", count(waiting) + late)
    yield Finding("jobs", "expired leases", some(expired) if expired else "none")


def failures(visit: Visit) -> Iterator[Finding]:
    from dailies.ledger.records import JobState

    with opened_ledger(visit) as book:
        failed = sorted(book.jobs.all(JobState.FAILED, MANY), key=lambda job: -job.updated_at)
    for job in failed[:SHOWN]:
        when = datetime.fromtimestamp(job.updated_at, UTC).isoformat(" ", "seconds")
        why = " ".join(job.error.split())
        yield Finding("failures", f"{job.kind} {job.id}", f"{when} {job.error_code}: {why}")
    if not failed:
        yield Finding("failures", "jobs", "none failed")


def scenarios(_visit: Visit) -> Iterator[Finding]:
    journals = sorted((home() / "runs" / "last").glob("*.json"))
    for path in journals:
        yield verdict(path)
    if not journals:
        yield Finding("scenarios", "verdicts", "none yet")


def verdict(path: Path) -> Finding:
    from dailies.scenarios.journal import read
    from dailies.scenarios.verdict import Verdict, judge, reason

    again = f"dailies scenario {path.stem}"
    try:
        journal = read(path)
    except BadInput as error:
        return Finding("scenarios", path.stem, one_line(error), None, f"run it again: {again}")
    said = judge(journal)
    ok = {Verdict.PASSED: True, Verdict.VIOLATED: False, Verdict.ERROR: False}.get(said)
    fix = f"run it again with --seed {journal.seed}: {again}" if ok is False else ""
    return Finding("scenarios", path.stem, f"{said} {journal.started}: {reason(journal)}", ok, fix)


def connections(visit: Visit) -> Site:
    """The parts unopened, because ``open_site`` opens all or none: one that is broken must not hide the others."""
    from blocks.site import Site, described

    if visit.site == "local":
        return Site()
    if not visit.answers:
        raise NotConfigured(f"site {visit.site!r} is described in Prefect, which does not answer")
    return described(visit.site)


@contextmanager
def opened_ledger(visit: Visit) -> Iterator[Ledger]:
    with talking_to(visit):
        book = connections(visit).ledger.open()
    try:
        yield book
    finally:
        book.close()


def count(found: Sized) -> str:
    return f"{len(found)}" if len(found) < MANY else f"{MANY} or more"


def some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
