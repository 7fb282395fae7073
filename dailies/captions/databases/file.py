"""SQLite files that are compared byte by byte, and read without trusting them."""

from __future__ import annotations

import gzip
import sqlite3
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dailies.errors import Missing, TooLarge, Unreadable

GZIP_MAGIC, SQLITE_MAGIC = b"\x1f\x8b", b"SQLite format 3\0"
GZIP_LEVEL = 6
# Two hours of captions are about 10 MB. A tenant can write where some of these lie, so a few bytes may claim more.
LARGEST = 256 << 20

Rows = Iterable[Sequence[Any]]


def built(schema: str, tables: Mapping[str, Rows]) -> bytes:
    """From nothing each time, and through VACUUM INTO: a file that was changed would tell how often."""
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(":memory:")) as database:
        database.executescript(schema)
        for table, rows in tables.items():
            columns = len(database.execute(f"PRAGMA table_info({table})").fetchall())
            database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)
        database.commit()
        copy = Path(folder) / "copy.db"
        database.execute("VACUUM INTO ?", (str(copy),))
        return copy.read_bytes()


@contextmanager
def opened(source: Path | bytes, name: str, tables: Iterable[str]) -> Iterator[sqlite3.Connection]:
    """A copy in memory, whole and with these tables; whatever is wrong with it, or shows in reading it, is typed."""
    with closing(sqlite3.connect(":memory:")) as database:
        try:
            data = unpacked(_bytes(source))
            if not data.startswith(SQLITE_MAGIC):
                raise ValueError("not SQLite")
            database.deserialize(data)
            database.execute("PRAGMA trusted_schema = OFF")
            _examine(database, set(tables))
            yield database
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise Unreadable(f"this is no {name}, or a damaged one ({error}): make it again from the film") from error


def packed(source: Path | bytes) -> bytes:
    return gzip.compress(_bytes(source), GZIP_LEVEL, mtime=0)


def unpacked(data: bytes) -> bytes:
    """What is not packed stays as it is."""
    if not data.startswith(GZIP_MAGIC):
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(data, LARGEST)
    except zlib.error as error:
        raise Unreadable(f"a damaged gzip file ({error}): upload it again") from error
    if stream.unconsumed_tail:
        raise TooLarge(f"over {LARGEST >> 20} MiB when unpacked: no database of captions is that large")
    if not stream.eof:
        raise Unreadable("a gzip file that ends early: upload it again")
    return plain


def _examine(database: sqlite3.Connection, tables: set[str]) -> None:
    there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables - there:
        raise ValueError(f"no table {', '.join(sorted(tables - there))}")
    (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise ValueError(verdict)


def _bytes(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except FileNotFoundError as error:
        raise Missing(f"there is no {source.name}") from error
