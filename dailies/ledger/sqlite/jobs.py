"""Jobs on SQLite: every transition is one conditional UPDATE, with its event in the same transaction."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any

from dailies.errors import DailiesError, Fenced, IdempotencyConflict, IllegalTransition, Missing
from dailies.ledger.checks import as_reason, as_text, check_request
from dailies.ledger.records import (
    ARROWS,
    RECOVERED,
    Job,
    JobRequest,
    JobState,
    Lease,
    job_resource,
)
from dailies.ledger.sqlite.database import Database, Transaction
from dailies.ledger.sqlite.leases import HELD, held, holds, over, take
from dailies.ledger.sqlite.messages import write_event

EXPIRED = """NOT EXISTS (
    SELECT 1 FROM leases AS lease
    WHERE lease.resource = 'job:' || jobs.id AND lease.holder IS NOT NULL AND lease.expires_at > clock())"""
# What a failed or lost attempt makes of its job.
NEXT_STATE = "CASE WHEN crashes + 1 < max_attempts THEN 'QUEUED' ELSE 'FAILED' END"
NEXT_ATTEMPT = "CASE WHEN crashes + 1 < max_attempts THEN attempt + 1 ELSE attempt END"
WAS_RECOVERED = "EXISTS (SELECT 1 FROM outbox WHERE job = :job AND type = 'dailies.recovery.started')"


def as_job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in Job.__dataclass_fields__}
    values.update(
        state=JobState(row["state"]),
        params=json.loads(row["params"]),
        result=json.loads(row["result"]),
        aging=bool(row["aging"]),
    )
    return Job(**values)


class SqliteJobs:
    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, request: JobRequest, key: str = "", run_id: str = "") -> Job:
        check_request(request)
        job_id = secrets.token_hex(8)
        with self._database.transaction() as tx:
            row = tx.maybe(
                """
                INSERT INTO jobs (id, tenant, kind, subject, params, deployment, state, max_attempts, base, boost,
                                  aging, idempotency_key, request_digest, created_at, updated_at, available_at)
                VALUES (:id, :tenant, :kind, :subject, :params, :deployment, 'QUEUED', :max_attempts, :base, :boost,
                        :aging, :key, :digest, clock(), clock(), clock())
                ON CONFLICT (tenant, idempotency_key) DO NOTHING
                RETURNING *
                """,
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
            )
            if row is None:
                return earlier_answer(tx, request, key)
            job = as_job(row)
            if run_id:
                tx.run(
                    "INSERT INTO runs (job, attempt, run_id, created_at) VALUES (:job, 1, :run, clock())",
                    job=job_id,
                    run=run_id,
                )
            announce(tx, job)
            return job

    def get(self, job_id: str) -> Job:
        row = self._database.one("SELECT * FROM jobs WHERE id = :id", id=job_id)
        if row is None:
            raise Missing(f"there is no job {job_id}")
        return as_job(row)

    def all(self, state: JobState | None = None, limit: int = 1000) -> Sequence[Job]:
        rows = self._database.all(
            "SELECT * FROM jobs WHERE :state IS NULL OR state = :state ORDER BY created_at DESC, id LIMIT :limit",
            state=state,
            limit=limit,
        )
        return [as_job(row) for row in rows]

    def start(self, job_id: str, attempt: int, run_id: str, ttl: float) -> tuple[Job, Lease]:
        with self._database.transaction() as tx:
            lease = take(tx, job_resource(job_id), run_id, ttl)
            job = move(
                tx,
                job_id,
                JobState.RUNNING,
                where="""attempt = :attempt AND EXISTS (
                    SELECT 1 FROM runs WHERE job = jobs.id AND attempt = :attempt AND run_id IN ('', :run))""",
                assign="fence = :fence, control = ''",
                attempt=attempt,
                run=run_id,
                fence=lease.fence,
            )
            tx.run("UPDATE runs SET run_id = :run WHERE job = :job AND attempt = :a", run=run_id, job=job_id, a=attempt)
            return job, lease

    def done(self, lease: Lease, result: Any) -> Job:
        assign = "result = :result, message = 'Done', control = '', error_code = '', error = ''"
        return self._end(lease, JobState.DONE, assign, result=as_text(result))

    def failed(self, lease: Lease, error: DailiesError, retry_in: float | None = None) -> Job:
        values = {"code": error.code, "error": as_reason(error)}
        assign = "error_code = :code, error = :error, crashes = crashes + 1, control = ''"
        if retry_in is None:
            return self._end(lease, JobState.FAILED, f"{assign}, message = 'Failed'", **values)
        # One that was told to pause pauses: what failed was its last step before that.
        again = f"""{assign}, available_at = clock() + :rest,
            attempt = CASE WHEN control = 'pause' THEN attempt ELSE {NEXT_ATTEMPT} END,
            message = CASE WHEN crashes + 1 >= max_attempts THEN 'Failed'
                WHEN control = 'pause' THEN 'Paused' ELSE 'Trying again: ' || :error END"""
        to = f"CASE WHEN control = 'pause' AND crashes + 1 < max_attempts THEN 'PAUSED' ELSE {NEXT_STATE} END"
        return self._end(lease, JobState.QUEUED, again, state=to, rest=retry_in, **values)

    def paused(self, lease: Lease) -> Job:
        return self._end(lease, JobState.PAUSED, "message = 'Paused', control = ''")

    def hand_back(self, lease: Lease, why: str) -> Job:
        assign = "message = :why, control = '', attempt = attempt + 1, available_at = clock()"
        return self._end(lease, JobState.QUEUED, assign, why=why)

    def cancel(self, job_id: str) -> Job:
        with self._database.transaction() as tx:
            job = move(tx, job_id, JobState.CANCELED, assign="message = 'Canceled', control = ''")
            end_run(tx, job.id, job.attempt, "cancelled")
            return job

    def pause(self, job_id: str) -> Job:
        with self._database.transaction() as tx:
            told = tx.maybe(
                """UPDATE jobs SET control = 'pause', updated_at = clock()
                   WHERE id = :id AND state = 'RUNNING' RETURNING *""",
                id=job_id,
            )
            if told is not None:
                return as_job(told)
            job = move(tx, job_id, JobState.PAUSED, assign="message = 'Paused'")
            end_run(tx, job.id, job.attempt, "cancelled")
            return job

    def resume(self, job_id: str) -> Job:
        with self._database.transaction() as tx:
            return move(
                tx, job_id, JobState.QUEUED, where="state = 'PAUSED'", assign="attempt = attempt + 1, message = ''"
            )

    def control(self, lease: Lease) -> str:
        job_id = lease.resource.removeprefix("job:")
        row = self._database.one(
            f"SELECT state, control, {HELD} AS held FROM jobs WHERE id = :id", id=job_id, **held(lease)
        )
        if row is None:
            raise Missing(f"there is no job {job_id}")
        if row["state"] == JobState.CANCELED:
            return "cancel"
        if not row["held"]:
            raise Fenced(f"the lease of {lease.holder} on job {job_id} is over")
        return str(row["control"])

    def recover(self) -> Sequence[Job]:
        """A job that was told to pause pauses: its holder died before it could."""
        with self._database.transaction() as tx:
            rows = tx.all(
                f"""
                UPDATE jobs SET
                    state = CASE WHEN control = 'pause' THEN 'PAUSED' ELSE {NEXT_STATE} END,
                    attempt = CASE WHEN control = 'pause' THEN attempt ELSE {NEXT_ATTEMPT} END,
                    crashes = CASE WHEN control = 'pause' THEN crashes ELSE crashes + 1 END,
                    message = CASE WHEN control = 'pause' THEN 'Paused'
                        WHEN crashes + 1 < max_attempts THEN :recovered ELSE 'Failed' END,
                    error_code = CASE WHEN control = '' AND crashes + 1 >= max_attempts THEN 'died' ELSE error_code END,
                    error = CASE WHEN control = '' AND crashes + 1 >= max_attempts
                        THEN 'its worker died in each of ' || max_attempts || ' attempts' ELSE error END,
                    control = '', updated_at = clock(), available_at = clock()
                WHERE state = 'RUNNING' AND {EXPIRED}
                RETURNING *
                """,
                recovered=RECOVERED,
            )
            jobs = [as_job(row) for row in rows]
            for job in jobs:
                for attempt in (job.attempt - 1, job.attempt):  # it may have moved on to the next one already
                    end_run(tx, job.id, attempt, "crashed")
                announce(tx, job, recovery=True)
                if job.state is JobState.QUEUED:
                    tell_recovery(tx, job, "started", RECOVERED, recovery_type="lease_expired")
                elif job.state is JobState.FAILED:  # also one that never got another attempt
                    recovery_failed(tx, job)
            return jobs

    def _end(self, lease: Lease, to: JobState, assign: str, *, state: str = "", **values: Any) -> Job:
        """Leave RUNNING under the lease, and give the lease back, in one transaction."""
        with self._database.transaction() as tx:
            job_id = lease.resource.removeprefix("job:")
            before = tx.maybe("SELECT attempt FROM jobs WHERE id = :id", id=job_id)
            try:
                job = move(
                    tx,
                    job_id,
                    to,
                    where=f"state = 'RUNNING' AND {HELD}",
                    assign=assign,
                    state=state,
                    **held(lease),
                    **values,
                )
            except IllegalTransition:
                if holds(tx, lease):
                    raise
                raise over(tx, lease, "used to end its job") from None
            tx.run(
                "UPDATE leases SET holder = NULL WHERE resource = :resource AND fence = :fence AND holder = :holder",
                **held(lease),
            )
            end_run(tx, job_id, before["attempt"] if before else 0, "ended")
            return job


def earlier_answer(tx: Transaction, request: JobRequest, key: str) -> Job:
    row = tx.one("SELECT * FROM jobs WHERE tenant = :t AND idempotency_key = :k", t=request.tenant, k=key)
    if row["request_digest"] != request.digest:
        raise IdempotencyConflict(f"idempotency key {key} was used for another request (job {row['id']})")
    return as_job(row)


def move(
    tx: Transaction,
    job_id: str,
    to: JobState,
    *,
    assign: str,
    where: str = "TRUE",
    state: str = "",
    **values: Any,
) -> Job:
    """Take an arrow of the state machine, and write its event. ``state`` is SQL for one that depends on the row."""
    origins = ", ".join(f"'{origin}'" for origin in JobState if to in ARROWS[origin])
    row = tx.maybe(
        f"""
        UPDATE jobs SET state = {state or f"'{to}'"}, {assign}, updated_at = clock()
        WHERE id = :id AND state IN ({origins}) AND {where}
        RETURNING *
        """,
        id=job_id,
        **values,
    )
    if row is None:
        raise refusal(tx, job_id, to)
    job = as_job(row)
    announce(tx, job)
    return job


def refusal(tx: Transaction, job_id: str, to: JobState) -> DailiesError:
    row = tx.maybe("SELECT state, attempt FROM jobs WHERE id = :id", id=job_id)
    if row is None:
        return Missing(f"there is no job {job_id}")
    return IllegalTransition(f"job {job_id} is {row['state']} in attempt {row['attempt']} and cannot become {to} now")


def end_run(tx: Transaction, job_id: str, attempt: int, ending: str) -> None:
    """Write down how the attempt ended. One that ended by itself has told Prefect, and gives its leases back itself.

    From any other one everything is taken that it still holds: it may be alive, and must not publish any more.
    """
    row = tx.maybe(
        """UPDATE runs SET ending = :ending, shown = :ending = 'ended'
           WHERE job = :job AND attempt = :attempt AND ending = '' RETURNING run_id""",
        ending=ending,
        job=job_id,
        attempt=attempt,
    )
    if row is not None and ending != "ended":
        tx.run("UPDATE leases SET holder = NULL, fence = fence + 1 WHERE holder = :run", run=row["run_id"])


def announce(tx: Transaction, job: Job, recovery: bool = False) -> None:
    """A state is entered at most once in an attempt, so (state, attempt) names the transition."""
    data = {
        "job": job.id,
        "tenant": job.tenant,
        "kind": job.kind,
        "attempt": job.attempt,
        "state": job.state,
        "message": job.message,
        "error_code": job.error_code,
        "recovery": recovery,
    }
    write_event(tx, job.id, f"dailies.job.{job.state.lower()}", job.subject, str(job.attempt), data)
    if job.state is JobState.DONE:
        tell_recovery(tx, job, "completed", "Recovery completed", WAS_RECOVERED, recovery_result="success")
    elif job.state is JobState.FAILED:
        recovery_failed(tx, job, WAS_RECOVERED)


def recovery_failed(tx: Transaction, job: Job, condition: str = "TRUE") -> None:
    tell_recovery(tx, job, "failed", f"Recovery failed: {job.error}", condition, recovery_result="failed")


def tell_recovery(tx: Transaction, job: Job, what: str, message: str, condition: str = "TRUE", **more: str) -> None:
    """After the event of the state that it goes with, and like that one once in an attempt."""
    data = {
        "event": f"recovery_{what}",
        "job_id": job.id,
        "attempt": job.attempt,
        "recovery": True,
        "message": message,
        **more,
    }
    write_event(tx, job.id, f"dailies.recovery.{what}", job.subject, str(job.attempt), data, condition)
