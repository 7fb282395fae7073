"""job-recovery passes on a product that is whole, and says what is wrong with one that is not."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blocks.site import open_site
from dailies.errors import BadInput
from dailies.ledger.sqlite import jobs as sqlite_jobs
from dailies.ledger.sqlite.jobs import SqliteJobs
from dailies.scenarios.journal import Journal, read
from dailies.speech.sample import make_talk
from flows import transcribe_media
from flows.scenarios import job_recovery as scenario
from tasks import (
    _job,
    _step,
    job_recovery,
    recovery_crowds,
    recovery_damage,
    recovery_parts,
    supervision,
    transcription,
)
from tasks._step import REGISTRY
from tasks.contention import part
from tasks.job_recovery import CHUNK, CHUNKS_PUT
from tasks.recovery_crowds import five_recoverers, frozen, killed_after_the_end
from tasks.recovery_damage import FLIPPED, spoil
from tasks.recovery_findings import FIXES, Whole, findings, report
from tasks.recovery_parts import AFTER_TWO, PHRASES, Trial
from tasks.scenario import Scenario
from tests.integration import conftest as integration
from tests.recovery import broken_recovery as broken

pytestmark = [pytest.mark.recovery]
home = integration.home
real = pytest.mark.usefixtures("fast_api")
ENDED, FILES, WHOLE, HEARD, TOLD, LEFT, CLEARED = FIXES
ONCE = "no effect twice"


def judged(**parameters: Any) -> Journal:
    scenario.job_recovery(**parameters, return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "job-recovery.json")


def failures(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


# ── what is covered ───────────────────────────────────────────────────────────────────────────────────────────────────

IN_ORDER = (
    "plan_chunks",
    "start_transcription",
    "transcribe_chunk",
    "start_stitching",
    "make_transcript",
    "publish_transcript",
    "show_transcript",
)
# Chunks are put while they are planned.
PASSED = job_recovery.crash_points([REGISTRY[name] for name in IN_ORDER])


def test_no_step_of_the_flow_is_left_out():
    ours = {name for name, step in REGISTRY.items() if step.__module__ == transcription.__name__}
    source = Path(str(transcribe_media.__file__)).read_text() + Path(transcription.__file__).read_text()
    called = {name for name in REGISTRY if re.search(rf"\b{name}(\.submit)?(\(|, )(self\.)?job\b", source)}
    assert called == ours == set(IN_ORDER)
    assert set(scenario.POINTS) == {point for name in ours for point in REGISTRY[name].points} | {CHUNKS_PUT}


@real
def test_the_points_are_in_the_order_in_which_a_job_passes_them(home, tmp_path, monkeypatch):
    passed: list[str] = []
    for module in (_step, _job, transcription):
        monkeypatch.setattr(module, "failpoint", passed.append)
    make_talk(tmp_path / "talk.wav", 2)
    site, key = open_site(), "acme/client/videos/v1/talk.wav"
    site.store.put_file(key, tmp_path / "talk.wav")
    transcribe_media.transcribe_media(tenant="acme", media_key=key, engine="dtmf", parallel=1)
    site.ledger.close()
    assert [*dict.fromkeys(passed)] == [*PASSED, "job.done"]
    assert scenario.POINTS == PASSED


def full_plans() -> Iterator[list[tuple[str, ...]]]:
    for seed in range(50):
        yield job_recovery.plans(scenario.POINTS, scenario.JOBS["full"], seed)


def point_of(passage: str) -> str:
    return passage.partition("#")[0]


def passages(plans: Sequence[tuple[str, ...]]) -> list[str]:
    return [point_of(passage) for plan in plans for passage in plan]


def test_no_point_comes_again_before_each_has_come():
    for plans in full_plans():
        seen = Counter(dict.fromkeys(scenario.POINTS, 0))
        for passage in passages(plans):
            seen[passage] += 1
            assert max(seen.values()) - min(seen.values()) <= 1
        assert set(seen) == set(scenario.POINTS)


def test_the_second_death_lies_behind_the_first_and_can_be_reached():
    for first, second in (plan for plans in full_plans() for plan in plans):
        before, after = point_of(first), point_of(second)
        assert PASSED.index(before) <= PASSED.index(after)
        assert before != after or not before.endswith(":committed"), "what is finished is passed no more"
        if {before.partition(":")[0], after.partition(":")[0]} == {CHUNK}:
            most = number_of(first) + recovery_parts.PARALLEL - 1
            assert most + number_of(second) <= PHRASES, "so many chunks are not left"


def number_of(passage: str) -> int:
    return int(passage.partition("#")[2] or 1)


def test_every_passage_of_a_chunk_is_a_place_to_die_at():
    drawn = [passage for plans in full_plans() for plan in plans for passage in plan]
    for point in (*REGISTRY[CHUNK].points, CHUNKS_PUT):
        assert {number_of(passage) for passage in drawn if point_of(passage) == point} == set(range(1, PHRASES + 1))


def test_the_seed_chooses_and_full_has_its_180_kills():
    assert job_recovery.plans(scenario.POINTS, 9, 1) == job_recovery.plans(scenario.POINTS, 9, 1)
    assert len({tuple(job_recovery.plans(scenario.POINTS, 2, seed)) for seed in range(20)}) > 15
    full = job_recovery.plans(scenario.POINTS, scenario.JOBS["full"], 0)
    assert len(full) >= 90
    assert {len(plan) for plan in full} == {2}


def test_parts_are_chosen_by_name_and_an_unknown_one_is_refused_in_one_line():
    assert scenario.chosen_parts(" room, kills,", "quick") == ["room", "kills"]
    assert scenario.chosen_parts("", "full") == list(scenario.PARTS)
    assert {"kills", "files", "crowds", "room"} <= set(scenario.chosen_parts("", "quick")) <= set(scenario.PARTS)
    with pytest.raises(BadInput, match="there is no part 'earthquake': choose from kills, files, crowds") as raised:
        scenario.chosen_parts("kills,earthquake", "quick")
    assert "\n" not in str(raised.value)


# ── whole ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_full(played: Any) -> Any:
    """The part with all its trials, whatever the mode."""
    return part("in-full")(lambda run, whole, full: played.fn(run, whole, True))


def passed(journal: Journal) -> None:
    assert (journal.status, failures(journal), journal.error) == ("passed", set(), None)
    assert all(fault.fired and fault.evidence for fault in journal.faults)


@pytest.mark.slow
@real
def test_killed_jobs_come_to_the_undisturbed_end_also_with_damaged_files(home, monkeypatch):
    monkeypatch.setattr(scenario, "BESIDE", {"files": in_full(recovery_damage.damaged_files)})
    journal = judged(only="kills,files")
    passed(journal)
    plans = job_recovery.plans(scenario.POINTS, scenario.JOBS["quick"], 0)
    killed = {fault.name for fault in journal.faults if "exit -9" in fault.evidence}
    assert killed >= {f"killed at {point}" for plan in plans for point in plan}
    assert {fault.name for fault in journal.faults} - killed >= {
        "chunks: mixed",
        "chunks: gone",
        "chunks: flipped",
        "chunks: cut short",
        "everything recorded is gone",
        "source deleted",
    }
    assert journal.metrics["kills"] == journal.metrics["takeover_s"]["n"] == 2 * len(plans)
    assert journal.metrics["recovery_alone"]["completed_s"] > journal.metrics["recovery_alone"]["resumed_s"] > 0
    names = {check.name for check in journal.checks}
    assert {f"{group}: {check}" for group in ("alone", "kills", "damaged files") for check in FIXES} <= names
    assert list((home / "scenarios").iterdir()) == []


@pytest.mark.slow
@real
def test_crowds_chains_poison_and_want_of_room_or_ledger_leave_no_trace(home, monkeypatch):
    monkeypatch.setattr(scenario, "BESIDE", {"crowds": in_full(recovery_crowds.crowds_and_chains)})
    journal = judged(only="crowds,room")
    passed(journal)
    fired = {fault.name: fault.fired for fault in journal.faults}
    for point in ("chunks.put#3", "transcribe_chunk:after#2", "make_transcript:after", "job.done"):
        assert fired[f"killed at {point}"] >= 1
    assert fired["run frozen past its ttl"] == fired["no room for files"] == fired["ledger refuses writes"] == 1
    assert {f"reply lost: {point}" for point in recovery_crowds.LOST_REPLIES} <= set(fired)
    names = {check.name for check in journal.checks}
    groups = ("crowds and chains", "killed after the end", "no room, no ledger")
    assert {f"{group}: {check}" for group in groups for check in FIXES} <= names
    assert {"poison: the job failed after its attempts, and says why", "poison: it is told"} <= names
    assert list((home / "scenarios").iterdir()) == []


# ── broken on purpose ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Control:
    """Where a broken product is killed, if at all, and what the scenario must see of it."""

    killed_at: str
    red: frozenset[str]
    damaged: bool = False


CONTROLS: Mapping[str, Control] = {
    "as-it-is": Control(AFTER_TWO, frozenset()),
    "ignores-the-ledger": Control(AFTER_TWO, frozenset({HEARD, LEFT})),
    "hears-twice": Control("", frozenset({HEARD})),
    "trusts-its-files": Control(AFTER_TWO, frozenset({HEARD}), damaged=True),
    "tells-later": Control("units.told#3", frozenset({TOLD})),
    "tells-anew": Control(AFTER_TWO, frozenset({TOLD})),
    "counts-wrong": Control(AFTER_TWO, frozenset({LEFT})),
    "loses-a-chunk": Control(AFTER_TWO, frozenset({FILES})),
    "shifts-a-chunk": Control(AFTER_TWO, frozenset({FILES})),
    "publishes-too-early": Control("publish_transcript:before", frozenset({WHOLE})),
    "leaves-files": Control("start_stitching:before", frozenset({CLEARED})),
    "gives-up-on-resume": Control("make_transcript:before", frozenset({ENDED, FILES, TOLD})),
}


def played(run: Scenario, name: str) -> Trial:
    control = CONTROLS[name]
    trial = Trial(run, name, ttl=2.0)
    if control.killed_at:
        killed = trial.kill_at(control.killed_at)
        if control.damaged:
            spoil(run, [key for key in trial.working_files() if key.endswith(".f32")], FLIPPED)
        trial.hand_on(killed)
    trial.finish()
    run.ledger.close()
    return trial


@part("broken-products")
def broken_products(run: Scenario, whole: Whole, full: bool) -> None:
    with ThreadPoolExecutor(3) as pool:
        trials = list(pool.map(lambda name: played(run, name), CONTROLS))
    report(run, "broken", [findings(trial, whole) for trial in trials])


def seen(journal: Journal, group: str) -> dict[str, set[str]]:
    """By trial, the checks that found a fault with it."""
    found: dict[str, set[str]] = {name: set() for name in CONTROLS}
    for check in FIXES:
        (one,) = [one for one in journal.checks if one.name == f"{group}: {check}"]
        for fault in one.actual:
            found.setdefault(fault.partition(":")[0], set()).add(check)
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the part that is always played, where it is not what the test is about."""
    monkeypatch.setattr(scenario, "recovered_alone", lambda *_: None)


