"""caption-ocr: read one caption again from its own frames, or all of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dailies.media.keys import MediaKey
from tasks._job import Working, job_flow
from tasks.caption_ocr import asked_for, captions_of, crops_of, read_again, record_readings, show_readings


def caption_of(tenant: str, media_key: str, caption: int | None = None, **_: Any) -> str:
    """Not the video: ten captions of one video are read at once, and only written one after the other."""
    key = MediaKey.parse(tenant, media_key)
    return f"{key.tenant}/{key.video}/captions/{'all' if caption is None else caption}"


@job_flow("caption-ocr", subject=caption_of, flow_run_name="read-{media_key}", timeout_seconds=2 * 3600)
def caption_ocr(
    job: Working, tenant: str, media_key: str, caption: Annotated[int, Field(ge=1)] | None = None
) -> dict[str, Any]:
    """Read captions again from the frames that show them; the surer text stands, and what disagreed is told.

    Args:
        tenant: Whose upload it is: the first part of its key.
        media_key: The upload, as TENANT/client/videos/VIDEO/FILE.
        caption: The number of the caption in captions.db. Empty: all of them.
    """
    inferred = captions_of(job, media_key)
    asked = asked_for(job, media_key, inferred, caption)
    read = [read_again(job, media_key, crops_of(job, inferred, batch), batch) for batch in asked]
    readings = [reading for output in read for reading in output.facts["readings"]]
    recorded = record_readings(job, media_key, inferred, readings)
    show_readings(job, media_key, [one for batch in asked for one in batch], recorded)
    return recorded.facts
