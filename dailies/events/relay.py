"""From the outbox to the stream."""

from __future__ import annotations

from dailies.events.interface import Sink
from dailies.ledger.interface import Ledger

BATCH = 100


def relay(ledger: Ledger, sink: Sink) -> int:
    """Deliver what is pending, oldest first; returns how many.

    Killed between publishing and marking, the next relay publishes the same ids again: at least once.
    """
    count = 0
    while events := ledger.outbox.pending(BATCH):
        sink.publish(events)
        ledger.outbox.delivered([event.id for event in events])
        count += len(events)
    return count
