"""Steps: what is done is done once, what is damaged is redone alone, and who lost the job writes nothing more."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import State

from blocks.site import OpenSite, open_site
from dailies.errors import BadInput, DailiesError, Fenced, Injected, Stopped, TimedOut, Transient
from dailies.failpoints import fired
from dailies.ledger.holding import Keeper, keeping
from dailies.ledger.records import Caps, JobRequest, JobState
from dailies.ledger.sqlite import SqliteLedger
from tasks import _step
from tasks._job import Working
from tasks._step import REGISTRY, Output, Step, effect, in_child, work

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

TTL_S = 6.0
KEY = "acme/server/videos/v1/counted"
SLEEPER = """
import os, subprocess, sys, time

def sleep(note):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(note + ".new", "w") as file:
        file.write(f"{os.getpid()} {grandchild.pid}")
    os.rename(note + ".new", note)
    time.sleep(600)
"""
done: list[str] = []
during: list[Callable[[Working], Any]] = []


def count(job: Working, text: str, by: str = "word") -> Output:
    """Counts, and does what a test wants to happen meanwhile."""
    done.append(text)
    if during:
        during.pop(0)(job)
    parts = text.split() if by == "word" else list(text)
    return Output(facts={"count": len(parts)}, artifacts=(job.site.store.put(f"{KEY}/{by}-{len(text)}.txt", b"1"),))


def named(name: str, function: Callable[..., Output]) -> Callable[..., Output]:
    """The same function as another step."""

    def renamed(job: Working, text: str, by: str = "word") -> Output:
        return function(job, text, by)

    renamed.__name__, renamed.__doc__ = name, function.__doc__
    return renamed


counted = work(version=1, timeout=30, retries=0)(named("count", count))
counted_anew = work(version=2, timeout=30, retries=0)(named("count", count))
recounted = work(version=1, timeout=30, retries=0)(named("recount", count))
retried = work(version=1, timeout=30, retries=1)(named("retried", count))
announced = effect(timeout=30, retries=0)(named("announce", count))
for name in ("count", "recount", "retried", "announce"):
    del REGISTRY[name]  # nobody else's business


@pytest.fixture(autouse=True)
def _nothing_done_yet() -> None:
    done.clear()
    during.clear()


@pytest.fixture
def begin(site: OpenSite) -> Iterator[Callable[..., Working]]:
    """Jobs in our hands, as a flow has them, without the flow."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(tenant: str = "acme", subject: str = "acme/v1", at: OpenSite = site, ttl: float = TTL_S) -> Working:
            run = f"run-{next(numbers)}"
            job = at.ledger.jobs.submit(JobRequest(tenant, "count", subject), run_id=run)
            job, lease = at.ledger.jobs.start(job.id, 1, run, ttl)
            keeper: Keeper = stack.enter_context(keeping(at.ledger, TTL_S))
            if ttl == TTL_S:
                keeper.add(lease)  # with a shorter ttl it is a worker that has frozen: nobody renews
            return Working(at, job, lease, keeper, lease)

        yield start


def final_state(step: Step[...], job: Working, *args: Any, **options: Any) -> State[Any]:
    return step.task(job, *args, **options, return_state=True)


def keys(job: Working) -> list[str]:
    return [unit.key for unit in job.site.ledger.units.of(job.job.id)]


def key_of(step: Step[...], job: Working, *args: Any, **options: Any) -> str:
    """The key that one call is recorded under."""
    before = set(keys(job))
    step(job, *args, **options)
    (key,) = set(keys(job)) - before
    return key


def test_the_first_call_computes_and_records_its_outcome_under_the_fence(begin, site):
    job = begin()
    output = counted(job, "to be or not")
    (unit,) = site.ledger.units.of(job.job.id)
    assert done == ["to be or not"]
    assert output.facts == {"count": 4}
    assert Output.from_json(unit.result) == output
    assert (unit.step, unit.state, unit.attempts, unit.reuses) == ("count", "DONE", 1, 0)
    assert unit.fence == job.lease.fence > 0
    assert site.store.get(output.artifacts[0].key) == b"1"


