"""A production as the original system has it: its tables and types, float32 vectors of its model, and no ids."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from tests.unit.catalog.rows import DAY, T0

# As the original creates them, with the columns that this program reads, and the types that it gives them.
SCHEMA = """
CREATE TABLE instances (host TEXT PRIMARY KEY, health_status TEXT, health_checked_at INTEGER, last_error TEXT);
CREATE TABLE channels (channel_id TEXT NOT NULL, channel_name TEXT, channel_url TEXT, display_name TEXT,
    instance_domain TEXT NOT NULL, videos_count INTEGER, followers_count INTEGER, avatar_url TEXT,
    PRIMARY KEY (channel_id, instance_domain));
CREATE TABLE videos (video_id TEXT NOT NULL, video_uuid TEXT, instance_domain TEXT NOT NULL, channel_id TEXT,
    title TEXT, published_at INTEGER, views INTEGER, likes INTEGER, nsfw, tags_json TEXT, last_checked_at INTEGER,
    error_count INTEGER, popularity REAL NOT NULL DEFAULT 0, PRIMARY KEY (video_id, instance_domain));
CREATE TABLE video_embeddings (video_id TEXT NOT NULL, instance_domain TEXT NOT NULL, embedding BLOB,
    embedding_dim INTEGER, model_name TEXT, created_at INTEGER, PRIMARY KEY (video_id, instance_domain));
"""
MODEL, DIM = "all-MiniLM-L6-v2", 384


def original(path: Path, hosts: int, channels: int, videos: int) -> Path:
    """So many channels of each host, and so many videos of each channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(SCHEMA)
        for host in (f"tube-{number}.example" for number in range(hosts)):
            db.execute("INSERT INTO instances VALUES (?, 'ok', ?, NULL)", (host, T0))
            for channel in map(str, range(channels)):
                told = (channel, f"channel{channel}", f"https://{host}/c/{channel}", f"Channel {channel}", host, videos)
                db.execute("INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, 12, NULL)", told)
                for number in range(videos):
                    name, vector = f"{channel}-{number}", draw.normal(size=DIM)
                    row = (name, name, host, channel, f"How to {name} at {host}", T0 - number * DAY, number * 7, number)
                    db.execute("INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, NULL, NULL, NULL, 3.5)", row)
                    blob = (vector / np.linalg.norm(vector)).astype("<f4").tobytes()
                    db.execute("INSERT INTO video_embeddings VALUES (?, ?, ?, ?, ?, 1)", (name, host, blob, DIM, MODEL))
    return path
