"""The steps of caption-ocr: captions read again from their own crops, and written into the newest captions.db."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact

from dailies.canonical import digest
from dailies.captions.calls import showing
from dailies.captions.databases import CaptionRow, packed, read_captions, unpacked, with_reading
from dailies.captions.reading import Reading
from dailies.captions.subtitles import Caption, exports
from dailies.compute.child import by_code, rebuilt
from dailies.errors import BadInput, Changed, DailiesError
from dailies.ledger.records import video_resource
from dailies.media.keys import MediaKey
from dailies.store.interface import Artifact
from tasks._compute import on_compute
from tasks._job import Working
from tasks._step import Output, effect, work
from tasks.captions import SHOWN
from tasks.published import publish, published

# One call for so many: a call costs a process, a model to load, and on Modal a machine.
BATCH = 50
CALL_S = 300.0


def captions_of(job: Working, media_key: str) -> Output:
    """What is published now."""
    manifest = published(job.site, MediaKey.parse(job.job.tenant, media_key))
    if "captions" not in manifest:
        raise BadInput(f"{media_key} has no captions yet: run process-video and crop-and-infer on it first")
    return Output.from_json(manifest["captions"])


def asked_for(job: Working, media_key: str, captions: Output, caption: int | None) -> list[list[dict[str, Any]]]:
    """The captions to read, as a call takes them, in batches."""
    rows = read_captions(job.site.store.get(captions.file("captions.db.gz").key))
    chosen = [row for row in rows if caption in (None, row.id)]
    if not chosen and caption is not None:
        raise BadInput(f"{media_key} has no caption {caption}: it has {len(rows)}, numbered from 1")
    asked = [described(row) for row in chosen]
    return [asked[begin : begin + BATCH] for begin in range(0, len(asked), BATCH)]


def described(row: CaptionRow) -> dict[str, Any]:
    return {
        "after": row.end_frame_index,
        "box": vars(row.box),
        "first": row.start_frame_index,
        "id": row.id,
        "region": row.region,
    }


def crops_of(job: Working, captions: Output, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """The frames to read these captions from, as a call takes them, and which bytes those are now.

    No more of what is published than that: a reading that another job records meanwhile makes no other work of this
    one. And no less: frames that were damaged, and are whole again, are read anew.
    """
    regions = captions.facts["regions"]
    needed = {
        chunk["key"] for one in asked for chunk in showing(regions[one["region"]]["chunks"], one["first"], one["after"])
    }
    found = {key: job.site.store.stat(key) for key in sorted(needed)}
    versions = {key: stored.version if stored else "" for key, stored in found.items()}
    return {"frame_rate": captions.facts["frame_rate"], "regions": regions, "versions": versions}


@work(version=2, timeout=CALL_S)
def read_again(job: Working, media_key: str, crops: dict[str, Any], captions: list[dict[str, Any]]) -> Output:
    """The text of these captions from their own frames. One that cannot be read is a note, and costs no other."""
    payload = {"captions": captions, "media_key": media_key, **crops}
    return on_compute(job, read_again, "caption_ocr", payload)


@effect(timeout=120)
def record_readings(job: Working, media_key: str, inferred: Output, readings: list[dict[str, Any]]) -> Output:
    """Put these readings, and no others, into whatever captions.db is the newest under the lease on the video.

    Ten at once are written one after the other, each on top of the last; the same reading twice changes nothing.
    """
    key = MediaKey.parse(job.job.tenant, media_key)
    with job.holding(video_resource(key.tenant, key.video)) as lease:
        manifest = published(job.site, key)
        current = Output.from_json(manifest["captions"])
        if current.file("caption_frame_extents.db") != inferred.file("caption_frame_extents.db"):
            raise Changed(f"the captions of {media_key} were made anew meanwhile: ask again")
        database = unpacked(job.site.store.get(current.file("captions.db.gz").key))
        for reading in readings:
            database = with_reading(database, reading["id"], as_reading(reading))
        output = replaced(current, written(job, key, database))
        publish(job.site, lease, key, {**manifest, "captions": output.to_json()})
        job.site.ledger.videos.update(lease, metadata={"captions_db": output.file("captions.db.gz").key})
    failed = [reading["id"] for reading in readings if "error" in reading]
    if failed:
        get_run_logger().warning("action=note media_key=%s unreadable=%s", media_key, failed)
    return Output(facts={"read": len(readings) - len(failed), "unreadable": failed}, artifacts=output.artifacts)


def as_reading(reading: dict[str, Any]) -> Reading | DailiesError:
    if "error" in reading:
        return rebuilt(by_code(reading["error"]), reading["message"])
    return Reading(**{name: value for name, value in reading.items() if name != "id"})


def written(job: Working, key: MediaKey, database: bytes) -> list[Artifact]:
    """The database with all that is exported from it, in a folder named by its content."""
    place = f"gen-{digest(database)[:16]}"
    shown = [
        Caption(row.start_us, row.end_us, row.text, row.confidence, row.region, row.box)
        for row in read_captions(database)
    ]
    files = {"captions.db.gz": packed(database), **exports(shown)}
    return [job.site.store.put(key.client(place, name), data) for name, data in files.items()]


def replaced(captions: Output, files: list[Artifact]) -> Output:
    """The same with these files in the place of those of their names."""
    names = {artifact.name for artifact in files}
    return Output(captions.facts, (*files, *(kept for kept in captions.artifacts if kept.name not in names)))


@effect(timeout=60)
def show_readings(job: Working, media_key: str, asked: list[dict[str, Any]], recorded: Output) -> Output:
    """Show in the UI what the captions say now. Showing it twice shows the newest."""
    ids = {caption["id"] for caption in asked}
    rows = [row for row in read_captions(job.site.store.get(recorded.file("captions.db.gz").key)) if row.id in ids]
    table = [
        {
            "caption": row.id,
            "text": row.text.replace("\n", " / "),
            "read again": (row.caption_ocr or "").replace("\n", " / "),
            "confidence": row.caption_ocr_confidence,
            "status": row.caption_ocr_status,
            "note": row.caption_ocr_error or row.text_notes,
        }
        for row in rows[:SHOWN]
    ]
    create_table_artifact(table, key=f"caption-ocr-{digest(media_key)[:12]}", description=f"{len(rows)} captions")
    return Output()
