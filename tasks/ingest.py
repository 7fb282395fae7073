"""The two units that every flow on a video begins with, and their publication."""

from __future__ import annotations

import json
from typing import Any

from prefect.artifacts import create_markdown_artifact

from dailies.canonical import canonical_json, digest, file_digest
from dailies.media.keys import MediaKey
from dailies.media.upload import changed, unchanged, version_of
from tasks._job import Working
from tasks._step import Output, effect, in_child, work
from tasks.published import of_the_same_bytes, publish
from tasks.verdict import show_png

HOUR = 3600.0


def upload(job: Working, media_key: str) -> str:
    return version_of(job.site.store, MediaKey.parse(job.job.tenant, media_key))


@work(version=1, timeout=4 * HOUR)
def probe_media(job: Working, media_key: str, version: str, accept_damaged: bool) -> Output:
    """Digest the file and decode all of it: what it promises and what it really holds, on one timeline."""
    key = MediaKey.parse(job.job.tenant, media_key)
    with unchanged(job.site.store, key, version), job.site.store.local(media_key) as path:
        probe = in_child(
            job, probe_media, "dailies.media.isolated:probe_file", path=str(path), accept_damaged=accept_damaged
        )
    data = canonical_json(probe)
    artifact = job.site.store.put(key.server("probe", f"{digest(data)}.json"), data)
    return Output(facts={"sha256": probe["sha256"], "size": probe["size"]}, artifacts=(artifact,))


@work(version=1, timeout=HOUR)
def make_contact_sheet(job: Working, media_key: str, probe: Output) -> Output:
    """Draw evenly spaced frames (a waveform where there is no picture): the same file gives the same bytes."""
    key = MediaKey.parse(job.job.tenant, media_key)
    described = job.site.store.get(probe.artifacts[0].key).decode()
    # Keyed by content, so the content is what must be the same, not when it was put there.
    same = unchanged(job.site.store, key, version_of(job.site.store, key))
    with same, job.site.store.local(media_key) as path, job.scratch() as folder:
        if file_digest(path) != probe.facts["sha256"]:
            raise changed(key)
        png = folder / "sheet.png"
        in_child(
            job,
            make_contact_sheet,
            "dailies.media.isolated:contact_sheet_file",
            path=str(path),
            described=described,
            out=str(png),
        )
        data = png.read_bytes()
    artifact = job.site.store.put(key.client("contact-sheet", f"{digest(data)}.png"), data)
    return Output(artifacts=(artifact,))


@effect(timeout=60)
def publish_media(job: Working, media_key: str, probe: Output, sheet: Output) -> Output:
    """Point the ledger at both files together. An older attempt can never point it back: the pointer is fenced.

    What was made of the same bytes stays published beside them; what was made of others goes.
    """
    key = MediaKey.parse(job.job.tenant, media_key)
    job.site.ledger.videos.register(key.tenant, key.video, media_key)
    kept, gone = of_the_same_bytes(job.site, key, probe.facts["sha256"])
    manifest = {**kept, "probe": probe.to_json(), "contact_sheet": sheet.to_json()}
    artifact = publish(job.site, job.claim, key, manifest)
    found = metadata(json.loads(job.site.store.get(probe.artifacts[0].key)))
    job.site.ledger.videos.update(job.claim, metadata=gone | found)
    return Output(artifacts=(artifact,))


def metadata(described: dict[str, Any]) -> dict[str, Any]:
    """What a list of videos shows of each."""
    pictures = [stream for stream in described["streams"] if stream["kind"] == "video"]
    shape = {side: pictures[0]["video"][f"display_{side}"] for side in ("width", "height")} if pictures else {}
    return {"sha256": described["sha256"], "size": described["size"], "duration_us": described["decoded_us"], **shape}


@effect(timeout=60)
def show_media(job: Working, media_key: str, probe: Output, sheet: Output) -> Output:
    """Show in the UI what was found. Showing it twice shows the newest."""
    png = job.site.store.get(sheet.artifacts[0].key)
    show_png(png, f"contact-sheet-{digest(media_key)[:12]}", f"Contact sheet of `{media_key}`")
    create_markdown_artifact(facts_table(media_key, job, probe), key=f"media-{digest(media_key)[:12]}")
    return Output(artifacts=sheet.artifacts)


def facts_table(media_key: str, job: Working, probe: Output) -> str:
    """The probe for a person: what the file is, then a row a stream."""
    described = json.loads(job.site.store.get(probe.artifacts[0].key))
    decoded, promised = described["decoded_us"] / 1e6, described["promised_us"]
    lines = [
        f"### `{media_key}`",
        f"{described['format']}, {described['size']:,} bytes, sha256 `{described['sha256'][:16]}…`",
        f"{decoded:.3f} s decode" + (f" of {promised / 1e6:.3f} s promised" if promised else ", nothing is promised"),
        "| # | kind | codec | decoded | language | damaged packets |\n|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {stream['index']} | {stream['kind']} | {stream['codec']} | {(stream['decoded_us'] or 0) / 1e6:.3f} s "
        f"| {stream['language'] or ''} | {stream['damage']['packets']} |"
        for stream in described["streams"]
    ]
    return "\n\n".join(lines) + "\n" + "\n".join(rows) + "\n"
