"""ingest-media: know an upload before anybody works on it."""

from __future__ import annotations

from typing import Any

from dailies.media.keys import MediaKey
from tasks._job import Working, job_flow
from tasks.ingest import make_contact_sheet, probe_media, publish_media, show_media, upload


def video_of(tenant: str, media_key: str, **_: Any) -> str:
    key = MediaKey.parse(tenant, media_key)
    return f"{key.tenant}/{key.video}"


@job_flow("ingest-media", subject=video_of, flow_run_name="ingest-{media_key}", timeout_seconds=6 * 3600)
def ingest_media(job: Working, tenant: str, media_key: str, accept_damaged: bool = False) -> dict[str, Any]:
    """Digest and probe an upload, draw its contact sheet, and publish both.

    Args:
        tenant: Whose upload it is: the first part of its key.
        media_key: The upload, as TENANT/client/videos/VIDEO/FILE.
        accept_damaged: Go on with what can be decoded of a truncated or damaged file.
    """
    version = upload(job, media_key)
    probe = probe_media(job, media_key, version, accept_damaged)
    sheet = make_contact_sheet(job, media_key, probe)
    published = publish_media(job, media_key, probe, sheet)
    show_media(job, media_key, probe, sheet)
    return {"manifest": published.artifacts[0].to_json(), "contact_sheet": sheet.artifacts[0].to_json(), **probe.facts}
