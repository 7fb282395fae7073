"""Dispatch on SQLite: which job next, and the book of flow runs that attempts were given to."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from dailies.errors import DailiesError, Missing, TimedOut
from dailies.ledger.checks import as_reason
from dailies.ledger.priority import priority
from dailies.ledger.records import Caps, Job, Run
from dailies.ledger.sqlite.database import Database
from dailies.ledger.sqlite.jobs import announce, as_job, end_run

RANKED = "jobs LEFT JOIN tenants USING (tenant)"
WAITING = """state = 'QUEUED' AND available_at <= clock()
    AND NOT EXISTS (SELECT 1 FROM runs WHERE job = jobs.id AND attempt = jobs.attempt)"""
ROOM = """(SELECT count(*) FROM slots_taken) < :total
    AND (SELECT count(*) FROM slots_taken AS taken WHERE taken.tenant = jobs.tenant) < :per_tenant"""


class SqliteDispatch:
    def __init__(self, database: Database) -> None:
        self._database = database

    def ranked(self) -> Sequence[tuple[Job, int]]:
        rows = self._database.all(f"SELECT jobs.*, tier, clock() - created_at AS waited FROM {RANKED} WHERE {WAITING}")
        ranked = [(job := as_job(row), of_row(job, row)) for row in rows]
        return sorted(ranked, key=lambda pair: (-pair[1], pair[0].created_at, pair[0].id))

    def rank(self, job: Job) -> int:
        row = self._database.one(
            f"SELECT tier, clock() - created_at AS waited FROM {RANKED} WHERE jobs.id = :id", id=job.id
        )
        if row is None:
            raise Missing(f"there is no job {job.id}")
        return of_row(job, row)

    def next(self, caps: Caps) -> Job | None:
        # What is read here may be a moment old: it only spares hopeless claims. The claim is one statement that
        # checks everything that must hold.
        rows = self._database.all("SELECT tenant, count(*) AS busy FROM slots_taken GROUP BY tenant")
        busy = {row["tenant"]: row["busy"] for row in rows}
        if sum(busy.values()) >= caps.total:
            return None
        for job, _ in self.ranked():
            if busy.get(job.tenant, 0) >= caps.per_tenant:
                continue
            with self._database.transaction() as tx:
                claimed = tx.run(
                    f"""
                    INSERT INTO runs (job, attempt, created_at)
                    SELECT id, attempt, clock() FROM jobs
                    WHERE id = :id AND attempt = :attempt AND state = 'QUEUED' AND {ROOM}
                    ON CONFLICT DO NOTHING
                    """,
                    id=job.id,
                    attempt=job.attempt,
                    total=caps.total,
                    per_tenant=caps.per_tenant,
                )
                if claimed:
                    return job
        return None

    def unbound(self, older_than: float) -> Sequence[Job]:
        rows = self._database.all(
            """
            SELECT jobs.* FROM jobs JOIN runs ON runs.job = jobs.id AND runs.attempt = jobs.attempt
            WHERE jobs.state = 'QUEUED' AND run_id = '' AND ending = '' AND runs.created_at <= clock() - :age
            """,
            age=older_than,
        )
        return [as_job(row) for row in rows]

    def bind(self, job_id: str, attempt: int, run_id: str) -> None:
        with self._database.transaction() as tx:
            tx.run(
                "UPDATE runs SET run_id = :run WHERE job = :job AND attempt = :attempt AND run_id = ''",
                run=run_id,
                job=job_id,
                attempt=attempt,
            )

    def waiting(self, older_than: float) -> Sequence[Run]:
        return self._runs(
            """JOIN jobs ON jobs.id = runs.job AND jobs.attempt = runs.attempt
               WHERE jobs.state = 'QUEUED' AND run_id != '' AND ending = '' AND runs.created_at <= clock() - :age""",
            age=older_than,
        )

    def give_up(self, job_id: str, attempt: int, error: DailiesError | None = None) -> Job | None:
        hopeless = "TRUE" if error else "crashes + 1 >= max_attempts"
        error = error or TimedOut("its runs never started")
        with self._database.transaction() as tx:
            row = tx.maybe(
                f"""
                UPDATE jobs SET state = CASE WHEN {hopeless} THEN 'FAILED' ELSE 'QUEUED' END,
                    attempt = CASE WHEN {hopeless} THEN attempt ELSE attempt + 1 END, crashes = crashes + 1,
                    error_code = CASE WHEN {hopeless} THEN :code ELSE error_code END,
                    error = CASE WHEN {hopeless} THEN :error ELSE error END,
                    message = 'Its run never started', updated_at = clock()
                WHERE id = :id AND attempt = :attempt AND state = 'QUEUED'
                RETURNING *
                """,
                id=job_id,
                attempt=attempt,
                code=error.code,
                error=as_reason(error),
            )
            if row is None:
                return None
            job = as_job(row)
            end_run(tx, job_id, attempt, "crashed")
            announce(tx, job, recovery=True)
            return job

    def jobs_of(self, run_id: str) -> Sequence[str]:
        rows = self._database.all(
            """SELECT id FROM jobs JOIN runs ON job = id AND runs.attempt = jobs.attempt
               WHERE run_id = :run AND run_id != ''""",
            run=run_id,
        )
        return [row["id"] for row in rows]

    def unshown(self) -> Sequence[Run]:
        return self._runs("WHERE ending IN ('crashed', 'cancelled') AND shown = 0")

    def shown(self, job_id: str, attempt: int) -> None:
        with self._database.transaction() as tx:
            tx.run("UPDATE runs SET shown = 1 WHERE job = :job AND attempt = :a", job=job_id, a=attempt)

    def _runs(self, clause: str, **values: float) -> list[Run]:
        rows = self._database.all(f"SELECT runs.* FROM runs {clause} ORDER BY runs.created_at", **values)
        return [Run(row["job"], row["attempt"], row["run_id"], row["created_at"], row["ending"]) for row in rows]


def of_row(job: Job, row: sqlite3.Row) -> int:
    return priority(row["tier"], row["waited"], boost=job.boost, base=job.base, aging=job.aging_rule)
