"""Events to a Prefect server, by its HTTP API: its answer is the receipt that the client library does not give."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from dailies.errors import NotConfigured, Transient
from dailies.events.interface import cloud_event
from dailies.ledger.records import Event

SET = "set api_url to a Prefect API, and api_key where it asks for one"


class PrefectEvents:
    def __init__(self, api_url: str, headers: Mapping[str, str] | None = None, timeout: float = 10.0) -> None:
        if not api_url:
            raise NotConfigured("events need a Prefect API: set PREFECT_API_URL, or start one with `dailies up`")
        self._client = httpx.Client(base_url=api_url.rstrip("/") + "/", headers=dict(headers or {}), timeout=timeout)

    def publish(self, events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            answer = self._client.post("events", json=[as_prefect(event) for event in events])
        except httpx.HTTPError as error:
            raise Transient(
                f"the Prefect API at {self._client.base_url} did not take the events: {error}: "
                "is api_url right, and does the server run?"
            ) from error
        if answer.status_code // 100 != 2:
            kind = NotConfigured if answer.status_code in (401, 403, 404) else Transient
            said = " ".join(answer.text.split())[:200]
            raise kind(f"{self._client.base_url} refused the events ({answer.status_code} {said}): {SET}")

    def close(self) -> None:
        self._client.close()


def as_prefect(event: Event) -> dict[str, Any]:
    outside = cloud_event(event)
    related = [{"prefect.resource.id": f"dailies.job.{event.job}", "prefect.resource.role": "job"}]
    return {
        "id": str(uuid.UUID(hex=event.id)),
        "event": event.type,
        "occurred": outside["time"],
        "resource": {"prefect.resource.id": f"dailies.{event.subject}", "prefect.resource.name": event.subject},
        "related": related,
        "payload": outside,
    }
