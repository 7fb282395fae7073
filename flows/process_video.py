"""process-video: from an upload to the layout of its captions, which then waits for approval."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from flows.ingest_media import video_of
from tasks._job import Working, job_flow
from tasks.ingest import make_contact_sheet, probe_media, publish_media, show_media, upload
from tasks.layout import (
    analyse_layout,
    approve_layout,
    extract_frames_and_ocr,
    publish_layout,
    show_layout,
    start_processing,
)

Rate = Annotated[float, Field(gt=0, le=60)]
Threshold = Annotated[float, Field(ge=0, le=1)]


@job_flow("process-video", subject=video_of, flow_run_name="process-{media_key}", timeout_seconds=6 * 3600)
def process_video(
    job: Working,
    tenant: str,
    media_key: str,
    accept_damaged: bool = False,
    frame_rate: Rate = 0.1,
    auto_approve: Threshold | None = None,
) -> dict[str, Any]:
    """Ingest an upload, read the text on whole frames, and find where captions sit.

    Args:
        tenant: Whose upload it is: the first part of its key.
        media_key: The upload, as TENANT/client/videos/VIDEO/FILE.
        accept_damaged: Go on with what can be decoded of a truncated or damaged file.
        frame_rate: Whole frames to look at in a second. Of a short video at least 24 are looked at.
        auto_approve: From this confidence on (0 to 1) the layout needs no person: crop-and-infer is asked for at once.
    """
    version = upload(job, media_key)
    start_processing(job, media_key)
    probe = probe_media(job, media_key, version, accept_damaged)
    sheet = make_contact_sheet(job, media_key, probe)
    publish_media(job, media_key, probe, sheet)
    show_media(job, media_key, probe, sheet)
    frames = extract_frames_and_ocr(job, media_key, probe, frame_rate)
    layout = analyse_layout(job, media_key, frames)
    published = publish_layout(job, media_key, probe, frames, layout)
    show_layout(job, media_key, frames, layout)
    if auto_approve is not None:
        approve_layout(job, media_key, layout, auto_approve)
    return {"manifest": published.artifacts[0].to_json(), **layout.facts, **probe.facts}
