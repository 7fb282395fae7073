import io
import time

import pytest
from PIL import Image

from dailies.scenarios.journal import Check, Fault, Journal, Mark, expect
from dailies.scenarios.verdict import (
    Verdict,
    check_table,
    conclude,
    exit_code,
    judge,
    reason,
    render_markdown,
    replay,
    timeline_png,
)

pytestmark = pytest.mark.unit
GOOD = Check("nothing lost", True, [], [])
BAD = Check("no effect twice", False, [], ["unit|7"], "record the unit in one fenced transaction")
RED = (200, 16, 46)


def journal(**changes) -> Journal:
    content = {
        "seed": 7,
        "run_id": "run-1",
        "started": "2026-01-01T00:00:00+00:00",
        "commit": "abc",
        "versions": {"python": "3.11"},
        "steady_state": {"before": [GOOD], "after": [GOOD]},
        "faults": [Fault("kill", True, 1, "pid 12 exited with -9")],
        "checks": [GOOD],
    }
    return Journal("lock-contention", **(content | changes))


def test_everything_checked_and_the_fault_fired_is_passed():
    assert judge(journal()) is Verdict.PASSED


def test_a_fault_that_was_never_armed_is_not_waited_for():
    assert judge(journal(faults=[Fault("kill", armed=False)])) is Verdict.PASSED


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": [GOOD, BAD]},
        {"steady_state": {"before": [BAD], "after": [GOOD]}},
        {"steady_state": {"before": [GOOD], "after": [BAD]}},
        {"checks": [BAD], "faults": [Fault("kill")]},
        {"checks": [BAD], "skipped": "no GPU here"},
        {"checks": [Check("not a verdict", None)]},
    ],
)
def test_one_failed_check_is_a_violation_whatever_else_is_true(changes):
    assert judge(journal(**changes)) is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"faults": [Fault("kill")]}, "never fired"),
        ({"faults": [Fault("other", True, 1, "seen"), Fault("kill")]}, "never fired"),
        ({"faults": [Fault("kill", True, 1, " ")]}, "without evidence"),
        ({"checks": []}, "nothing was checked"),
        ({"steady_state": {"before": [], "after": [GOOD]}}, "not checked before"),
        ({"steady_state": {"before": [GOOD], "after": []}}, "not checked after"),
    ],
)
def test_green_checks_that_prove_nothing_are_inconclusive(changes, why):
    assert judge(journal(**changes)) is Verdict.INCONCLUSIVE
    assert why in reason(journal(**changes))


@pytest.mark.parametrize("error", ["boom", ""])
def test_an_error_is_an_error_even_without_a_message_and_over_failed_checks(error):
    assert judge(journal(error=error, checks=[BAD])) is Verdict.ERROR


def test_a_skip_carries_its_reason():
    skipped = Journal("s")
    skipped.skip("no GPU here")
    assert conclude(skipped) is Verdict.SKIPPED
    assert reason(skipped) == "no GPU here"
    assert "no GPU here" in render_markdown(skipped)


def test_a_recorded_status_does_not_change_the_verdict():
    assert judge(journal(status="passed", checks=[BAD])) is Verdict.VIOLATED
    assert "lock-contention: violated" in render_markdown(journal(status="passed", checks=[BAD]))


def test_the_end_fixes_status_and_duration():
    ended = journal()
    time.sleep(0.002)
    assert conclude(ended) is Verdict.PASSED
    assert ended.status == "passed"
    assert ended.duration_s > 0


def test_exit_codes_are_those_of_the_command_line():
    assert {verdict.value: exit_code(verdict) for verdict in Verdict} == {
        "passed": 0,
        "violated": 1,
        "error": 2,
        "inconclusive": 3,
        "skipped": 4,
    }


def test_failed_checks_come_first_with_their_likely_fix():
    rows = check_table(journal(checks=[GOOD, BAD]))
    assert [row["result"] for row in rows] == ["FAILED", "passed", "passed", "passed"]
    assert rows[0]["likely fix"] == BAD.fix
    text = render_markdown(journal(checks=[GOOD, BAD]))
    assert text.index(BAD.name) < text.index("## Faults")
    assert BAD.fix in text
    assert text.index("Failed checks") < text.index("Checks that held")


def test_a_passed_journal_names_no_failed_check():
    assert "Failed checks" not in render_markdown(journal())


def test_the_summary_says_how_to_run_it_again():
    again = journal(parameters={"mode": "full", "workers": 3, "strict": True, "title": "two words", "seed": 7})
    command = "dailies scenario lock-contention --seed 7 -p mode=full -p strict=true -p 'title=two words' -p workers=3"
    assert replay(again) == command
    assert command in render_markdown(again)


def test_a_long_parameter_is_replayed_whole():
    assert "x" * 500 in replay(journal(parameters={"text": "x" * 500}))


def test_evidence_cannot_break_the_summary():
    odd = journal(metrics={"a|b": "c|d\ne"}, faults=[Fault("kill", True, 1, "x\n# forged heading")])
    lines = render_markdown(odd).splitlines()
    assert "| a\\|b | c\\|d e |" in lines
    assert not any(line.startswith("# forged") for line in lines)


def picture(**changes) -> Image.Image:
    return Image.open(io.BytesIO(timeline_png(journal(duration_s=10.0, **changes))))


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return image.convert("RGB").tobytes().count(bytes(colour))


def test_the_same_journal_gives_the_same_picture():
    marks = [Mark(1, "worker", "works", 4), Mark(4, "faults", "kill")]
    assert timeline_png(journal(timeline=marks, duration_s=9.0)) == timeline_png(
        journal(timeline=marks[::-1], duration_s=9.0)
    )


def test_faults_are_red_and_nothing_else_is():
    calm = [Mark(1, "worker", "works", 4)]
    assert count(picture(timeline=calm), RED) == 0
    assert count(picture(timeline=[*calm, Mark(4, "faults", "net cut")]), RED) > 20
    assert count(picture(timeline=[*calm, Mark(4, "worker", "kill")]), RED) > 20


def test_every_lane_makes_the_picture_taller_and_a_span_is_as_long_as_it_took():
    one = picture(timeline=[Mark(0, "a", "works", 5)])
    two = picture(timeline=[Mark(0, "a", "works", 5), Mark(0, "b", "works", 2)])
    assert two.height > one.height
    blue = (31, 95, 168)
    rows = [[x for x in range(one.width) if one.getpixel((x, y)) == blue] for y in range(one.height)]
    longest = max(rows, key=len)
    assert max(longest) - min(longest) == pytest.approx((one.width - 40 - min(longest)) / 2, rel=0.02)


def test_a_thousand_marks_at_once_still_fit_a_picture():
    crowd = [Mark(1 + n / 1000, "lane", f"event {n}") for n in range(1000)]
    assert picture(timeline=crowd).height < 600


@pytest.mark.parametrize("marks", [[], [Mark(0, "a", "")], [Mark(-1, "a" * 200, "b" * 900, 99)]])
def test_odd_timelines_are_drawn(marks):
    assert picture(timeline=marks).format == "PNG"


def test_a_check_made_by_expect_reads_well_in_the_table():
    row = check_table(journal(checks=[expect("units", {"done": 1}, {"done": 2})]))[0]
    assert (row["expected"], row["actual"], row["stage"]) == ('{"done":2}', '{"done":1}', "run")
