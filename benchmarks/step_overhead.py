"""What a step costs over the plain function, and a flow over the same work called as plain functions.

It starts a Prefect server in a temporary home and stops it at the end. Steps are measured as tests run them: without
the flow's heartbeat, whose thread costs a second at the end of every flow, and without the server's task run recorder,
which answers 503 when flows follow each other that fast. The flow ratio is measured twice: so, and as users run it,
with the heartbeat on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._report import Figure, median, options, report
from services import server
from services.environment import SETTINGS

STEPS = 100
ROUNDS = 5
PARTS = 10
TARGET = 1.05


@contextmanager
def own_server() -> Iterator[str]:
    """A server for this process alone, whatever is configured."""
    with tempfile.TemporaryDirectory() as home:
        for name in [name for name in os.environ if name.startswith(("DAILIES_", "PREFECT_"))]:
            del os.environ[name]
        os.environ.update(
            SETTINGS,
            DAILIES_HOME=home,
            DAILIES_SERVER_IDLE_S="60",
            PREFECT_API_URL="",
            PREFECT_HOME=str(Path(home) / "prefect"),
            PREFECT_LOGGING_LEVEL="ERROR",
            PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED="false",
        )
        try:
            yield server.connect()
        finally:
            server.stop()


@contextmanager
def settings(url: str, heartbeat: bool) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_API_URL: url, **({} if heartbeat else {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})}):
        yield


def measure(chosen: argparse.Namespace) -> list[Figure]:
    with own_server() as url:
        with settings(url, heartbeat=False):
            found = step_figures()
        for heartbeat in (False, True):
            with settings(url, heartbeat):
                found += flow_figures(chosen.work, chosen.rounds, heartbeat)
        return found


def step_figures() -> list[Figure]:
    rounds = [round_of_steps(number) for number in range(ROUNDS + 1)][1:]  # the first warms up
    ms = {name: [each[name] / STEPS * 1000 for each in rounds] for name in rounds[0]}
    figures = [median(name, taken, "ms a step", note=f"{STEPS} in a flow") for name, taken in ms.items()]
    more = [ours - bare for ours, bare in zip(ms["@work step"], ms["bare Prefect task"], strict=True)]
    return [*figures, median("@work step over a bare task", more, "ms a step")]


def round_of_steps(number: int) -> dict[str, float]:
    from benchmarks._flows import bare_tasks, seconds, trivial, work_steps

    plain = seconds(lambda: [trivial(each) for each in range(STEPS)])
    flow: Any = work_steps  # typed, mypy would read Prefect's overloads as a flow that never returns
    return {"plain function": plain, **bare_tasks(STEPS), **flow(tenant="benchmark", steps=STEPS, round_=number)}


def flow_figures(work_s: float, rounds: int, heartbeat: bool) -> list[Figure]:
    """A fixed amount of work, half CPU and half sleep: in ten steps of a job, or in ten function calls.

    The target is held against the work as it was timed inside the same flow: a machine that does other things meanwhile
    makes two runs of half a minute differ by far more than a flow costs. The plain calls stand beside it.
    """
    switch = "on" if heartbeat else "off"
    sleep_s = work_s / PARTS / 2
    turns = turns_in(sleep_s)
    taken = [Taken.of(turns, sleep_s, f"{switch} {number}") for number in range(rounds)]
    inside, outside = [each.flow / each.work for each in taken], [each.flow - each.work for each in taken]
    plain = statistics.median(each.plain for each in taken)
    note = f"median {statistics.median(each.flow for each in taken):.2f} s as a flow, {plain:.2f} s plainly before it"
    return [
        median(f"flow against the work in it, heartbeat {switch}", inside, "×", at_most=TARGET),
        median(f"flow outside its work, heartbeat {switch}", outside, "s", note=f"{PARTS} steps, {work_s:.0f} s"),
        median(
            f"flow against plain functions, heartbeat {switch}",
            [each.flow / each.plain for each in taken],
            "×",
            note=note,
        ),
    ]


@dataclass(frozen=True)
class Taken:
    """Seconds: the flow, the work inside it, and the same work called plainly."""

    flow: float
    work: float
    plain: float

    @classmethod
    def of(cls, turns: int, sleep_s: float, round_: str) -> Taken:
        from benchmarks._flows import busily, busy_work, seconds

        flow: Any = busy_work
        plain = seconds(lambda: busily(PARTS, turns, sleep_s))
        begin = time.perf_counter()
        work = flow(tenant="benchmark", round_=round_, parts=PARTS, turns=turns, sleep_s=sleep_s)
        return cls(time.perf_counter() - begin, work, plain)


def turns_in(wanted_s: float) -> int:
    from benchmarks._flows import seconds, spin

    sample = 1_000_000
    return int(sample * wanted_s / min(seconds(lambda: spin(sample)) for _ in range(5)))


if __name__ == "__main__":
    parser = options("Overhead of steps and flows")
    parser.add_argument("--work", type=float, default=30.0, help="seconds of work in the flow (default 30)")
    parser.add_argument("--rounds", type=int, default=1, help="how often to run the flow (default 1)")
    report(parser, measure)
