"""The flows that step_overhead runs. Importing this imports Prefect, whose settings must stand by then."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tasks._job import Working, job_flow
from tasks._step import Output, work


def seconds(done: Callable[[], object]) -> float:
    begin = time.perf_counter()
    done()
    return time.perf_counter() - begin


def trivial(number: int) -> int:
    return number + 1


bare = task(name="bare", cache_policy=NO_CACHE, persist_result=False)(trivial)


@work(version=1, timeout=60)
def trivial_work(job: Working, round_: int, number: int) -> Output:
    """Almost nothing, so that what is measured is the step around it."""
    return Output({"number": trivial(number)})


@flow(name="bare-tasks", persist_result=False)
def bare_tasks(steps: int) -> dict[str, float]:
    """The loop alone: starting and ending the flow is not in it."""
    return {"bare Prefect task": seconds(lambda: [bare(each) for each in range(steps)])}


@job_flow("work-steps", subject=lambda **_: "steps")
def work_steps(job: Working, tenant: str, steps: int, round_: int) -> dict[str, float]:
    """The second time round everything is found in the ledger."""
    return {
        name: seconds(lambda: [trivial_work(job, round_, each) for each in range(steps)])
        for name in ("@work step", "@work step, reused")
    }


def busily(parts: int, turns: int, sleep_s: float) -> None:
    for _ in range(parts):
        busy(turns, sleep_s)


def busy(turns: int, sleep_s: float) -> None:
    time.sleep(sleep_s)
    spin(turns)


def spin(turns: int) -> int:
    """Pure Python on purpose: what shares the interpreter with it slows it down, and that is to be seen."""
    total = 0
    for number in range(turns):
        total += number * number
    return total


@work(version=1, timeout=600)
def busy_step(job: Working, round_: str, number: int, turns: int, sleep_s: float) -> Output:
    """Waits and computes, and says how long that took: all the rest is overhead."""
    return Output({"took": seconds(lambda: busy(turns, sleep_s))})


@job_flow("busy-work", subject=lambda **_: "busy")
def busy_work(job: Working, tenant: str, round_: str, parts: int, turns: int, sleep_s: float) -> float:
    """The same as ``busily``, in steps; returns the seconds that the work itself took."""
    return float(sum(busy_step(job, round_, number, turns, sleep_s).facts["took"] for number in range(parts)))
