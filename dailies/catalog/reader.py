"""A published generation as its readers see it: whole, of one piece, and theirs for as long as they hold it."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

from dailies.catalog.schema import connect, refusals
from dailies.catalog.similar_file import listed, neighbours_of, open_similar
from dailies.errors import BadInput, Damaged, Missing, Transient
from dailies.ledger.interface import Ledger

CATALOG, INDEX, SIMILAR, META = "catalog.db", "index.faiss", "similar.db", "meta.json"
FILES = (CATALOG, INDEX, SIMILAR)
TRIES = 20


class Catalog:
    """One generation, open for reading. It stays on the disk until it is closed, whatever is published meanwhile.

    ``videos`` and ``similar`` are its two databases; ``folder / INDEX`` is the index that belongs to them.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], held: ExitStack) -> None:
        self.folder, self.meta, self._held = folder, meta, held
        with held:
            self.videos = held.enter_context(closing(connect(folder / CATALOG, "production", immutable=True)))
            self.similar = held.enter_context(closing(open_similar(folder / SIMILAR)))
            self.videos.row_factory = sqlite3.Row
            self._held = held.pop_all()

    @classmethod
    def open(cls, prod: str | Path, ledger: Ledger, resource: str) -> Catalog:
        """The current one. Between the look at the pointer and the lock it may have been replaced and swept away: then
        the pointer is read again."""
        name = None
        for _ in range(TRIES):
            before, name = name, ledger.generations.current(resource)
            if name is None:
                raise Missing(f"nothing of {resource} is published yet: run an update first")
            folder = Path(prod) / name
            with ExitStack() as held:
                if _hold(folder, held):
                    meta = read_meta(folder)
                    check_sizes(folder, meta)
                    agree(folder, meta)
                    return cls(folder, meta, held.pop_all())
            if name == before:
                raise Damaged(f"{folder} is current and has no {META}: run an update, which makes a new generation")
        raise Transient(f"{resource} was replaced {TRIES} times while it was opened: try again")

    @property
    def name(self) -> str:
        return self.folder.name

    def video(self, key: int | tuple[str, str]) -> dict[str, Any] | None:
        """A living video by its id, or by its video_id and host."""
        where = "id = ?" if isinstance(key, int) else "video_id = ? AND instance_domain = ?"
        row = self.videos.execute(
            f"SELECT * FROM videos WHERE removed_at IS NULL AND {where}", (key,) if isinstance(key, int) else key
        ).fetchone()
        return None if row is None else dict(row)

    def neighbours(self, number: int) -> list[tuple[int, float]]:
        """The videos that are most like this one, best first, with their scores; none for a video without a vector."""
        return neighbours_of(self.similar, number)

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _hold(folder: Path, held: ExitStack) -> bool:
    """Share the lock on ``meta.json``; False if a sweep was quicker. A file that was unlinked can still be locked, so
    its name is looked at again under the lock."""
    try:
        file = held.enter_context((folder / META).open("rb"))
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), (folder / META).stat())
    except (FileNotFoundError, BlockingIOError):
        return False


def read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{folder} is not complete: it has no {META}") from None
    except ValueError as error:
        raise Damaged(f"{folder / META} is damaged: {error}") from error
    if not isinstance(meta, dict) or set(meta.get("files", ())) != set(FILES):
        raise Damaged(f"{folder / META} does not name the files of a generation")
    return meta


def check_sizes(folder: Path, meta: Mapping[str, Any]) -> None:
    for file, told in meta["files"].items():
        try:
            size = (folder / file).stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{folder} is complete by its {META}, and has no {file}") from None
        if size != told["size"]:
            raise Damaged(f"{folder / file} has {size} bytes where {told['size']} were written")


def contents(folder: Path) -> dict[str, Any]:
    """What the database itself says of its vectors."""
    with closing(connect(folder / CATALOG, "production", immutable=True)) as database, refusals(folder / CATALOG):
        total = database.execute("SELECT count(*) FROM video_embeddings").fetchone()[0]
        model = database.execute("SELECT model_name, embedding_dim FROM video_embeddings LIMIT 1").fetchone()
    return {"total": total, **({"model": model[0], "dim": model[1]} if model else {})}


def agree(folder: Path, meta: Mapping[str, Any]) -> None:
    """The database, the index and the similarities are of one making: an index over other vectors gives ids that name
    other videos, and says nothing about it."""
    dim, vectors = index_header(folder / INDEX)
    with closing(open_similar(folder / SIMILAR)) as similar, refusals(folder / SIMILAR):
        lists = listed(similar)
    accounts = {
        CATALOG: contents(folder),
        INDEX: {"total": vectors, **({"dim": dim} if vectors else {})},
        SIMILAR: {"total": lists},
        "what the index told of itself": meta.get("index", {}),
    }
    for what, said in accounts.items():
        for key in ("total", "model", "dim"):
            if key in said and key in meta and said[key] != meta[key]:
                raise Damaged(
                    f"{folder} does not fit together: its {META} says {key} {meta[key]}, and {what} says {said[key]}"
                )


def index_header(path: Path) -> tuple[int, int]:
    """Dimension and number of vectors, as every file of FAISS begins: four letters, d, ntotal. Reading the index for
    them would cost a gigabyte."""
    with path.open("rb") as file:
        head = file.read(16)
    if len(head) < 16:
        raise Damaged(f"{path} is no index: it has {len(head)} bytes")
    _, dim, vectors = struct.unpack("<4siq", head)
    return dim, vectors
