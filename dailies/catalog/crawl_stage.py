"""One stage of a crawl over all its hosts: so many at once, and what goes wrong with one stays with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from dailies.catalog import documents
from dailies.catalog.crawl_lists import LOCAL, Channels, Reader, Tally, Videos
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.documents import Refused
from dailies.catalog.gathering import Gathering, Place, What
from dailies.catalog.paging import Cursor
from dailies.catalog.polite import AT_ONCE, Door, GivenUp, Polite, Refusal, Unanswered, World
from dailies.errors import BadInput, Transient

Progress = Callable[[float], None]
Json = dict[str, Any]
T = TypeVar("T")

SEEN = "SELECT channel_id, channel_name, channel_url FROM channels WHERE instance_domain = ? AND seen = 1 ORDER BY 1"


class Stage:
    def __init__(
        self, what: What, gathering: Gathering, options: Crawl, progress: Progress, world: World | None = None
    ) -> None:
        self.what, self.gathering, self.options, self.progress = what, gathering, options, progress
        self.tally = Tally()
        self.failed: dict[str, str] = {}
        self._unreachable: set[str] = set()
        self._world = world
        self._parts: dict[str, float] = {}
        """How much of each host is done."""

    def answering(self) -> list[str]:
        return sorted(host for host, _ in self.gathering.done("instance"))

    async def run(self, hosts: list[str], crawl: Callable[[Door], Awaitable[None]]) -> Json:
        began = time.monotonic()
        done = {host for host, channel in self.gathering.done(self.what) if not channel}
        left = [host for host in hosts if host not in done]
        self._parts = {host: float(host not in left) for host in hosts}
        async with Polite(self.options, self._world, self.gathering.schemes()) as polite:
            await each(left, self.options.concurrency, lambda host: self._host(polite, host, crawl))
            if left and len(self._unreachable) == len(left) and not done:
                raise self._no_network()
            return self._result(hosts, polite.requests, time.monotonic() - began)

    async def instance(self, door: Door) -> None:
        place = Place(door.host, "instance")
        document = await door.get("/api/v1/config")
        refused = []
        row = {"host": door.host, "name": None, "version": None}
        try:
            row = documents.instance(door.host, document)
        except Refused as wrong:
            if not isinstance(document, dict) or "serverVersion" not in document:
                raise Refusal(f"{wrong.reason}: it is no PeerTube host") from None
            refused.append(wrong)
        self.tally.refused += len(refused)
        with self.gathering.page():
            self.gathering.put("instances", [row])
            self.gathering.refuse(place, refused)
            self.gathering.remember_scheme(door.host, door.scheme or "https")
            self.gathering.mark(place, self.gathering.cursor(place), done=True)
            self.gathering.health(place, None)

    async def channels(self, door: Door) -> None:
        await Reader(door, self.gathering, self.options, self.tally).read(Channels(door.host))

    async def videos(self, door: Door) -> None:
        """Channel by channel, two at a time; one that fails is written down, and the next one read."""
        reader = Reader(door, self.gathering, self.options, self.tally)

        async def channel(row: Json) -> None:
            await reader.read(Videos(door.host, row))

        await self._each_channel(door, channel)

    async def counts(self, door: Door) -> None:
        async def channel(row: Json) -> None:
            place = Place(door.host, "count", row["channel_id"])
            path = Videos(door.host, row).path
            _, total = documents.page(await door.get(path, start=0, count=1, **LOCAL))
            if total is None:
                raise Refusal("does not say how many videos it has")
            with self.gathering.page():
                self._counted(place, total)

        await self._each_channel(door, channel)

    def take_over_counts(self) -> None:
        stated = (
            "SELECT p.host, p.channel_id, p.total FROM crawl_progress p WHERE p.what = 'videos' "
            "AND p.total IS NOT NULL AND NOT EXISTS (SELECT 1 FROM crawl_progress c WHERE c.what = 'count' "
            "AND c.status = 'done' AND (c.host, c.channel_id) = (p.host, p.channel_id))"
        )
        found = self.gathering.all(stated)
        if found:
            with self.gathering.page():
                for host, channel_id, total in found:
                    self._counted(Place(host, "count", channel_id), total)

    def _counted(self, place: Place, total: int) -> None:
        question = "UPDATE channels SET videos_count = ? WHERE (channel_id, instance_domain) = (?, ?)"
        self.gathering.run(question, total, place.channel_id, place.host)
        self.gathering.mark(place, Cursor(total=total), done=True)
        self.tally.channels_done += 1

    async def _each_channel(self, door: Door, crawl: Callable[[Json], Awaitable[None]]) -> None:
        names = ("channel_id", "channel_name", "channel_url")
        rows = [dict(zip(names, row, strict=True)) for row in self.gathering.all(SEEN, door.host)]
        done = self.gathering.done(self.what)
        left = [row for row in rows if (door.host, row["channel_id"]) not in done]
        part = 1 / max(1, len(left))

        async def one(row: Json) -> None:
            if door.given_up:
                self.tally.channels_skipped += 1
                return
            place = Place(door.host, self.what, row["channel_id"])
            try:
                await crawl(row)
            except (Transient, BadInput) as error:
                self._expected(error)
                self.tally.channels_failed += 1
                with self.gathering.note():
                    self.gathering.fail(place, reason_of(error))
                    self.gathering.health(place, reason_of(error))
            self._tell(door.host, self._parts[door.host] + part)

        await each(left, AT_ONCE, one)
        if door.given_up:
            raise GivenUp(door.given_up)
        if not self._channels_left(door.host):
            with self.gathering.note():
                self.gathering.well_again(Place(door.host, self.what))

    def _channels_left(self, host: str) -> int:
        return self.gathering.count(
            "SELECT count(*) FROM channels c WHERE c.instance_domain = ? AND c.seen = 1 AND NOT EXISTS "
            "(SELECT 1 FROM crawl_progress p WHERE p.host = c.instance_domain AND p.what = ? AND "
            "p.channel_id = c.channel_id AND p.status = 'done')",
            *(host, self.what),
        )

    async def _host(self, polite: Polite, host: str, crawl: Callable[[Door], Awaitable[None]]) -> None:
        door = polite.door(host)
        try:
            await crawl(door)
        except (Transient, BadInput) as error:
            self._expected(error)
            self._failed(door, reason_of(error))
            if not polite.answered and len(self._unreachable) >= self.options.no_network_after:
                raise self._no_network() from None
        finally:
            await door.close()
        self._tell(host, 1.0)

    def _expected(self, error: Exception) -> None:
        """What a host may do to us; an error of our own is not its fault."""
        if not isinstance(error, Refusal | Refused | Unanswered):
            raise error

    def _failed(self, door: Door, reason: str) -> None:
        self.failed[door.host] = reason
        if door.unreachable:
            self._unreachable.add(door.host)
        place = Place(door.host, self.what)
        with self.gathering.note():
            self.gathering.fail(place, reason)
            self.gathering.health(place, reason)

    def _no_network(self) -> Transient:
        host = min(self._unreachable)
        return Transient(
            f"none of {len(self._unreachable)} hosts can be reached ({host}: {self.failed[host]}): is there a network?"
        )

    def _tell(self, host: str, part: float) -> None:
        self._parts[host] = min(1.0, part)
        self.progress(sum(self._parts.values()) / len(self._parts))

    def _result(self, hosts: list[str], requests: int, seconds: float) -> Json:
        before = {} if self.what == "instance" else self.gathering.failures("instance")
        failed = {**before, **self.failed}
        return {
            "hosts": {"ok": len(hosts) - len(self.failed), "failed": dict(sorted(failed.items()))},
            **self.tally.to_json(),
            "requests": requests,
            "seconds": round(seconds, 3),
        }


def reason_of(error: Exception) -> str:
    return error.reason if isinstance(error, Refused) else str(error)


async def each(items: Sequence[T], at_once: int, work: Callable[[T], Awaitable[None]]) -> None:
    """``work`` on all of them in turn, so many at once; the first error ends it for all."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(worker())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