@pytest.mark.slow
@real
def test_each_broken_product_is_seen_by_the_checks_that_are_about_it(at_once, monkeypatch):
    monkeypatch.setattr(recovery_parts, "attempt", broken.attempt)
    monkeypatch.setattr(scenario, "BESIDE", {"crowds": broken_products})
    journal = judged(only="crowds")
    assert (journal.status, journal.error) == ("violated", None)
    assert seen(journal, "broken") == {name: set(control.red) for name, control in CONTROLS.items()}
    assert {red for control in CONTROLS.values() for red in control.red} == set(FIXES), "each check has turned red"
    assert failures(journal) == {f"broken: {check}" for check in FIXES} | {ONCE}


@part("broken-in-the-scenario")
def broken_in_the_scenario(run: Scenario, whole: Whole, full: bool) -> None:
    trials = [five_recoverers(run), frozen(run)]
    report(run, "broken", [findings(trial, whole) for trial in trials])
    killed_after_the_end(run, whole)
    recovery_damage.source_gone(run)


@pytest.mark.slow
@real
def test_careless_recoverers_a_zombie_that_counts_and_a_lost_source_that_does_not_matter_are_seen(at_once, monkeypatch):
    monkeypatch.setattr(recovery_parts, "attempt", broken.attempt)
    monkeypatch.setattr(recovery_parts, "recover", broken.recover_late)
    monkeypatch.setattr(recovery_crowds, "recover_at_once", broken.recover_carelessly)
    monkeypatch.setattr(scenario, "BESIDE", {"crowds": broken_in_the_scenario})
    monkeypatch.setattr(scenario, "plans", lambda *_: [("start_stitching:before",)])
    journal = judged(only="crowds,kills")
    assert (journal.status, journal.error) == ("violated", None)
    found = seen(journal, "broken")
    assert found["five-recoverers"] >= {ENDED, TOLD}
    assert FILES in found["frozen"]
    assert failures(journal) >= {
        "kills: given to the next attempt within ttl + sweep (s)",
        "killed after the end: there was something to clear away",
        "source gone: the job failed, and says why",
        "source gone: it is told",
        "source gone: no working file is left",
    }


