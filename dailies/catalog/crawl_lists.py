"""Read one list of a host to its end: its channels, or the videos of one channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import quote

from dailies.catalog import documents
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.documents import Refused, Remote, Row
from dailies.catalog.gathering import Gathering, Place
from dailies.catalog.paging import Cursor, Word, ask, from_the_top, skip, take
from dailies.catalog.polite import Door, Malformed, Refusal

Query = Mapping[str, str]

MOST_BROKEN = 2
LOCAL: Query = MappingProxyType({"isLocal": "true", "nsfw": "both"})


@dataclass
class Tally:
    """What one call did; what earlier calls did is in the database."""

    channels_done: int = 0
    channels_failed: int = 0
    channels_skipped: int = 0
    seen: int = 0
    new: int = 0
    updated: int = 0
    refused: int = 0
    remote: int = 0
    pages: int = 0

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        channels = {name: found.pop(f"channels_{name}") for name in ("done", "failed", "skipped")}
        return {"channels": channels, **found}


@dataclass(frozen=True)
class Channels:
    host: str
    table = "channels"
    names = ("id",)
    query: ClassVar[Query] = MappingProxyType({"sort": "createdAt"})
    path = "/api/v1/video-channels"

    @property
    def place(self) -> Place:
        return Place(self.host, "channels")

    def key(self, item: Any) -> str:
        """Its number is the host's own: a stranger's channel of the same number is another one."""
        found = documents.key(item, self.names)
        if not isinstance(item, dict) or documents.is_own(self.host, item):
            return found
        return f"{found}@{documents.key(item.get('host'), ())}"  # whatever it is: a lie may be long, or no text at all

    def row(self, base: str, item: Any, as_of: int) -> Row:
        return {**documents.channel(self.host, base, item), "seen": 1}


@dataclass(frozen=True)
class Videos:
    host: str
    channel: Mapping[str, Any]
    table = "videos"
    names = ("uuid", "shortUUID", "id")
    query: ClassVar[Query] = MappingProxyType({"sort": "-publishedAt", **LOCAL})

    @property
    def place(self) -> Place:
        return Place(self.host, "videos", self.channel["channel_id"])

    def key(self, item: Any) -> str:
        return documents.key(item, self.names)

    @property
    def path(self) -> str:
        return f"/api/v1/video-channels/{quote(self.channel['channel_name'], safe='')}/videos"

    def row(self, base: str, item: Any, as_of: int) -> Row:
        return documents.video(self.host, base, self.channel, item, as_of)


List = Channels | Videos


@dataclass
class Page:
    """What of a page is of use."""

    rows: dict[str, Row]
    refused: list[Refused]
    remote: int = 0


class Reader:
    def __init__(self, door: Door, gathering: Gathering, options: Crawl, tally: Tally) -> None:
        self.door, self.gathering, self.options, self.tally = door, gathering, options, tally

    async def read(self, of: List) -> None:
        """From where an earlier call left off. Each page is written with its cursor before the next is asked for."""
        cursor, done = self.gathering.cursor(of.place), False
        while not done:
            start = ask(cursor, self.options.page)
            try:
                asked = self.door.get(of.path, start=start, count=self.options.page, **of.query)
                items, total = documents.page(await asked)
            except (Malformed, Refused) as wrong:
                cursor = self._skipped(of, cursor, start, wrong)
            else:
                cursor, done = self._took(of, cursor, items, total)
        self.tally.channels_done += of.table == "videos"

    def _took(self, of: List, cursor: Cursor, items: list[Any], total: int | None) -> tuple[Cursor, bool]:
        self.tally.pages += 1
        keys = [of.key(item) for item in items]
        read = self.gathering.read(of.place, keys)
        after, word = take(cursor, self.options.page, keys, total, read)
        if word == "back":
            with self.gathering.page():
                self.gathering.mark(of.place, after, done=False)
            return after, False
        page = self._sorted(of, dict(zip(keys, items, strict=True)), skipping={*cursor.keys} - read)
        fresh = [key for key in page.rows if key not in read]
        room = self._room(of)
        if room is not None and len(fresh) > room:
            page.rows = {key: row for key, row in page.rows.items() if key in read or key in fresh[:room]}
            after, fresh = replace(after, gap=True), fresh[:room]
        new = set(fresh) - (self.gathering.published(of.place.host, fresh) if of.table == "videos" else set())
        # One that cannot be read may be one that production holds: that it is absent here is no proof that it is gone.
        after = replace(after, gap=after.gap or bool(page.refused))
        after = replace(after, idle=self._idle(after, bool(new), bool(fresh or page.refused or page.remote)))
        after, done = self._over(of, after, word, room is not None and len(fresh) == room)
        with self.gathering.page():
            self.gathering.put(of.table, page.rows.values())
            self.gathering.refuse(of.place, page.refused)
            self.gathering.mark(of.place, after, done)
            if done:
                self.gathering.health(of.place, None)
        self._count(of, page, len(fresh), len(new))
        return after, done

    def _sorted(self, of: List, items: Mapping[str, Any], skipping: set[str]) -> Page:
        """``skipping``: what was refused on the page before, and is here again."""
        page = Page({}, [])
        for key, item in items.items():
            try:
                page.rows[key] = of.row(self.door.base, item, self.gathering.as_of)
            except Refused as wrong:
                page.refused += [] if key in skipping else [Refused(self._name(of, key), wrong.reason)]
            except Remote:
                page.remote += key not in skipping
        return page

    @staticmethod
    def _idle(cursor: Cursor, news: bool, something: bool) -> int:
        """A page that shows again what this crawl has read already says nothing of how old the next one is."""
        return 0 if news else cursor.idle + something

    def _over(self, of: List, cursor: Cursor, word: Word, full: bool) -> tuple[Cursor, bool]:
        pages, limit = cursor.pages, self.options.max_videos_pages if of.table == "videos" else 0
        stop = self.options.stop_after_pages if of.table == "videos" else 0
        if full or pages >= self.options.longest_list or (limit and pages >= limit):
            return replace(cursor, gap=cursor.gap or word != "end" or bool(cursor.top)), True
        if word != "end" and stop and cursor.idle >= stop and not cursor.top:
            cursor, word = replace(cursor, gap=True), "end"
        if word == "end" and cursor.moved and not cursor.top:
            return from_the_top(cursor), False
        return cursor, word == "end"

    def _room(self, of: List) -> int | None:
        """For how many more channels of this host there is room."""
        if of.table != "channels" or not self.options.max_channels:
            return None
        question = "SELECT count(*) FROM channels WHERE instance_domain = ? AND seen = 1"
        return max(0, self.options.max_channels - self.gathering.count(question, of.place.host))

    def _skipped(self, of: List, cursor: Cursor, start: int, wrong: Exception) -> Cursor:
        reason = wrong.reason if isinstance(wrong, Refused) else str(wrong)
        after = skip(cursor, self.options.page)
        if after.broken >= MOST_BROKEN:
            raise Refusal(f"{reason}, page after page")
        with self.gathering.page():
            self.gathering.refuse(of.place, [Refused(self._name(of, f"page at {start}"), reason)])
            self.gathering.mark(of.place, after, done=False)
        self.tally.refused += 1
        self.tally.pages += 1
        return after

    @staticmethod
    def _name(of: List, name: str) -> str:
        return f"{of.place.channel_id}/{name}" if of.place.channel_id else name

    def _count(self, of: List, page: Page, fresh: int, new: int) -> None:
        self.tally.refused += len(page.refused)
        self.tally.remote += page.remote
        if of.table == "videos":
            self.tally.seen += fresh
            self.tally.new += new
            self.tally.updated += fresh - new
        else:
            self.tally.channels_done += fresh