def test_a_second_job_gets_the_recorded_output_in_a_state_named_reused(begin, site):
    first, second = begin(), begin()
    output = counted(first, "to be")
    state = final_state(counted, second, "to be")
    assert (state.name, state.type.value, state.message) == ("Reused", "COMPLETED", f"made by job {first.job.id}")
    assert state.result() == output
    assert done == ["to be"]
    (unit,) = site.ledger.units.of(second.job.id)
    assert (unit.state, unit.attempts, unit.reuses, unit.fence) == ("REUSED", 0, 1, second.lease.fence)
    assert counted(second, "to be") == output


def test_the_next_attempt_of_a_job_gets_what_the_one_before_recorded(begin, site):
    first = begin()
    output = counted(first, "to be")
    site.ledger.jobs.failed(first.lease, Transient("the disk was full"), retry_in=0)
    site.ledger.dispatch.next(Caps())
    _, lease = site.ledger.jobs.start(first.job.id, 2, "run-2", TTL_S)
    first.keeper.drop(first.lease)
    first.keeper.add(lease)
    second = dataclasses.replace(first, lease=lease)
    state = final_state(counted, second, "to be")
    assert (state.name, state.result()) == ("Reused", output)
    (unit,) = site.ledger.units.of(first.job.id)
    assert (unit.state, unit.attempts, unit.reuses, unit.fence) == ("DONE", 1, 1, lease.fence)
    assert lease.fence > first.lease.fence


def test_the_same_work_has_the_same_key_however_it_is_written_and_whoever_asks(begin):
    first = key_of(counted, begin(), "to be")
    assert key_of(counted, begin(), text="to be") == first
    assert key_of(counted, begin(), "to be", "word") == first
    assert key_of(counted, begin(), by="word", text="to be") == first


def test_another_tenant_subject_step_version_input_or_option_is_other_work(begin, site):
    other_site = dataclasses.replace(site, name="staging")
    found = [
        key_of(counted, begin(), "to be"),
        key_of(counted, begin(tenant="apex"), "to be"),
        key_of(counted, begin(subject="acme/v2"), "to be"),
        key_of(counted, begin(at=other_site), "to be"),
        key_of(recounted, begin(), "to be"),
        key_of(counted_anew, begin(), "to be"),
        key_of(counted, begin(), "not to be"),
        key_of(counted, begin(), "to be", by="letter"),
    ]
    assert len(set(found)) == len(found) == len(done)


def test_two_tenants_never_share_a_unit(begin, site):
    counted(begin(tenant="acme"), "to be")
    state = final_state(counted, begin(tenant="apex"), "to be")
    assert state.name == "Completed"
    assert done == ["to be", "to be"]


def test_files_as_input_count_by_their_content(begin, site):
    def first_of(job: Working, made: Output) -> Output:
        """The first file's size."""
        done.append(made.artifacts[0].sha256)
        return Output(facts={"size": made.artifacts[0].size})

    step = work(version=1, timeout=30, retries=0)(first_of)
    del REGISTRY["first_of"]
    one, two = (Output(artifacts=(site.store.put(f"{KEY}/in.txt", data),)) for data in (b"1", b"2"))
    job = begin()
    assert step(job, one) == step(job, one)
    step(job, two)
    assert done == [one.artifacts[0].sha256, two.artifacts[0].sha256]


@pytest.mark.parametrize(
    "harm",
    [lambda path: path.write_bytes(b"0"), lambda path: path.write_bytes(b""), lambda path: path.unlink()],
    ids=["damaged", "truncated", "missing"],
)
def test_a_harmed_file_makes_only_its_own_unit_be_redone(begin, site, home, harm):
    first = begin()
    harmed = counted(first, "to be")
    whole = counted(first, "to be or not")
    harm(home / "media" / harmed.artifacts[0].key)
    second = begin()
    assert final_state(counted, second, "to be").name == "Completed"
    assert final_state(counted, second, "to be or not").name == "Reused"
    assert done == ["to be", "to be or not", "to be"]
    assert site.store.holds(harmed.artifacts[0])
    assert site.store.holds(whole.artifacts[0])
    assert [unit.state for unit in site.ledger.units.of(second.job.id)] == ["DONE", "REUSED"]


