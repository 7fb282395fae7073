"""What is published of a video: one manifest that names its parts, each with the files that belong together.

    {"probe": …, "contact_sheet": …, "layout": …, "captions": …}

The ledger points at one manifest, and only the lease on the video can move the pointer: a reader sees the parts of
before or those of after. Nothing in it comes from a clock or a run, so that the same work gives the same bytes.
"""

from __future__ import annotations

import json
from typing import Any

from blocks.site import OpenSite
from dailies.canonical import canonical_json, digest
from dailies.ledger.records import Lease, video_resource
from dailies.media.keys import MediaKey
from dailies.store.interface import Artifact

Manifest = dict[str, Any]
ORIGINS = ("probe", "transcript")  # the parts that say of which bytes of the upload they, and so all others, are


def published(site: OpenSite, key: MediaKey) -> Manifest:
    """Nothing yet is an empty manifest."""
    current = site.ledger.generations.current(video_resource(key.tenant, key.video))
    found: Manifest = json.loads(site.store.get(current)) if current else {}
    return found


def of_the_same_bytes(site: OpenSite, key: MediaKey, sha256: str) -> tuple[Manifest, dict[str, None]]:
    """What may stay beside a new part that was made of these bytes of the upload: all of it, or nothing.

    The second is what the video must forget with it, as metadata that is gone.
    """
    before = published(site, key)
    if {before[name]["facts"]["sha256"] for name in ORIGINS if name in before} == {sha256}:
        return before, {}
    known = site.ledger.videos.get(key.tenant, key.video)
    return {}, dict.fromkeys(known.metadata)


def publish(site: OpenSite, lease: Lease, key: MediaKey, manifest: Manifest) -> Artifact:
    """Make it the current one. Under a lease that is over this changes nothing and raises ``Fenced``."""
    data = canonical_json(manifest)
    artifact = site.store.put(key.server("published", f"{digest(data)}.json"), data)
    site.ledger.generations.publish(lease, artifact.key)
    return artifact
