"""The steps of process-video: whole frames, the text on them, and where captions sit."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import deployment

from dailies.canonical import digest
from dailies.captions.databases import RawOcr, packed, read_layout, read_raw_ocr, write_layout
from dailies.captions.layout import Layout, find_layout
from dailies.captions.picture import layout_picture
from dailies.errors import BadInput
from dailies.ledger.records import JobRequest, VideoState
from dailies.media.keys import MediaKey
from tasks._compute import on_compute
from tasks._job import Working
from tasks._step import Output, effect, work
from tasks.published import publish, published
from tasks.verdict import show_png

MINUTE = 60.0
APPROVED_BY = "crop-and-infer"


@effect(timeout=60)
def start_processing(job: Working, media_key: str) -> Output:
    """Know the video, and say that it is being worked on. Said again it changes nothing."""
    key = MediaKey.parse(job.job.tenant, media_key)
    job.site.ledger.videos.register(key.tenant, key.video, media_key)
    job.site.ledger.videos.update(job.claim, state=VideoState.PROCESSING)
    return Output()


@work(version=1, timeout=30 * MINUTE)
def extract_frames_and_ocr(job: Working, media_key: str, probe: Output, frame_rate: float) -> Output:
    """Whole frames, evenly spaced, and the text on each; a frame that cannot be read is counted and costs no other."""
    payload = {"media_key": media_key, "sha256": probe.facts["sha256"], "frame_rate": frame_rate}
    return on_compute(job, extract_frames_and_ocr, "extract_frames_and_ocr", payload)


@work(version=1, timeout=5 * MINUTE)
def analyse_layout(job: Working, media_key: str, frames: Output) -> Output:
    """Where captions sit, and a picture that shows it. A video without captions is a result."""
    key = MediaKey.parse(job.job.tenant, media_key)
    raw = read_raw_ocr(job.site.store.get(frames.file("raw-ocr.db.gz").key))
    layout = find_layout(raw.seen, raw.width, raw.height)
    with job.scratch() as folder:
        path = folder / "layout.db"
        write_layout(path, layout, raw)
        database = packed(path)
    picture = layout_picture(telling_frame(job, frames, raw, layout), layout, raw)
    place = f"gen-{digest(database)[:16]}"
    return Output(
        facts={
            "confidence": min((region.confidence for region in layout.regions), default=None),
            "regions": [shares(layout, number) for number in range(len(layout.regions))],
        },
        artifacts=(
            job.site.store.put(key.client(place, "layout.db.gz"), database),
            job.site.store.put(key.client(place, "layout.png"), picture),
        ),
    )


def telling_frame(job: Working, frames: Output, raw: RawOcr, layout: Layout) -> bytes | None:
    """The picture of the frame that shows most of the captions; without captions, the one in the middle."""
    if not raw.frames:
        return None
    crops = [region.crop for region in layout.regions]

    def lines_inside(number: int) -> int:
        middles = [line.box.middle for line in raw.frames[number].lines]
        return sum(crop.left <= x < crop.right and crop.top <= y < crop.bottom for x, y in middles for crop in crops)

    middle = len(raw.frames) // 2
    best = max(range(len(raw.frames)), key=lambda number: (lines_inside(number), -abs(number - middle)))
    return job.site.store.get(frames.file(f"frame_{raw.frames[best].index:010d}.jpg").key)


def shares(layout: Layout, number: int) -> dict[str, Any]:
    """A region for a person: its rectangle as shares of the picture, as the form of crop-and-infer takes it."""
    region = layout.regions[number]
    across, along = layout.width, layout.height
    return {
        "left": round(region.crop.left / across, 4),
        "top": round(region.crop.top / along, 4),
        "right": round(region.crop.right / across, 4),
        "bottom": round(region.crop.bottom / along, 4),
        "centre": round(region.centre / along, 4),
        "spread": round(region.spread / along, 4),
        "anchor": region.anchor,
        "confidence": region.confidence,
        "first_us": region.first_us,
        "last_us": region.last_us,
    }


@effect(timeout=60)
def publish_layout(job: Working, media_key: str, probe: Output, frames: Output, layout: Output) -> Output:
    """Make this the video's layout. It waits for approval then; without captions there is nothing to approve."""
    key = MediaKey.parse(job.job.tenant, media_key)
    parts = {"frames": frames.to_json(), "layout": layout.to_json()}
    artifact = publish(job.site, job.claim, key, {**published(job.site, key), **parts})
    state = VideoState.AWAITING_LAYOUT if layout.facts["regions"] else VideoState.READY
    said = {"layout": layout.file("layout.db.gz").key, "layout_confidence": layout.facts["confidence"]}
    job.site.ledger.videos.update(job.claim, state=state, metadata=said)
    return Output(artifacts=(artifact,))


