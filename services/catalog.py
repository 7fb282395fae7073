"""`dailies catalog`: update a catalogue on this machine, and ask it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dailies.canonical import digest
from dailies.compute.child import Children
from dailies.errors import BadInput, DailiesError, Held, Missing
from dailies.home import home
from dailies.ledger.holding import TTL_S, acquire, give_back, keeping
from dailies.media.keys import catalog_subject
from services.progress import stages

if TYPE_CHECKING:
    from blocks.site import OpenSite
    from dailies.catalog.reader import Catalog
    from dailies.catalog.update import Update

TENANT = "local"
STAGES = {
    "begin": "reading the list of hosts",
    "instances": "asking the hosts",
    "channels": "reading their channels",
    "videos": "reading their videos",
    "counts": "counting",
    "embeddings": "turning texts into vectors",
    "merge": "merging",
    "popularity": "ranking",
    "index": "building the index",
    "similar": "looking for neighbours",
    "complete": "checking all of it",
}
STAGE_S = 24 * 3600.0
KILLED_S = TTL_S + 1.0  # what one that was killed holds is free after that
AGAIN = "the same command goes on where it was"
Say = Callable[[str], None]


def update(asked: Update, service: str, site: str, say: Say, complain: Say) -> int:
    try:
        return _update(asked, service, opened(site), say)
    except Held as held:
        complain(f"another update of this catalogue is at work ({held.by}): wait for its end")
        return 1
    except DailiesError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain(f"stopped; {AGAIN}")
        return 130


def _update(asked: Update, service: str, site: OpenSite, say: Say) -> int:
    from dailies.catalog.service import service as served_by
    from dailies.catalog.update import attempt, clear_away, make_current, serve

    served_by(service, asked.prod)  # a name that is none is said before the work and not after it
    resource = resource_of(asked.prod)
    me = f"{socket.gethostname()}:{os.getpid()}"
    lease = acquire(site.ledger, resource, me, wait=KILLED_S, blocked=lambda held: say(waits(held)))
    with keeping(site.ledger) as keeper:
        keeper.add(lease)
        try:
            current = attempt(asked, site.ledger, lease)
            facts = all_stages(current, keeper.stopped)
            keeper.check()
            make_current(current, site.ledger, lease, service)
            serve(current, site.ledger, lease, service)
            clear_away(current, site.ledger, resource)
        finally:
            give_back(site.ledger, keeper, lease)
    for line in summary(current, facts):
        say(line)
    return 0


def waits(held: Held) -> str:
    return f"{held.by} is at work on this catalogue, or was killed at it: waiting {KILLED_S:.0f} s at most …"


def all_stages(update: Update, stopped: threading.Event) -> dict[str, Any]:
    """In a process of their own, which ends with a Ctrl-C or a lost lease."""
    facts: dict[str, Any] = {}
    with closing(Children()) as children, stages(STAGES) as tell:
        for name in STAGES:
            tell(name, 0.0)
            facts[name] = children.call(
                "dailies.catalog.update:run_stage",
                timeout=STAGE_S,
                stopped=stopped,
                progress=lambda part, name=name: tell(name, part),  # type: ignore[misc]
                stage=name,
                update=update.to_json(),
            )
            update = replace(update, as_of=facts["begin"]["as_of"])
            tell(name, 1.0)
    return facts


def summary(update: Update, facts: Mapping[str, Any]) -> list[str]:
    hosts, crawled, index = facts["videos"]["hosts"], facts["videos"], facts["index"]
    videos = facts["merge"]["tables"]["videos"]
    lines = [
        f"catalogue  {update.prod}, {update.name}"
        + (f", out of {update.base}" if update.base else ", the first that is published"),
        f"hosts      {facts['begin']['hosts'] - len(hosts['failed'])} of {facts['begin']['hosts']} answered to the end",
        f"crawl      {crawled['pages']} pages of videos, {crawled['refused']} documents refused",
        f"videos     {videos['inserted']} new, {videos['changed']} changed, {videos['removed']} removed, "
        f"{index['total']} in the index",
        f"index      {index['type']}, recall {index['recall']:.3f}, made on {index['mode']}",
    ]
    return lines + [f"not whole  {host}: {why}" for host, why in sorted(hosts["failed"].items())]


# ── asking it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def similar(prod: Path, video: str, count: int, site: str, say: Say) -> int:
    """The neighbours of one video, by its id or as VIDEO@HOST."""
    with reader(prod, site) as catalog:
        found = find(catalog, video)
        say(f"{found['title']}  ({found['video_id']}@{found['instance_domain']})")
        for number, score in catalog.neighbours(found["id"])[:count]:
            say(line(catalog.video(number), score))
    return 0


def find(catalog: Catalog, video: str) -> dict[str, Any]:
    name, _, host = video.partition("@")
    if host:
        found = catalog.video((name, host))
        if found is None:
            raise Missing(f"there is no video {name} of {host} in the catalogue")
        return found
    rows = catalog.videos.execute(
        "SELECT id FROM videos WHERE removed_at IS NULL AND (video_id = ? OR CAST(id AS TEXT) = ?)", (name, name)
    ).fetchall()
    if not rows:
        raise Missing(f"there is no video {name!r} in the catalogue: look for it with `dailies catalog search`")
    if len(rows) > 1:
        raise Missing(f"there are {len(rows)} videos {name!r} in the catalogue: say which, as VIDEO@HOST")
    return catalog.video(rows[0]["id"]) or {}


def search(prod: Path, text: str, count: int, site: str, say: Say) -> int:
    """The videos whose texts are most like this one."""
    from dailies.catalog.search import nearest

    if not text.strip():
        raise BadInput("there is nothing to search for")
    with reader(prod, site) as catalog:
        for number, score in nearest(catalog, text, count):
            say(line(catalog.video(number), score))
    return 0


def line(video: Mapping[str, Any] | None, score: float) -> str:
    if video is None:
        return f"{score:6.3f}  (gone)"
    title = " ".join((video["title"] or "").split())
    return f"{score:6.3f}  {title[:70]}  ({video['video_id']}@{video['instance_domain']})"


def reader(prod: Path, site: str) -> Catalog:
    from dailies.catalog.reader import Catalog

    return Catalog.open(prod, opened(site).ledger, resource_of(prod))


def opened(site: str) -> OpenSite:
    from blocks.site import open_site

    return open_site(site)


def default_prod(name: str) -> Path:
    return home() / "catalog" / TENANT / name


def resource_of(prod: Path) -> str:
    """What the ledger calls the catalogue in this folder: as whoever made it said, or by the name of the folder, and
    where it lies, for others may have one of that name."""
    from dailies.catalog.update import OWNER

    owner = prod / OWNER
    if owner.is_file():
        return str(json.loads(owner.read_bytes())["resource"])
    place = prod.resolve()
    at_home = place.parent == default_prod("").resolve()  # as the flow has them
    name = place.name if at_home else f"{place.name}-{digest(str(place))[:8]}"
    return f"catalog:{catalog_subject(TENANT, name)}"
