"""Relays as they must not be, for job-recovery to find out: each breaks the product in its own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from blocks.site import OpenSite
from dailies.events import schemas
from dailies.events.interface import Sink
from dailies.events.redis_stream import MAX_LENGTH, RECENT, RedisStream, errors, fields_of
from dailies.events.relay import BATCH
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Event
from services import supervisor

Relay = Callable[[Ledger, Sink], int]


def relaying(relay: Relay, site: OpenSite, ended: threading.Event) -> None:
    """The supervisor's own loop around another relay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "relay", relay)
        patch.setattr(supervisor, "hurry", lambda *_: None)
        supervisor.relay_events(site, ended)


def marks_first(site: OpenSite, ended: threading.Event) -> None:
    """Delivered before anybody has answered."""

    def relay(ledger: Ledger, sink: Sink) -> int:
        count = 0
        while events := ledger.outbox.pending(BATCH):
            ledger.outbox.delivered([event.id for event in events])
            sink.publish(events)
            count += len(events)
        return count

    relaying(relay, site, ended)


def newest_first(site: OpenSite, ended: threading.Event) -> None:
    """Everything arrives and is marked when it was answered for, but what had to wait comes backwards."""

    def relay(ledger: Ledger, sink: Sink) -> int:
        count = 0
        while events := ledger.outbox.pending(BATCH):
            sink.publish(events[::-1])
            ledger.outbox.delivered([event.id for event in events])
            count += len(events)
        return count

    relaying(relay, site, ended)


def careless(site: OpenSite, ended: threading.Event) -> None:
    """It is late, says some things twice and some things differently, and never comes to the last event of a job."""

    def relay(ledger: Ledger, sink: Sink) -> int:
        events = [event for event in ledger.outbox.pending(BATCH) if event.type != "dailies.job.done"]
        if events:
            time.sleep(0.3)
            sink.publish([changed(event) for event in events])
            ledger.outbox.delivered([event.id for event in events])
        return len(events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RedisStream, "publish", twice)
        relaying(relay, site, ended)


def changed(event: Event) -> Event:
    return replace(event, data={**event.data, "chunk_text": 7}) if event.type == schemas.CHUNK_TRANSCRIBED else event


def twice(stream: RedisStream, events: Sequence[Event]) -> None:
    """The second time past most of what the script looks at to keep copies out."""
    flat = [value for event in events for value in fields_of(event)]
    with errors(stream._where, "append to it"):
        for recent in (RECENT, 1):
            stream._append(keys=[stream.stream], args=[MAX_LENGTH, recent, *flat])
