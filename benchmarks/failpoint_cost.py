"""What a failpoint costs while nothing is armed, beside an empty function and an empty loop."""

from __future__ import annotations

import argparse
import timeit

from benchmarks._report import Figure, median, options, report
from dailies.failpoints import failpoint

PASSES = 500_000
ROUNDS = 5


def empty(name: str) -> None:
    """What a call costs that does nothing."""


STATEMENTS = {
    "empty loop": "pass",
    "empty function": "empty('catalog.before_merge')",
    "disarmed failpoint": "failpoint('catalog.before_merge')",
}


def measure(_chosen: argparse.Namespace) -> list[Figure]:
    timers = {
        name: timeit.Timer(code, globals={"empty": empty, "failpoint": failpoint}) for name, code in STATEMENTS.items()
    }
    rounds = [{name: timer.timeit(PASSES) / PASSES * 1e9 for name, timer in timers.items()} for _ in range(ROUNDS)]
    figures = [median(name, [each[name] for each in rounds], "ns a pass") for name in STATEMENTS]
    more = [each["disarmed failpoint"] - each["empty function"] for each in rounds]
    return [*figures, median("failpoint over empty function", more, "ns a pass")]


if __name__ == "__main__":
    report(options("Cost of a disarmed failpoint"), measure)
