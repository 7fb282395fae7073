"""Outbox, inbox and tenants on Supabase."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dailies.ledger.checks import as_text
from dailies.ledger.priority import tier_of
from dailies.ledger.records import Event, Lease
from dailies.ledger.supabase.api import Api
from dailies.ledger.supabase.leases import held

LOOK_S = 0.05


def as_event(row: Mapping[str, Any]) -> Event:
    values = {name: row[name] for name in Event.__dataclass_fields__}
    return Event(**{**values, "data": json.loads(row["data"])})


class SupabaseOutbox:
    def __init__(self, api: Api) -> None:
        self._api = api

    def emit(self, lease: Lease, kind: str, occasion: str, data: Mapping[str, Any]) -> None:
        self._api.tell("outbox_emit", **held(lease), kind=kind, occasion=occasion, data=as_text(dict(data)))

    def pending(self, limit: int = 100) -> Sequence[Event]:
        return [as_event(row) for row in self._api.ask("outbox_pending", limit=limit)]

    def delivered(self, ids: Iterable[str]) -> None:
        if known := list(ids):
            self._api.tell("outbox_delivered", ids=as_text(known))

    def mark(self) -> int:
        """Of the events alone, which every change of state leaves. What this thread commits itself counts as well."""
        return int(self._api.ask("outbox_mark"))

    def wait(self, mark: int, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.mark() == mark:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def of(self, job_id: str) -> Sequence[Event]:
        return [as_event(row) for row in self._api.ask("outbox_of", job=job_id)]


class SupabaseInbox:
    def __init__(self, api: Api) -> None:
        self._api = api

    def accept(self, source: str, event_id: str) -> bool:
        return bool(self._api.tell("inbox_accept", source=source, event=event_id))


class SupabaseTenants:
    def __init__(self, api: Api) -> None:
        self._api = api

    def set_tier(self, tenant: str, tier: str) -> None:
        self._api.tell("tenant_set_tier", tenant=tenant, tier=tier)

    def tier(self, tenant: str) -> str:
        return tier_of(self._api.ask("tenant_tier", tenant=tenant))
