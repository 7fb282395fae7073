"""Events to several receivers as if they were one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from dailies.errors import DailiesError, Transient
from dailies.events.interface import Sink
from dailies.ledger.records import Event

BATCH = 100
REMEMBERED = 10_000  # so far may one be ahead of another that is away


class Fanout:
    """Returns only when every sink has answered for all, so nothing counts as delivered before; each in its order.

    While one is away the outbox offers the same events again and again. The others are given only what they have not
    answered for yet, as far as this process remembers; after a restart they may get copies, with the same ids.
    ``ahead`` is how many of the oldest to offer beside new ones, so that the others go on meanwhile.
    """

    def __init__(self, sinks: Sequence[Sink], remembered: int = REMEMBERED) -> None:
        self._receivers = [_Receiver(sink, remembered) for sink in sinks]
        self._most = max(0, remembered - BATCH)
        self.ahead = 0

    def hurry(self, events: Sequence[Event]) -> None:
        """To the first alone: it need not wait until the others have answered for what was before."""
        self._receivers[0].publish(events)

    def publish(self, events: Sequence[Event]) -> None:
        failed: list[DailiesError] = []
        for receiver in self._receivers:
            try:
                receiver.publish(events)
            except DailiesError as error:  # the next sink's share does not depend on this one
                failed.append(error)
        self.ahead = min(len(events), self._most) if failed else 0
        for lasting in (error for error in failed if not isinstance(error, Transient)):
            raise lasting
        if failed:
            raise Transient("; ".join(map(str, failed))) from failed[0]


class _Receiver:
    """One sink, and what it took lately."""

    def __init__(self, sink: Sink, remembered: int) -> None:
        self._sink = sink
        self._remembered = remembered
        self._took: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def publish(self, events: Sequence[Event]) -> None:
        # Locked for the whole of it: a sweep and a relay offer the same events at the same time.
        with self._lock:
            missing = [event for event in events if (event.source, event.id) not in self._took]
            for at in range(0, len(missing), BATCH):  # who comes back may have missed thousands
                some = missing[at : at + BATCH]
                self._sink.publish(some)
                self._took.update(dict.fromkeys((event.source, event.id) for event in some))
            while len(self._took) > self._remembered:
                self._took.popitem(last=False)
