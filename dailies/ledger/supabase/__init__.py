"""The ledger of a site with many machines: PostgreSQL behind Supabase's API.

What decides is SQL, one function a method, in ``deployments/supabase/migrations/``; here is how it is asked.
"""

from __future__ import annotations

from typing import Any

from dailies.ledger.supabase.api import PATIENCE_S, Api
from dailies.ledger.supabase.dispatch import SupabaseDispatch
from dailies.ledger.supabase.jobs import SupabaseJobs
from dailies.ledger.supabase.leases import SupabaseLeases
from dailies.ledger.supabase.messages import SupabaseInbox, SupabaseOutbox, SupabaseTenants
from dailies.ledger.supabase.units import SupabaseCalls, SupabaseGenerations, SupabaseUnits
from dailies.ledger.supabase.videos import SupabaseVideos

FOR_EVER_S = 1e15


class SupabaseLedger:
    """``key`` is the service key: it may do everything, and stays in workers. Nothing is asked before the first call.

    ``patience`` is for how long a call is tried again when it, or its reply, got lost on the way.
    """

    def __init__(self, url: str, key: str, *, patience: float = PATIENCE_S) -> None:
        self._api = Api(url, key, patience)
        self.leases = SupabaseLeases(self._api)
        self.jobs = SupabaseJobs(self._api)
        self.dispatch = SupabaseDispatch(self._api)
        self.units = SupabaseUnits(self._api)
        self.calls = SupabaseCalls(self._api)
        self.generations = SupabaseGenerations(self._api)
        self.outbox = SupabaseOutbox(self._api)
        self.inbox = SupabaseInbox(self._api)
        self.tenants = SupabaseTenants(self._api)
        self.videos = SupabaseVideos(self._api)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it makes its own connections there."""
        return _opened, (self._api.url, self._api.key, self._api.patience)

    def check(self) -> None:
        """Prove within five seconds that the address, the key and the database's schema are right."""
        self._api.check()

    def audit(self, grace: float = 0.0) -> dict[str, list[str]]:
        report: dict[str, Any] = self._api.ask("audit", grace=min(grace, FOR_EVER_S))  # JSON knows no infinity
        return report

    def close(self) -> None:
        self._api.close()


def _opened(url: str, key: str, patience: float) -> SupabaseLedger:
    return SupabaseLedger(url, key, patience=patience)
