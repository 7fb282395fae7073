"""Leases on Supabase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dailies.ledger.checks import check_lease, positive
from dailies.ledger.records import Lease
from dailies.ledger.supabase.api import Api


def held(lease: Lease) -> dict[str, Any]:
    """What a fenced function compares with the lease that there is."""
    return {"resource": lease.resource, "holder": lease.holder, "fence": lease.fence}


def as_lease(row: Mapping[str, Any]) -> Lease:
    return Lease(row["resource"], row["holder"], row["fence"], row["expires_at"])


class SupabaseLeases:
    def __init__(self, api: Api) -> None:
        self._api = api

    def acquire(self, resource: str, holder: str, ttl: float) -> Lease:
        check_lease(resource, holder, ttl)
        return as_lease(self._api.tell("lease_acquire", resource=resource, holder=holder, ttl=ttl))

    def renew(self, lease: Lease, ttl: float) -> Lease:
        return as_lease(self._api.tell("lease_renew", **held(lease), ttl=positive(ttl)))

    def release(self, lease: Lease) -> None:
        self._api.tell("lease_release", **held(lease))

    def sweep(self) -> Sequence[Lease]:
        return [as_lease(row) for row in self._api.tell("lease_sweep")]

    def holder(self, resource: str) -> Lease | None:
        row = self._api.ask("lease_holder", resource=resource)
        return None if row is None else as_lease(row)