@pytest.mark.expects_errors
def test_a_step_whose_job_was_taken_over_meanwhile_is_fenced_and_records_nothing(begin, site, eventually):
    frozen = begin(ttl=0.2)

    def taken_over(job: Working) -> None:
        assert eventually(site.ledger.jobs.recover)[0].attempt == 2

    during.append(taken_over)
    with pytest.raises(Fenced, match="used to complete a unit"):
        counted(frozen, "to be")
    (unit,) = site.ledger.units.of(frozen.job.id)
    assert (unit.state, unit.result) == ("RUNNING", None)
    assert site.ledger.units.find(unit.key) is None
    assert site.ledger.jobs.get(frozen.job.id).state is JobState.QUEUED


@pytest.mark.expects_errors
def test_a_reuse_is_fenced_too(begin, site, eventually):
    counted(begin(), "to be")
    frozen = begin(ttl=0.1)
    eventually(site.ledger.jobs.recover)
    with pytest.raises(Fenced):
        counted(frozen, "to be")
    assert site.ledger.units.of(frozen.job.id) == []


def raises(error: DailiesError) -> Callable[[Working], None]:
    def strike(job: Working) -> None:
        raise error

    return strike


def test_a_transient_error_is_tried_again(begin, site):
    during.append(raises(Transient("the network blinked")))
    job = begin()
    assert retried(job, "to be").facts == {"count": 2}
    assert done == ["to be", "to be"]
    assert [(unit.state, unit.attempts) for unit in site.ledger.units.of(job.job.id)] == [("DONE", 1)]


@pytest.mark.expects_errors
def test_a_transient_error_that_stays_is_raised_when_the_retries_are_spent(begin, site):
    during.extend(raises(TimedOut(f"no answer to question {n}")) for n in (1, 2, 3))
    job = begin()
    with pytest.raises(TimedOut, match="no answer to question 2"):
        retried(job, "to be")
    assert done == ["to be", "to be"]
    assert [(unit.state, unit.attempts) for unit in site.ledger.units.of(job.job.id)] == [("RUNNING", 1)]


@pytest.mark.expects_errors
@pytest.mark.parametrize("error", [BadInput("not a text"), Fenced("somebody else has it")], ids=["bad input", "fenced"])
def test_an_error_that_would_stay_is_not_tried_again(begin, site, error):
    during.append(raises(error))
    job = begin()
    with pytest.raises(type(error), match=str(error)):
        retried(job, "to be")
    assert done == ["to be"]


@pytest.mark.expects_errors
def test_a_mistake_of_our_own_is_not_tried_again(begin):
    def stumble(job: Working) -> None:
        raise ZeroDivisionError("a mistake")

    during.append(stumble)
    with pytest.raises(ZeroDivisionError):
        retried(begin(), "to be")
    assert done == ["to be"]


@pytest.mark.parametrize(("step", "name"), [(counted, "count"), (announced, "announce")], ids=["work", "effect"])
def test_the_crash_points_are_passed_in_order(begin, arm, step, name):
    points = [f"{name}:before", f"{name}:after", f"{name}:committed"]
    assert list(step.points) == points
    log = arm("; ".join(f"{point}=sleep(0)" for point in reversed(points)))
    step(begin(), "to be")
    assert [entry["name"] for entry in fired(log)] == points


@pytest.mark.expects_errors
@pytest.mark.parametrize(("point", "worked"), [("before", []), ("after", ["to be"])])
def test_before_the_record_is_durable_nothing_is_found(begin, arm, home, point, worked):
    arm(f"count:{point}=raise")
    job = begin()
    with pytest.raises(Injected, match=f"failpoint count:{point}"):
        counted(job, "to be")
    assert done == worked
    (key,) = keys(job)
    assert SqliteLedger(home / "ledger.db").units.find(key) is None


@pytest.mark.expects_errors
def test_committed_is_passed_only_when_the_record_is_durable(begin, arm, home):
    arm("count:committed=raise")
    job = begin()
    with pytest.raises(Injected, match="failpoint count:committed"):
        counted(job, "to be")
    (key,) = keys(job)
    found = SqliteLedger(home / "ledger.db").units.find(key)
    assert found is not None
    assert found.result["facts"] == {"count": 2}
    assert final_state(counted, job, "to be").name == "Reused"
    assert done == ["to be"]


