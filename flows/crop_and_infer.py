"""crop-and-infer: from an approved layout to published captions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from flows.ingest_media import video_of
from tasks._job import Working, job_flow
from tasks.captions import (
    CropRegion,
    approved_regions,
    infer_captions,
    publish_captions,
    show_captions,
    start_inferring,
)

Rate = Annotated[float, Field(gt=0, le=60)]


@job_flow("crop-and-infer", subject=video_of, flow_run_name="captions-{media_key}", timeout_seconds=6 * 3600)
def crop_and_infer(
    job: Working, tenant: str, media_key: str, crop: CropRegion | None = None, frame_rate: Rate = 10.0
) -> dict[str, Any]:
    """Approve a layout: read the captions in it, with the frames at which each begins and ends, and publish them.

    Args:
        tenant: Whose upload it is: the first part of its key.
        media_key: The upload, as TENANT/client/videos/VIDEO/FILE.
        crop: The rectangle to read from. Empty: the regions that process-video found, as they are.
        frame_rate: Samples in a second. What lies between two of them is looked at frame by frame where it matters.
    """
    regions, sha256 = approved_regions(job, media_key, crop)
    start_inferring(job, media_key)
    inferred = infer_captions(job, media_key, sha256, regions, frame_rate)
    published = publish_captions(job, media_key, inferred)
    show_captions(job, media_key, inferred)
    return {"manifest": published.artifacts[0].to_json(), "captions": inferred.facts["captions"]}
