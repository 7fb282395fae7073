"""The generations of a production on disk: made in folders of their own, finished once, swept when nobody reads them.

A folder bears the fence of the lease it is made under, so that two attempts never write to the same one. ``meta.json``
is written last and is the mark of a finished folder; which of them is current, only the ledger says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, digest, file_digest, write_atomically
from dailies.catalog.reader import CATALOG, FILES, META, agree, check_sizes, contents, read_meta
from dailies.catalog.schema import connect, create, refusals
from dailies.errors import BadInput, Conflict, Damaged, Missing
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Lease

FICLONE = 0x40049409
NAME = re.compile(r"gen-(\d{6,})")
READ_ONLY = 0o444
WHOLE_INDEXES = """SELECT tbl_name, name FROM sqlite_schema WHERE type = 'index' AND name != 'videos_removed'
    ORDER BY tbl_name, name"""
NOT_HERE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ETXTBSY, errno.EPERM}


def name_of(fence: int) -> str:
    return f"gen-{fence:06d}"


def fence_of(name: str) -> int:
    match = NAME.fullmatch(name)
    if match is None or name_of(int(match[1])) != name:
        raise BadInput(f"{name!r} is no name of a generation: it is gen- and six digits or more")
    return int(match[1])


def prepare(prod: str | Path, name: str, previous: str | None) -> Path:
    """The folder of a new generation, with the database of the previous one, or an empty one where there is none.

    Called again before the generation is complete it starts from the beginning: what an earlier call left half done
    is written over. A finished file of an earlier attempt is taken over with ``clone``.
    """
    folder = Path(prod) / name
    fence_of(name)
    if (folder / META).exists():
        raise Conflict(f"{folder} is complete, and nothing is written to it any more: a new attempt has a new fence")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if left != _ahead(folder, previous):
                left.unlink()
        if previous is None:
            create(folder / CATALOG, "production")
        else:
            copy_ahead(prod, name, previous)
            _ahead(folder, previous).replace(folder / CATALOG)
    except OSError as error:
        raise no_room(folder, error) from error
    return folder


def copy_ahead(prod: str | Path, name: str, previous: str) -> None:
    """What takes longest of ``prepare``, for a caller who has other work meanwhile. Nothing is done twice; what dead
    attempts have copied and never used goes."""
    folder, source = Path(prod) / name, Path(prod) / previous / CATALOG
    ahead = _ahead(folder, previous)
    connect(source, "production", immutable=True).close()
    if any(path.exists() for path in (ahead, folder / CATALOG, folder / META)):
        return
    try:
        for left in Path(prod).glob(f"gen-*/{_ahead(Path(), 'gen-*')}"):
            if fence_of(left.parent.name) < fence_of(name):
                left.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        copy(source, ahead)
    except OSError as error:
        raise no_room(folder, error) from error


def _ahead(folder: Path, previous: str | None) -> Path:
    return folder / f".{previous}.{CATALOG}"


def no_room(path: Path, error: OSError) -> BadInput:
    what = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
    return BadInput(f"{path} cannot be written ({error.strerror}): {what}, and run it again")


def copy(source: Path, target: Path) -> str:
    """The cheapest way there is, under another name first: shared blocks, a copy inside the kernel, or one by hand.

    Returns which it was: ``shared``, ``kernel`` or ``plain``.
    """
    temp = target.with_name(f".{target.name}.tmp")
    try:
        with source.open("rb") as old, temp.open("wb") as new:
            way = _copy(old.fileno(), new.fileno(), os.fstat(old.fileno()).st_size)
            if way == "plain":
                shutil.copyfileobj(old, new, 1 << 20)
            if os.fstat(new.fileno()).st_size != (new.tell() if way == "plain" else os.fstat(old.fileno()).st_size):
                raise Damaged(f"{source} changed while it was copied")
        temp.replace(target)
    finally:
        temp.unlink(missing_ok=True)
    return way


def _copy(old: int, new: int, size: int) -> str:
    try:
        fcntl.ioctl(new, FICLONE, old)
        return "shared"
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    done = 0
    try:
        while done < size and (copied := os.copy_file_range(old, new, size - done)):
            done += copied
        return "kernel"
    except OSError as error:
        if done or error.errno not in NOT_HERE:
            raise
    return "plain"


def clone(source: str | Path, target: str | Path, sha256: str) -> Path:
    """Take over a finished file of an earlier attempt; ``Damaged`` if it is gone, or not what was recorded of it."""
    old, new = Path(source), Path(target)
    temp = new.with_name(f".{new.name}.taken")
    try:
        copy(old, temp)
        if file_digest(temp) != sha256:
            raise Damaged(f"{old} is not what was recorded of it: it is made again")
        sync(temp)
        for journal in new.parent.glob(f"{new.name}-*"):  # of a merge that was killed here: it is of another file
            journal.unlink()
        temp.replace(new)
    except FileNotFoundError as error:
        raise Damaged(f"{old} is gone: it is made again") from error
    except OSError as error:
        raise no_room(new, error) from error
    finally:
        temp.unlink(missing_ok=True)
    sync(new.parent)
    return new


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_catalog(path: Path, deep: bool = True) -> None:
    """A database to which nothing more will be written is looked through as a whole.

    ``deep`` compares every row with every index, which takes four times as long: where this was not done before, of
    the generation that this one went out from. Else each index is asked how many rows it knows.
    """
    try:
        with closing(connect(path, "production", immutable=True)) as database, refusals(path):
            said = [row[0] for row in database.execute(f"PRAGMA {'integrity' if deep else 'quick'}_check(3)")]
            faults = [fault for fault in said if fault != "ok"] + ([] if deep else _miscounted(database))
            orphans = database.execute("PRAGMA foreign_key_check").fetchall()
    except (BadInput, Missing) as error:  # so badly that it cannot be read
        raise Damaged(str(error)) from error
    if orphans:
        faults.append(f"{len(orphans)} rows without their parent")
    if faults:
        raise Damaged(f"{path} is damaged: {'; '.join(' '.join(fault.split()) for fault in faults)}")


def _miscounted(database: sqlite3.Connection) -> list[str]:
    """Indexes that know of more or fewer rows than their table has."""
    faults = []
    for table, indexes in groupby(database.execute(WHOLE_INDEXES).fetchall(), key=itemgetter(0)):
        rows = database.execute(f"SELECT count(*) FROM {table} NOT INDEXED").fetchone()[0]
        for _, index in indexes:
            # A sum, for a plain count looks into whichever index is the smallest.
            known = database.execute(f"SELECT ifnull(sum(1), 0) FROM {table} INDEXED BY {index}").fetchone()[0]
            if known != rows:
                faults.append(f"{known} of {rows} rows in index {index}")
    return faults


def complete(folder: str | Path, about: Mapping[str, Any], finished: Mapping[str, str] | None = None) -> str:
    """Check all files of a generation against each other, make them durable and read-only, and write ``meta.json``.

    ``finished`` has the digests of those that were checked when they were made.

    ``about`` is what else is to be told: as_of, the staging's digest, the generation it came from, and as ``index``
    what the index says of itself. Model, dimension and total are read from the database, and must agree with what is
    told of them. Nothing depends on the folder's name, so that the same input gives the same bytes. Returns the digest
    of ``meta.json``.
    """
    place = Path(folder)
    if (place / META).exists():
        found = read_meta(place)
        check_sizes(place, found)
        if any(found.get(key) != value for key, value in about.items()):
            raise Conflict(f"{place} is complete already, and other things were told of it")
        return file_digest(place / META)
    for file in FILES:
        if not (place / file).is_file():
            raise BadInput(f"{place} is not complete: it has no {file}")
    try:
        digests = finished or {}
        if CATALOG not in digests:
            check_catalog(place / CATALOG)
        meta = {**contents(place), **about}
        agree(place, meta)
        _clear(place)
        meta["files"] = {file: _finish(place / file, digests.get(file)) for file in FILES}
        data = canonical_json(meta)
        write_atomically(place / META, [data])
        (place / META).chmod(READ_ONLY)
        sync(place)
        sync(place.parent)
    except OSError as error:
        raise no_room(place, error) from error
    return digest(data)


def _clear(place: Path) -> None:
    """Half-written copies of a process that was killed go; what nobody can have left there is not passed over."""
    for file in place.iterdir():
        if file.name.startswith("."):
            file.unlink()
        elif file.name not in FILES:
            raise BadInput(f"{file} is no part of a generation: remove it")


def _finish(path: Path, sha256: str | None) -> dict[str, Any]:
    sync(path)
    path.chmod(READ_ONLY)
    return {"sha256": sha256 or file_digest(path), "size": path.stat().st_size}


def publish(ledger: Ledger, lease: Lease, prod: str | Path, name: str) -> None:
    """Make a complete folder the current one. Its name bears the lease's fence, and the ledger checks that fence."""
    folder = Path(prod) / name
    if fence_of(name) != lease.fence:
        raise Conflict(f"{name} was not made under this lease, whose fence is {lease.fence}: it cannot be published")
    meta = read_meta(folder)
    check_sizes(folder, meta)
    agree(folder, meta)
    ledger.generations.publish(lease, name)


def sweep(prod: str | Path, ledger: Ledger, resource: str, keep: int = 2) -> list[str]:
    """Remove what is neither current, nor one of the last ``keep`` published, nor being read; returns their names.

    Fences alone decide. What is older than the current one can never be published. Of those that are newer, only the
    newest can have a living builder, or be what the next attempt takes files over from; the others are dead. The
    folders are listed before the ledger is asked, so that one made meanwhile is not judged by an older pointer.
    """
    if keep < 1:
        raise BadInput(f"the current generation is always kept: keep={keep} is less than one")
    found = sorted((fence_of(path.name), path) for path in Path(prod).glob("gen-*") if NAME.fullmatch(path.name))
    history = ledger.generations.history(resource)
    current = fence_of(history[-1][1]) if history else -1
    kept = {name for _, name in history[-keep:]}
    dead = [path for fence, path in found if fence < current and path.name not in kept]
    dead += [path for fence, path in found[:-1] if fence > current]
    return [path.name for path in dead if _remove(path)]


def _remove(folder: Path) -> bool:
    """``meta.json`` goes first and under an exclusive lock: a reader either holds it before, or finds it gone."""
    try:
        with (folder / META).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / META).unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    return not folder.exists()
