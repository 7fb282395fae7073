"""Durable claims a second on SQLite: fenced, without the fence, and bare commits under the same settings.

A claim is acquire and release: two transactions, each of which reaches the disk before it returns. Each process claims
a resource of its own, so that they meet at the write lock alone. A disk that others use, or that is throttled, can be
thirty times slower a second later: the variants take turns in short slices, and what one fsync takes is measured
beside them in every round. A missed target at a slow fsync speaks of the disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks._report import Figure, median, options, report
from dailies.ledger.sqlite import SqliteLedger
from dailies.ledger.sqlite.database import BUSY_S, Database

ROUNDS = 5
PROCESSES = (1, 4)
SLICES = 4
SLICE_S = 0.06
TARGET = 500.0
TTL_S = 6.0
FSYNCS = 20
MODES = ("OFF", "NORMAL", "FULL", "EXTRA")
FORK = multiprocessing.get_context("fork")
Claim = Callable[[], None]

# What dailies/ledger/sqlite/leases.py says, less the fence.
TAKE = """
    INSERT INTO claims (resource, holder, expires_at) VALUES (:resource, :holder, clock() + :ttl)
    ON CONFLICT (resource) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
        WHERE claims.holder IS NULL OR claims.expires_at <= clock()
    RETURNING expires_at
"""
GIVE = "UPDATE claims SET holder = NULL WHERE resource = :resource AND holder = :holder"
TABLE = "CREATE TABLE IF NOT EXISTS claims (resource TEXT PRIMARY KEY, holder TEXT, expires_at REAL NOT NULL) STRICT"


def fenced(path: Path, me: str) -> Claim:
    ledger = SqliteLedger(path)
    return lambda: ledger.leases.release(ledger.leases.acquire(me, me, TTL_S))


def unfenced(path: Path, me: str) -> Claim:
    database = Database(path)
    with database.transaction() as tx:
        tx.run(TABLE)

    def claim() -> None:
        with database.transaction() as tx:
            tx.one(TAKE, resource=me, holder=me, ttl=TTL_S)
        with database.transaction() as tx:
            tx.run(GIVE, resource=me, holder=me)

    return claim


def bare(path: Path, me: str, synchronous: str = "FULL") -> Claim:
    """Two commits of one UPDATE each, with nothing of ours around them."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    for setting in ("journal_mode = WAL", f"synchronous = {synchronous}", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute(TABLE)
    connection.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, 0)", (me, me))

    def claim() -> None:
        for _ in range(2):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE claims SET expires_at = expires_at + 1 WHERE resource = ?", (me,))
            connection.execute("COMMIT")

    return claim


def bare_unsynced(path: Path, me: str) -> Claim:
    return bare(path, me, "OFF")


VARIANTS: dict[str, Callable[[Path, str], Claim]] = {
    "fenced claims": fenced,
    "the same without a fence": unfenced,
    "two bare commits": bare,
    "two bare commits, synchronous OFF": bare_unsynced,
}
Key = tuple[str, int]
KEYS = [(variant, processes) for processes in PROCESSES for variant in VARIANTS]


def claims_a_second(variant: str, path: Path, processes: int) -> float:
    """Everybody starts together and goes on until the same moment."""
    ready, counts = FORK.Barrier(processes), FORK.SimpleQueue()

    def work(number: int) -> None:
        claim = VARIANTS[variant](path, f"resource-{number}")
        claim()
        ready.wait()
        begin, done = time.monotonic(), 0
        while (now := time.monotonic()) < begin + SLICE_S:
            claim()
            done += 1
        counts.put(done / (now - begin))

    workers = [FORK.Process(target=work, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"{variant}: a process failed")
    total: float = sum(counts.get() for _ in workers)
    return total


def fsync_ms(folder: Path) -> float:
    """What this disk takes for the smallest durable write: no commit can be faster and durable."""
    taken = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(FSYNCS):
            file.write(b"x" * 4096)
            begin = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - begin)
    return statistics.mean(taken) * 1000


def synchronous(path: Path) -> str:
    """As the ledger's own connections have it."""
    row = Database(path).one("PRAGMA synchronous")
    return MODES[row[0]] if row else "unknown"


def file_system(folder: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def measure(chosen: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name).resolve()
        rounds = [one_round(folder) for _ in range(ROUNDS)]
        rates = {key: [claims[key] for claims, _ in rounds] for key in KEYS}
        mode = synchronous(folder / "0.db")
        return [*figures(rates, mode), *disk(rates, [fsync for _, fsync in rounds], file_system(folder))]


def one_round(folder: Path) -> tuple[dict[Key, float], float]:
    slices: dict[Key, list[float]] = {key: [] for key in KEYS}
    fsyncs = []
    for _ in range(SLICES):
        for number, key in enumerate(KEYS):
            slices[key].append(claims_a_second(key[0], folder / f"{number}.db", key[1]))
        fsyncs.append(fsync_ms(folder))
    return {key: statistics.mean(rates) for key, rates in slices.items()}, statistics.mean(fsyncs)


def figures(rounds: dict[Key, list[float]], mode: str) -> list[Figure]:
    found = []
    for (variant, processes), rates in rounds.items():
        more: dict[str, Any] = {}
        if variant == "fenced claims":
            more = {"at_least": TARGET, "note": f"WAL, synchronous={mode}"}
        found.append(median(f"{variant}, {people(processes)}", rates, "/s", **more))
    for processes in PROCESSES:
        for other in ("the same without a fence", "two bare commits"):
            pairs = zip(rounds["fenced claims", processes], rounds[other, processes], strict=True)
            ratios = [ours / theirs for ours, theirs in pairs]
            found.append(median(f"fenced against {other}, {people(processes)}", ratios, "×"))
    return found


def disk(rounds: dict[Key, list[float]], fsyncs: list[float], kind: str) -> list[Figure]:
    """Proof that the commits wait for the disk: they are slower than unsynced ones, and not faster than its fsync."""
    pairs = zip(rounds["two bare commits, synchronous OFF", 1], rounds["two bare commits", 1], strict=True)
    gain = [loose / durable for loose, durable in pairs]
    return [
        median("fsync of 4 KiB", fsyncs, "ms", note=f"on {kind}"),
        median("faster when not synced, 1 process", gain, "×", note="near 1 would mean that fsync does nothing here"),
    ]


def people(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"


if __name__ == "__main__":
    parser = options("Durable claims on SQLite")
    parser.add_argument("--folder", type=Path, help="where to put the databases: the disk that is measured")
    report(parser, measure)
