"""PeerTube's documents as rows of the staging database: what is not what the API promises is refused, each by itself.

Pure functions. A row holds every column that the document decides; what it leaves out is None. Nothing is cut short or
mended: a title of a megabyte is no title, and half of it is none either.

    Refused   the document is malformed; ``name`` is what can be said of which it was
    Remote    it is another host's: of no interest here, and no proof of anything
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dailies.canonical import canonical_json, digest
from dailies.catalog.hosts import host_name
from dailies.errors import BadInput

Row = dict[str, Any]

NAME, TEXT, ADDRESS = 1000, 50_000, 2000
MOST_TAGS, LONGEST_TAG = 100, 200
MOST_ITEMS = 1000
"""A page of a host that takes no notice of how many were asked for; more than that is no page."""
LARGEST = 2**53
LATEST_YEAR = 2100
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SHORT = re.compile(r"[0-9A-Za-z_-]{1,64}")
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
WEB = re.compile(r"https?://\S+")
HANDLE = re.compile(r"[\w.:-]{1,200}", re.ASCII)


class Refused(BadInput):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Remote(Exception):
    pass


class Wrong(ValueError):
    """What is wrong with one field."""


def page(document: Any) -> tuple[list[Any], int | None]:
    """The items of a page, and how many the whole list has, as the host states it."""
    items = document.get("data") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise Refused("page", "is not {total, data}")
    if len(items) > MOST_ITEMS:
        raise Refused("page", f"holds {len(items)} items")
    total = document.get("total")
    known = isinstance(total, int) and not isinstance(total, bool) and 0 <= total < LARGEST
    return items, total if known else None


def key(item: Any, names: Sequence[str] = ("uuid", "shortUUID", "id")) -> str:
    """What an item is called within its list, also where it is malformed; of one that is not, it is the id of its
    row."""
    if isinstance(item, dict):
        for name in names:
            value = item.get(name)
            if isinstance(value, int | str) and not isinstance(value, bool) and SHORT.fullmatch(str(value)):
                return str(value).lower() if name == "uuid" else str(value)
    try:
        return f"?{digest(item)[:16]}"
    except (ValueError, RecursionError):  # half a character, which no digest takes
        return f"?{digest(ascii(item).encode())[:16]}"


def is_own(host: str, item: Any) -> bool:
    """Whether it is this host's, as far as it says; what says so wrongly is nobody's."""
    try:
        _local(host, _object(item))
    except (Remote, Wrong):
        return False
    return True


def instance(host: str, document: Any) -> Row:
    """From ``/api/v1/config``."""
    try:
        with_name = _part(_object(document), "instance")
        if with_name is None:
            raise Wrong("is not what a PeerTube host says of itself")
        return {
            "host": host,
            "name": _text(with_name, "name", NAME),
            "version": _text(document, "serverVersion", 100),
        }
    except Wrong as wrong:
        raise Refused(host, str(wrong)) from None


def channel(host: str, base: str, document: Any) -> Row:
    """From ``/api/v1/video-channels``. ``base``: the scheme and host under which it was found."""
    try:
        _local(host, _object(document))
        name = _text(document, "name", 200)
        if not name or not HANDLE.fullmatch(name):
            raise Wrong("name is no name of a channel")
        number = _number(document)
        if number is None:
            raise Wrong("has no id")
        return {
            "channel_id": str(number),
            "instance_domain": host,
            "channel_name": name,
            "channel_url": _url(document, "url", base),
            "display_name": _text(document, "displayName", NAME),
            "followers_count": _count(document, "followersCount"),
            "avatar_url": _picture(document, base),
        }
    except Wrong as wrong:
        raise Refused(key(document), str(wrong)) from None


def video(host: str, base: str, channel: Mapping[str, Any], document: Any, as_of: int) -> Row:
    """From ``/api/v1/video-channels/{name}/videos``. ``channel``: the row of the one whose list this is."""
    try:
        _local(host, _object(document))
        of, account = _part(document, "channel") or {}, _part(document, "account") or {}
        _local(host, of)
        _local(host, account)
        _belongs(of, channel)
        uuid, number = _uuid(document), _number(document)
        short = _text(document, "shortUUID", 64, SHORT)
        if uuid is None and short is None and number is None:
            raise Wrong("has no id")
        title = _text(document, "name", NAME)
        if not title or not title.strip():
            raise Wrong("name is missing")
        return {
            "video_id": uuid or short or str(number),
            "instance_domain": host,
            "video_uuid": uuid,
            "video_numeric_id": number,
            "channel_id": channel["channel_id"],
            "channel_name": channel["channel_name"],
            "channel_url": channel["channel_url"],
            "account_name": _text(account, "name", NAME),
            "account_url": _url(account, "url", base),
            "title": title,
            "description": _description(document),
            "tags_json": _tags(document),
            "category": _category(document),
            "published_at": _moment(document, "publishedAt"),
            "video_url": _url(document, "url", base) or f"{base}/videos/watch/{uuid or short or number}",
            "duration": _count(document, "duration"),
            "thumbnail_url": _url(document, "thumbnailPath", base) or _url(document, "thumbnailUrl", base),
            "embed_path": _path(document, "embedPath"),
            "preview_path": _path(document, "previewPath"),
            "views": _count(document, "views"),
            "likes": _count(document, "likes"),
            "dislikes": _count(document, "dislikes"),
            "comments_count": _count(document, "comments"),
            "nsfw": _flag(document, "nsfw"),
            "last_checked_at": as_of,
        }
    except Wrong as wrong:
        raise Refused(key(document), str(wrong)) from None


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise Wrong("is no object")
    return document


def _local(host: str, document: Mapping[str, Any]) -> None:
    """Whose it is, as far as it says. A host that lists another's as its own is not believed."""
    said, is_local = document.get("host"), document.get("isLocal")
    if is_local is not None and not isinstance(is_local, bool):
        raise Wrong("isLocal is neither true nor false")
    if is_local is False:
        raise Remote
    if said is None:
        return
    if not isinstance(said, str):
        raise Wrong("host is no text")
    if said != host and _named(said) != host:
        raise Remote


