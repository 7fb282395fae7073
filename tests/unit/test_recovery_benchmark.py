"""What the benchmark of recovery says is counted from the engine's own lines, and can come out badly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._talk import (
    DONE,
    RECORDED,
    Counts,
    Hearing,
    bare,
    count,
    hearings,
    places,
    resumed_at,
    unit_ms,
    upper_bound,
)
from benchmarks.recovery import Dailies, Dbos, Recovery, recovery_figures
from dailies.speech.dtmf import TALLY
from dailies.speech.sample import make_talk, phrases_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
WANTED = frozenset("abcd")
DIED = 10.0


def heard(before: str, after: str) -> list[Hearing]:
    """A letter is a sound."""
    lines = [Hearing(1.0 + number, sound) for number, sound in enumerate(before)]
    return lines + [Hearing(DIED + 1 + number, sound) for number, sound in enumerate(after)]


def counted(before: str, after: str, finished: str) -> Counts:
    return count(heard(before, after), DIED, frozenset(finished), WANTED)


def test_each_chunk_once_is_nothing_to_report():
    assert counted("ab", "cd", "ab") == Counts(redone=0, duplicates=0, lost=0)


def test_the_chunk_in_flight_is_redone_and_no_duplicate():
    assert counted("abc", "cd", "ab") == Counts(redone=1, duplicates=0, lost=0)


def test_a_finished_chunk_that_is_heard_again_is_a_duplicate_and_not_redone():
    assert counted("abc", "bcd", "ab") == Counts(redone=1, duplicates=1, lost=0)


def test_starting_from_the_first_chunk_counts_every_finished_one():
    assert counted("abc", "abcd", "abc") == Counts(redone=0, duplicates=3, lost=0)


def test_every_further_hearing_counts():
    assert counted("abc", "aaccd", "ab") == Counts(redone=2, duplicates=2, lost=0)


def test_a_chunk_that_nobody_heard_is_lost():
    assert counted("ab", "d", "ab") == Counts(redone=0, duplicates=0, lost=1)


def test_recovery_begins_with_the_first_hearing_after_the_death():
    assert resumed_at(heard("abc", "cd"), DIED) == DIED + 1


def test_the_time_of_a_chunk_is_that_from_one_to_the_next():
    assert unit_ms([Hearing(0.0, "a"), Hearing(0.1, "b"), Hearing(0.4, "c")]) == pytest.approx(200)


@pytest.mark.parametrize("kills", [1, 2, 7, 20, 40])
def test_kills_are_before_and_after_the_record_in_turn_and_always_leave_a_chunk_to_hear(kills):
    found = places(kills, chunks=12)
    assert len(found) == kills
    assert [point for point, _ in found] == [(DONE, RECORDED)[each % 2] for each in range(kills)]
    assert {chunk for _, chunk in found} <= set(range(1, 12))
    assert len({chunk for _, chunk in found}) == min(11, -(-kills // 2))


def test_nothing_seen_in_twenty_is_below_fifteen_percent():
    assert (upper_bound(20), upper_bound(2)) == (pytest.approx(0.15), 1.0)


def test_the_bare_loop_hears_each_chunk_once_and_every_word(tmp_path, monkeypatch):
    monkeypatch.setenv(TALLY, str(tmp_path / "tally"))
    make_talk(tmp_path / "talk.wav", phrases=3, keys=4)
    subtitles = bare(str(tmp_path / "talk.wav"), str(tmp_path / "out"))
    words = [line for line in subtitles.splitlines() if line and "-->" not in line]
    assert "".join(words[1::2]).replace(" ", "") == "".join(phrases_of(3, 0, 4))
    assert len({one.sound for one in hearings(tmp_path / "tally")}) == len(hearings(tmp_path / "tally")) == 3


def test_no_tally_is_nobody_who_listened(tmp_path):
    assert hearings(tmp_path / "none") == []


def recovered(point: str, counts: Counts = Counts(0, 0, 0), same: bool = True) -> Recovery:  # noqa: B008 - it is frozen
    return Recovery(point, noticed=1.0, resumed=1.5, done=3.0, counts=counts, same=same)


def figures(side, found: list[Recovery]) -> dict[str, tuple]:
    named = {each.name.removeprefix(f"{side.title}: "): each for each in recovery_figures(side, found)}
    return {name: (each.value, each.reached) for name, each in named.items()}


def test_the_table_adds_up_what_was_counted():
    good = figures(Dailies, [recovered(DONE, Counts(1, 0, 0)), recovered(RECORDED)])
    assert good["finished chunks heard again"] == (0, True)
    assert good["chunks in flight heard again"] == (1, True)
    assert good["chunks lost"] == (0, True)
    assert good["transcripts unlike the bare loop's"] == (0, True)
    assert good["noticed → first chunk"] == (0.5, True)
    assert good["noticed → done"] == (2.0, None)
    assert good["kill → done"] == (3.0, None)


def test_what_went_wrong_once_is_in_the_table():
    bad = figures(Dailies, [recovered(DONE, Counts(1, 0, 0)), recovered(RECORDED, Counts(1, 2, 1), same=False)])
    assert bad["finished chunks heard again"] == (2, False)
    assert bad["chunks in flight heard again"] == (2, False)
    assert bad["chunks lost"] == (1, False)
    assert bad["transcripts unlike the bare loop's"] == (1, False)


def test_our_targets_are_not_held_against_the_other_side():
    found = figures(Dbos, [recovered(DONE, Counts(1, 0, 0))])
    assert {reached for _, reached in found.values()} == {None}
    assert found["chunks in flight heard again"] == (1, None)


def test_without_dbos_it_says_how_to_get_it():
    code = "import sys; sys.modules['dbos'] = None; from benchmarks.recovery import measure; measure(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        "dbos is not installed here: pip install -c constraints.txt -e '.[dev]'",
    )


def benchmarks(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    return done.returncode, done.stderr


def test_an_option_of_one_benchmark_reaches_it():
    code, said = benchmarks("recovery", "--kills", "some")
    assert code == 1
    assert "argument --kills: invalid int value: 'some'" in said


def test_an_option_for_two_benchmarks_at_once_is_refused():
    code, said = benchmarks("recovery", "failpoint_cost", "--kills=2")
    assert code == 2
    assert "name one benchmark" in said


def test_a_line_of_the_tally_is_what_the_engine_writes(tmp_path):
    tally = tmp_path / "tally"
    tally.write_text(json.dumps({"at": 2.5, "pid": 7, "sound": "a"}) + "\n")
    assert hearings(tally) == [Hearing(2.5, "a")]
