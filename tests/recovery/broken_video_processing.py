"""process-video as it must not be, for the scenario to find out: each flow breaks the product in its own process."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect import flow

from dailies.ledger.records import VideoState
from dailies.ledger.sqlite.videos import SqliteVideos
from flows.process_video import process_video
from tasks import _job, layout
from tasks._step import Step
from tasks.bad_day import bad_day


@flow(name="process-video-that-keeps-silent", persist_result=False)
def silent(tenant: str, media_key: str, site: str = "local", patience_s: float = 30.0) -> Any:
    """It says nothing of its failure on the video, and finds no unit again."""
    with bad_day(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_job, "settle", lambda *_: None)
        patch.setattr(Step, "key", lambda *_: uuid4().hex)
        return process_video.fn(tenant=tenant, media_key=media_key, site=site, patience_s=patience_s)


@flow(name="process-video-that-pays-twice", persist_result=False)
def spendthrift(tenant: str, media_key: str, site: str = "local", patience_s: float = 30.0) -> Any:
    """It asks for other work in each attempt, and forgets to say that the layout is there."""
    update, on_compute = SqliteVideos.update, layout.on_compute

    def forgetful(self: Any, lease: Any, **changes: Any) -> Any:
        if changes.get("state") is VideoState.AWAITING_LAYOUT:
            del changes["state"]
        return update(self, lease, **changes)

    def anew(job: Any, step: Any, function: str, payload: dict[str, Any]) -> Any:
        return on_compute(job, step, function, {**payload, "asked": uuid4().hex})

    with bad_day(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteVideos, "update", forgetful)
        patch.setattr(layout, "on_compute", anew)
        return process_video.fn(tenant=tenant, media_key=media_key, site=site, patience_s=patience_s)
