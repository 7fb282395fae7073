"""Real processes, really killed and frozen."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from dailies.errors import BadInput, Missing, TimedOut
from dailies.scenarios.leaks import no_ports, no_processes
from dailies.scenarios.processes import Nursery, free_port
from dailies.scenarios.undertaker import MARKER, Stray, birth, bury, strike, trace

pytestmark = pytest.mark.recovery
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
IGNORES_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
PATIENCE = 10.0


def sleep_long():
    time.sleep(600)


def say_and_fail(word):
    os.write(1, b"raw\n")
    sys.stdout.write(f"said {word}\n")
    raise RuntimeError(f"failed {word}")


def say_and_die(word):
    print(word)  # noqa: T201 - through Python's own buffer
    os.kill(os.getpid(), signal.SIGKILL)


def write_environment(path, name):
    Path(path).write_text(os.environ.get(name, "unset"))


def count_up(path):
    """Several threads write, so that a freeze has to stop them all."""

    def write():
        with Path(path).open("ab", buffering=0) as file:
            while True:
                file.write(b".")
                time.sleep(0.0005)

    for _ in range(4):
        threading.Thread(target=write).start()


def start_grandchild(path, escape):
    """A grandchild that nobody ends; ``escape`` says what it leaves behind of its family."""
    program = subprocess.Popen(
        SLEEP, process_group=0 if escape == "group" else None, start_new_session=escape == "session"
    )
    announce(path, program.pid)
    if escape == "orphaned":
        os._exit(0)
    time.sleep(600)


def fork_daemon_without_marker(path):
    if os.fork() == 0:
        os.setsid()
        announce(path, os.getpid())
        time.sleep(600)
    time.sleep(600)


def announce(path, *numbers):
    draft = Path(f"{path}.draft")
    draft.write_text(" ".join(map(str, numbers)))
    draft.rename(path)


def scenario_that_is_killed(path):
    nursery = Nursery()
    children = [nursery.spawn(sleep_long), nursery.spawn(sleep_long), nursery.popen(SLEEP), nursery.popen(SLEEP)]
    for child in children[::2]:
        child.freeze()
        child.wait_frozen(PATIENCE)
    grandchild = f"{path}.grandchild"
    nursery.spawn(start_grandchild, grandchild, "session")
    announce(path, *(child.pid for child in nursery.children), *read_pids(Path(grandchild)))
    time.sleep(600)


def scenario_that_forgets(path):
    nursery = Nursery()
    children = [nursery.spawn(sleep_long), nursery.popen(SLEEP)]
    children[0].freeze()
    announce(path, *(child.pid for child in children))


def read_pids(path: Path) -> list[int]:
    eventually(path.exists)
    return [int(word) for word in path.read_text().split()]


def eventually(holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def nursery():
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(params=["spawn", "popen"])
def sleeper(request, nursery):
    return nursery.spawn(sleep_long) if request.param == "spawn" else nursery.popen(SLEEP)


def test_a_killed_child_is_dead_with_the_signal_as_its_exit_code(sleeper):
    assert sleeper.alive
    assert sleeper.exitcode is None
    assert os.getsid(sleeper.pid) == os.getpgid(sleeper.pid) == sleeper.pid
    sleeper.kill()
    assert sleeper.wait(PATIENCE) == -signal.SIGKILL
    assert not sleeper.alive
    assert sleeper.state == ""


def test_a_frozen_child_is_stopped_and_wakes_up_again(sleeper):
    sleeper.freeze()
    sleeper.wait_frozen(PATIENCE)
    assert sleeper.state == "T"
    assert sleeper.alive
    sleeper.revive()
    eventually(lambda: sleeper.state in "RSD")


def test_a_child_that_is_not_frozen_is_not_said_to_be(sleeper):
    with pytest.raises(TimedOut):
        sleeper.wait_frozen(0.1)
    sleeper.kill()
    sleeper.wait(PATIENCE)
    with pytest.raises(Missing):
        sleeper.wait_frozen(0.1)


def test_nothing_is_written_by_any_thread_of_a_frozen_child(nursery, tmp_path):
    path = tmp_path / "ticks"
    child = nursery.spawn(count_up, path)
    eventually(lambda: path.exists() and path.stat().st_size > 20)
    for _ in range(5):
        child.freeze()
        child.wait_frozen(PATIENCE)
        size = path.stat().st_size
        time.sleep(0.05)
        assert path.stat().st_size == size
        child.revive()
        eventually(lambda size=size: path.stat().st_size > size)


def test_a_child_ends_when_asked_and_is_killed_when_it_does_not_listen(nursery, tmp_path):
    log = tmp_path / "log"
    assert nursery.popen(SLEEP).terminate(PATIENCE) == -signal.SIGTERM
    deaf = nursery.popen([sys.executable, "-c", IGNORES_TERM], log=log)
    eventually(lambda: log.read_text() == "up\n")
    assert deaf.terminate(0.2) == -signal.SIGKILL
    assert deaf.terminate(0.2) == -signal.SIGKILL


def test_waiting_for_a_living_child_times_out(sleeper):
    with pytest.raises(TimedOut):
        sleeper.wait(0.05)


def test_a_dead_child_is_never_signalled_again(sleeper):
    sleeper.kill()
    sleeper.wait(PATIENCE)
    for act in (sleeper.kill, sleeper.freeze, sleeper.revive):
        with pytest.raises(Missing, match="nothing was signalled"):
            act()


def test_a_reused_pid_is_never_hit(sleeper):
    impostor = dataclasses.replace(sleeper, started=sleeper.started - 1)
    for act in (impostor.kill, impostor.freeze):
        with pytest.raises(Missing, match="its number is another's now"):
            act()
    with pytest.raises(Missing):
        strike(sleeper.pid, sleeper.started - 1, signal.SIGKILL)
    assert not impostor.alive
    assert sleeper.alive
    assert sleeper.state != "T"


def test_a_stranger_who_leads_a_session_with_a_dead_childs_number_is_no_leftover(sleeper):
    assert [stray.pid for stray in trace({sleeper.pid: sleeper.started}, "no token")] == [sleeper.pid]
    assert trace({sleeper.pid: sleeper.started - 1}, "no token") == []


def test_an_exception_goes_to_the_log_and_is_exit_code_one(nursery, tmp_path):
    log = tmp_path / "log"
    assert nursery.spawn(say_and_fail, "word", log=log).wait(PATIENCE) == 1
    text = log.read_text()
    assert "raw" in text
    assert "said word" in text
    assert "RuntimeError: failed word" in text


def test_what_a_child_said_before_it_was_killed_is_in_the_log(nursery, tmp_path):
    assert nursery.spawn(say_and_die, "last words", log=tmp_path / "log").wait(PATIENCE) == -signal.SIGKILL
    assert (tmp_path / "log").read_text() == "last words\n"


def test_a_programs_output_goes_to_the_log(nursery, tmp_path):
    log = tmp_path / "log"
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert nursery.popen([sys.executable, "-c", script], log=log).wait(PATIENCE) == 3
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_a_child_sees_the_environment_of_now(nursery, tmp_path, monkeypatch):
    nursery.spawn(sleep_long)
    monkeypatch.setenv("DAILIES_TEST_WORD", "now")
    nursery.spawn(write_environment, tmp_path / "a", "DAILIES_TEST_WORD").wait(PATIENCE)
    nursery.spawn(write_environment, tmp_path / "b", "DAILIES_TEST_WORD", env={"DAILIES_TEST_WORD": "own"}).wait(
        PATIENCE
    )
    assert [(tmp_path / name).read_text() for name in "ab"] == ["now", "own"]


def test_a_scenario_inside_a_scenario_bears_both_marks(nursery, tmp_path, monkeypatch):
    monkeypatch.setenv(MARKER, "outer")
    nursery.spawn(write_environment, tmp_path / "mark", MARKER).wait(PATIENCE)
    assert (tmp_path / "mark").read_text().startswith("outer/")
    program = nursery.popen(SLEEP)
    # The kernel lets the parent go on a moment before the new program has its environment.
    eventually(lambda: MARKER in psutil.Process(program.pid).environ())
    outer, own = psutil.Process(program.pid).environ()[MARKER].split("/")
    assert outer == "outer"
    assert all(program.pid in {stray.pid for stray in trace({}, token)} for token in (own, "outer"))
    assert trace({}, "out") == []


def test_a_function_without_a_name_and_a_program_that_is_not_there_are_refused(nursery):
    with pytest.raises(BadInput):
        nursery.spawn(lambda: None)
    with pytest.raises(Missing):
        nursery.popen(["/no/such/program"])


def test_children_started_and_ended_in_many_threads_keep_their_own_exit_codes(nursery):
    codes = []

    def work(number):
        child = nursery.spawn(os._exit, number)
        watchers = [threading.Thread(target=watch, args=(child, number)) for _ in range(3)]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.join()

    def watch(child, number):
        while child.exitcode is None:
            time.sleep(0)
        codes.append((number, child.exitcode))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == sorted([(number, number) for number in range(12)] * 3)


def test_a_child_that_nobody_took_down_does_nothing(nursery, tmp_path, monkeypatch):
    def fail(*_):
        raise Missing("the undertaker is gone")

    monkeypatch.setattr(nursery, "_enrol", fail)
    with pytest.raises(Missing):
        nursery.spawn(write_environment, tmp_path / "effect", MARKER)
    time.sleep(0.3)
    assert not (tmp_path / "effect").exists()


def test_without_an_undertaker_nothing_more_is_started(nursery):
    nursery.popen(SLEEP)
    os.kill(nursery._undertaker.pid, signal.SIGKILL)
    nursery._undertaker.wait()
    with pytest.raises(Missing, match="undertaker"):
        nursery.spawn(sleep_long)


def test_burying_goes_on_until_nobody_is_found_and_says_when_somebody_stays(nursery):
    first, second = nursery.popen(SLEEP), nursery.popen(SLEEP)
    graves = [[Stray(first.pid, first.started, "first")], [Stray(second.pid, second.started, "second")], []]
    assert [stray.what for stray in bury(lambda: graves.pop(0))] == ["first", "second"]
    assert first.wait(PATIENCE) == second.wait(PATIENCE) == -signal.SIGKILL
    with pytest.raises(TimedOut, match="undead"):
        bury(lambda: [Stray(first.pid, first.started, "undead")], patience=0.1)


def test_a_child_outlives_the_thread_that_started_it(nursery):
    thread = threading.Thread(target=lambda: nursery.popen(SLEEP))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert nursery.children[0].alive


def test_cleaning_up_ends_all_frozen_or_not_and_twice_is_once(nursery):
    children = [nursery.spawn(sleep_long), nursery.popen(SLEEP), nursery.spawn(sleep_long), nursery.popen(SLEEP)]
    for child in children[:2]:
        child.freeze()
    assert {stray.pid for stray in nursery.cleanup()} == {child.pid for child in children}
    assert all(birth(child.pid) != child.started for child in children), "a zombie is left"
    assert [child.exitcode for child in children] == [-signal.SIGKILL] * 4
    assert nursery.cleanup() == []
    with pytest.raises(BadInput):
        nursery.popen(SLEEP)


def test_cleaning_up_after_children_that_ended_well_kills_nobody(nursery):
    nursery.popen([sys.executable, "-c", ""]).wait(PATIENCE)
    nursery.spawn(time.sleep, 0).wait(PATIENCE)
    assert nursery.cleanup() == []


def test_an_interrupted_scenario_still_cleans_up():
    children = []

    def scenario():
        with Nursery() as nursery:
            children.append(nursery.spawn(sleep_long))
            children[0].freeze()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scenario()
    assert children[0].exitcode == -signal.SIGKILL


def test_a_nursery_that_is_never_left_is_cleaned_up_when_the_program_ends(tmp_path):
    path = tmp_path / "pids"
    subprocess.run(program(f"scenario_that_forgets({str(path)!r})"), check=True, timeout=PATIENCE)
    assert all(map(is_gone, read_pids(path)))


def test_the_forkserver_and_the_undertaker_are_no_leak(nursery):
    nursery.spawn(time.sleep, 0).wait(PATIENCE)
    assert len(psutil.Process().children()) >= 3
    assert no_processes(nursery).passed


def test_a_living_child_is_a_leak_until_it_ends(nursery, sleeper):
    check = no_processes(nursery, settle=0.1)
    assert not check.passed
    assert str(sleeper.pid) in check.actual[0]
    sleeper.kill()
    assert no_processes(nursery).passed


@pytest.mark.parametrize("escape", ["group", "session", "orphaned"])
@pytest.mark.parametrize("way", ["spawn", "popen"])
def test_a_grandchild_that_escapes_is_found_and_ended(nursery, tmp_path, way, escape):
    path = tmp_path / "pid"
    if way == "spawn":
        child = nursery.spawn(start_grandchild, path, escape)
    else:
        child = nursery.popen(program(f"start_grandchild({str(path)!r}, {escape!r})"))
    (grandchild,) = read_pids(path)
    if escape != "orphaned":
        child.kill()
    child.wait(PATIENCE)
    assert not is_gone(grandchild)
    assert not no_processes(nursery, settle=0.1).passed
    assert [stray.pid for stray in nursery.cleanup()] == [grandchild]
    assert is_gone(grandchild)
    assert no_processes(nursery).passed


def test_a_daemon_without_session_and_marker_is_found_while_its_parent_lives(nursery, tmp_path):
    nursery.spawn(fork_daemon_without_marker, tmp_path / "pid")
    (daemon,) = read_pids(tmp_path / "pid")
    assert daemon in {stray.pid for stray in nursery.leftovers()}
    nursery.cleanup()
    assert is_gone(daemon)


def program(call: str) -> list[str]:
    here = str(Path(__file__).parent)
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); from {__name__} import *; {call}"]


def test_when_the_scenario_is_killed_its_children_go_too_frozen_or_not(tmp_path):
    path = tmp_path / "pids"
    scenario = subprocess.Popen(program(f"scenario_that_is_killed({str(path)!r})"))
    try:
        pids = read_pids(path)
        helpers = [process.pid for process in psutil.Process(scenario.pid).children()]
        assert len(pids) == 6
        assert not any(map(is_gone, pids))
    finally:
        scenario.kill()
        scenario.wait()
    eventually(lambda: all(map(is_gone, [*pids, *helpers])))


def test_a_server_left_running_is_a_port_left_open(nursery):
    port = free_port()
    server = nursery.popen([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"])
    eventually(lambda: not no_ports([port]).passed)
    server.kill()
    server.wait(PATIENCE)
    assert no_ports([port]).passed
