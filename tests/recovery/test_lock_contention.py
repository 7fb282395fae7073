"""The parts of lock-contention say what is wrong with leases that are not kept, not respected, or too coarse.

Race and kill are held against forged histories by the unit tests, and freeze against a careless holder by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from dailies.scenarios import contenders
from dailies.scenarios.journal import Journal, read
from tasks.contention import keep_while_busy, two_flows_one_video, upload
from tasks.scenario import scenario
from tests.integration import conftest as integration
from tests.recovery import broken_locks

pytestmark = [pytest.mark.recovery, pytest.mark.slow, pytest.mark.usefixtures("fast_api")]
home = integration.home
TTL_S, TTLS, LOAD = 0.5, 4, 4


def judged(part: Callable[..., Any], *asked: Any) -> Journal:
    @flow(name="lock-contention-in-part", persist_result=False)
    def in_part() -> Any:
        with scenario("lock-contention", 0, {}, preload=("flows.scenarios.lock_contention",)) as run:
            upload(run, "anything")  # without a store nobody can tell that nothing is left in it
            part(run, *asked)
        return run.state

    in_part(return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "lock-contention.json")


def red(journal: Journal) -> set[str]:
    assert journal.error is None
    return {check.name for _, check in journal.every_check() if not check.passed}


@pytest.mark.parametrize("renewed", [True, False])
def test_a_lease_that_is_not_renewed_is_lost_to_a_thief(home, monkeypatch, renewed):
    if not renewed:
        monkeypatch.setattr(contenders, "keep_busy", broken_locks.keep_busy_without_renewing)
    lost = {f"busy: {how} keeps its lease" for how in contenders.WORK}
    lost |= {f"busy: nobody got in beside {how}" for how in contenders.WORK}
    assert red(judged(keep_while_busy, TTL_S, TTLS)) == (set() if renewed else lost)


@pytest.mark.parametrize(
    ("ingest", "wrong"),
    [
        (
            broken_locks.ingest_without_a_lock,
            {
                "two flows: each followed its policy",
                "two flows: the blocked ones are counted",
                "load: every flow ended well",
            },
        ),
        (broken_locks.ingest_behind_somebody, {"load: share of blocked flows"}),
    ],
)
def test_flows_that_never_wait_and_flows_that_wait_for_nothing_are_seen(home, ingest, wrong):
    assert red(judged(two_flows_one_video, ingest, LOAD)) == wrong
