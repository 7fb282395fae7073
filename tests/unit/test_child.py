"""Work in a process of its own: its answer, its errors, and that nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dailies.compute.child import Children, run_in_child
from dailies.errors import Conflict, DailiesError, Held, Stopped, TimedOut, Transient, Undecodable

pytestmark = pytest.mark.unit

PATIENCE = 10.0
WORK = """
    import os, subprocess, sys, time
    from pathlib import Path
    from dailies import errors

    def add(a, b):
        return {"sum": a + b, "pid": os.getpid(), "group": os.getpgrp()}

    def echo(value):
        return value

    def fail(code):
        made = {
            "held": lambda: errors.Held("video:1", "worker-7", 3),
            "stopped": lambda: errors.Stopped("job-1", "pause"),
            "timed_out": lambda: errors.TimedOut("the server did not answer"),
            "undecodable": lambda: errors.Undecodable("not one frame: ü\\n'quoted'"),
            "error": lambda: errors.DailiesError("just so"),
        }
        raise made[code]()

    def stumble():
        raise ZeroDivisionError("a mistake of our own")

    def die(status):
        os._exit(status)

    def noisy():
        print('{"result": "printed by a library"}')
        sys.stdout.write("no newline at the end")
        sys.stdout.flush()
        os.write(1, b'{"error": "bad_input", "message": "from C"}\\n')
        subprocess.run(["echo", '{"result": "printed by a program"}'])
        return "the answer"

    def steps(progress):
        for part in (0.25, 0.5, 1.0):
            progress(part)
        return "done"

    def linger(note):
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(note).write_text(f"{os.getpid()} {grandchild.pid}")
        Path(note).rename(note + ".ready")
        time.sleep(60)

    def leave_a_grandchild(note):
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(note + ".ready").write_text(f"{os.getpid()} {grandchild.pid}")
        return "the answer"
"""


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    (tmp_path / "work_for_a_child.py").write_text(textwrap.dedent(WORK))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def child(function: str, *, timeout: float = 30.0, **more: object) -> object:
    return run_in_child(f"work_for_a_child:{function}", timeout=timeout, **more)


def eventually(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def pids(note: Path) -> list[int]:
    ready = note.with_name(note.name + ".ready")
    assert eventually(ready.exists)
    return [int(pid) for pid in ready.read_text().split()]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_result_comes_back_from_a_process_and_group_of_its_own():
    answer = child("add", a=2, b=3)
    assert answer["sum"] == 5
    assert answer["pid"] == answer["group"]
    assert gone(answer["pid"])


@pytest.mark.parametrize("value", [None, [1, 2.5, "ü\n"], {"a": {"b": [True]}}, "x" * 500_000])
def test_plain_values_of_any_size_go_there_and_back(value):
    assert child("echo", value=value) == value


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("undecodable", Undecodable, "not one frame: ü\n'quoted'"),
        ("held", Held, "video:1 is held by worker-7 for another 3.0 s"),
        ("stopped", Stopped, "job job-1 was told to pause"),
        ("timed_out", TimedOut, "the server did not answer"),
        ("error", DailiesError, "just so"),
    ],
)
def test_a_typed_error_comes_back_as_itself(code, kind, message):
    with pytest.raises(DailiesError) as raised:
        child("fail", code=code)
    assert type(raised.value) is kind
    assert str(raised.value) == message


def test_a_mistake_ends_the_child_without_an_answer():
    with pytest.raises(Transient, match=r"without an answer \(exit status 1\)"):
        child("stumble")


def test_a_child_that_dies_says_how():
    with pytest.raises(Transient, match=r"without an answer \(exit status 7\)"):
        child("die", status=7)


def test_what_a_library_prints_is_not_taken_for_an_answer():
    assert child("noisy") == "the answer"


def test_progress_is_reported_in_order():
    heard = []
    assert child("steps", progress=heard.append) == "done"
    assert heard == [0.25, 0.5, 1.0]


def test_a_listener_that_fails_ends_the_child():
    def listener(part: float) -> None:
        raise RuntimeError(f"heard {part}")

    with pytest.raises(RuntimeError, match=r"heard 0\.25"):
        child("steps", progress=listener)


def test_a_timeout_ends_the_whole_group(tmp_path):
    note = tmp_path / "note"
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"work_for_a_child:linger did not end within 1\.5 s and was stopped"):
        child("linger", timeout=1.5, note=str(note))
    assert 1.5 <= time.monotonic() - began < 5
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in pids(note))


def test_a_stop_ends_the_whole_group_early(tmp_path):
    note = tmp_path / "note"
    stopped = threading.Event()

    def stop() -> None:
        pids(note)
        stopped.set()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Transient, match="stopped"):
        child("linger", stopped=stopped, note=str(note))
    thread.join()
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in pids(note))


def test_a_function_that_answers_leaves_no_process_behind(tmp_path):
    note = tmp_path / "note"
    assert child("leave_a_grandchild", note=str(note)) == "the answer"
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in pids(note))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_when_the_parent_dies_the_child_and_what_it_started_go_too(tmp_path, number):
    note = tmp_path / "note"
    script = "import sys; from dailies.compute.child import run_in_child\n"
    script += "run_in_child('work_for_a_child:linger', timeout=60, note=sys.argv[1])"
    parent = subprocess.Popen([sys.executable, "-c", script, str(note)])
    family = pids(note)
    assert not any(gone(pid) for pid in family)
    parent.send_signal(number)
    parent.wait()
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in family)


# ── kept for the next call ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def children():
    kept = Children()
    yield kept
    kept.close()


def test_a_kept_child_takes_the_next_call_also_after_a_typed_refusal(children):
    first = children.call("work_for_a_child:add", timeout=30, a=1, b=2)
    with pytest.raises(Undecodable):
        children.call("work_for_a_child:fail", timeout=30, code="undecodable")
    with pytest.raises(Undecodable):
        children.call("work_for_a_child:fail", timeout=30, code="undecodable")
    second = children.call("work_for_a_child:add", timeout=30, a=3, b=4)
    assert (first["sum"], second["sum"]) == (3, 7)
    assert first["pid"] == second["pid"]
    children.close()
    assert gone(first["pid"])


def test_warm_children_are_there_before_they_are_called(children):
    children.warm("work_for_a_child:add", 2)
    waiting = {child.process.pid for child in children._idle}
    assert len(waiting) == 2
    assert children.call("work_for_a_child:add", timeout=30, a=1, b=2)["pid"] in waiting
    children.close()
    assert all(map(gone, waiting))


def test_one_that_died_or_was_too_slow_is_not_asked_again(children):
    before = children.call("work_for_a_child:add", timeout=30, a=1, b=2)["pid"]
    with pytest.raises(Transient, match="without an answer"):
        children.call("work_for_a_child:die", timeout=30, status=7)
    note = "/dev/null/none"
    with pytest.raises((TimedOut, Transient)):
        children.call("work_for_a_child:linger", timeout=0.3, note=note)
    assert children.call("work_for_a_child:add", timeout=30, a=1, b=2)["pid"] == before


def test_closing_ends_those_at_work_and_who_waits_is_not_told_to_try_again(children, tmp_path):
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            children.call("work_for_a_child:linger", timeout=60, note=str(tmp_path / "note"))
        except BaseException as error:  # noqa: BLE001 - it is what the test is about
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    started = pids(tmp_path / "note")
    children.close()
    waiting.join(PATIENCE)
    assert [type(error) for error in failures] == [Conflict]
    assert eventually(lambda: all(map(gone, started)))
    with pytest.raises(Conflict):
        children.call("work_for_a_child:add", timeout=30, a=1, b=2)
