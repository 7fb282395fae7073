"""Dispatch on Supabase: what waits is ranked here, by the same rules as everywhere, and claimed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dailies.errors import DailiesError
from dailies.ledger.checks import as_reason, as_text
from dailies.ledger.priority import Aging, priority
from dailies.ledger.records import Caps, Job, Run
from dailies.ledger.supabase.api import Api
from dailies.ledger.supabase.jobs import as_job


def rank_of(row: Mapping[str, Any]) -> int:
    return priority(
        row["tier"], row["waited"], boost=row["boost"], base=row["base"], aging=Aging(enabled=bool(row["aging"]))
    )


def by_rank(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: (-rank_of(row), row["created_at"], row["id"]))


class SupabaseDispatch:
    def __init__(self, api: Api) -> None:
        self._api = api

    def ranked(self) -> Sequence[tuple[Job, int]]:
        return [(as_job(row), rank_of(row)) for row in by_rank(self._api.ask("dispatch_ranked"))]

    def rank(self, job: Job) -> int:
        row = self._api.ask("dispatch_rank", job=job.id)
        return rank_of({**row, "boost": job.boost, "base": job.base, "aging": job.aging})

    def next(self, caps: Caps) -> Job | None:
        # What is read here may be a moment old: it only spares hopeless claims. The claim checks everything again.
        found = self._api.ask("dispatch_candidates")
        busy: dict[str, int] = found["busy"]
        if sum(busy.values()) >= caps.total:
            return None
        wanted = [
            [row["id"], row["attempt"], row["tenant"]]
            for row in by_rank(found["waiting"])
            if busy.get(row["tenant"], 0) < caps.per_tenant
        ]
        if not wanted:
            return None
        row = self._api.tell("dispatch_claim", wanted=as_text(wanted), total=caps.total, per_tenant=caps.per_tenant)
        return None if row is None else as_job(row)

    def unbound(self, older_than: float) -> Sequence[Job]:
        return [as_job(row) for row in self._api.ask("dispatch_unbound", older_than=older_than)]

    def bind(self, job_id: str, attempt: int, run_id: str) -> None:
        self._api.tell("dispatch_bind", job=job_id, attempt=attempt, run=run_id)

    def waiting(self, older_than: float) -> Sequence[Run]:
        return [as_run(row) for row in self._api.ask("dispatch_waiting", older_than=older_than)]

    def give_up(self, job_id: str, attempt: int, error: DailiesError | None = None) -> Job | None:
        reason = {"code": error.code if error else None, "error": as_reason(error) if error else None}
        row = self._api.tell("dispatch_give_up", job=job_id, attempt=attempt, **reason)
        return None if row is None else as_job(row)

    def jobs_of(self, run_id: str) -> Sequence[str]:
        jobs: list[str] = self._api.ask("dispatch_jobs_of", run=run_id)
        return jobs

    def unshown(self) -> Sequence[Run]:
        return [as_run(row) for row in self._api.ask("dispatch_unshown")]

    def shown(self, job_id: str, attempt: int) -> None:
        self._api.tell("dispatch_shown", job=job_id, attempt=attempt)


def as_run(row: Mapping[str, Any]) -> Run:
    return Run(row["job"], row["attempt"], row["run_id"], row["created_at"], row["ending"])
