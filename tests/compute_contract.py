"""What every compute must keep: another one joins by a module with these fixtures and a subclass of the contract.

compute     a ``Compute`` whose functions are those of tests/compute_work.py, on the store ``store``
again       makes another object for the same calls, as another process would
struck      kills what runs a call, so that nobody of it can say a last word
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from dailies.compute.interface import Busy, Canceled, Compute, StillRunning, UnknownCall
from dailies.errors import DailiesError, Held, Missing, NotConfigured, TimedOut, Transient, Undecodable
from dailies.store.interface import Artifact

PATIENCE_S = 20.0
UNIT = "0123456789abcdef" * 4


def eventually(what: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class World:
    """What the functions of one test leave behind, and what they wait for."""

    def __init__(self, folder: Path) -> None:
        self.marks = folder / "marks"
        self.gate = folder / "gate"
        self.note = folder / "note"

    def payload(self, **more: Any) -> dict[str, Any]:
        paths = {"marks": str(self.marks), "gate": str(self.gate), "note": str(self.note)}
        return {"tenant": "acme", "media_key": "acme/client/videos/v1/clip.mp4", **paths, **more}

    @property
    def executions(self) -> int:
        return len(self.marks.read_text().splitlines()) if self.marks.exists() else 0

    @property
    def family(self) -> list[int]:
        return [int(pid) for pid in self.note.read_text().split()] if self.note.exists() else []

    def begun(self, count: int = 1) -> None:
        eventually(lambda: self.executions >= count)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def settled(compute: Compute, function: str, payload: dict[str, Any], unit: str) -> Any:
    """Submits until somebody is not ``Busy``, as a flow does."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return compute.result(compute.submit(function, payload, unit), PATIENCE_S)
        except Busy:
            assert time.monotonic() < deadline


