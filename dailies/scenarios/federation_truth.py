"""What a correct crawl of the fake federation ends with, worked out without it, and a production to begin from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json
from dailies.catalog import schema
from dailies.scenarios import federation_content as content
from dailies.scenarios import federation_documents as documents
from dailies.scenarios.federation_content import Channel, Video
from dailies.scenarios.federation_plan import Behaviour, Setup
from dailies.scenarios.federation_words import BY_NAME

Row = dict[str, str | int | None]
# How often a crawler that keeps trying comes back to one request: what fails more often than this is lost.
FEW = 3


@dataclass(frozen=True)
class HostTruth:
    """``channels`` and ``videos`` as rows with the columns of staging.sql that follow from the documents alone.

    ``healthy``   the host can be read at all
    ``whole``     and to the end of every list, so that what is absent counts as gone; of a host that breaks off, even
                  the channels may not all be found
    ``unread``    channels whose videos nobody can read
    ``optional``  videos that a crawl may have or lack: they come, go or drown while it reads
    ``refused``   broken documents in its lists of videos (by the way in which they are broken) and of channels
    ``early``     tomorrow's new videos, which a shifting host shows today
    ``strangers`` videos of other hosts that it lists: stored under its name they are wrong
    """

    host: str
    behaviour: Behaviour
    healthy: bool
    whole: bool
    instance: Row | None
    channels: tuple[Row, ...]
    videos: tuple[Row, ...]  # newest first
    unread: frozenset[str]
    optional: frozenset[str]
    refused: dict[str, str]
    refused_channels: int
    early: tuple[Row, ...]
    strangers: frozenset[str]
    endless: bool

    @property
    def allowed(self) -> set[str]:
        """What a crawl may hold of it, an endless host's inventions aside."""
        return {str(row["video_id"]) for row in self.videos} | self.optional


