"""What a claim costs on Supabase: through the ledger, and the same two functions called by psycopg in their place.

A claim is acquire and release: two calls, each a transaction of its own. The server is the one of tests/supabase, on
this machine and without fsync, so what is measured is what the API and its client add, not a network nor a disk. The
two take turns in short slices: whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from uuid import uuid4

import psycopg

from benchmarks._report import Figure, median, options, report
from dailies.ledger.supabase import SupabaseLedger
from tests.supabase.servers import COMMAND, MIGRATIONS, SERVICE_KEY, migrate, running_api, running_postgres

ROUNDS = 5
SLICES = 5
CLAIMS = 20
TTL_S = 6.0
Claim = Callable[[], object]


def through(ledger: SupabaseLedger) -> Claim:
    return lambda: ledger.leases.release(ledger.leases.acquire("video:1", "a", TTL_S))


def directly(connection: psycopg.Connection) -> Claim:
    def claim() -> None:
        acquire = "SELECT (dailies.lease_acquire(%s, 'video:2', 'b', %s)::json ->> 'fence')::bigint"
        row = connection.execute(acquire, [uuid4(), TTL_S]).fetchone()
        assert row is not None
        connection.execute("SELECT dailies.lease_release(%s, 'video:2', 'b', %s)", [uuid4(), row[0]])

    return claim


def claims(claim: Claim) -> list[float]:
    """How long each took, in milliseconds."""
    taken = []
    for _ in range(CLAIMS):
        begin = time.perf_counter()
        claim()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def one_round(ours: Claim, theirs: Claim) -> tuple[list[float], list[float]]:
    slices = [(claims(ours), claims(theirs)) for _ in range(SLICES)]
    return [one for each, _ in slices for one in each], [one for _, each in slices for one in each]


def measure(chosen: argparse.Namespace) -> list[Figure]:
    if not COMMAND.exists():
        raise SystemExit("no Supabase server: tests/supabase/install.sh installs it, with npm")
    with running_postgres() as postgres, postgres.database("ledger") as connection:
        migrate(connection, MIGRATIONS)
        with running_api(postgres, "ledger") as api:
            ledger = SupabaseLedger(api.url, SERVICE_KEY)
            ledger.check()
            one_round(through(ledger), directly(connection))  # caches, plans, a compiler that warms up
            rounds = [one_round(through(ledger), directly(connection)) for _ in range(ROUNDS)]
            ledger.close()
    return figures(rounds)


def figures(rounds: list[tuple[list[float], list[float]]]) -> list[Figure]:
    found = []
    for number, name in enumerate(("a claim through the ledger", "the same two functions by psycopg")):
        for word, of in (("median", statistics.median), ("p95", p95)):
            found.append(median(f"{name}, {word}", [of(each[number]) for each in rounds], "ms"))
    ratios = [statistics.median(ours) / statistics.median(theirs) for ours, theirs in rounds]
    return [
        *found,
        median("the ledger against psycopg", ratios, "×", note="the API, JSON and HTTP; no network, no fsync"),
    ]


def p95(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.95)]


if __name__ == "__main__":
    report(options("A claim on Supabase"), measure)