@pytest.mark.expects_errors
@pytest.mark.parametrize("step", [counted, announced], ids=["work", "effect"])
@pytest.mark.parametrize("word", ["cancel", "pause"])
def test_when_the_job_is_told_to_stop_nothing_new_begins(begin, site, eventually, step, word):
    job = begin()
    getattr(site.ledger.jobs, word)(job.job.id)
    eventually(lambda: told(job))
    with pytest.raises(Stopped, match=f"was told to {word}"):
        step(job, "to be")
    assert done == []
    assert keys(job) == []


def told(job: Working) -> bool:
    try:
        job.check()
    except (Stopped, Fenced):
        return True
    return False


@pytest.mark.expects_errors
def test_when_the_lease_is_lost_no_effect_happens(begin, site, eventually):
    job = begin()
    SqliteLedger(site.ledger.path, clock=lambda: time.time() + 60).jobs.recover()
    eventually(lambda: told(job))
    with pytest.raises(Fenced):
        announced(job, "to be")
    assert done == []


def test_an_effect_is_never_reused(begin, site):
    job = begin()
    announced(job, "to be")
    assert final_state(announced, job, "to be").name == "Completed"
    announced(begin(), "to be")
    assert done == ["to be"] * 3
    assert keys(job) == []


@pytest.mark.expects_errors
def test_prefect_ends_what_is_stuck_a_little_after_the_steps_own_limit(begin, monkeypatch):
    assert counted.task.timeout_seconds == 30 + _step.GRACE_S
    monkeypatch.setattr(_step, "GRACE_S", 0.2)
    stuck = work(version=1, timeout=0.2, retries=2)(named("stuck", count))
    del REGISTRY["stuck"]
    during.append(lambda job: [time.sleep(0.05) for _ in range(400)])  # one long sleep could not be interrupted
    job = begin()
    started = time.monotonic()
    state = final_state(stuck, job, "to be")
    assert time.monotonic() - started < 5
    assert (state.name, done) == ("TimedOut", ["to be"])
    assert [unit.state for unit in job.site.ledger.units.of(job.job.id)] == ["RUNNING"]


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Step[...]]]:
    """Steps that sleep in a child of theirs."""
    (tmp_path / "sleeper_for_a_child.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(timeout: float) -> Step[...]:
        def slow(job: Working, note: str) -> Output:
            """Sleeps."""
            in_child(job, step, "sleeper_for_a_child:sleep", note=note)
            return Output()

        step = work(version=1, timeout=timeout, retries=0)(slow)
        return step

    yield make
    REGISTRY.pop("slow", None)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.expects_errors
def test_a_cancel_ends_the_child_and_what_it_started_within_two_seconds(
    begin, site, slow, beside, eventually, tmp_path
):
    note, job = tmp_path / "note", begin()
    running = beside(slow(60), job, str(note))
    eventually(note.exists)
    family = [int(pid) for pid in note.read_text().split()]
    assert not any(map(gone, family))
    canceled = time.monotonic()
    open_site().ledger.jobs.cancel(job.job.id)
    eventually(lambda: all(map(gone, family)))
    assert time.monotonic() - canceled <= 2
    assert isinstance(running.exception(5), Stopped)
    assert [unit.state for unit in site.ledger.units.of(job.job.id)] == ["RUNNING"]


@pytest.mark.expects_errors
def test_a_pause_lets_the_unit_in_flight_end(begin, site, eventually):
    job = begin()

    def pause(job: Working) -> None:
        site.ledger.jobs.pause(job.job.id)
        eventually(lambda: told(job))

    during.append(pause)
    assert counted(job, "to be").facts == {"count": 2}
    with pytest.raises(Stopped, match="was told to pause"):
        counted(job, "or not")
    assert [unit.state for unit in site.ledger.units.of(job.job.id)] == ["DONE"]


@pytest.mark.expects_errors
def test_the_steps_limit_ends_the_child(begin, slow, tmp_path):
    note = tmp_path / "note"
    with pytest.raises(TimedOut, match=r"sleeper_for_a_child:sleep did not end within 1\.5 s and was stopped"):
        slow(1.5)(begin(), str(note))
    assert all(gone(int(pid)) for pid in note.read_text().split())
