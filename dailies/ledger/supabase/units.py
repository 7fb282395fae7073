"""Units, calls and generations on Supabase: what a job leaves behind, each row under its fence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dailies.ledger.checks import as_text
from dailies.ledger.records import Call, Lease, Unit
from dailies.ledger.supabase.api import Api
from dailies.ledger.supabase.leases import held


def as_unit(row: Mapping[str, Any]) -> Unit:
    values = {name: row[name] for name in Unit.__dataclass_fields__}
    return Unit(**{**values, "result": json.loads(row["result"])})


def as_call(row: Mapping[str, Any]) -> Call:
    return Call(row["unit"], row["job"], row["call_id"], row["state"])


class SupabaseUnits:
    def __init__(self, api: Api) -> None:
        self._api = api

    def find(self, key: str) -> Unit | None:
        row = self._api.ask("unit_find", key=key)
        return None if row is None else as_unit(row)

    def begin(self, lease: Lease, key: str, step: str) -> Unit:
        return as_unit(self._api.tell("unit_begin", **held(lease), key=key, step=step))

    def complete(
        self,
        lease: Lease,
        key: str,
        step: str,
        digest: str,
        result: Any,
        *,
        reused: bool = False,
        event: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Unit:
        kind, data = event or (None, {})
        row = self._api.tell(
            "unit_complete",
            **held(lease),
            key=key,
            step=step,
            digest=digest,
            result=as_text(result),
            reused=reused,
            kind=kind,
            data=as_text(dict(data)),
        )
        return as_unit(row)

    def of(self, job_id: str) -> Sequence[Unit]:
        return [as_unit(row) for row in self._api.ask("unit_of", job=job_id)]


class SupabaseCalls:
    def __init__(self, api: Api) -> None:
        self._api = api

    def intend(self, lease: Lease, unit: str) -> Call:
        return as_call(self._api.tell("call_intend", **held(lease), unit=unit))

    def submitted(self, lease: Lease, unit: str, call_id: str) -> Call:
        return self._become(lease, unit, "SUBMITTED", call_id)

    def ended(self, lease: Lease, unit: str, state: str) -> Call:
        return self._become(lease, unit, state, None)

    def orphans(self) -> Sequence[Call]:
        return [as_call(row) for row in self._api.ask("call_orphans")]

    def reap(self, call: Call) -> None:
        self._api.tell("call_reap", job=call.job, unit=call.unit)

    def _become(self, lease: Lease, unit: str, state: str, call_id: str | None) -> Call:
        return as_call(self._api.tell("call_become", **held(lease), unit=unit, state=state, call_id=call_id))


class SupabaseGenerations:
    def __init__(self, api: Api) -> None:
        self._api = api

    def publish(self, lease: Lease, key: str) -> None:
        self._api.tell("generation_publish", **held(lease), key=key)

    def current(self, resource: str) -> str | None:
        history = self.history(resource)
        return history[-1][1] if history else None

    def history(self, resource: str) -> Sequence[tuple[int, str]]:
        return [(fence, key) for fence, key in self._api.ask("generation_history", resource=resource)]
