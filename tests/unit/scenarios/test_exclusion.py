import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies.errors import BadInput, Missing
from dailies.scenarios.exclusion import EffectLog, Event, Findings, History, examine, read_history

pytestmark = pytest.mark.unit


def history(*events: tuple) -> History:
    return History(tuple(Event(who, what, fence, float(t)) for t, (who, what, fence) in enumerate(events)))


GOOD = (
    ("a", "asked", 0),
    ("b", "asked", 0),
    ("a", "enter", 1),
    ("b", "refused", 0),
    ("a", "exit", 1),
    ("b", "enter", 2),
    ("b", "died", 0),
    ("a", "enter", 5),
    ("a", "exit", 5),
)


def test_turns_that_follow_each_other_are_clean():
    found = examine(history(*GOOD))
    assert found.clean
    assert found.turns == {"a": 2, "b": 1}
    assert found.longest_wait == 4.0
    assert all(check.passed for check in found.checks())


def only(found: Findings, name: str) -> bool:
    """The forged fault and no other is found, and turns exactly one check red."""
    kinds = ("overlaps", "regressions", "strange_exits", "unfinished", "starved")
    red = [check for check in found.checks() if not check.passed]
    return [kind for kind in kinds if getattr(found, kind)] == [name] and len(red) == 1


def test_two_inside_at_once_are_found():
    forged = history(("a", "enter", 1), ("b", "enter", 2), ("a", "exit", 1), ("b", "exit", 2))
    assert only(examine(forged), "overlaps")
    assert examine(forged).overlaps == ["line 2: b enter (fence 2) while line 1: a enter (fence 1) was inside"]


def test_one_inside_twice_is_found():
    forged = history(("a", "enter", 1), ("a", "enter", 2), ("a", "exit", 1), ("a", "exit", 2))
    assert only(examine(forged), "overlaps")


@pytest.mark.parametrize("second", [3, 2])
def test_a_fence_that_does_not_grow_is_found(second):
    forged = history(("a", "enter", 3), ("a", "exit", 3), ("b", "enter", second), ("b", "exit", second))
    assert only(examine(forged), "regressions")


def test_a_fence_below_the_highest_is_found_also_when_it_is_above_the_last():
    fences = (5, 2, 3)
    forged = history(*(event for n in fences for event in (("a", "enter", n), ("a", "exit", n))))
    assert len(examine(forged).regressions) == 2


def test_leaving_without_having_entered_is_found():
    assert only(examine(history(*GOOD, ("b", "exit", 2))), "strange_exits")


def test_leaving_with_another_claims_fence_is_found():
    found = examine(history(("a", "enter", 1), ("a", "exit", 2)))
    assert found.strange_exits
    assert found.unfinished


def test_entering_and_neither_leaving_nor_dying_is_found():
    assert only(examine(history(*GOOD, ("b", "enter", 6))), "unfinished")


def test_anothers_death_excuses_nobody():
    assert only(examine(history(*GOOD, ("b", "enter", 6), ("a", "died", 0))), "unfinished")


@pytest.mark.parametrize(
    "tail", [(("c", "asked", 0),), (("c", "refused", 0),), (("c", "died", 0), ("c", "refused", 0))]
)
def test_whoever_never_got_in_is_found(tail):
    found = examine(history(*GOOD, *tail))
    assert only(found, "starved")
    assert found.starved == ["c"]


def test_the_dead_do_not_starve():
    assert examine(history(*GOOD, ("c", "asked", 0), ("c", "died", 0))).clean


def test_a_history_in_which_nothing_happened_proves_nothing():
    found = examine(History(()))
    assert found.longest_wait is None
    assert [check.name for check in found.checks() if not check.passed] == ["somebody got the lock"]


def test_being_refused_ends_no_wait_and_dying_does():
    assert (
        examine(history(("a", "asked", 0), ("a", "refused", 0), ("a", "asked", 0), ("a", "enter", 1))).longest_wait == 3
    )
    assert examine(history(("a", "asked", 0), ("a", "died", 0), ("a", "enter", 1))).longest_wait is None