@dataclass(frozen=True)
class Truth:
    day: int
    as_of: int
    hosts: dict[str, HostTruth]
    topics: dict[str, str]  # of each video, by its uuid

    @property
    def channels(self) -> list[Row]:
        return [row for host in self.hosts.values() for row in host.channels]

    @property
    def videos(self) -> list[Row]:
        return [row for host in self.hosts.values() for row in host.videos]

    def missing(self, found: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which videos (id and host) a crawl should have found and did not."""
        wanted = {
            (str(row["video_id"]), name)
            for name, host in self.hosts.items()
            for row in host.videos
            if row["video_id"] not in host.optional
        }
        return wanted - set(found)

    def surplus(self, found: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which it found and nobody has."""
        bounded = {name: host.allowed for name, host in self.hosts.items() if not host.endless}
        return {
            (video, host)
            for video, host in found
            if host not in self.hosts or (host in bounded and video not in bounded[host])
        }


def truth(setup: Setup, names: Sequence[str]) -> Truth:
    """``names`` are the hosts' addresses, in order."""
    hosts = {name: _host(setup, names, host) for host, name in enumerate(names)}
    topics = {
        video.uuid: video.topic
        for host in range(len(names))
        for day in (setup.day, setup.day + 1)
        for video in all_videos(setup, host, day)
    }
    return Truth(setup.day, content.as_of(setup.day), hosts, topics)


def all_videos(setup: Setup, host: int, day: int) -> list[Video]:
    """Whatever the host does to them."""
    numbers = range(1, setup.scale.channels + 1)
    return [video for number in numbers for video in content.videos(setup.scale, host, number, day)]


def _host(setup: Setup, names: Sequence[str], host: int) -> HostTruth:
    behaviour = setup.behaviour(host)
    kind = behaviour.kind
    fails = kind == "failing" and not 0 <= behaviour.first <= FEW
    healthy = kind not in ("dead", "redirecting") and not (fails and behaviour.after == 0)
    broken_off = fails and healthy
    malformed = kind == "malformed"
    unread = {setup.scale.channels} if malformed and setup.scale.channels > 1 else set()
    shown = [each for each in all_videos(setup, host, setup.day) if each.channel not in unread]
    ways = {each.uuid: documents.broken(each.uuid, behaviour.each) for each in shown} if malformed else {}
    refused = {uuid: way for uuid, way in ways.items() if way}
    good = [each for each in shown if each.uuid not in refused] if healthy else []
    listing = content.channels(setup.scale, host)
    return HostTruth(
        host=names[host],
        behaviour=behaviour,
        healthy=healthy,
        whole=healthy and not broken_off and kind not in ("malformed", "endless"),
        instance=instance_row(host, names[host]) if healthy else None,
        channels=tuple(channel_row(names, each) for each in listing) if healthy else (),
        videos=tuple(video_row(setup, names, each) for each in sorted(good, key=lambda each: -each.published)),
        unread=frozenset(each.name for each in listing if each.number in unread),
        optional=frozenset(_optional(setup, host, good, all_of_them=broken_off or kind == "endless")),
        refused=refused,
        refused_channels=len(documents.BROKEN_CHANNELS) if malformed else 0,
        early=tuple(video_row(setup, names, each) for each in _early(setup, host)),
        strangers=frozenset(_strangers(setup, host)),
        endless=kind == "endless" and not behaviour.repeats,
    )


def _optional(setup: Setup, host: int, good: Sequence[Video], *, all_of_them: bool) -> set[str]:
    if all_of_them:
        return {each.uuid for each in good}
    if setup.behaviour(host).kind != "shifting":
        return set()
    today = {each.uuid for each in good}
    return today ^ {each.uuid for each in all_videos(setup, host, setup.day + 1)}


def _early(setup: Setup, host: int) -> list[Video]:
    tomorrow = all_videos(setup, host, setup.day + 1) if setup.behaviour(host).kind == "shifting" else []
    return [each for each in tomorrow if each.born > setup.day]


def _strangers(setup: Setup, host: int) -> set[str]:
    behaviour, neighbour = setup.behaviour(host), (host + 1) % setup.scale.hosts
    if behaviour.kind != "lying" or "foreign" not in behaviour.lies or neighbour == host:
        return set()
    return {each.uuid for each in content.videos(setup.scale, neighbour, 1, setup.day)}


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def channel_row(names: Sequence[str], channel: Channel) -> Row:
    host = names[channel.host]
    return {
        "channel_id": str(channel.number),
        "instance_domain": host,
        "channel_name": channel.name,
        "channel_url": f"http://{host}/video-channels/{channel.name}",
        "display_name": channel.display_name,
        "followers_count": channel.followers,
        "avatar_url": f"http://{host}/lazy-static/avatars/{channel.name}.png",
    }


def video_row(setup: Setup, names: Sequence[str], video: Video) -> Row:
    host = names[video.host]
    channel = content.channels(setup.scale, video.host)[video.channel - 1]
    return {
        "video_id": video.uuid,
        "instance_domain": host,
        "video_uuid": video.uuid,
        "video_numeric_id": video.id,
        "channel_id": str(channel.number),
        "channel_name": channel.name,
        "channel_url": f"http://{host}/video-channels/{channel.name}",
        "account_name": channel.owner,
        "account_url": f"http://{host}/accounts/{channel.owner}",
        "title": video.title,
        "description": video.description,
        "tags_json": canonical_json(list(video.tags)).decode(),
        "category": BY_NAME[video.topic].category[1],
        "published_at": video.published,
        "video_url": f"http://{host}/videos/watch/{video.uuid}",
        "duration": video.duration,
        "thumbnail_url": f"http://{host}/lazy-static/thumbnails/{video.uuid}.jpg",
        "embed_path": f"/videos/embed/{video.uuid}",
        "preview_path": f"/lazy-static/previews/{video.uuid}.jpg",
        "views": video.views,
        "likes": video.likes,
        "dislikes": video.dislikes,
        "comments_count": video.comments,
        "nsfw": int(video.nsfw),
    }


def mini_production(
    path: Path,
    setup: Setup,
    names: Sequence[str],
    *,
    hosts: Sequence[int] | None = None,
    hosts_limit: int = 3,
    channels_limit: int = 30,
    videos_limit: int = 2000,
) -> dict[str, int]:
    """A production database as an update of this day had left it, without embeddings: the newest videos of the newest
    channels of some hosts (the first ones, or ``hosts``), whatever those hosts do today."""
    chosen = list(range(len(names)) if hosts is None else hosts)[:hosts_limit]
    found = [video for host in chosen for video in _sound(setup, host)]
    found.sort(key=lambda each: (-each.published, each.host, each.id))
    kept = list(dict.fromkeys((each.host, each.channel) for each in found))[:channels_limit]
    newest = [each for each in found if (each.host, each.channel) in set(kept)][:videos_limit]
    moment = content.as_of(setup.day)
    health = {"health_status": "ok", "health_checked_at": moment}
    instances = [{**instance_row(host, names[host]), **health} for host in chosen]
    listing = [content.channels(setup.scale, host)[number - 1] for host, number in sorted(kept)]
    counts = {(each.host, each.number): _count(setup, each) for each in listing}
    channels = [
        {**channel_row(names, each), "videos_count": counts[each.host, each.number], **health} for each in listing
    ]
    videos = [{**video_row(setup, names, each), "last_checked_at": moment} for each in reversed(newest)]
    schema.create(path, "production")
    with closing(schema.connect(path, "production", write=True)) as database, schema.transaction(database):
        for table, rows in (("instances", instances), ("channels", channels), ("videos", videos)):
            _insert(database, table, rows)
    return {"instances": len(instances), "channels": len(channels), "videos": len(videos)}


def _sound(setup: Setup, host: int) -> list[Video]:
    behaviour = setup.behaviour(host)
    every = behaviour.each if behaviour.kind == "malformed" else 0
    return [each for each in all_videos(setup, host, setup.day) if not (every and documents.broken(each.uuid, every))]


def _count(setup: Setup, channel: Channel) -> int:
    return len(content.videos(setup.scale, channel.host, channel.number, setup.day))


def _insert(database: Any, table: str, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        columns = list(rows[0])
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        database.executemany(statement, [[row[name] for name in columns] for row in rows])


def instance_row(host: int, name: str) -> Row:
    return {"host": name, "name": documents.instance_name(host), "version": documents.VERSION}
