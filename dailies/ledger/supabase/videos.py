"""Videos on Supabase: what is known of an upload, changed under the lease on it, or once nobody works on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dailies.errors import DailiesError
from dailies.ledger.checks import as_reason, as_text, check_update, check_video
from dailies.ledger.records import Lease, Video, VideoState, video_of
from dailies.ledger.supabase.api import Api
from dailies.ledger.supabase.leases import held


def as_video(row: Mapping[str, Any]) -> Video:
    values = {name: row[name] for name in Video.__dataclass_fields__}
    return Video(**{**values, "state": VideoState(row["state"]), "metadata": json.loads(row["metadata"])})


class SupabaseVideos:
    def __init__(self, api: Api) -> None:
        self._api = api

    def register(self, tenant: str, video: str, media_key: str) -> Video:
        check_video(tenant, video, media_key)
        return as_video(self._api.tell("video_register", tenant=tenant, video=video, media_key=media_key))

    def get(self, tenant: str, video: str) -> Video:
        return as_video(self._api.ask("video_get", tenant=tenant, video=video))

    def all(self, tenant: str, state: VideoState | None = None, limit: int = 1000) -> Sequence[Video]:
        return [as_video(row) for row in self._api.ask("video_all", tenant=tenant, state=state, limit=limit)]

    def update(
        self,
        lease: Lease,
        *,
        state: VideoState | None = None,
        error: DailiesError | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Video:
        check_update(state, error)
        tenant, video = video_of(lease.resource)
        row = self._api.tell(
            "video_update",
            **held(lease),
            tenant=tenant,
            video=video,
            state=state,
            code=error.code if error else "",
            error=as_reason(error) if error else "",
            metadata=as_text(dict(metadata or {})),
        )
        return as_video(row)

    def settle(self) -> Sequence[Video]:
        return [as_video(row) for row in self._api.tell("video_settle")]
