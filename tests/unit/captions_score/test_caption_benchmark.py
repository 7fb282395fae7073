"""What a person is shown of a result, and what becomes of a film that cannot be read."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks._report import Figure
from benchmarks.captions import Reading, Result, content, figures, read, side_by_side
from dailies.captions.score import Cue, compare
from tests.caption_clips import Clip

pytestmark = pytest.mark.unit

FRAMES = tuple(range(0, 30_000_001, 40_000))
TRUTH = (Cue(1_000_000, 3_000_000, "One\ntwo"), Cue(5_000_000, 6_000_000, "[three]"))
CLIP = Clip("busy", Path("busy.mp4"), (1920, 1080), TRUTH, FRAMES)
LATE = replace(TRUTH[0], text="One\ntvo", start_us=1_080_000, end_us=2_960_000)
SCRAP = Cue(9_000_000, 9_500_000, "TAXI")


def result(*found: Cue, clip: Clip = CLIP, wall: float = 15.0, **more: object) -> Result:
    reading = replace(Reading(found=found, wall=wall), **more)
    return Result(clip, reading, compare(clip.truth, found, clip.frame_times))


def figure(name: str, found: list[Figure]) -> Figure:
    return next(each for each in found if each.name == name)


def test_the_side_by_side_shows_every_fault_beside_its_truth() -> None:
    lines = [line.split() for line in side_by_side(result(LATE, SCRAP)).splitlines()[2:]]
    assert lines == [
        ["WRONG", "TEXT", "1.000", "…", "3.000", "+2", "-1", "One", "/", "two", "One", "/", "tvo"],
        ["MISSED", "5.000", "…", "6.000", "[three]", "–"],
        ["PHANTOM", "9.000", "…", "9.500", "–", "TAXI"],
    ]


def test_the_figures_name_what_misses_its_target() -> None:
    perfect = figures([result(*TRUTH, wall=10.0)])
    assert {each.name: each.reached for each in perfect if each.reached is not None} == {
        "exact lines": True,
        "characters wrong (CER)": True,
        "missed": True,
        "phantoms": True,
        "boundaries within one source frame": True,
        "slowest still or busy": True,
        "peak memory": True,
    }
    poor = figures([result(LATE, SCRAP, wall=10.1, peak=1025 << 20)])
    assert [each.name for each in poor if each.reached] == []
    assert figure("phantoms", poor).value == 20.0
    assert figure("boundaries within one source frame", poor).value == 50.0


def test_the_slowest_clip_of_its_kind_is_the_one_that_is_judged() -> None:
    moving = replace(CLIP, name="moving")
    huge = replace(CLIP, name="4k", size=(3840, 2160))
    found = figures([result(wall=5.0), result(wall=6.0), result(clip=moving, wall=15.0), result(clip=huge, wall=90.0)])
    assert figure("slowest still or busy", found).value == 5.0
    assert (figure("slowest moving", found).value, figure("slowest moving", found).note) == (2.0, "moving")


def test_the_stages_and_the_calls_of_the_engine_are_set_against_the_film() -> None:
    found = figures([result(*TRUTH, seconds={"layout": 3.0, "captions": 6.0}, reads=8, finds=60)])
    assert figure("stage layout", found).value == 10.0
    assert figure("stage captions", found).value == 5.0
    assert figure("lines read by OCR", found).value == 4.0
    assert figure("detections", found).value == 2.0


def test_wrong_captions_weigh_more_than_late_ones_when_the_worst_clip_is_chosen() -> None:
    late = result(*(replace(cue, start_us=cue.start_us - 120_000, end_us=cue.end_us + 120_000) for cue in TRUTH))
    wrong = result(LATE, TRUTH[1])
    assert late.faults == (0, 4)
    assert wrong.faults == (1, 1)
    assert max([result(*TRUTH), late, wrong], key=lambda each: each.faults) is wrong


def test_a_clip_without_captions_gives_figures_and_no_shares() -> None:
    found = figures([result(clip=replace(CLIP, name="none", truth=()))])
    assert "exact lines" not in [each.name for each in found]
    assert figure("phantoms", found).value == 0.0


def test_a_film_that_cannot_be_read_is_named_and_counts_as_missed(tmp_path: Path) -> None:
    (tmp_path / "busy.mp4").write_bytes(b"not a film")
    reading = read(replace(CLIP, path=tmp_path / "busy.mp4"), tmp_path)
    assert "busy.mp4 is not media" in reading.trouble
    failed = result(trouble=reading.trouble, wall=0.0)
    assert (failed.score.missed, failed.speed) == (2, 0.0)
    assert "busy.mp4 is not media" in side_by_side(failed)
    assert content(failed)["reading"]["trouble"] == reading.trouble
