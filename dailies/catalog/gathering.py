"""What a crawl writes: each page in one transaction with its cursor, on one connection, in one thread.

A failpoint follows every page: a crawl may die there, and what it has written is what the next one goes on from.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dailies.catalog import schema
from dailies.catalog.documents import Refused, Row
from dailies.catalog.paging import Cursor
from dailies.errors import BadInput
from dailies.failpoints import failpoint

What = Literal["instance", "channels", "videos", "count"]
KEYS = {
    "instances": ("host",),
    "channels": ("channel_id", "instance_domain"),
    "videos": ("video_id", "instance_domain"),
}
MARK = """
    INSERT INTO crawl_progress (host, what, channel_id, status, next_start, tail, idle_pages, whole, total, error)
    VALUES (:host, :what, :channel_id, :status, :next_start, :tail, :idle_pages, :whole, :total, :error)
    ON CONFLICT (host, what, channel_id) DO UPDATE SET status = excluded.status, next_start = excluded.next_start,
        tail = excluded.tail, idle_pages = excluded.idle_pages, whole = excluded.whole, total = excluded.total,
        error = excluded.error
"""
FAIL = """
    INSERT INTO crawl_progress (host, what, channel_id, status, error) VALUES (?, ?, ?, 'error', ?)
    ON CONFLICT (host, what, channel_id) DO UPDATE SET status = 'error', error = excluded.error
