"""Videos on SQLite: what is known of an upload, changed under the lease on it, or once nobody works on it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from dailies.errors import DailiesError, IllegalTransition, Missing
from dailies.ledger.checks import as_reason, as_text, check_update, check_video
from dailies.ledger.records import VIDEO_ARROWS, Lease, Video, VideoState, video_of, video_resource
from dailies.ledger.sqlite.database import Database, Transaction
from dailies.ledger.sqlite.leases import HELD, free, held, holds, over
from dailies.ledger.sqlite.messages import write_event

# It says that somebody works on it, and nobody does. The + keeps SQLite to the few jobs that are under way: by their
# tenant it would go through all that this tenant ever had.
LEFT_BEHIND = """videos.state IN ('processing', 'inferring')
    AND NOT EXISTS (
        SELECT 1 FROM jobs
        WHERE jobs.state IN ('QUEUED', 'PAUSED', 'RUNNING')
            AND +jobs.tenant = videos.tenant AND jobs.subject = videos.tenant || '/' || videos.video)
    AND NOT EXISTS (
        SELECT 1 FROM leases AS lease
        WHERE lease.resource = 'video:' || videos.tenant || '/' || videos.video
            AND lease.holder IS NOT NULL AND lease.expires_at > clock())"""
# The one that ended last, where none is under way.
LAST_JOB = """SELECT id FROM jobs AS past
    WHERE past.tenant = videos.tenant AND past.subject = videos.tenant || '/' || videos.video
    ORDER BY past.updated_at DESC, past.created_at DESC, past.id DESC LIMIT 1"""


def as_video(row: sqlite3.Row) -> Video:
    values = {name: row[name] for name in Video.__dataclass_fields__}
    return Video(**{**values, "state": VideoState(row["state"]), "metadata": json.loads(row["metadata"])})


class SqliteVideos:
    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, tenant: str, video: str, media_key: str) -> Video:
        check_video(tenant, video, media_key)
        with self._database.transaction() as tx:
            tx.run(
                """INSERT INTO videos (tenant, video, media_key, created_at, updated_at)
                   VALUES (:tenant, :video, :key, clock(), clock()) ON CONFLICT DO NOTHING""",
                tenant=tenant,
                video=video,
                key=media_key,
            )
            known = find(tx, tenant, video)
            assert known is not None
            return known

    def get(self, tenant: str, video: str) -> Video:
        row = self._database.one("SELECT * FROM videos WHERE tenant = :t AND video = :v", t=tenant, v=video)
        if row is None:
            raise Missing(f"tenant {tenant} has no video {video}")
        return as_video(row)

    def all(self, tenant: str, state: VideoState | None = None, limit: int = 1000) -> Sequence[Video]:
        rows = self._database.all(
            """SELECT * FROM videos WHERE tenant = :tenant AND (:state IS NULL OR state = :state)
               ORDER BY created_at DESC, video LIMIT :limit""",
            tenant=tenant,
            state=state,
            limit=limit,
        )
        return [as_video(row) for row in rows]

    def update(
        self,
        lease: Lease,
        *,
        state: VideoState | None = None,
        error: DailiesError | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Video:
        check_update(state, error)
        origins = ", ".join(f"'{origin}'" for origin in VideoState if state in (None, origin, *VIDEO_ARROWS[origin]))
        with self._database.transaction() as tx:
            tenant, name = video_of(lease.resource)
            before = find(tx, tenant, name)
            row = tx.maybe(
                f"""
                UPDATE videos SET
                    version = version + (:state IS NOT NULL AND state != :state),
                    error_code = CASE WHEN :state IS NULL THEN error_code ELSE :code END,
                    error = CASE WHEN :state IS NULL THEN error ELSE :error END,
                    state = coalesce(:state, state),
                    metadata = :metadata,
                    updated_at = clock()
                WHERE tenant = :tenant AND video = :video AND state IN ({origins}) AND {HELD}
                RETURNING *
                """,
                tenant=tenant,
                video=name,
                state=state,
                code=error.code if error else "",
                error=as_reason(error) if error else "",
                metadata=as_text({**(before.metadata if before else {}), **(metadata or {})}),
                **held(lease),
            )
            if row is None:
                raise refusal(tx, lease, before, state)
            video = as_video(row)
            if before is not None and video.version != before.version:
                announce(tx, job_behind(tx, lease), video)
            return video

    def settle(self) -> Sequence[Video]:
        with self._database.transaction() as tx:
            rows = tx.all(
                f"""
                UPDATE videos SET
                    state = 'error', version = version + 1, updated_at = clock(),
                    error_code = CASE last.state WHEN 'CANCELED' THEN 'canceled' WHEN 'DONE' THEN 'abandoned'
                        ELSE last.error_code END,
                    error = CASE last.state WHEN 'CANCELED' THEN 'Its job was canceled'
                        WHEN 'DONE' THEN 'Its job ended without saying what became of it' ELSE last.error END
                FROM jobs AS last WHERE last.id = ({LAST_JOB}) AND {LEFT_BEHIND}
                RETURNING *
                """
            )
            videos = sorted(map(as_video, rows), key=lambda video: (video.tenant, video.video))
            for video in videos:
                free(tx, video_resource(video.tenant, video.video))  # an expired lease on it is worth nothing now
                announce(tx, job_that_ended(tx, video), video)
            return videos


def find(tx: Transaction, tenant: str, video: str) -> Video | None:
    """As it is for the rest of this transaction: SQLite has one writer at a time."""
    row = tx.maybe("SELECT * FROM videos WHERE tenant = :tenant AND video = :video", tenant=tenant, video=video)
    return None if row is None else as_video(row)


def refusal(tx: Transaction, lease: Lease, video: Video | None, state: VideoState | None) -> DailiesError:
    if not holds(tx, lease):
        return over(tx, lease, "used to change a video")
    if video is None:
        return Missing(f"there is no {lease.resource} to change: register it first")
    return IllegalTransition(f"{lease.resource} is {video.state} and cannot become {state} now")


def job_that_ended(tx: Transaction, video: Video) -> str:
    where = "tenant = :tenant AND video = :video"
    row = tx.one(f"SELECT ({LAST_JOB}) AS id FROM videos WHERE {where}", tenant=video.tenant, video=video.video)
    return str(row["id"])


def job_behind(tx: Transaction, lease: Lease) -> str:
    run = tx.maybe("SELECT job FROM runs WHERE run_id = :holder ORDER BY created_at DESC LIMIT 1", holder=lease.holder)
    if run is None:
        raise Missing(f"{lease.holder} is the run of no job, so it cannot change {lease.resource}")
    return str(run["job"])


def announce(tx: Transaction, job: str, video: Video) -> None:
    """Its version names the change, so that a video that comes back to a state tells it again."""
    subject = f"{video.tenant}/{video.video}"
    data = {
        "job": job,
        "tenant": video.tenant,
        "video": video.video,
        "state": video.state,
        "error_code": video.error_code,
        "version": video.version,
    }
    write_event(tx, job, f"dailies.video.{video.state}", subject, f"{subject}:{video.version}", data)
