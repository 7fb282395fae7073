"""The steps of crop-and-infer: from an approved layout to published captions."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from dailies.canonical import digest
from dailies.captions.approval import approved, plain
from dailies.captions.databases import read_captions
from dailies.ledger.records import VideoState
from dailies.media.keys import MediaKey
from tasks._compute import on_compute
from tasks._job import Working
from tasks._step import Output, effect, work
from tasks.layout import layout_of
from tasks.published import publish, published

HOUR = 3600.0
SHOWN = 200


class CropRegion(BaseModel):
    """The rectangle that captions are read from, in shares of the picture as it is shown."""

    model_config = ConfigDict(extra="forbid")

    left: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Left edge: 0 is the picture's left edge, 1 its right."
    )
    top: float = Field(ge=0.0, le=1.0, description="Upper edge: 0 is the top of the picture, 1 its bottom.")
    right: float = Field(default=1.0, ge=0.0, le=1.0, description="Right edge, as `left`. Captions grow: leave room.")
    bottom: float = Field(ge=0.0, le=1.0, description="Lower edge, as `top`. Leave room for a second line.")


def approved_regions(job: Working, media_key: str, crop: CropRegion | None) -> tuple[list[dict[str, Any]], str]:
    """The regions to read, as a call takes them, and the digest of the upload that they were found in."""
    layout, raw, sha256 = layout_of(job, media_key)
    rectangle = (crop.left, crop.top, crop.right, crop.bottom) if crop else None
    return [plain(region) for region in approved(layout, raw, rectangle)], sha256


@effect(timeout=60)
def start_inferring(job: Working, media_key: str) -> Output:
    """Say that the captions are being read. Said again it changes nothing."""
    job.site.ledger.videos.update(job.claim, state=VideoState.INFERRING)
    return Output()


@work(version=1, timeout=HOUR)
def infer_captions(job: Working, media_key: str, sha256: str, regions: list[dict[str, Any]], rate: float) -> Output:
    """Crops, extents and captions, from one decode. All of it lies in a folder of its own: nothing is published yet."""
    payload = {"media_key": media_key, "sha256": sha256, "regions": regions, "frame_rate": rate}
    return on_compute(job, infer_captions, "crop_and_infer", payload)


@effect(timeout=60)
def publish_captions(job: Working, media_key: str, inferred: Output) -> Output:
    """Make these the video's captions, with one write. An older attempt can never point it back: it is fenced."""
    key = MediaKey.parse(job.job.tenant, media_key)
    artifact = publish(job.site, job.claim, key, {**published(job.site, key), "captions": inferred.to_json()})
    said = {
        "captions": inferred.facts["captions"],
        "captions_confidence": inferred.facts["confidence"],
        "captions_db": inferred.file("captions.db.gz").key,
    }
    job.site.ledger.videos.update(job.claim, state=VideoState.READY, metadata=said)
    return Output(artifacts=(artifact,))


@effect(timeout=60)
def show_captions(job: Working, media_key: str, inferred: Output) -> Output:
    """Show in the UI what was read. Showing it twice shows the newest."""
    name = digest(media_key)[:12]
    rows = read_captions(job.site.store.get(inferred.file("captions.db.gz").key))
    create_table_artifact(
        [
            {
                "start": f"{row.start_us / 1e6:.3f}",
                "end": f"{row.end_us / 1e6:.3f}",
                "text": row.text.replace("\n", " / "),
                "confidence": round(row.confidence, 3),
            }
            for row in rows[:SHOWN]
        ],
        key=f"captions-{name}",
        description=f"The first {SHOWN} of {len(rows)} captions" if len(rows) > SHOWN else f"{len(rows)} captions",
    )
    create_markdown_artifact(summary(media_key, inferred), key=f"captions-facts-{name}")
    return Output(artifacts=inferred.artifacts)


def summary(media_key: str, inferred: Output) -> str:
    facts = inferred.facts
    coverage = facts["coverage"]
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(coverage["dropped"].items())) or "none"
    lines = [
        f"### `{media_key}`",
        f"{facts['captions']} captions" + (f", mean confidence {facts['confidence']:.3f}" if facts["captions"] else ""),
        f"{coverage['samples']} samples of {coverage['frames']} frames, {coverage['decoded_us'] / 1e6:.2f} s decoded",
        f"lines that were dropped: {dropped}",
    ]
    if coverage["short_us"]:
        promised = (coverage["promised_us"] or 0) / 1e6
        lines.append(f"**ended early at {coverage['decoded_us'] / 1e6:.2f} s of {promised:.2f} s**")
    return "\n\n".join(lines) + "\n"