@st.composite
def valid_histories(draw: st.DrawFn) -> list[tuple]:
    """Turns with growing fences, some ended by death, with others asking and being refused meanwhile."""
    events, fence = [], 0
    bystanders = st.lists(st.sampled_from(["asked", "refused"]), max_size=2)
    for who in draw(st.lists(st.sampled_from("abc"), min_size=2, max_size=12)):
        others = draw(st.sampled_from(sorted(set("abc") - {who})))
        fence += draw(st.integers(1, 5))
        noise = [(others, what, 0) for what in draw(bystanders)]
        end = draw(st.sampled_from([("exit", fence), ("died", 0)]))
        events += [(who, "asked", 0), (who, "enter", fence), *noise, (who, *end)]
    # Whoever was refused gets in at last.
    for who in "abc":
        fence += 1
        events += [(who, "enter", fence), (who, "exit", fence)]
    return events


def enters(events: list[tuple]) -> list[int]:
    return [number for number, event in enumerate(events) if event[1] == "enter"]


def end_of(events: list[tuple], enter: int) -> int:
    who = events[enter][0]
    return next(n for n in range(enter + 1, len(events)) if events[n][0] == who and events[n][1] in ("exit", "died"))


def without_end(events, pick):
    del events[end_of(events, pick)]


def entered_twice(events, pick):
    events.insert(pick + 1, events[pick])


def intruder(events, pick):
    events.insert(pick + 1, ("z", "enter", 10_000))


def old_fence(events, pick):
    events.append((events[pick][0], "enter", events[pick][2]))
    events.append((events[pick][0], "exit", events[pick][2]))


def without_enter(events, pick):
    end = end_of(events, pick)
    events[end] = (events[pick][0], "exit", events[pick][2])
    del events[pick]


def starved_one(events, pick):
    events.insert(pick, ("z", "refused", 0))


@given(valid_histories())
def test_a_valid_history_is_never_flagged(events):
    assert examine(history(*events)).clean


@pytest.mark.parametrize("mutate", [without_end, entered_twice, intruder, old_fence, without_enter, starved_one])
@given(data=st.data())
def test_a_valid_history_that_was_tampered_with_is_always_flagged(mutate, data):
    events = data.draw(valid_histories())
    mutate(events, data.draw(st.sampled_from(enters(events))))
    assert not examine(history(*events)).clean


def test_what_is_appended_is_read_back_in_order(tmp_path):
    path = tmp_path / "effects"
    with EffectLog(path) as log:
        log.append("a", "asked")
        log.append("a", "enter", fence=4)
    read = read_history(path)
    assert [(event.who, event.what, event.fence) for event in read.events] == [("a", "asked", 0), ("a", "enter", 4)]
    assert read.events[0].t <= read.events[1].t
    assert read.torn == 0


def append_many(path: Path, who: str) -> None:
    with EffectLog(path) as log:
        for number in range(500):
            log.append(who, "asked", number)


def test_lines_of_several_processes_never_mix(tmp_path):
    path = tmp_path / "effects"
    writers = [multiprocessing.get_context("fork").Process(target=append_many, args=(path, f"{n}")) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read_history(path).events
    assert len(events) == 2000
    for who in "0123":
        assert [event.fence for event in events if event.who == who] == list(range(500))


def test_half_a_line_at_the_end_is_a_killed_writers_and_is_counted(tmp_path):
    path = tmp_path / "effects"
    append_many(path, "a")
    path.write_bytes(path.read_bytes()[:-1])
    read = read_history(path)
    assert (len(read.events), read.torn) == (499, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"what": "left"},
        {"what": ["enter"]},
        {"who": 3},
        {"fence": "1"},
        {"fence": True},
        {"t": None},
        {"t": float("nan")},
    ],
)
def test_a_line_that_is_no_event_is_an_error_with_its_number(tmp_path, changes):
    path = tmp_path / "effects"
    append_many(path, "a")
    bad = {"t": 0.5, "who": "a", "fence": 1, "what": "enter"} | changes
    path.write_bytes(path.read_bytes() + json.dumps(bad).encode() + b"\n")
    with pytest.raises(BadInput, match="line 501"):
        read_history(path)


@pytest.mark.parametrize("line", [b"{half", b"", b"\xff", b"[]"])
def test_a_malformed_line_before_the_end_is_an_error(tmp_path, line):
    path = tmp_path / "effects"
    path.write_bytes(line + b"\n")
    append_many(path, "a")
    with pytest.raises(BadInput, match="line 1 "):
        read_history(path)


def test_a_missing_history_is_an_error_and_an_empty_one_is_not(tmp_path):
    with pytest.raises(Missing):
        read_history(tmp_path / "none")
    (tmp_path / "empty").touch()
    assert read_history(tmp_path / "empty") == History(())