def _named(said: str) -> str:
    try:
        return host_name(said)
    except BadInput:
        raise Wrong("host is no name of a host") from None


def _belongs(said: Mapping[str, Any], channel: Mapping[str, Any]) -> None:
    """In two lists at once it would be in the one that was read last: it is in that which it names."""
    name, number = said.get("name"), said.get("id")
    if name is not None and name != channel["channel_name"]:
        raise Wrong("is listed in a channel that is not its own")
    if name is None and number is not None and str(number) != channel["channel_id"]:
        raise Wrong("is listed in a channel that is not its own")


def _part(document: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise Wrong(f"{name} is no object")
    return value


def _text(document: Mapping[str, Any], name: str, longest: int, form: re.Pattern[str] | None = None) -> str | None:
    value = document.get(name)
    return None if value is None else _checked(value, name, longest, form)


def _checked(value: Any, name: str, longest: int, form: re.Pattern[str] | None = None) -> str:
    if not isinstance(value, str):
        raise Wrong(f"{name} is no text")
    if len(value) > longest:
        raise Wrong(f"{name} is longer than {longest} characters")
    if NO_CHARACTER.search(value):
        raise Wrong(f"{name} holds what is no character")
    if form and not form.fullmatch(value):
        raise Wrong(f"{name} is malformed")
    return value


def _uuid(document: Mapping[str, Any]) -> str | None:
    value = _text(document, "uuid", 36)
    if value is not None and not UUID.fullmatch(value.lower()):
        raise Wrong("uuid is malformed")
    return value and value.lower()


def _number(document: Mapping[str, Any]) -> int | None:
    """The id; a float is none, because it could be spelt in two ways."""
    if isinstance(document.get("id"), float):
        raise Wrong("id is no number that can be")
    return _count(document, "id")


def _count(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) >= LARGEST:
        raise Wrong(f"{name} is no number that can be")
    if value < 0:
        raise Wrong(f"{name} is negative")
    if value != int(value):
        raise Wrong(f"{name} is no whole number")
    return int(value)


def _flag(document: Mapping[str, Any], name: str) -> int | None:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise Wrong(f"{name} is neither true nor false")
    return None if value is None else int(value)


def _moment(document: Mapping[str, Any], name: str) -> int | None:
    """In milliseconds since 1970. One without a zone is UTC: all of PeerTube's are."""
    value = _text(document, name, 64)
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Wrong(f"{name} is no moment") from None
    if not 1970 <= found.year < LATEST_YEAR:
        raise Wrong(f"{name} is no moment that can be")
    since = found - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _url(document: Mapping[str, Any], name: str, base: str) -> str | None:
    """An address of the web, or a path of this host."""
    value = _text(document, name, ADDRESS)
    if not value:
        return None
    if value.startswith("/") and not value.startswith("//"):
        return base + value
    if not WEB.fullmatch(value):
        raise Wrong(f"{name} is no address")
    return value


def _path(document: Mapping[str, Any], name: str) -> str | None:
    value = _text(document, name, ADDRESS)
    if not value:
        return None
    if not value.startswith("/") or value.startswith("//"):
        raise Wrong(f"{name} is no path")
    return value


def _description(document: Mapping[str, Any]) -> str | None:
    """Lists hold only its beginning, under a name of its own in newer versions."""
    whole = _text(document, "description", TEXT)
    return whole if whole is not None else _text(document, "truncatedDescription", TEXT)


def _tags(document: Mapping[str, Any]) -> str | None:
    value = document.get("tags")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MOST_TAGS:
        raise Wrong("tags are no list of tags")
    return canonical_json([_checked(tag, "a tag", LONGEST_TAG) for tag in value]).decode()


def _category(document: Mapping[str, Any]) -> str | None:
    """A video without one has the label "Unknown" in the language of the host, and no id."""
    value = document.get("category")
    if value is None or isinstance(value, str):
        return _text(document, "category", NAME)
    if not isinstance(value, dict):
        raise Wrong("category is no object")
    return None if value.get("id", 0) is None else _text(value, "label", NAME)


def _picture(document: Mapping[str, Any], base: str) -> str | None:
    """The first of ``avatars``; older versions have one ``avatar``."""
    many, one = document.get("avatars"), _part(document, "avatar")
    if many is not None and not isinstance(many, list):
        raise Wrong("avatars are no list")
    first = many[0] if many else one
    if first is None:
        return None
    if not isinstance(first, dict):
        raise Wrong("an avatar is no object")
    return next((url for name in ("path", "fileUrl", "url") if (url := _url(first, name, base))), None)
