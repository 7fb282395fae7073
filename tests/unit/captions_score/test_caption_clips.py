"""The truth of every clip, read back from the finished film by the eye of a camera and not by the code that drew it."""

import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.caption_clips import CLIPS, Clip, NoFont, make, schedule
from tests.media_files import frame_times

pytestmark = pytest.mark.unit

SECONDS = 3.0
SMALL = 240
STILL = [name for name, recipe in CLIPS.items() if recipe.background in ("plain", "busy")]


def clip(name: str, folder: Path, seconds: float = SECONDS) -> Clip:
    try:
        return make(name, folder, seconds, shrink=shrink(name))
    except NoFont as missing:
        pytest.skip(str(missing))


def shrink(name: str) -> int:
    """Small enough to be made in a moment, large enough for an eye to see a single letter change."""
    return min(CLIPS[name].size) // SMALL


def decoded(path: Path) -> tuple[list[int], list[np.ndarray]]:
    """When each frame is shown, and the luma of every frame."""
    with av.open(str(path)) as container:
        base: Any = Fraction(container.streams.video[0].time_base)  # type: ignore[arg-type]
        frames = [(frame.pts, frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]
    return [round(pts * base * 1_000_000) for pts, _ in frames], [picture for _, picture in frames]


def changes(pictures: list[np.ndarray]) -> set[int]:
    """The frames that differ from the one before by more than a codec does: a stroke of a letter that comes or goes."""
    differences = [np.abs(one.astype(int) - other.astype(int)) for one, other in pairwise(pictures)]
    return {place for place, moved in enumerate(differences, 1) if (moved > 90).sum() > 12}


def on_show(made: Clip) -> list[str]:
    frames = made.frame_times[:-1]
    return [next((cue.text for cue in made.truth if cue.start_us <= time < cue.end_us), "") for time in frames]


@pytest.mark.parametrize("name", STILL)
def test_the_picture_changes_at_every_boundary_of_the_truth_and_nowhere_else(name: str, tmp_path: Path) -> None:
    made = clip(name, tmp_path, 7.0)
    times, pictures = decoded(made.path)
    assert tuple(times) == made.frame_times[:-1]
    said = on_show(made)
    assert changes(pictures) == {place for place in range(1, len(said)) if said[place] != said[place - 1]}
    assert len(made.truth) >= 2


@pytest.mark.parametrize("name", sorted(set(CLIPS) - set(STILL)))
def test_every_frame_of_a_moving_clip_has_the_time_that_the_truth_counts_by(name: str, tmp_path: Path) -> None:
    made = clip(name, tmp_path)
    times, pictures = decoded(made.path)
    assert tuple(times) == made.frame_times[:-1]
    assert pictures[0].shape == made.size[::-1]
    assert made.size == tuple(side // shrink(name) // 2 * 2 for side in CLIPS[name].size)


def test_captions_stand_on_the_first_and_on_the_last_frame(tmp_path: Path) -> None:
    made = clip("edges", tmp_path)
    assert made.truth[0].start_us == 0
    assert made.truth[-1].end_us == made.frame_times[-1]


def test_a_variable_rate_really_varies(tmp_path: Path) -> None:
    steps = {round((after - time) * 60 / 1_000_000) for time, after in pairwise(clip("vfr", tmp_path).frame_times)}
    assert steps == {1, 2, 3, 4}


def test_neighbours_follow_each_other_without_an_empty_frame_and_differ_a_little() -> None:
    recipe = CLIPS["neighbours"]
    spans = schedule(recipe, frame_times(30, recipe.rate), random.Random("neighbours"))
    touching = [(one.text, other.text) for one, other in pairwise(spans) if one.after == other.first]
    assert touching[:2] == [
        ("We leave at 5 tonight.", "We leave at 6 tonight."),
        ("He can do it alone.", "He can't do it alone."),
    ]


def test_a_clip_without_captions_has_an_empty_truth(tmp_path: Path) -> None:
    assert clip("none", tmp_path, 1.0).truth == ()


def test_the_same_call_gives_the_same_film(tmp_path: Path) -> None:
    one, other = (clip("480p", tmp_path / name, 2.0) for name in ("one", "other"))
    assert one.path.read_bytes() == other.path.read_bytes()
    assert (one.truth, one.frame_times) == (other.truth, other.frame_times)


def test_a_full_length_clip_shows_about_twenty_captions_a_minute() -> None:
    for name in ("plain", "busy", "moving", "vfr", "edges", "three-letters"):
        recipe = CLIPS[name]
        times = frame_times(60, recipe.rate, vfr=recipe.vfr)
        assert 15 <= len(schedule(recipe, times, random.Random(name))) <= 26, name


def test_a_truth_one_frame_off_would_be_seen(tmp_path: Path) -> None:
    """The control of the first test: its eye is sharper than one frame."""
    made = clip("plain", tmp_path)
    _, pictures = decoded(made.path)
    first = made.frame_times.index(made.truth[0].start_us)
    assert first in changes(pictures)
    assert not {first - 1, first + 1} & changes(pictures)


def test_a_font_that_is_not_here_is_said_and_not_replaced_where_accents_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(CLIPS["accents"], style=replace(CLIPS["accents"].style, font="no-such-font.ttf"))
    monkeypatch.setitem(CLIPS, "accents", bare)
    with pytest.raises(NoFont, match=r"no-such-font\.ttf"):
        make("accents", tmp_path, SECONDS, shrink=3)
    monkeypatch.setitem(CLIPS, "accents", replace(bare, needs_accents=False))
    assert make("accents", tmp_path, SECONDS, shrink=3).path.exists()
