"""video-processing-e2e passes on a product that is whole, and says what is wrong with one that is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dailies import failpoints
from dailies.errors import BadInput
from dailies.scenarios.journal import Journal, read
from flows.scenarios.video_processing_e2e import video_processing_e2e
from tasks.bad_day import FAULTS, IN_QUICK, NO_VIDEO, QUICK, chosen
from tasks.video_processing import slug
from tests.integration import conftest as integration

pytestmark = [pytest.mark.recovery]
home = integration.home
BROKEN = "tests.recovery.broken_video_processing"


def judged(**parameters) -> Journal:
    video_processing_e2e(**parameters, return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "video-processing-e2e.json")


def failures(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


@pytest.mark.slow
@pytest.mark.usefixtures("fast_api")
def test_quick_it_passes_and_leaves_nothing_behind(home):
    journal = judged()
    assert (journal.status, failures(journal), journal.error) == ("passed", set(), None)
    names = chosen("", "quick", 0)
    assert {fault.name: fault.fired for fault in journal.faults} == dict.fromkeys(names[:-1], 1)
    assert all("in pid" in fault.evidence for fault in journal.faults)
    checks = {check.name for check in journal.checks}
    for name in names[:-1]:
        assert {
            f"{name}: the user sees it on the job and on the video",
            f"{name}, mended: the job is done and the video awaits its layout",
            f"{name}: compute began no more often than it had to",
            f"{name}: the files are an undisturbed run's",
        } <= checks
    assert {"twice: every unit was reused", f"{NO_VIDEO}: it was looked at once"} <= checks
    assert journal.metrics["upload_to_status_s"] > 0
    assert journal.metrics["executions"] == {"undisturbed": 1, "no-video": 1} | {
        slug(name): FAULTS[name].worked for name in names[:-1]
    }
    assert list((home / "scenarios").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("fast_api")
def test_an_error_that_the_video_is_not_told_and_a_unit_that_is_not_found_again_are_seen(monkeypatch):
    monkeypatch.setattr("tasks.video_processing.ON_A_BAD_DAY", f"{BROKEN}.silent")
    journal = judged(faults="compute fails")
    assert journal.status == "violated"
    assert failures(journal) == {
        "compute fails: the user sees it on the job and on the video",
        "compute fails: the video went from state to state",
        "twice: every unit was reused",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("fast_api")
def test_a_status_that_is_not_set_and_work_that_is_paid_for_twice_are_seen(monkeypatch):
    monkeypatch.setattr("tasks.video_processing.ON_A_BAD_DAY", f"{BROKEN}.spendthrift")
    fault = "ledger refuses"
    journal = judged(faults=fault)
    assert journal.status == "violated"
    assert failures(journal) == {
        "undisturbed: the job is done and the video awaits its layout",
        "twice: the status is what it was",
        f"{fault}, mended: the job is done and the video awaits its layout",
        f"{fault}: compute began no more often than it had to",
        f"{fault}: the video went from state to state",
    }


def test_the_seed_chooses_the_faults_of_the_quick_mode_and_the_full_mode_has_them_all():
    assert chosen("", "quick", 7) == chosen("", "quick", 7)
    assert {name for seed in range(100) for name in chosen("", "quick", seed)} == {*QUICK, NO_VIDEO}
    assert {len(chosen("", "quick", seed)) for seed in range(9)} == {IN_QUICK + 1}
    assert chosen("", "full", 0) == [*FAULTS, NO_VIDEO]
    assert chosen(" no GPU free, no video,", "quick", 0) == ["no GPU free", "no video"]


def test_a_fault_that_is_not_there_is_one_line_that_names_those_that_are():
    with pytest.raises(BadInput, match="there is no fault 'earthquake': choose from compute fails, ") as raised:
        chosen("earthquake", "quick", 0)
    assert "\n" not in str(raised.value)


def test_every_fault_can_be_armed_and_has_a_name_and_a_video_of_its_own():
    armed = [failpoints.parse(fault.arm) for fault in FAULTS.values()]
    assert all(len(points) == 1 for points in armed)
    assert len({fault.arm for fault in FAULTS.values()}) == len({slug(name) for name in FAULTS}) == len(FAULTS)
