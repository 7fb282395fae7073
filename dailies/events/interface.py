"""What an event looks like outside, and what takes it there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from dailies.ledger.records import Event


class Sink(Protocol):
    def publish(self, events: Sequence[Event]) -> None:
        """Return only when the receiver has answered for all of them; raise ``Transient`` otherwise."""


def cloud_event(event: Event) -> dict[str, Any]:
    """CloudEvents 1.0, structured JSON. A copy carries the same ``source`` and ``id``."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": datetime.fromtimestamp(event.time, UTC).isoformat(),
        "datacontenttype": "application/json",
        "data": event.data,
    }
