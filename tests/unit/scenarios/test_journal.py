import json
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dailies.errors import BadInput, Missing
from dailies.scenarios.journal import Check, Journal, commit, expect, expect_at_least, expect_at_most, read

pytestmark = pytest.mark.unit
NAN = float("nan")


def full_journal() -> Journal:
    journal = Journal("lock-contention", seed=7, run_id="run-1", parameters={"mode": "quick"})
    journal.steady("before", expect("queue empty", 0, 0))
    journal.fault("kill", fired=1, evidence="pid 12 exited with -9")
    journal.expect("units", ["a", "b"], ["a", "b"])
    journal.mark("worker", "takes over", since=0.0)
    journal.metric("recovery_s", 1.5)
    journal.artifact(Path("picture.png"))
    journal.steady("after", expect("queue empty", 0, 0))
    return journal


def test_a_journal_comes_back_from_its_file_as_it_was(tmp_path):
    journal = full_journal()
    assert read(journal.write(tmp_path)) == journal


def test_the_report_lies_under_its_run_and_once_more_as_the_last_one(tmp_path):
    report = full_journal().write(tmp_path)
    assert report == tmp_path / "runs" / "lock-contention" / "run-1" / "report.json"
    assert (tmp_path / "runs" / "last" / "lock-contention.json").read_bytes() == report.read_bytes()
    assert not list(tmp_path.rglob(".*.tmp"))


def test_the_same_journal_gives_the_same_sorted_bytes(tmp_path):
    journal = full_journal()
    content = json.loads(journal.to_json())
    assert journal.to_json() == journal.to_json() == read(journal.write(tmp_path)).to_json()
    assert list(content) == sorted(content)


def test_the_file_has_every_field_that_the_design_names():
    content = json.loads(full_journal().to_json())
    named = "scenario run_id status seed commit versions started duration_s steady_state faults checks metrics"
    assert {*named.split(), "artifacts", "error", "parameters", "timeline", "skipped"} == set(content)
    assert set(content["versions"]) == {"python", "sqlite", "dailies", "prefect", "kernel"}
    assert content["faults"] == [{"name": "kill", "armed": True, "fired": 1, "evidence": "pid 12 exited with -9"}]
    assert "until" not in content["timeline"][0]
    assert content["timeline"][1]["until"] >= 0


def test_evidence_is_never_refused_for_its_type(tmp_path):
    journal = Journal("odd")
    journal.expect("odd values", {"nan": math.inf, 3: {"b", "a"}, "bytes": b"\x00\xff"}, Path("/somewhere"))
    journal.metric("half a name", "\udc80")
    journal.metric("nested", Check("inner", True))
    actual = read(journal.write(tmp_path)).checks[0].actual
    assert actual == {"nan": "inf", "3": ["a", "b"], "bytes": "00ff"}


def test_equal_values_pass_and_others_fail():
    assert expect("n", 3, 3).passed
    assert not expect("n", 3, 4).passed


@pytest.mark.parametrize("unknown", [None, NAN, [1, NAN], {"a": {"b": NAN}}, (NAN,), {NAN}])
def test_what_was_never_measured_equals_nothing_not_even_itself(unknown):
    assert not expect("n", unknown, unknown).passed


def test_a_limit_holds_up_to_and_including_itself():
    assert expect_at_most("s", 20, 20).passed
    assert not expect_at_most("s", 20.001, 20).passed
    assert expect_at_least("n", 1, 1).passed
    assert not expect_at_least("n", 0, 1).passed


@pytest.mark.parametrize("unknown", [None, NAN, -math.inf, math.inf, True, "3"])
def test_what_is_no_number_is_within_no_limit(unknown):
    assert not expect_at_most("s", unknown, 20).passed
    assert not expect_at_least("s", unknown, 0).passed


@pytest.mark.parametrize("passed", [None, 1, "yes", ["a finding"], NAN, False])
def test_only_true_passes_a_check(passed):
    assert not Journal("s").check("x", passed).passed