class ComputeContract:
    def test_what_the_function_returns_comes_back_and_its_files_are_in_the_store(self, compute, world, store):
        call = compute.submit("count", world.payload(text="to be or not"), UNIT)
        answer = compute.result(call, PATIENCE_S)
        assert answer["facts"] == {"device": "cpu", "words": 4}
        (artifact,) = answer["artifacts"]
        assert store.get(artifact["key"]) == b"to be or not"
        assert store.holds(Artifact.from_json(artifact))
        assert world.executions == 1

    def test_a_result_can_be_asked_for_again_and_by_others(self, compute, again, world):
        call = compute.submit("count", world.payload(text="to be"), UNIT)
        first = compute.result(call, PATIENCE_S)
        assert compute.result(call, 0) == first
        assert again().result(call, 0) == first
        assert world.executions == 1

    @pytest.mark.parametrize(
        ("code", "kind", "message"),
        [
            ("undecodable", Undecodable, "not one frame: ü\n'quoted'"),
            ("missing", Missing, "there is no upload"),
            ("timed_out", TimedOut, "the server did not answer"),
            ("held", Held, "video:1 is held by worker-7 for another 3.0 s"),
        ],
    )
    def test_a_typed_error_comes_back_as_itself(self, compute, world, code, kind, message):
        call = compute.submit("refuse", world.payload(code=code), UNIT)
        for _ in range(2):
            with pytest.raises(DailiesError) as raised:
                compute.result(call, PATIENCE_S)
            assert type(raised.value) is kind
            assert str(raised.value) == message

    def test_a_mistake_is_transient_and_named(self, compute, world):
        call = compute.submit("stumble", world.payload(), UNIT)
        with pytest.raises(Transient, match="ZeroDivisionError: a mistake of our own") as raised:
            compute.result(call, PATIENCE_S)
        assert type(raised.value) is Transient

    def test_while_it_runs_it_says_so_in_time_and_can_be_asked_again(self, compute, again, world):
        call = compute.submit("wait", world.payload(), UNIT)
        world.begun()
        for asked in (compute, again()):
            start = time.monotonic()
            with pytest.raises(StillRunning):
                asked.result(call, 0.3)
            assert 0.3 <= time.monotonic() - start < 2
        world.gate.touch()
        assert again().result(call, PATIENCE_S)["facts"]["waited"] is True
        assert world.executions == 1

    def test_a_function_over_its_limit_timed_out_and_leaves_nobody(self, compute, world):
        call = compute.submit("limited", world.payload(), UNIT)
        start = time.monotonic()
        with pytest.raises(TimedOut) as raised:
            compute.result(call, PATIENCE_S)
        assert type(raised.value) is TimedOut, "it is over: nobody need ask again"
        assert time.monotonic() - start < 10
        assert len(world.family) == 2
        eventually(lambda: all(map(gone, world.family)))

    def test_a_cancelled_call_is_gone_with_all_that_it_started_within_two_seconds(self, compute, again, world):
        call = compute.submit("linger", world.payload(), UNIT)
        eventually(world.note.exists)
        assert len(world.family) == 2
        assert not any(map(gone, world.family))
        start = time.monotonic()
        again().cancel(call)
        eventually(lambda: all(map(gone, world.family)))
        assert time.monotonic() - start < 2
        for asked in (compute, again()):
            with pytest.raises(Canceled):
                asked.result(call, PATIENCE_S)

    def test_who_waits_for_a_call_that_is_cancelled_hears_it_at_once(self, compute, again, world):
        call = compute.submit("linger", world.payload(), UNIT)
        eventually(world.note.exists)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(compute.result, call, PATIENCE_S)
            again().cancel(call)
            with pytest.raises(Canceled):
                waiting.result(5)

    def test_a_cancelled_unit_can_be_submitted_again(self, compute, world):
        compute.cancel(compute.submit("wait", world.payload(), UNIT))
        world.gate.touch()
        assert settled(compute, "wait", world.payload(), UNIT)["facts"]["waited"] is True

    def test_cancelling_what_has_ended_changes_nothing(self, compute, world):
        call = compute.submit("count", world.payload(text="to be"), UNIT)
        answer = compute.result(call, PATIENCE_S)
        compute.cancel(call)
        compute.cancel(call)
        assert compute.result(call, 0) == answer

    @pytest.mark.parametrize("unknown", ["fc-00000000", "0" * 32, "../escape", ""])
    def test_a_call_that_nobody_knows_is_unknown(self, compute, world, unknown):
        compute.result(compute.submit("count", world.payload(), UNIT), PATIENCE_S)
        for ask in (lambda: compute.result(unknown, 1), lambda: compute.cancel(unknown)):
            with pytest.raises(UnknownCall):
                ask()

    def test_a_function_that_is_not_there_is_said_at_once_in_one_line(self, compute, world):
        with pytest.raises(NotConfigured, match="teleport") as raised:
            compute.submit("teleport", world.payload(), UNIT)
        assert "\n" not in str(raised.value)

    def test_a_unit_submitted_again_while_it_is_worked_on_is_executed_once(self, compute, again, world):
        first = compute.submit("wait", world.payload(), UNIT)
        world.begun()
        threading.Timer(1.5, world.gate.touch).start()
        answer = settled(again(), "wait", world.payload(), UNIT)
        assert answer == compute.result(first, PATIENCE_S)
        assert world.executions == 1

    def test_a_unit_submitted_again_when_it_is_finished_is_executed_once(self, compute, again, world):
        answer = settled(compute, "count", world.payload(text="to be"), UNIT)
        assert settled(again(), "count", world.payload(text="to be"), UNIT) == answer
        assert world.executions == 1

    def test_another_unit_is_other_work(self, compute, world):
        settled(compute, "count", world.payload(text="to be"), UNIT)
        assert settled(compute, "count", world.payload(text="or not to be"), UNIT[::-1])["facts"]["words"] == 4
        assert world.executions == 2

    @pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"0"), lambda path: path.unlink()])
    def test_a_finished_unit_whose_file_is_harmed_is_executed_again(self, compute, world, store, harm):
        answer = settled(compute, "count", world.payload(text="to be"), UNIT)
        harm(store.root / answer["artifacts"][0]["key"])
        assert settled(compute, "count", world.payload(text="to be"), UNIT) == answer
        assert world.executions == 2
        assert store.holds(Artifact.from_json(answer["artifacts"][0]))

    def test_a_unit_that_failed_is_tried_again_when_it_is_submitted_again(self, compute, world):
        with pytest.raises(Transient, match="the first time it does not work"):
            settled(compute, "refuse_once", world.payload(), UNIT)
        assert settled(compute, "refuse_once", world.payload(), UNIT)["facts"]["tries"] == 2
        assert world.executions == 2

    def test_a_call_whose_process_was_killed_is_transient_at_once_and_its_unit_starts_again(
        self, compute, struck, world
    ):
        call = compute.submit("wait", world.payload(), UNIT)
        world.begun()
        struck(call)
        start = time.monotonic()
        with pytest.raises(Transient) as raised:
            compute.result(call, PATIENCE_S)
        assert type(raised.value) is Transient
        assert time.monotonic() - start < 2
        world.gate.touch()
        assert settled(compute, "wait", world.payload(), UNIT)["facts"]["waited"] is True
        assert world.executions == 2

    def test_where_no_gpu_is_the_work_is_done_all_the_same_and_says_so(self, compute, world, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert settled(compute, "on_gpu", world.payload(text="to be"), UNIT)["facts"] == {"device": "cpu", "words": 2}
