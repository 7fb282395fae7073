"""Read a list page by page while its host adds to it and takes from it: nothing is lost, and nothing counts twice.

A page is asked for from a little before where the last one ended, and must show something that has been read already:
then nothing lies between the two. Where it does not, so much was taken away above that the list has slipped past, and
the reading goes back: twice as far each time. What was put on top meanwhile is read at the end.

Pure: ``ask`` says where to read on, ``take`` what a page means. A cursor is what must be remembered in between.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

OVERLAP = 5
MOST_RETREATS = 8
MOST_STUCK = 3
MOST_ON_TOP = 20

Word = Literal["on", "back", "end"]


@dataclass(frozen=True)
class Cursor:
    start: int = 0
    """How much of the list is behind us."""
    keys: tuple[str, ...] = ()
    """The last ones of it."""
    total: int | None = None
    idle: int = 0
    """Pages in a row without news."""
    pages: int = 0
    retreat: int = 0
    """Pages to go back beyond the overlap."""
    retreats: int = 0
    stuck: int = 0
    broken: int = 0
    """Pages in a row that were none."""
    moved: bool = False
    """Something was put in above us."""
    top: int = 0
    """Pages of the top that were read again, at the end."""
    gap: bool = False
    """Something may have been left out: what is absent is no proof that it is gone."""

    def tail(self) -> str:
        """What of it has no column of its own."""
        values = {name: value for name, value in asdict(self).items() if name not in ("start", "total", "idle")}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def of(cls, start: int, total: int | None, idle: int, tail: str) -> Cursor:
        found = json.loads(tail)
        values = found if isinstance(found, dict) else {"keys": found}
        return cls(start=start, total=total, idle=idle, **{**values, "keys": tuple(values["keys"])})


def ask(cursor: Cursor, count: int) -> int:
    if not cursor.keys:  # the beginning, or below a page that was skipped: there is nothing to join on to
        return cursor.start
    return max(0, cursor.start - _overlap(count) - cursor.retreat * count)


def take(
    cursor: Cursor, count: int, keys: Sequence[str], total: int | None, read: Collection[str]
) -> tuple[Cursor, Word]:
    """``read``: those of ``keys`` that an earlier page held. After ``back`` the page is not to be kept: between it and
    what was read before may lie something."""
    asked = ask(cursor, count)
    grown = cursor.total is not None and total is not None and total > cursor.total
    cursor = replace(cursor, pages=cursor.pages + 1, broken=0, moved=cursor.moved or _moved(cursor, asked, keys, total))
    if cursor.top:
        return _on_top(cursor, count, keys, read)
    behind = {*cursor.keys, *read}
    joined = asked == 0 or not cursor.keys or not behind.isdisjoint(keys)
    if not joined and cursor.retreats < MOST_RETREATS:
        return replace(cursor, retreat=max(1, 2 * cursor.retreat), retreats=cursor.retreats + 1, total=total), "back"
    fresh = any(key not in behind for key in keys)
    same = bool(keys and cursor.keys) and not fresh and len(keys) >= count and keys[-1] == cursor.keys[-1]
    after = replace(
        cursor,
        start=asked + len(keys),
        keys=tuple(keys[-_overlap(count) :]) or cursor.keys,
        total=total,
        retreat=0,
        stuck=cursor.stuck + 1 if same and not grown else 0,
        gap=cursor.gap or not joined,
    )
    if after.stuck >= MOST_STUCK:  # it takes no notice of where we ask it to begin
        return replace(after, gap=True), "end"
    if len(keys) < count and (not fresh or total is None or after.start >= total):
        return replace(after, gap=after.gap or (total is not None and total > after.start)), "end"
    return after, "on"


def skip(cursor: Cursor, count: int) -> Cursor:
    """Over a page that cannot be read: whatever it held is left out, and the next one has nothing to join on to."""
    return replace(
        cursor,
        start=ask(cursor, count) + count,
        keys=(),
        pages=cursor.pages + 1,
        retreat=0,
        broken=cursor.broken + 1,
        gap=True,
    )


def from_the_top(cursor: Cursor) -> Cursor:
    return replace(cursor, start=0, keys=(), retreat=0, moved=False, top=1)


def _on_top(cursor: Cursor, count: int, keys: Sequence[str], read: Collection[str]) -> tuple[Cursor, Word]:
    """Down to the first that is known: below it all is."""
    after = replace(cursor, start=ask(cursor, count) + len(keys), top=cursor.top + 1)
    if any(key in read for key in keys if key not in cursor.keys) or len(keys) < count:
        return after, "end"
    if after.top > MOST_ON_TOP:
        return replace(after, gap=True), "end"
    return replace(after, keys=tuple(keys[-_overlap(count) :])), "on"


def _moved(cursor: Cursor, asked: int, keys: Sequence[str], total: int | None) -> bool:
    """The last one that we read is further down than it was, or the list has another length."""
    if cursor.total is not None and total is not None and total != cursor.total:
        return True
    last = cursor.keys[-1] if cursor.keys else None
    return cursor.top == 0 and last in keys and list(keys).index(last) > cursor.start - 1 - asked  # type: ignore[arg-type]


def _overlap(count: int) -> int:
    return min(OVERLAP, count // 2)
