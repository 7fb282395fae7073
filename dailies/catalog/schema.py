"""The two databases of the catalogue: a generation of production, and the staging that an update gathers in."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from dailies.errors import BadInput, Missing, Transient

Kind = Literal["production", "staging"]
APPLICATION = {"production": 0x44434154, "staging": 0x44535447}
VERSION = 1
BUSY_S = 10.0


def create(path: Path, kind: Kind) -> None:
    """A new, empty database; an old one of that name, with its journals, goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    script = resources.files("dailies.catalog").joinpath(f"{kind}.sql").read_text()
    with refusals(path), closing(sqlite3.connect(path)) as database:
        database.executescript(script)


def connect(path: Path, kind: Kind, *, write: bool = False, immutable: bool = False) -> sqlite3.Connection:
    """Open one that is there, after a look at what it is. ``immutable`` is for a published generation alone: nobody
    writes to it any more, so that reading it takes no lock."""
    if not path.is_file():
        raise Missing(f"there is no {kind} database at {path}")
    mode = "mode=rw" if write else "mode=ro&immutable=1" if immutable else "mode=ro"
    with refusals(path):
        database = sqlite3.connect(
            f"file:{quote(str(path))}?{mode}", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA foreign_keys = ON")
            found = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if found != APPLICATION[kind]:
                raise BadInput(f"{path} is not a {kind} database of the catalogue")
            if version != VERSION:
                raise BadInput(f"{path} has schema version {version}, and this program knows version {VERSION}")
            if write:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except BaseException:
            database.close()
            raise
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk makes SQLite take it back by itself
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What SQLite says of a file, as one clear line."""
    try:
        yield
    except sqlite3.OperationalError as error:
        said = str(error)
        if "locked" in said:
            raise Transient(f"{path} is locked by another program: try again when it is done") from error
        if "unable to open" in said:
            raise BadInput(f"{path} cannot be opened: see to the rights to it and to its folder") from error
        if "readonly" in said:
            raise BadInput(f"{path} cannot be written: make it and its folder writable") from error
        if "full" in said:
            raise BadInput(f"no space left while writing {path}: free some, and run it again") from error
        if "disk I/O" in said:
            raise BadInput(f"{path} could not be written (full, over a limit, or failing): free some space") from error
        raise
    except sqlite3.DatabaseError as error:
        raise BadInput(f"{path} is no SQLite database, or a damaged one: {error}") from error
