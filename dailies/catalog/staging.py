"""The staging of one update: made and seeded from production, taken up again after a crash, and told by its digest."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json
from dailies.catalog.schema import APPLICATION, connect, create, refusals, transaction
from dailies.errors import BadInput, DailiesError

SIDE_FILES = ("-journal", "-wal", "-shm")
OF_A_HOST = {
    "crawl_progress": "host",
    "refused": "host",
    "video_embeddings": "instance_domain",
    "videos": "instance_domain",
    "channels": "instance_domain",
    "instances": "host",
}
BATCH = 1000

# What a merge reads, in key order. How the crawl came by it (cursors, errors, refusals) makes no other merge.
DIGESTED = {
    "crawl_state": ("key", "key = 'as_of'"),
    "instances": ("host", "true"),
    "channels": ("channel_id, instance_domain", "true"),
    "videos": ("video_id, instance_domain", "true"),
    "crawl_progress": ("host, what, channel_id", "whole = 1 AND what IN ('channels', 'videos')"),
}


def begin_staging(
    staging: str | Path, production: str | Path | None, hosts: Sequence[str], as_of: int, resume: bool
) -> dict[str, Any]:
    """A staging with the hosts of the whitelist and what production knows of their channels.

    With ``resume`` the one that is there goes on, with its own ``as_of``, if it was begun on the same generation of
    production; the answer says which it was, and why. It then follows the whitelist as it is now: a host that is new
    is added, and what was gathered of one that is gone is dropped.
    """
    path, source = Path(staging), None if production is None else Path(production)
    seeded_from = generation_of(source)
    _look(path)
    why = _objection(path, seeded_from) if resume else "a fresh one was asked for"
    if why:
        _make(path, source, hosts, as_of, seeded_from)
    with closing(connect(path, "staging", write=True)) as database:
        known = {host for (host,) in database.execute("SELECT host FROM instances")}
        added, dropped = sorted(set(hosts) - known), sorted(known - set(hosts))
        if added or dropped:
            with refusals(path):
                _follow(database, source, added, dropped)
        return {
            "resumed": not why,
            "why": why or "it was begun on the same generation",
            "seeded_from": seeded_from,
            "as_of": staged_as_of(database, "main"),
            "hosts": _count(database, "instances"),
            "hosts_added": 0 if why else len(added),
            "hosts_dropped": len(dropped),
            "channels": _count(database, "channels"),
            "videos": _count(database, "videos"),
        }


def generation_of(production: Path | None) -> str:
    """The name of the generation that this database belongs to; empty where there is none yet."""
    return "" if production is None else production.resolve().parent.name


def staged_as_of(database: sqlite3.Connection, schema: str) -> int:
    row = database.execute(f"SELECT value FROM {schema}.crawl_state WHERE key = 'as_of'").fetchone()
    if row is None:
        raise BadInput("the staging database does not say for which moment it was begun: begin a new one")
    return int(row[0])


def staging_digest(staging: str | Path) -> str:
    """Of the contents in key order, whatever the order they were written in or the pages they lie on."""
    path = Path(staging)
    recover(path)
    with closing(connect(path, "staging")) as database, refusals(path):
        return contents_digest(database, "main")


def recover(path: Path) -> None:
    """A crawl that was killed leaves its journal or its write-ahead log, and whoever opens the file only to read can
    neither roll the one back nor always read the other."""
    if path.is_file() and (path.with_name(path.name + "-journal").exists() or _logs_ahead(path)):
        with closing(connect(path, "staging", write=True)) as database, refusals(path):
            database.execute("PRAGMA journal_mode = DELETE")


def _logs_ahead(path: Path) -> bool:
    """As the file's header says, so that it is known without opening it."""
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def contents_digest(database: sqlite3.Connection, schema: str) -> str:
    running = hashlib.sha256()
    for table, (keys, where) in DIGESTED.items():
        running.update(f"\n{table}\n".encode())
        told = keys if table == "crawl_progress" else ", ".join(_columns(database, schema, table))
        rows = database.execute(
            f"SELECT CAST(json_array({told}) AS BLOB) FROM {schema}.{table} WHERE {where} ORDER BY {keys}"
        )
        while batch := rows.fetchmany(BATCH):
            running.update(b"\n".join(row[0] for row in batch) + b"\n")
    running.update(b"\nvideo_embeddings\n")
    rows = database.execute(
        f"""SELECT json_array(video_id, instance_domain, text_digest, model_name, embedding_dim, created_at,
                length(embedding)), embedding
            FROM {schema}.video_embeddings ORDER BY video_id, instance_domain"""
    )
    while batch := rows.fetchmany(BATCH):
        running.update(b"".join(part for told, vector in batch for part in (told.encode(), vector)))
    return running.hexdigest()


