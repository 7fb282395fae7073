"""From the outbox to the stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dailies.events.fanout import BATCH, Fanout
from dailies.events.interface import Sink
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Event

LOOK_S, REST_S = 0.2, 1.0


def relay(ledger: Ledger, sink: Sink) -> int:
    """Deliver what is pending, oldest first; returns how many.

    Killed between publishing and marking, the next relay publishes the same ids again: at least once.
    """
    count = 0
    while events := oldest(ledger, sink):
        sink.publish(events)
        ledger.outbox.delivered([event.id for event in events])
        count += len(events)
    return count


def oldest(ledger: Ledger, sink: Sink) -> Sequence[Event]:
    return ledger.outbox.pending(BATCH + (sink.ahead if isinstance(sink, Fanout) else 0))


def hurry(ledger: Ledger, sinks: Fanout, over: Callable[[], bool]) -> None:
    """Beside the relay: the first of several listeners hears of a change at once, however slow the others are.

    Nothing counts as delivered by this. What the first could not take, the relay gives it, and says what is wrong.
    """
    try:
        while not over():
            try:
                mark = ledger.outbox.mark()
                if events := oldest(ledger, sinks):
                    sinks.hurry(events)
                ledger.outbox.wait(mark, LOOK_S)
            except Exception:  # noqa: BLE001 - whatever it is: it must not end the hurry, and the relay meets it as well
                time.sleep(REST_S)
    finally:
        ledger.close()