@part("poison-and-orphans")
def poison_and_orphans(run: Scenario, whole: Whole, full: bool) -> None:
    recovery_crowds.poisoned(run)
    killed_after_the_end(run, whole)


@pytest.mark.slow
@real
def test_a_wrong_undisturbed_run_a_costly_recovery_an_end_without_a_word_and_files_that_stay_are_seen(monkeypatch):
    monkeypatch.setattr(recovery_parts, "attempt", broken.attempt_in_vain)
    monkeypatch.setattr(recovery_parts, "clear_machine", broken.clear_nothing)
    monkeypatch.setattr(supervision, "clear", lambda *_: None)
    monkeypatch.setattr(SqliteJobs, "recover", broken.give_up_in_silence)
    monkeypatch.setattr(sqlite_jobs, "recovery_failed", lambda *_: None)
    monkeypatch.setattr(scenario, "BESIDE", {"crowds": poison_and_orphans})
    journal = judged(only="crowds")
    assert (journal.status, journal.error) == ("violated", None)
    assert failures(journal) == {
        "undisturbed: the text is the ground truth",
        "undisturbed: words from where they are said (s)",
        "undisturbed: speech, silence and failed add up to the duration",
        "undisturbed: every chunk is heard once",
        "undisturbed: events are complete",
        f"alone: {FILES}",
        "alone: taken up to first resumed unit (s)",
        "alone: recovery started to completed (s)",
        "alone: memory of a recovery over an undisturbed run",
        "poison: the job failed after its attempts, and says why",
        "poison: it is told",
        "poison: no working file is left",
        f"killed after the end: {FILES}",
        f"killed after the end: {CLEARED}",
    }


@pytest.mark.slow
@pytest.mark.expects_errors
@real
def test_the_fence_keeps_the_same_zombie_off_and_a_supervisor_that_never_gives_up_is_not_waited_for(
    at_once, monkeypatch
):
    monkeypatch.setattr(recovery_parts, "attempt", broken.attempt_fenced)
    monkeypatch.setattr(sqlite_jobs, "NEXT_STATE", "'QUEUED'")
    monkeypatch.setattr(sqlite_jobs, "NEXT_ATTEMPT", "attempt + 1")

    @part("zombie-and-poison")
    def zombie_and_poison(run: Scenario, whole: Whole, full: bool) -> None:
        report(run, "fenced", [findings(frozen(run), whole)])
        monkeypatch.setattr(recovery_crowds, "FLOW_S", 2.0)
        recovery_crowds.poisoned(run)

    monkeypatch.setattr(scenario, "BESIDE", {"crowds": zombie_and_poison})
    journal = judged(only="crowds")
    assert journal.status == "error"
    assert re.match(r"job \w+ was not given up", journal.error)
    assert failures(journal) == set()
    assert {f"fenced: {check}" for check in FIXES} <= {check.name for check in journal.checks}