@effect(timeout=60)
def show_layout(job: Working, media_key: str, frames: Output, layout: Output) -> Output:
    """Show in the UI where the captions were found. Showing it twice shows the newest."""
    name = digest(media_key)[:12]
    picture = job.site.store.get(layout.file("layout.png").key)
    show_png(picture, f"layout-{name}", f"Where captions sit in `{media_key}`")
    create_markdown_artifact(layout_table(media_key, frames, layout), key=f"layout-facts-{name}")
    return Output(artifacts=layout.artifacts)


def layout_table(media_key: str, frames: Output, layout: Output) -> str:
    facts, regions = frames.facts, layout.facts["regions"]
    looked = f"{facts['ocr_box_count']} pieces of text on {facts['frame_count']} frames"
    unread = f", {facts['failed_ocr_count']} frames could not be read" if facts["failed_ocr_count"] else ""
    if not regions:
        return f"### `{media_key}`\n\nNo captions found: {looked}{unread}.\n"
    head = "| region | left | top | right | bottom | anchor | confidence | seen |\n|---|---|---|---|---|---|---|---|\n"
    rows = [
        f"| {number} | {one['left']} | {one['top']} | {one['right']} | {one['bottom']} | {one['anchor']} "
        f"| {one['confidence']:.3f} | {one['first_us'] / 1e6:.1f} to {one['last_us'] / 1e6:.1f} s |"
        for number, one in enumerate(regions)
    ]
    approve = "Approve it with `crop-and-infer`: leave `crop` empty to take these, or give another rectangle."
    return f"### `{media_key}`\n\n{looked}{unread}.\n\n{head}" + "\n".join(rows) + f"\n\n{approve}\n"


@effect(timeout=60)
def approve_layout(job: Working, media_key: str, layout: Output, threshold: float) -> Output:
    """Ask for crop-and-infer as a person would, where every region is sure enough; once, however often it is tried."""
    confidence = layout.facts["confidence"]
    if confidence is None or confidence < threshold:
        get_run_logger().info("action=await_approval media_key=%s confidence=%s", media_key, confidence)
        return Output(facts={"approved": False})
    asked = JobRequest(
        job.job.tenant,
        APPROVED_BY,
        job.job.subject,
        {"tenant": job.job.tenant, "media_key": media_key, "site": job.site.name},
        f"{APPROVED_BY}/{deployment.name or 'cpu'}",
    )
    following = job.site.ledger.jobs.submit(asked, key=f"approve:{job.job.id}")
    get_run_logger().info("action=approve media_key=%s job=%s", media_key, following.id)
    return Output(facts={"approved": True, "job": following.id})


def layout_of(job: Working, media_key: str) -> tuple[Layout, RawOcr, str]:
    """What is published: the layout, the text that it was found from, and the digest of the upload they are of."""
    key = MediaKey.parse(job.job.tenant, media_key)
    manifest = published(job.site, key)
    if "layout" not in manifest:
        raise BadInput(f"{media_key} has no layout yet: run process-video on it first")
    layout, frames = Output.from_json(manifest["layout"]), Output.from_json(manifest["frames"])
    raw = read_raw_ocr(job.site.store.get(frames.file("raw-ocr.db.gz").key))
    return read_layout(job.site.store.get(layout.file("layout.db.gz").key)), raw, manifest["probe"]["facts"]["sha256"]
