"""A small production out of a real one: the newest videos of a few hosts, copied without touching where they come from.

The source is a database of ours, or one of the original's program, whose tables have most of our columns and looser
types. What is shared is copied; what does not fit a column's type is as good as not known.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dailies.catalog import schema
from dailies.errors import BadInput, Missing

KEYS = {
    "instances": ("host",),
    "channels": ("channel_id", "instance_domain"),
    "videos": ("video_id", "instance_domain"),
}
NEVER_NULL = {"last_checked_at": 0, "error_count": 0}  # of ours alone; the keys are refused before
OURS_ALONE = ("removed_at", "popularity", "popularity_as_of")  # made by an update, and made again by the next one
VECTORS = "video_embeddings"

Row = tuple[Any, ...]


def import_production(
    source_db: str | Path,
    out: str | Path,
    *,
    hosts: Sequence[str] | None = None,
    hosts_limit: int = 3,
    channels_limit: int = 30,
    videos_limit: int = 2000,
) -> dict[str, int]:
    """``hosts``: only these, as far as the source has them; left out, those that published last. 0 is no limit.

    Vectors come along where the source says which text they were made of, as ours do: what was made of an unknown text
    is made anew by the next update. Returns how many rows of each table were copied.
    """
    source, target = Path(source_db), Path(out)
    if target.exists():
        raise BadInput(f"{target} is there already: name a file that is not")
    for name, limit in (("hosts", hosts_limit), ("channels", channels_limit), ("videos", videos_limit)):
        if limit < 0:
            raise BadInput(f"the limit of {name} cannot be {limit}: it is 0 for all, or more")
    with reading(source) as database:
        schema.create(target, "production")
        with closing(schema.connect(target, "production", write=True)) as copy, schema.transaction(copy):
            return _copy(database, copy, hosts, (hosts_limit or -1, channels_limit or -1, videos_limit or -1))


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody's production, that nothing is written to: not even the side files that a reader of a log leaves."""
    if not path.is_file():
        raise Missing(f"there is no database at {path}")
    at_work = path.with_name(path.name + "-wal").exists()  # then its log counts, and its side files are there
    address = f"file:{quote(str(path.resolve()))}?mode=ro{'' if at_work else '&immutable=1'}"
    with schema.refusals(path), closing(sqlite3.connect(address, uri=True, timeout=schema.BUSY_S)) as database:
        wanted = {**KEYS, "videos": (*KEYS["videos"], "channel_id", "published_at")}
        if missing := sorted(
            table for table, names in wanted.items() if not set(names) <= set(_columns(database, table))
        ):
            raise BadInput(f"{path} is no production database of a catalogue: it lacks {', '.join(missing)}")
        yield database


def _copy(
    source: sqlite3.Connection, target: sqlite3.Connection, hosts: Sequence[str] | None, limits: tuple[int, int, int]
) -> dict[str, int]:
    _choose(source, hosts, limits)
    counts = {}
    for table, chosen in (
        ("instances", "host IN (SELECT host FROM temp.hosts)"),
        ("channels", "(channel_id, instance_domain) IN (SELECT channel_id, instance_domain FROM temp.channels)"),
        ("videos", "(video_id, instance_domain) IN (SELECT video_id, instance_domain FROM temp.videos)"),
    ):
        rows = source.execute(_question(source, target, table, chosen))
        counts[table] = _insert(target, table, _shared(source, target, table), rows)
    counts[VECTORS] = _vectors(source, target)
    return counts