"""


@dataclass(frozen=True)
class Place:
    """One list of a host, or one document of it."""

    host: str
    what: What
    channel_id: str = ""


class Gathering:
    def __init__(self, staging: Path, production: Path | None = None) -> None:
        self._path = staging
        self._database = schema.connect(staging, "staging", write=True)
        self._known = None
        try:
            # A commit then waits for no disk, and a power cut takes back the last pages, each with its cursor.
            with schema.refusals(staging):
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
            self._known = schema.connect(production, "production") if production else None
            self.as_of = self._moment(staging)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with suppress(sqlite3.OperationalError):  # somebody looks at it
            self._database.execute("PRAGMA journal_mode = DELETE")  # one file again, which can be read as it is
        self._database.close()
        if self._known:
            self._known.close()

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── what is there ─────────────────────────────────────────────────────────────────────────────────────────────────

    def all(self, question: str, *values: Any) -> list[Any]:
        return self._database.execute(question, values).fetchall()

    def count(self, question: str, *values: Any) -> int:
        return int(self._database.execute(question, values).fetchone()[0])

    def schemes(self) -> dict[str, str]:
        """Of the hosts that have no https, so that it is not looked for in every stage again."""
        found = self.all("SELECT key, value FROM crawl_state WHERE key LIKE 'scheme:%'")
        return {key.removeprefix("scheme:"): value for key, value in found}

    def done(self, what: What) -> set[tuple[str, str]]:
        found = self.all("SELECT host, channel_id FROM crawl_progress WHERE what = ? AND status = 'done'", what)
        return {(host, channel) for host, channel in found}

    def failures(self, what: What) -> dict[str, str]:
        """By host."""
        question = "SELECT host, error FROM crawl_progress WHERE what = ? AND channel_id = '' AND status = 'error'"
        return dict(self.all(question, what))

    def cursor(self, place: Place) -> Cursor:
        found = self.all(
            "SELECT next_start, total, idle_pages, tail FROM crawl_progress WHERE (host, what, channel_id) = (?, ?, ?)",
            *(place.host, place.what, place.channel_id),
        )
        return Cursor.of(*found[0]) if found else Cursor()

    def read(self, place: Place, keys: Sequence[str]) -> set[str]:
        """Those that a page of this list held before."""
        if place.what == "channels":
            question, values = "SELECT channel_id FROM channels WHERE instance_domain = ? AND seen = 1", [place.host]
            return self._among(self._database, f"{question} AND channel_id", values, keys)
        question, values = "SELECT video_id FROM videos WHERE instance_domain = ?", [place.host, place.channel_id]
        return self._among(self._database, f"{question} AND channel_id = ? AND video_id", values, keys)

    def published(self, host: str, keys: Sequence[str]) -> set[str]:
        """Those videos that production holds, and holds for living."""
        if self._known is None:
            return set()
        question = "SELECT video_id FROM videos WHERE instance_domain = ? AND removed_at IS NULL AND video_id"
        return self._among(self._known, question, [host], keys)

    # ── what is written ───────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def page(self) -> Iterator[None]:
        """All of a page, or nothing of it."""
        with self.note():
            yield
        failpoint("catalog.page")

    @contextmanager
    def note(self) -> Iterator[None]:
        """The same for what is no page."""
        with schema.refusals(self._path), schema.transaction(self._database):
            yield

    def put(self, table: str, rows: Iterable[Row]) -> None:
        rows = list(rows)
        if not rows:
            return
        names = ", ".join(rows[0])
        values = ", ".join(f":{name}" for name in rows[0])
        fresh = ", ".join(f"{name} = excluded.{name}" for name in rows[0] if name not in KEYS[table])
        self._database.executemany(
            f"INSERT INTO {table} ({names}) VALUES ({values}) "
            f"ON CONFLICT ({', '.join(KEYS[table])}) DO UPDATE SET {fresh}",
            rows,
        )

    def refuse(self, place: Place, refused: Iterable[Refused]) -> None:
        for one in refused:
            values = (place.host, place.what, one.name, one.reason)
            self._database.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", values)

    def mark(self, place: Place, cursor: Cursor, done: bool) -> None:
        values = {
            "host": place.host,
            "what": place.what,
            "channel_id": place.channel_id,
            "status": "done" if done else "in_progress",
            "next_start": cursor.start,
            "tail": cursor.tail(),
            "idle_pages": cursor.idle,
            "whole": int(done and not cursor.gap),
            "total": cursor.total,
            "error": None,
        }
        self._database.execute(MARK, values)

    def fail(self, place: Place, reason: str) -> None:
        """The cursor stays: whoever tries again goes on from there."""
        self._database.execute(FAIL, (place.host, place.what, place.channel_id, reason))

    def health(self, place: Place, reason: str | None) -> None:
        """Of a host or a channel, as it was found at ``as_of``; its last error stays when it is well again."""
        values: Mapping[str, Any] = {
            "status": "ok" if reason is None else "error",
            "reason": reason,
            "as_of": self.as_of,
            "source": place.what,
            "host": place.host,
            "channel": place.channel_id,
        }
        which = "channels" if place.channel_id else "instances"
        where = "instance_domain = :host AND channel_id = :channel" if place.channel_id else "host = :host"
        error = ", last_error = :reason, last_error_at = :as_of, last_error_source = :source" if reason else ""
        self._database.execute("INSERT INTO instances (host) VALUES (:host) ON CONFLICT DO NOTHING", values)
        self._database.execute(
            f"UPDATE {which} SET health_status = :status, health_checked_at = :as_of, health_error = :reason{error} "
            f"WHERE {where}",
            values,
        )

    def well_again(self, place: Place) -> None:
        """A host all of whose lists have been read: that it failed in this stage before is over."""
        question = "DELETE FROM crawl_progress WHERE (host, what, channel_id) = (?, ?, '') RETURNING status"
        if self.all(question, place.host, place.what):
            self.health(place, None)

    def remember_scheme(self, host: str, scheme: str) -> None:
        """What is written is the rule's exception alone."""
        if scheme == "https":
            self._database.execute("DELETE FROM crawl_state WHERE key = ?", (f"scheme:{host}",))
        else:
            self._database.execute("INSERT OR REPLACE INTO crawl_state VALUES (?, ?)", (f"scheme:{host}", scheme))

    def run(self, statement: str, *values: Any) -> int:
        return self._database.execute(statement, values).rowcount

    def _moment(self, staging: Path) -> int:
        found = self.all("SELECT value FROM crawl_state WHERE key = 'as_of'")
        if not found or not str(found[0][0]).lstrip("-").isdigit():
            raise BadInput(f"{staging} does not say as of when it is: begin it before the crawl")
        return int(found[0][0])

    @staticmethod
    def _among(database: sqlite3.Connection, question: str, values: list[str], keys: Sequence[str]) -> set[str]:
        marks = ",".join("?" * len(keys))
        return {key for (key,) in database.execute(f"{question} IN ({marks})", (*values, *keys))}
