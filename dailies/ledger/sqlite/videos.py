"""Videos on SQLite: what is known of an upload, changed only under the lease on it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from dailies.errors import DailiesError, IllegalTransition, Missing
from dailies.ledger.checks import as_reason, as_text, check_update, check_video
from dailies.ledger.records import VIDEO_ARROWS, Lease, Video, VideoState, video_of
from dailies.ledger.sqlite.database import Database, Transaction
from dailies.ledger.sqlite.leases import HELD, held, holds, over
from dailies.ledger.sqlite.messages import write_event


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
                announce(tx, lease, video)
            return video


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


def announce(tx: Transaction, lease: Lease, video: Video) -> None:
    """Its version names the change, so that a video that comes back to a state tells it again."""
    run = tx.maybe("SELECT job FROM runs WHERE run_id = :holder ORDER BY created_at DESC LIMIT 1", holder=lease.holder)
    if run is None:
        raise Missing(f"{lease.holder} is the run of no job, so it cannot change {lease.resource}")
    subject = f"{video.tenant}/{video.video}"
    data = {
        "job": run["job"],
        "tenant": video.tenant,
        "video": video.video,
        "state": video.state,
        "error_code": video.error_code,
        "version": video.version,
    }
    write_event(tx, run["job"], f"dailies.video.{video.state}", subject, f"{subject}:{video.version}", data)