def _look(path: Path) -> None:
    """Refuse to write over a file that no update made. Its header is enough, and is there when the rest is damaged."""
    if not path.exists() or path.stat().st_size == 0:
        return
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(72)
    if not head.startswith(b"SQLite format 3\0") or int.from_bytes(head[68:72], "big") != APPLICATION["staging"]:
        raise BadInput(f"{path} is no staging database, and is not written over: move it away, or name another path")


def _objection(path: Path, seeded_from: str) -> str:
    """Why the staging that is there cannot go on; empty where it can."""
    if not path.exists() or path.stat().st_size == 0:
        return "there was none to go on with"
    try:
        with closing(connect(path, "staging", write=True)) as database, refusals(path):
            found = dict(database.execute("SELECT key, value FROM crawl_state WHERE key IN ('as_of', 'seeded_from')"))
            sound = database.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except BadInput as error:
        return f"the one there cannot be used: {error}"
    if not sound:
        return "the one there is damaged"
    if "as_of" not in found:
        return "the one there does not say for which moment it was begun"
    if found.get("seeded_from") != seeded_from:
        return f"the one there was begun on {found.get('seeded_from') or 'no generation'}"
    return ""


def _make(path: Path, source: Path | None, hosts: Sequence[str], as_of: int, seeded_from: str) -> None:
    """Under another name first: a staging that is there is always seeded to the end."""
    temp = path.with_name(f".{path.name}.new")
    try:
        create(temp, "staging")
        with closing(connect(temp, "staging", write=True)) as database, refusals(temp):
            _follow(database, source, sorted(set(hosts)), [])
            with transaction(database):
                told = {
                    "as_of": str(int(as_of)),
                    "seeded_from": seeded_from,
                    "whitelist": canonical_json(list(hosts)).decode(),
                }
                database.executemany("INSERT INTO crawl_state VALUES (?, ?)", told.items())
        for suffix in ("", *SIDE_FILES):  # a journal left of the old one would be rolled back into the new one
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        temp.rename(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; make its folder writable") from error
    except DailiesError:
        temp.unlink(missing_ok=True)
        raise


def _follow(database: sqlite3.Connection, source: Path | None, added: Sequence[str], dropped: Sequence[str]) -> None:
    """Seed the hosts that are new to this staging, and forget those that are no longer of the whitelist."""
    seeds = _known_channels(source, added) if source is not None else []
    with transaction(database):
        for table, column in OF_A_HOST.items():
            database.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(host,) for host in dropped])
        database.executemany("INSERT INTO instances (host) VALUES (?)", [(host,) for host in added])
        if seeds:
            columns = list(seeds[0].keys())
            database.executemany(
                f"INSERT INTO channels ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                [tuple(row) for row in seeds],
            )
        if added or dropped:
            whitelist = [host for (host,) in database.execute("SELECT host FROM instances ORDER BY host")]
            database.execute(
                "UPDATE crawl_state SET value = ? WHERE key = 'whitelist'", (canonical_json(whitelist).decode(),)
            )


def _known_channels(source: Path, hosts: Sequence[str]) -> list[sqlite3.Row]:
    """Living ones alone: a channel with a tombstone lives again only when its host lists it."""
    with closing(connect(source, "production")) as production, refusals(source):
        columns = [column for column in _columns(production, "main", "channels") if column != "removed_at"]
        production.row_factory = sqlite3.Row
        wanted = f"SELECT {', '.join(columns)} FROM channels WHERE removed_at IS NULL AND instance_domain IN"
        return production.execute(
            f"{wanted} (SELECT value FROM json_each(?)) ORDER BY channel_id, instance_domain",
            (canonical_json(list(hosts)).decode(),),
        ).fetchall()


def _columns(database: sqlite3.Connection, schema: str, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA {schema}.table_info({table})")]


def _count(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
