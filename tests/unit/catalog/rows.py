"""Rows for the catalogue's two databases: what a test does not name has a plain value of its own."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import struct
import tempfile
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from dailies.catalog import schema

DAY = 86_400_000
T0 = 1_700_000_000_000
HOST = "a.example"
DIM = 4


@lru_cache
def empty(kind: schema.Kind) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        schema.create(Path(folder) / "empty.db", kind)
        return (Path(folder) / "empty.db").read_bytes()


def database(path: Path, kind: schema.Kind) -> Path:
    """A new one, made once and copied from then on: each statement of a schema waits for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(empty(kind))
    return path


def add(path: Path, table: str, *rows: dict[str, Any]) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        for row in rows:
            marks = ", ".join(f":{column}" for column in row)
            db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", row)


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql, values).fetchall()


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that is in it, table by table."""
    names = [name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {
        name: rows(path, f"SELECT * FROM {name} ORDER BY 1, 2" if name != "ranked" else "SELECT * FROM ranked")
        for name in names
    }


def instance(host: str = HOST, **more: Any) -> dict[str, Any]:
    return {"host": host, **more}


def channel(name: str = "c1", host: str = HOST, **more: Any) -> dict[str, Any]:
    return {"channel_id": name, "instance_domain": host, "channel_name": name, **more}


def video(name: str, host: str = HOST, channel_id: str | None = "c1", **more: Any) -> dict[str, Any]:
    told = {"title": f"title of {name}", "views": 10, "likes": 1, "published_at": T0 - 30 * DAY, "last_checked_at": T0}
    return {"video_id": name, "instance_domain": host, "channel_id": channel_id, **told, **more}


def vector(text: str, dim: int = DIM) -> bytes:
    """Of length one."""
    seed = hashlib.sha256(text.encode()).digest()[:dim]
    return struct.pack(f"<{dim}f", *(byte / math.hypot(*seed) for byte in seed))


def embedding(
    name: str, host: str = HOST, text: str = "", model: str = "m", dim: int = DIM, **more: Any
) -> dict[str, Any]:
    text = text or name
    told = {"text_digest": text, "model_name": model, "embedding_dim": dim, "embedding": vector(text, dim)}
    return {"video_id": name, "instance_domain": host, **told, "created_at": T0, **more}


def whole(host: str = HOST, *channels: str) -> list[dict[str, Any]]:
    """The crawl read this host's list of channels to its end, and the lists of these channels."""
    return [
        {"host": host, "what": "channels", "status": "done", "whole": 1},
        *({"host": host, "what": "videos", "channel_id": name, "status": "done", "whole": 1} for name in channels),
    ]


def staging(path: Path, as_of: int = T0) -> Path:
    add(database(path, "staging"), "crawl_state", {"key": "as_of", "value": str(as_of)})
    return path


def production(path: Path, videos: int = 0, host: str = HOST, channels: tuple[str, ...] = ("c1",)) -> Path:
    """With so many videos v000, v001, … , in turn of these channels, each with its vector."""
    database(path, "production")
    add(path, "instances", instance(host))
    add(path, "channels", *(channel(name, host) for name in channels))
    for number in range(videos):
        name = f"v{number:03d}"
        add(path, "videos", video(name, host, channels[number % len(channels)], id=number + 1))
        add(path, "video_embeddings", embedding(name, host, id=number + 1))
    return path


def counts(said: dict[str, Any], name: str) -> tuple[int, ...]:
    return tuple(said["tables"][name][what] for what in ("rows_before", "rows_after", "inserted", "changed", "removed"))


def changes(path: Path) -> dict[int, str]:
    return dict(rows(path, "SELECT id, what FROM changed_embeddings"))
