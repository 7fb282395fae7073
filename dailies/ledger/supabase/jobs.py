"""Jobs on Supabase."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from dailies.errors import DailiesError
from dailies.ledger.checks import as_reason, as_text, check_request, positive
from dailies.ledger.records import Job, JobRequest, JobState, Lease
from dailies.ledger.supabase.api import Api
from dailies.ledger.supabase.leases import as_lease, held


def as_job(row: Mapping[str, Any]) -> Job:
    values = {name: row[name] for name in Job.__dataclass_fields__}
    values.update(state=JobState(row["state"]), params=json.loads(row["params"]), result=json.loads(row["result"]))
    return Job(**values)


class SupabaseJobs:
    def __init__(self, api: Api) -> None:
        self._api = api

    def submit(self, request: JobRequest, key: str = "", run_id: str = "") -> Job:
        check_request(request)
        job_id = secrets.token_hex(8)
        return self._tell(
            "submit",
            id=job_id,
            tenant=request.tenant,
            kind=request.kind,
            subject=request.subject,
            params=as_text(dict(request.params)),
            deployment=request.deployment or f"{request.kind}/cpu",
            max_attempts=request.max_attempts,
            base=request.base,
            boost=request.boost,
            aging=request.aging,
            key=key or job_id,
            digest=request.digest,
            run=run_id,
        )

    def get(self, job_id: str) -> Job:
        return as_job(self._api.ask("job_get", job=job_id))

    def all(self, state: JobState | None = None, limit: int = 1000) -> Sequence[Job]:
        return [as_job(row) for row in self._api.ask("job_all", state=state, limit=limit)]

    def start(self, job_id: str, attempt: int, run_id: str, ttl: float) -> tuple[Job, Lease]:
        answer = self._api.tell("job_start", job=job_id, attempt=attempt, run=run_id, ttl=positive(ttl))
        return as_job(answer["job"]), as_lease(answer["lease"])

    def done(self, lease: Lease, result: Any) -> Job:
        return self._tell("done", **held(lease), result=as_text(result))

    def failed(self, lease: Lease, error: DailiesError, retry_in: float | None = None) -> Job:
        return self._tell("failed", **held(lease), code=error.code, error=as_reason(error), retry_in=retry_in)

    def paused(self, lease: Lease) -> Job:
        return self._tell("paused", **held(lease))

    def hand_back(self, lease: Lease, why: str) -> Job:
        return self._tell("hand_back", **held(lease), why=why)

    def cancel(self, job_id: str) -> Job:
        return self._tell("cancel", job=job_id)

    def pause(self, job_id: str) -> Job:
        return self._tell("pause", job=job_id)

    def resume(self, job_id: str) -> Job:
        return self._tell("resume", job=job_id)

    def control(self, lease: Lease) -> str:
        return str(self._api.ask("job_control", **held(lease)))

    def recover(self) -> Sequence[Job]:
        return [as_job(row) for row in self._api.tell("job_recover")]

    def _tell(self, what: str, **arguments: Any) -> Job:
        return as_job(self._api.tell(f"job_{what}", **arguments))
