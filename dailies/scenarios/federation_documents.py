"""PeerTube's documents about what the fake federation holds, and the ways in which a malformed host breaks them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from dailies.scenarios.federation_content import Channel, Scale, Video, channels
from dailies.scenarios.federation_words import BY_NAME

Document = dict[str, Any]
VERSION = "7.2.1"


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def moment(ms: int) -> str:
    """As PeerTube writes times: to the millisecond, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def instance_name(host: int) -> str:
    return f"Tube {host:02d}"


def config(host: int) -> Document:
    about = {"name": instance_name(host), "shortDescription": "A host of the scenario's", "isNSFW": False}
    return {"instance": about, "serverVersion": VERSION, "signup": {"allowed": False}, "transcoding": {"enabled": True}}


def channel_document(names: Sequence[str], channel: Channel) -> Document:
    host = names[channel.host]
    return {
        **_actor(host, channel.number, channel.name, channel.display_name, "video-channels"),
        "followersCount": channel.followers,
        "followingCount": 0,
        "createdAt": moment(channel.created),
        "updatedAt": moment(channel.created),
        "description": f"All about {channel.topic}",
        "support": None,
        "isLocal": True,
        "avatars": [{"path": f"/lazy-static/avatars/{channel.name}.png", "width": 120}],
        "banners": [],
        "ownerAccount": account(host, channel),
    }


def account(host: str, channel: Channel) -> Document:
    return _actor(host, channel.number, channel.owner, channel.owner.title(), "accounts")


def video_document(scale: Scale, names: Sequence[str], video: Video) -> Document:
    channel = channels(scale, video.host)[video.channel - 1]
    host = names[video.host]
    number, label = BY_NAME[video.topic].category
    return {
        "id": video.id,
        "uuid": video.uuid,
        "shortUUID": short(video.uuid),
        "url": f"http://{host}/videos/watch/{video.uuid}",
        "name": video.title,
        "category": {"id": number, "label": label},
        "licence": {"id": 1, "label": "Attribution"},
        "language": {"id": "en", "label": "English"},
        "privacy": {"id": 1, "label": "Public"},
        "state": {"id": 1, "label": "Published"},
        "nsfw": video.nsfw,
        "truncatedDescription": video.description,
        "description": video.description,
        "tags": list(video.tags),
        "isLocal": True,
        "isLive": False,
        "duration": video.duration,
        "views": video.views,
        "likes": video.likes,
        "dislikes": video.dislikes,
        "comments": video.comments,
        "thumbnailPath": f"/lazy-static/thumbnails/{video.uuid}.jpg",
        "previewPath": f"/lazy-static/previews/{video.uuid}.jpg",
        "embedPath": f"/videos/embed/{video.uuid}",
        "createdAt": moment(video.published),
        "updatedAt": moment(video.published),
        "publishedAt": moment(video.published),
        "originallyPublishedAt": None,
        "account": account(host, channel),
        "channel": _actor(host, channel.number, channel.name, channel.display_name, "video-channels"),
    }


def _actor(host: str, number: int, name: str, shown: str, kind: str) -> Document:
    return {
        "id": number,
        "name": name,
        "displayName": shown,
        "url": f"http://{host}/{kind}/{name}",
        "host": host,
        "avatars": [],
    }


def short(uuid: str) -> str:
    """Not PeerTube's own alphabet, but as long and as certain."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:22]


def foreign(document: Document, place: int) -> Document:
    """Another host's document as a liar lists it; every second one is claimed to be local."""
    return {**document, "isLocal": place % 2 == 1}


# ── broken documents ──────────────────────────────────────────────────────────────────────────────────────────────────


def _without(*names: str) -> Callable[[Document], Any]:
    return lambda document: {name: value for name, value in document.items() if name not in names}


def _with(**values: Any) -> Callable[[Document], Any]:
    return lambda document: {**document, **values}


BREAKAGES: dict[str, Callable[[Document], Any]] = {
    "no id at all": _without("id", "uuid", "shortUUID"),
    "title is a list": _with(name=["a", "list"]),
    "null": lambda document: None,
    "a string": lambda document: "a video",
    "a date in words": _with(publishedAt="yesterday"),
    "a month 13": _with(publishedAt="2025-13-01T00:00:00.000Z"),
    "negative views": _with(views=-5),
    "views in words": _with(views="many"),
    "NUL in the title": _with(name="a\0b"),
    "half a surrogate": _with(name="\ud800 title"),
    "an endless title": _with(name="x" * 100_000),
    "channel is a number": _with(channel=17),
    "a list": lambda document: [document],
    "likes out of range": _with(likes=2**70),
}
WAYS = tuple(BREAKAGES)


def broken(uuid: str, every: int) -> str | None:
    """The way in which a malformed host breaks this video on every day, or None."""
    number = int(hashlib.sha256(uuid.encode()).hexdigest()[:12], 16)
    return WAYS[number // every % len(WAYS)] if number % every == 0 else None


def breaking(document: Document, way: str) -> bytes:
    """ASCII, because half a surrogate has no UTF-8."""
    return json.dumps(BREAKAGES[way](document)).encode()


BROKEN_CHANNELS: tuple[Any, ...] = (None, "a channel", {"displayName": "no id, no name"}, {"id": {}, "name": 5}, [])
BROKEN_PAGES: tuple[tuple[str, bytes], ...] = (
    ("text/html", b"<!DOCTYPE html><html><body><h1>Welcome to nginx!</h1></body></html>"),
    ("application/json", b"total: 3"),
    ("application/json", b'{"total":3,"data":[{"id":1,"uuid":"'),
    ("application/json", b'{"total":3,"data":{"id":1}}'),
    ("application/json", b'\xff\xfe{"total":3'),
    ("application/json", b""),
)
