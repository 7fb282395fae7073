"""One host of the fake federation: a request's target in, PeerTube's answer out, with the host's behaviour in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dailies.scenarios import federation_documents as documents
from dailies.scenarios.federation_content import Channel, Video, channels, invented, videos
from dailies.scenarios.federation_documents import encoded
from dailies.scenarios.federation_plan import FOR_EVER, Behaviour, Setup
from dailies.scenarios.federation_shift import Shift

PAGE, MOST = 15, 100  # as PeerTube has them
PROBLEM = "application/problem+json"
VIDEO_SORTS = ("publishedAt", "createdAt", "name", "views", "likes", "duration")
CHANNEL_SORTS = ("createdAt", "updatedAt", "id", "name")
MANY = 1000


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0


class Refusal(Exception):
    def __init__(self, status: int, title: str, detail: str) -> None:
        self.reply = problem(status, title, detail)


def problem(status: int, title: str, detail: str, *headers: tuple[str, str]) -> Reply:
    """RFC 7807, as PeerTube fills it in."""
    said = {"type": "about:blank", "title": title, "detail": detail, "status": status, "error": detail}
    return Reply(status, encoded(said), PROBLEM, headers)


NOT_FOUND = problem(404, "Not Found", "Not found")


def paging(query: dict[str, str], most: int = MOST) -> tuple[int, int]:
    return _number(query, "start", 0, 2**31), _number(query, "count", min(PAGE, most), most)


def _number(query: dict[str, str], name: str, otherwise: int, most: int) -> int:
    written = query.get(name, str(otherwise))
    if not (written.isascii() and written.isdigit() and len(written) < 12 and int(written) <= most):
        raise Refusal(400, "Bad Request", f"Incorrect request parameters: {name} is a number from 0 to {most}")
    return int(written)


def _order(query: dict[str, str], usual: str, known: Sequence[str]) -> tuple[str, bool]:
    sort = query.get("sort", usual)
    if sort.removeprefix("-") not in known:
        raise Refusal(400, "Bad Request", f"Incorrect request parameters: sort is one of {', '.join(known)}")
    return sort.removeprefix("-"), sort.startswith("-")


def listed(total: int, page: Sequence[bytes]) -> Reply:
    return Reply(200, b'{"total":%d,"data":[%s]}' % (total, b",".join(page)))


class Site:
    """Whoever holds it asks from one thread. ``pages`` counts how often each page of each channel was asked for."""

    def __init__(self, setup: Setup, names: Sequence[str], host: int, day: int) -> None:
        self.host = host
        self.behaviour: Behaviour = setup.behaviour(host)
        self.pages: dict[str, Counter[str]] = {}
        self._scale = setup.scale
        self._names = names
        self.show(day)

    def show(self, day: int) -> None:
        """As it is at the beginning of a day: nothing has shifted, and nobody has asked for anything."""
        self.day = day
        self._asked = 0
        self._broken_pages = 0
        self._shifts: dict[int, Shift] = {}
        self._documents: dict[int, bytes] = {}
        self._lists: dict[int, list[bytes]] = {}

    def reply(self, target: str) -> Reply:
        self._asked += 1
        self._count_page(target)
        if refused := self._refused(target):
            return refused
        try:
            return self._answer(target)
        except Refusal as refusal:
            return refusal.reply

    def _refused(self, target: str) -> Reply | None:
        how = self.behaviour
        if how.kind == "failing" and how.after < self._asked and self._still_fails():
            return problem(500, "Internal Server Error", "The database is on holiday")
        if how.kind == "rate_limiting" and self._asked % how.each == 0:
            return problem(429, "Too Many Requests", "Slow down", ("Retry-After", str(how.retry_after)))
        if how.kind == "redirecting":
            to = how.to or f"http://{self._names[(self.host + 1) % len(self._names)]}"
            return Reply(302, headers=(("Location", to + target),))
        return None

    def _still_fails(self) -> bool:
        return self.behaviour.first == FOR_EVER or self._asked <= self.behaviour.after + self.behaviour.first

    def _count_page(self, target: str) -> None:
        path, _, query = target.partition("?")
        if path.startswith("/api/v1/video-channels/") and path.endswith("/videos"):
            asked = dict(parse_qsl(query))
            name = path.split("/")[4]
            page = f"{asked.get('start', 0)}+{asked.get('count', PAGE)}"
            self.pages.setdefault(name, Counter())[page] += 1

    def _answer(self, target: str) -> Reply:
        split = urlsplit(target)
        query = dict(parse_qsl(split.query))
        match split.path.strip("/").split("/"):
            case ["api", "v1", "config"]:
                return Reply(200, encoded(documents.config(self.host)))
            case ["api", "v1", "video-channels"]:
                return self._channel_page(query)
            case ["api", "v1", "video-channels", name]:
                return Reply(200, encoded(documents.channel_document(self._names, self._channel(name))))
            case ["api", "v1", "video-channels", name, "videos"]:
                return self._video_page(self._channel(name), query)
            case ["api", "v1", "videos"]:
                return self._all_videos(query)
            case ["api", "v1", "videos", name]:
                return self._one_video(name)
        return NOT_FOUND

    def _channel(self, name: str) -> Channel:
        wanted = name.removesuffix(f"@{self._names[self.host]}")
        for channel in channels(self._scale, self.host):
            if channel.name == wanted:
                return channel
        raise Refusal(404, "Not Found", "Video channel not found")

    # ── lists ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _channel_page(self, query: dict[str, str]) -> Reply:
        start, count = paging(query)
        by, backwards = _order(query, "-createdAt", CHANNEL_SORTS)
        keys = {"id": lambda each: each.number, "name": lambda each: each.name}
        own = sorted(channels(self._scale, self.host), key=keys.get(by, lambda each: each.created), reverse=backwards)
        found: list[Any] = [documents.channel_document(self._names, each) for each in own]
        if self.behaviour.kind == "malformed":
            found[1:1] = documents.BROKEN_CHANNELS
        if self.behaviour.kind == "lying":
            found = self._among_lies(found, channels(self._scale, self._neighbour))
            count = self._at_most(count)
        return listed(self._total(len(found)), [encoded(each) for each in found[start : start + count]])

    def _video_page(self, channel: Channel, query: dict[str, str]) -> Reply:
        start, count = paging(query)
        by, backwards = _order(query, "-publishedAt", VIDEO_SORTS)
        kind = self.behaviour.kind
        if kind == "malformed" and channel.number == self._scale.channels > 1:
            return self._no_page()
        if kind == "endless" and channel.number == 1:
            return self._endless_page(channel, start, count)
        if kind == "shifting" and (by, backwards) == ("publishedAt", True):
            return self._shifting_page(channel, start, count)
        found = self._listing(channel, by, backwards)
        if kind == "lying":
            count = self._at_most(count)
        return listed(self._total(len(found)), found[start : start + count])

    def _listing(self, channel: Channel, by: str, backwards: bool) -> list[bytes]:
        if (by, backwards) != ("publishedAt", True):
            return self._among_lies([self._document(each) for each in self._sorted(channel, by, backwards)], ())
        if channel.number not in self._lists:
            own = [self._document(each) for each in self._videos(channel.number)]
            strangers = videos(self._scale, self._neighbour, 1, self.day)
            self._lists[channel.number] = self._among_lies(own, strangers)
        return self._lists[channel.number]

    def _sorted(self, channel: Channel, by: str, backwards: bool) -> list[Video]:
        names = {"publishedAt": "published", "createdAt": "published", "name": "title"}
        name = names.get(by, by)
        return sorted(self._videos(channel.number), key=lambda each: getattr(each, name), reverse=backwards)

    def _videos(self, channel: int) -> tuple[Video, ...]:
        return videos(self._scale, self.host, channel, self.day)

    def _document(self, video: Video) -> bytes:
        if video.id not in self._documents:
            document = documents.video_document(self._scale, self._names, video)
            way = documents.broken(video.uuid, self.behaviour.each) if self.behaviour.kind == "malformed" else None
            self._documents[video.id] = documents.breaking(document, way) if way else encoded(document)
        return self._documents[video.id]

    def _shifting_page(self, channel: Channel, start: int, count: int) -> Reply:
        if channel.number not in self._shifts:
            tomorrow = videos(self._scale, self.host, channel.number, self.day + 1)
            self._shifts[channel.number] = Shift(self._videos(channel.number), tomorrow, self.behaviour.each)
        shift = self._shifts[channel.number]
        total = len(shift.now)
        page = [self._document(each) for each in shift.page(start, count)]
        return listed(total, page)

    def _endless_page(self, channel: Channel, start: int, count: int) -> Reply:
        own = self._videos(channel.number)
        if self.behaviour.repeats:
            return listed(start + count + MANY, [self._document(each) for each in own[:count]])
        places = range(max(start, len(own)), start + count)
        more = (invented(self._scale, self.host, channel.number, place - len(own)) for place in places)
        page = [*own[start : start + count], *more]
        return listed(start + count + MANY, [self._document(each) for each in page])

    def _no_page(self) -> Reply:
        kind, body = documents.BROKEN_PAGES[self._broken_pages % len(documents.BROKEN_PAGES)]
        self._broken_pages += 1
        return Reply(200, body, kind)

    def _all_videos(self, query: dict[str, str]) -> Reply:
        """With what it knows of another host, unless only its own is asked for."""
        start, count = paging(query)
        _order(query, "-publishedAt", ("publishedAt",))
        found = [each for channel in channels(self._scale, self.host) for each in self._videos(channel.number)]
        if query.get("isLocal") != "true":
            found += videos(self._scale, self._neighbour, 1, self.day)
        found.sort(key=lambda each: each.published, reverse=query.get("sort") != "publishedAt")
        return listed(len(found), [self._local_or_not(each) for each in found[start : start + count]])

    def _local_or_not(self, video: Video) -> bytes:
        if video.host == self.host:
            return self._document(video)
        return encoded({**documents.video_document(self._scale, self._names, video), "isLocal": False})

    def _one_video(self, name: str) -> Reply:
        for channel in channels(self._scale, self.host):
            for video in self._videos(channel.number):
                if name in (video.uuid, str(video.id), documents.short(video.uuid)):
                    return Reply(200, self._document(video))
        raise Refusal(404, "Not Found", "Video not found")

    # ── lies ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _neighbour(self) -> int:
        return (self.host + 1) % self._scale.hosts

    def _at_most(self, count: int) -> int:
        return min(count, self.behaviour.each) if "count" in self.behaviour.lies else count

    def _total(self, real: int) -> int:
        if self.behaviour.kind == "lying" and "high_total" in self.behaviour.lies:
            return real + MANY
        return real // 2 if self.behaviour.kind == "lying" and "low_total" in self.behaviour.lies else real

    def _among_lies(self, own: list[Any], strangers: Sequence[Video | Channel]) -> list[Any]:
        """One document in ten is there twice, and after one in seven comes a stranger."""
        if self.behaviour.kind != "lying":
            return own
        found: list[Any] = []
        for place, document in enumerate(own):
            found.append(document)
            if "duplicates" in self.behaviour.lies and place % 10 == 2:
                found.append(document)
            alone = self._neighbour == self.host
            if "foreign" in self.behaviour.lies and place % 7 == 1 and place // 7 < len(strangers) and not alone:
                found.append(self._stranger(strangers[place // 7], place // 7))
        return found

    def _stranger(self, who: Video | Channel, place: int) -> Any:
        if isinstance(who, Channel):
            return documents.foreign(documents.channel_document(self._names, who), place)
        return encoded(documents.foreign(documents.video_document(self._scale, self._names, who), place))
