"""Popularity: (views + 2 likes) / (1 + age in days / 30), without writing a million rows anew every day.

The value decays with age, most of all in the first weeks. A stored value stays as long as it is within ``SLACK`` of the
exact one at the moment of the ranking; the exact one, at any moment, is an expression over the row. So the stored order
is nearly right, and ``top`` needs to look only a little further down than it is asked for.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from dailies.catalog.merge import open_to_write, writing
from dailies.catalog.schema import transaction
from dailies.failpoints import failpoint

SLACK = 0.01
DAY_MS = 86_400_000
AGE_UNKNOWN_DAYS = 3650.0
ROUNDING = 1e-9

# The same operations in the same order as ``popularity``: both give the same bits.
EXACT = f"""((max(ifnull(views, 0), 0) + 2.0 * max(ifnull(likes, 0), 0))
    / (1.0 + iif(published_at IS NULL, {AGE_UNKNOWN_DAYS}, max(:as_of - published_at, 0) / {DAY_MS}.0) / 30.0))"""


def popularity(views: int | None, likes: int | None, published_at: int | None, as_of: int) -> float:
    """What is negative counts as nothing, also the age of a video that is dated in the future."""
    age = AGE_UNKNOWN_DAYS if published_at is None else max(as_of - published_at, 0) / float(DAY_MS)
    return (max(views or 0, 0) + 2.0 * max(likes or 0, 0)) / (1.0 + age / 30.0)


def rank(production_copy: str | Path, as_of: int, progress: Callable[[float], None] | None = None) -> dict[str, Any]:
    """After it no living video's stored value is further than ``SLACK`` from the exact one at ``as_of``.

    Rows all over the database change, and a journal of that would be as large as it: whatever ends this half way, an
    error or a kill, leaves it torn, and the copy has to be made anew.
    """
    path = Path(production_copy)
    with closing(open_to_write(path)) as database, writing(path):
        database.execute("PRAGMA journal_mode = OFF")
        return _rank(database, as_of, progress or (lambda part: None))


def _rank(database: sqlite3.Connection, as_of: int, progress: Callable[[float], None]) -> dict[str, Any]:
    with transaction(database):
        rewritten = database.execute(
            f"""UPDATE videos SET popularity = {EXACT}, popularity_as_of = :as_of
                WHERE removed_at IS NULL AND (
                    popularity_as_of IS NULL
                    OR {EXACT} NOT BETWEEN popularity / (1.0 + {SLACK}) AND popularity / (1.0 - {SLACK}))""",
            {"as_of": as_of},
        ).rowcount
        if database.execute("SELECT as_of FROM ranked").fetchall() != [(as_of,)]:
            database.execute("DELETE FROM ranked")
            database.execute("INSERT INTO ranked VALUES (?)", (as_of,))
        failpoint("catalog.during_rank")
        progress(1.0)
        return {"as_of": as_of, "rewritten": rewritten}


def top(database: sqlite3.Connection, as_of: int, n: int) -> list[tuple[int, float]]:
    """The ``n`` most popular living videos at ``as_of``: id and exact value, best first, equals by id.

    At the ranking a stored value was at least (1 - SLACK) of the exact one. An exact value never grows with time, and
    going back by d days from the ranking it grows at most 1 + d / 30 times. So no row with a stored value below what
    the last of the best needs can be one of them, and the index ends there. Without a ranking, all rows are read.
    """
    ranked = database.execute("SELECT as_of FROM ranked").fetchone()
    rows = database.execute(
        f"""SELECT id, popularity, {EXACT} FROM videos {"INDEXED BY videos_popularity" if ranked else ""}
            WHERE removed_at IS NULL {"ORDER BY popularity DESC" if ranked else ""}""",
        {"as_of": as_of},
    )
    if ranked is None:
        return [(-i, value) for value, i in heapq.nlargest(n, ((value, -i) for i, _, value in rows))]
    growth = (1 + max(ranked[0] - as_of, 0) / DAY_MS / 30) / (1 - SLACK) * (1 + ROUNDING)
    best: list[tuple[float, int]] = []
    for number, stored, exact in rows if n > 0 else ():
        if len(best) == n and stored * growth < best[0][0]:
            break
        (heapq.heappush if len(best) < n else heapq.heappushpop)(best, (exact, -number))
    return [(-number, exact) for exact, number in sorted(best, reverse=True)]
