"""crop-infer-e2e and caption-ocr-e2e pass on a product that is whole, and say what is wrong with one that is not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dailies.scenarios.journal import Journal, read
from flows import caption_ocr, crop_and_infer
from flows.scenarios import caption_ocr_e2e, crop_infer_e2e
from tasks import _compute
from tasks._step import POINTS, REGISTRY
from tasks.caption_parts import COMPUTE_POINTS
from tasks.crop_infer import chosen
from tests.integration import conftest as integration

pytestmark = [pytest.mark.recovery]
home = integration.home
BROKEN = "tests.recovery.broken_captions"
real = pytest.mark.usefixtures("fast_api")


def judged(flow: Any, **parameters: Any) -> Journal:
    flow(**parameters, return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / f"{flow.name}.json")


def failures(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


# ── what is covered ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("production", "scenario"),
    [(crop_and_infer, crop_infer_e2e), (caption_ocr, caption_ocr_e2e)],
    ids=lambda it: it.__name__,
)
def test_no_step_of_the_flow_and_no_point_of_a_call_is_left_out(production: ModuleType, scenario: ModuleType):
    source = Path(str(production.__file__)).read_text()
    steps = {name for name in REGISTRY if re.search(rf"\b{name}\(job", source)}
    assert len(steps) >= 3
    in_compute = set(re.findall(r'failpoint\("(compute\.\w+)"\)', Path(_compute.__file__).read_text()))
    assert in_compute == set(COMPUTE_POINTS)
    assert set(scenario.POINTS) == {f"{step}:{point}" for step in steps for point in POINTS} | in_compute


def test_the_seed_chooses_the_crash_points_and_full_takes_all_of_them():
    points = crop_infer_e2e.POINTS
    assert chosen(points, 3, seed=1) == chosen(points, 3, seed=1)
    assert len({tuple(chosen(points, 3, seed)) for seed in range(20)}) > 10
    assert chosen(points, crop_infer_e2e.CRASHES["full"], seed=7) == points
    assert chosen(points, 1000, seed=7) == points
    assert {point for seed in range(100) for point in chosen(points, 3, seed)} == set(points)


# ── whole ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@real
def test_captions_are_made_once_and_whole_whatever_is_killed(home):
    journal = judged(crop_infer_e2e.crop_infer_e2e)
    assert (journal.status, failures(journal), journal.error) == ("passed", set(), None)
    points = chosen(crop_infer_e2e.POINTS, 3, 0)
    faults = {f"killed at {point}" for point in points} | {"upload replaced by half of it"}
    assert {fault.name: fault.fired for fault in journal.faults} == dict.fromkeys(faults, 1)
    assert all("exit -9" in fault.evidence for fault in journal.faults if fault.name.startswith("killed"))
    assert journal.metrics["takeover_s"]["n"] == journal.metrics["kills"] == 3
    # process-video, undisturbed, three killed, the upper part, two approvals, the failed one and the good one after it
    assert journal.metrics["executions"] == 10
    assert list((home / "scenarios").iterdir()) == []


@pytest.mark.slow
@real
def test_captions_are_read_again_without_a_loss(home):
    journal = judged(caption_ocr_e2e.caption_ocr_e2e)
    assert (journal.status, failures(journal), journal.error) == ("passed", set(), None)
    assert all(fault.fired == 1 for fault in journal.faults)
    assert len(journal.faults) == 3
    assert journal.metrics["ten_at_once"]["requests"] == 10
    assert journal.metrics["takeover_s"]["n"] == journal.metrics["kills"] == 2
    assert list((home / "scenarios").iterdir()) == []


# ── broken on purpose ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@real
def test_captions_that_are_published_in_pieces_or_paid_for_twice_are_seen(monkeypatch):
    monkeypatch.setattr("tasks.crop_infer.CROP_AND_INFER", f"{BROKEN}.in_pieces")
    monkeypatch.setattr(crop_infer_e2e, "POINTS", ["infer_captions:committed"])
    monkeypatch.setattr("tasks.crop_infer.TRUTH", one_frame_late())
    journal = judged(crop_infer_e2e.crop_infer_e2e, crashes=1)
    assert (journal.status, journal.error) == ("violated", None)
    assert failures(journal) == {
        "undisturbed: text and times are the ground truth",
        "undisturbed: captions.srt says the same",
        "infer_captions:committed: text and times are the ground truth",
        "infer_captions:committed: no finished unit is redone",
        "infer_captions:committed: compute worked once for both attempts",
        "two approvals: a generation each, in the order of their turns, and no mixture",
        "two approvals: a reader saw three whole generations",
        "failed run: the old captions are readable, byte by byte",
        "failed run: the next one makes what an undisturbed run makes",
        "failed run, then a good one: text and times are the ground truth",
        "failed run, then a good one: captions.srt says the same",
    }


def one_frame_late() -> list[tuple[int, int, str]]:
    from tasks.caption_parts import TRUTH

    return [(begin + 40_000, end, text) for begin, end, text in TRUTH]


@pytest.mark.slow
@real
def test_an_approval_that_does_not_wait_and_a_failure_that_costs_the_old_captions_are_seen(monkeypatch):
    monkeypatch.setattr("tasks.crop_infer.CROP_AND_INFER", f"{BROKEN}.without_a_door")
    monkeypatch.setattr(crop_infer_e2e, "POINTS", ["compute.recorded"])
    journal = judged(crop_infer_e2e.crop_infer_e2e, crashes=1)
    assert (journal.status, journal.error) == ("violated", None)
    assert failures(journal) == {
        "two approvals: each followed its policy",
        "two approvals: a reader saw three whole generations",
        "failed run: the old captions are readable, byte by byte",
    }


@pytest.mark.slow
@real
def test_a_lost_update_and_a_caption_that_costs_the_others_theirs_are_seen(monkeypatch):
    monkeypatch.setattr("tasks.caption_ocr_scenario.CAPTION_OCR", f"{BROKEN}.forgetful")
    journal = judged(caption_ocr_e2e.caption_ocr_e2e)
    assert (journal.status, journal.error) == ("violated", None)
    assert failures(journal) >= {
        "ten at once: no lost update: the bytes are those of one by one",
        "ten at once: every caption was read again",
        "damaged: all others are read",
    }