def test_a_check_that_is_true_passes_unless_its_actual_value_is_unknown():
    journal = Journal("s")
    assert journal.check("x", True).passed
    assert journal.check("x", True, expected=1, actual=1).passed
    assert not journal.check("x", True, expected=1, actual=None).passed
    assert not journal.check("x", True, expected=1, actual=NAN).passed
    assert len(journal.checks) == 4


def test_what_a_journal_expects_is_among_its_checks():
    journal = Journal("s")
    journal.expect("n", 1, 1)
    journal.expect_at_most("s", 21, 20, fix="renew sooner")
    assert journal.checks == [Check("n", True, 1, 1), Check("s", False, "≤ 20", 21, "renew sooner")]


def test_a_fault_is_armed_once_and_collects_its_evidence():
    journal = Journal("s")
    journal.fault("kill")
    journal.fault("kill", fired=1, evidence="first")
    fault = journal.fault("kill", fired=1, evidence="second")
    assert journal.faults == [fault]
    assert (fault.fired, fault.evidence) == (2, "first; second")
    assert [mark.lane for mark in journal.timeline] == ["faults", "faults"]


def test_threads_lose_no_mark_and_arm_no_fault_twice():
    journal = Journal("s")
    start = threading.Barrier(8)

    def work():
        for number in range(300):
            start.wait()
            journal.mark("lane", "tick")
            journal.fault(f"kill {number}", fired=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert len(journal.timeline) == 2 * 8 * 300
    assert [fault.fired for fault in journal.faults] == [8] * 300


def test_a_span_is_drawn_also_when_its_work_failed():
    journal = Journal("s")
    with pytest.raises(RuntimeError), journal.span("worker", "works"):
        raise RuntimeError
    assert journal.timeline[0].until is not None


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_name_that_could_leave_its_folder_is_refused(name):
    with pytest.raises(BadInput):
        Journal(name)
    with pytest.raises(BadInput):
        Journal("fine", run_id=name or "/")


def test_nothing_is_skipped_without_a_reason():
    with pytest.raises(BadInput):
        Journal("s").skip("  ")


def damaged(**changes) -> bytes:
    return json.dumps(json.loads(full_journal().to_json()) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        full_journal().to_json()[:-20],
        damaged(seed="7"),
        damaged(seed=True),
        damaged(checks={}),
        damaged(checks=["x"]),
        damaged(checks=[{"name": "x", "passed": "yes", "expected": 1, "actual": 1, "fix": ""}]),
        damaged(faults=[{"name": "x"}]),
        damaged(steady_state={"before": []}),
        damaged(duration_s=NAN),
        damaged(scenario="../up"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"is not a scenario's journal: .+") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_missing_journal_says_so(tmp_path):
    with pytest.raises(Missing):
        read(tmp_path / "none.json")


def test_a_journal_without_the_later_fields_is_read(tmp_path):
    content = json.loads(full_journal().to_json())
    for name in ("parameters", "timeline", "skipped"):
        del content[name]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    assert read(path).timeline == []
    read(path).parameters["mode"] = "full"
    assert read(path).parameters == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_source_and_says_when_it_was_edited(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source, stranger = tmp_path / "source.py", tmp_path / "installed.py"
    source.write_text("1")
    git("init")
    git("add", "source.py")
    git("commit", "-m", "first")
    stranger.write_text("not of this repository")
    commit.cache_clear()
    assert commit(source) == git("rev-parse", "HEAD")
    assert commit(stranger) == ""
    source.write_text("2")
    commit.cache_clear()
    assert commit(source) == git("rev-parse", "HEAD") + "-dirty"
    commit.cache_clear()


def test_a_check_that_compares_truth_values_can_be_read_back(tmp_path: Path) -> None:
    journal = Journal(scenario="truth")
    journal.expect("it is so", False, False)
    assert read(journal.write(tmp_path)).checks == journal.checks