def _choose(source: sqlite3.Connection, hosts: Sequence[str] | None, limits: tuple[int, int, int]) -> None:
    """Into temporary tables, which lie in memory: the newest first, and the same ones each time."""
    source.execute("PRAGMA temp_store = MEMORY")
    living = "removed_at IS NULL" if "removed_at" in _columns(source, "videos") else "true"
    known = "true" if hosts is None else f"host IN ({', '.join('?' * len(hosts))})"
    last = f"max(ifnull(published_at, 0)) AS last FROM main.videos WHERE {living}"
    source.execute(
        f"""CREATE TEMP TABLE hosts AS SELECT host FROM main.instances
            LEFT JOIN (SELECT instance_domain, {last} GROUP BY 1) ON instance_domain = host
            WHERE {known} ORDER BY ifnull(last, 0) DESC, host LIMIT ?""",
        (*(hosts or ()), limits[0]),
    )
    chosen = "instance_domain IN (SELECT host FROM temp.hosts)"
    source.execute(
        f"""CREATE TEMP TABLE channels AS SELECT channel_id, instance_domain FROM main.channels
            LEFT JOIN (SELECT channel_id, instance_domain, {last} AND {chosen} GROUP BY 1, 2)
            USING (channel_id, instance_domain)
            WHERE {chosen} ORDER BY ifnull(last, 0) DESC, instance_domain, channel_id LIMIT ?""",
        (limits[1],),
    )
    source.execute(
        f"""CREATE TEMP TABLE videos AS SELECT video_id, instance_domain FROM main.videos
            WHERE {living}
            AND (channel_id, instance_domain) IN (SELECT channel_id, instance_domain FROM temp.channels)
            ORDER BY ifnull(published_at, 0) DESC, instance_domain, video_id LIMIT ?""",
        (limits[2],),
    )


def _question(source: sqlite3.Connection, target: sqlite3.Connection, table: str, chosen: str) -> str:
    """Oldest first where the copy gives the ids, as if they had come one after another."""
    shared = _shared(source, target, table)
    oldest = "ifnull(published_at, 0), " if "published_at" in shared else ""
    return f"SELECT {', '.join(shared)} FROM main.{table} WHERE {chosen} ORDER BY {oldest}{', '.join(KEYS[table])}"


def _vectors(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    """Of one model: vectors of several side by side would be refused."""
    columns = _columns(target, VECTORS)
    if not set(columns) <= set(_columns(source, VECTORS)) or "id" not in _columns(source, "videos"):
        return 0
    models = source.execute(f"SELECT count(*) FROM (SELECT DISTINCT model_name, embedding_dim FROM main.{VECTORS})")
    if models.fetchone()[0] != 1:
        return 0
    rows = source.execute(
        f"""SELECT {", ".join(columns)} FROM main.{VECTORS}
            WHERE (video_id, instance_domain) IN (SELECT video_id, instance_domain FROM temp.videos) ORDER BY id"""
    )
    return _insert(target, VECTORS, list(columns), rows)


def _shared(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> list[str]:
    theirs = set(_columns(source, table)) - set(OURS_ALONE)
    return [column for column in _columns(target, table) if column in theirs]


def _insert(target: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterator[Row]) -> int:
    kinds = [_columns(target, table)[column] for column in columns]
    missing = [name for name in NEVER_NULL if name in _columns(target, table) and name not in columns]
    names = [*columns, *missing]
    fallback = [NEVER_NULL.get(column) for column in columns]
    count = 0
    for row in rows:
        found = [_fitting(value, kind) for value, kind in zip(row, kinds, strict=True)]
        values = [other if value is None else value for value, other in zip(found, fallback, strict=True)]
        target.execute(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [*values, *(NEVER_NULL[name] for name in missing)],
        )
        count += 1
    return count


def _fitting(value: Any, kind: str) -> Any:
    """As the column of a strict table wants it; None for what has no such form."""
    try:
        match kind:
            case "INTEGER":
                return None if value is None else int(value)
            case "REAL":
                return None if value is None else float(value)
            case "TEXT":
                return str(value) if isinstance(value, int | float) else value if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
    return value if isinstance(value, bytes) else None


def _columns(database: sqlite3.Connection, table: str) -> dict[str, str]:
    return {row[1]: row[2] for row in database.execute(f"PRAGMA main.table_info({table})")}


# ── where may be written ──────────────────────────────────────────────────────────────────────────────────────────────


def inside(path: str | Path, folder: str | Path) -> Path:
    """``path`` with every link followed, if it lies in ``folder``: a trial may write nowhere else."""
    found, place = Path(path).resolve(), Path(folder).resolve()
    if place not in found.parents:
        raise BadInput(f"{found} is not inside {place}, and nothing is written anywhere else")
    return found


def apart(source_db: str | Path, folder: str | Path) -> Path:
    """The source, if neither lies in the other: what a trial clears away afterwards must not be somebody's data."""
    source, place = Path(source_db).resolve(), Path(folder).resolve()
    if place in source.parents:
        raise BadInput(f"{source} lies inside {place}, where trials write and clear away: copy from somewhere else")
    if source.parent in place.parents:
        raise BadInput(f"{place} lies inside the folder of {source}: give trials another home, or move the database")
    return source
