"""Faults that really happen, once, with their evidence on disk before they do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies import failpoints
from dailies.errors import BadInput, Injected, TimedOut
from dailies.failpoints import ACTIONS, arm, environment, failpoint, fired, parse

pytestmark = pytest.mark.unit

PASS = """
import sys
from dailies.failpoints import failpoint
for name in sys.argv[1:]:
    failpoint(name)
    print("past", name, flush=True)
"""


@pytest.fixture
def log(tmp_path):
    yield tmp_path / "faults" / "log.jsonl"
    arm("", Path())


def passing(spec: str, log: Path, *names: str) -> subprocess.Popen[str]:
    env = {**os.environ, **environment(spec, log)}
    return subprocess.Popen([sys.executable, "-c", PASS, *names], env=env, stdout=subprocess.PIPE, text=True)


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_spec_names_points_hits_and_actions():
    armed = parse(" probe_media:after=kill;; make-sheet:before#3=sleep(2.5) ; ledger.after_claim=stop;")
    assert [(a.name, a.hit, a.action, a.seconds) for a in armed.values()] == [
        ("probe_media:after", 1, "kill", 0),
        ("make-sheet:before", 3, "sleep", 2.5),
        ("ledger.after_claim", 1, "stop", 0),
    ]
    assert parse("") == parse(" ; ") == {}


@pytest.mark.parametrize(
    "wrong",
    [
        "point",
        "point=",
        "=kill",
        "point=explode",
        "point=KILL",
        "point#0=kill",
        "point#-1=kill",
        "point#x=kill",
        "point#=kill",
        "point=sleep",
        "point=sleep()",
        "point=sleep(-1)",
        "point=sleep(soon)",
        "point=kill(3)",
        "a point=kill",
        "point==kill",
        "good=kill; bad",
        "point=kill, other=kill",
    ],
)
def test_a_spec_that_cannot_be_read_is_refused_naming_the_part(wrong, log):
    with pytest.raises(BadInput, match="is not name"):
        parse(wrong)
    with pytest.raises(BadInput):
        environment(wrong, log)
    with pytest.raises(BadInput):
        arm(wrong, log)


def test_a_point_cannot_be_armed_twice_for_one_would_be_forgotten():
    with pytest.raises(BadInput, match="armed twice"):
        parse("point#1=raise; point#2=kill")


@given(st.text("ab.:-#=;() 01kils", max_size=20))
def test_whatever_the_spec_it_is_read_or_refused(spec):
    try:
        armed = parse(spec)
    except BadInput:
        return
    assert all(arming.action in ACTIONS and arming.hit >= 1 for arming in armed.values())


def test_a_process_with_a_wrong_spec_does_not_start(log):
    env = {**os.environ, "DAILIES_FAILPOINTS": "point=explode", "DAILIES_FAILPOINTS_LOG": str(log)}
    child = subprocess.run([sys.executable, "-c", PASS, "point"], env=env, check=False, capture_output=True, text=True)
    assert child.returncode == 1
    assert "BadInput: failpoint 'point=explode' is not name[#hit]=action" in child.stderr
    assert child.stdout == ""


def test_nothing_armed_leaves_no_trace(log):
    arm("", log)
    failpoint("point")
    arm("point=raise", log)
    failpoint("another-point")
    arm("", log)
    failpoint("point")
    assert not log.exists()
    assert fired(log) == []


def test_nothing_armed_costs_next_to_nothing(log):
    arm("", log)
    began = time.perf_counter()
    for _ in range(100_000):
        failpoint("point")
    assert time.perf_counter() - began < 0.5


def test_raise_is_a_transient_error(log):
    arm("point=raise", log)
    with pytest.raises(Injected, match="failpoint point"):
        failpoint("point")


def test_a_lost_reply_looks_like_no_answer_in_time(log):
    arm("point=lose_reply", log)
    with pytest.raises(TimedOut, match="point lost the reply"):
        failpoint("point")


def test_sleep_is_a_delay_and_no_more(log):
    arm("point=sleep(0.1)", log)
    began = time.monotonic()
    failpoint("point")
    assert 0.1 <= time.monotonic() - began < 1
    assert [entry["action"] for entry in fired(log)] == ["sleep"]


def test_kill_is_a_real_death(log):
    child = passing("second=kill", log, "first", "second", "third")
    out, _ = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL
    assert out == "past first\n"
    [entry] = fired(log)
    assert (entry["name"], entry["hit"], entry["action"], entry["pid"]) == ("second", 1, "kill", child.pid)
    assert entry["time"] == pytest.approx(time.time(), abs=60)


def test_stop_is_a_real_freeze_and_the_process_can_be_woken(log):
    child = passing("point=stop", log, "point")
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert os.WSTOPSIG(status) == signal.SIGSTOP
        assert [entry["pid"] for entry in fired(log)] == [child.pid]
    finally:
        child.send_signal(signal.SIGCONT)
    assert child.communicate(timeout=30)[0] == "past point\n"
    assert child.returncode == 0


def test_hang_hangs_until_it_is_killed(log):
    child = passing("point=hang", log, "point")
    deadline = time.monotonic() + 10
    while not fired(log) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(fired(log)) == 1
    time.sleep(0.05)
    assert child.poll() is None
    assert psutil.Process(child.pid).status() == psutil.STATUS_SLEEPING
    child.kill()
    assert child.communicate(timeout=30)[0] == ""


def test_hits_are_counted_over_all_processes(log):
    spec = "point#3=kill"
    codes = []
    for _ in range(5):
        child = passing(spec, log, "point")
        child.communicate(timeout=30)
        codes.append(child.returncode)
    assert codes == [0, 0, -signal.SIGKILL, 0, 0]
    assert [entry["hit"] for entry in lines(log)] == [1, 2, 3, 4, 5]
    assert [entry["hit"] for entry in fired(log)] == [3]


def test_processes_and_threads_that_pass_at_once_are_each_counted_once(log):
    children = [passing("point#17=raise", log, *["point"] * 6) for _ in range(3)]
    arm("point#17=raise", log)
    raised = []

    def go() -> None:
        for _ in range(6):
            try:
                failpoint("point")
            except Injected:
                raised.append(1)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        child.communicate(timeout=30)
    hits = [entry["hit"] for entry in lines(log)]
    assert hits == list(range(1, len(hits) + 1))
    assert len(fired(log)) == 1
    assert len(raised) + sum(child.returncode != 0 for child in children) == 1


def test_a_point_acts_once_for_each_log(log):
    arm("point=raise", log)
    with pytest.raises(Injected):
        failpoint("point")
    failpoint("point")
    arm("point=raise", log)
    failpoint("point")
    assert [entry["acted"] for entry in lines(log)] == [True, False, False]
    arm("point=raise", log.with_name("another.jsonl"))
    with pytest.raises(Injected):
        failpoint("point")


def test_points_are_counted_apart(log):
    arm("one#2=raise; two=raise", log)
    failpoint("one")
    with pytest.raises(Injected):
        failpoint("two")
    with pytest.raises(Injected):
        failpoint("one")
    assert [(entry["name"], entry["hit"]) for entry in fired(log)] == [("two", 1), ("one", 2)]


def test_the_evidence_is_on_disk_before_the_point_acts(log, tmp_path):
    """Whoever cannot write down what it is about to do does not do it."""
    log.parent.write_text("a file where the folder should be")
    arm("point=raise", log)
    with pytest.raises(OSError):
        failpoint("point")
    child = passing("point=kill", log, "point")
    child.communicate(timeout=30)
    assert child.returncode == 1, "it failed; it was not killed"


def test_the_environment_is_all_that_a_child_needs(log):
    assert environment("point=kill", log) == {"DAILIES_FAILPOINTS": "point=kill", "DAILIES_FAILPOINTS_LOG": str(log)}
    assert failpoints._armed == {}, "arming a child arms nobody else"
