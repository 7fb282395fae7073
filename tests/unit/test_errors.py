"""The tree that is drawn in the docstring is the tree that there is."""

from __future__ import annotations

import inspect
import re

import pytest

from dailies import errors
from dailies.errors import DailiesError, Held, Stopped

pytestmark = pytest.mark.unit

CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}


def drawn() -> dict[str, str]:
    """Each class in the drawing with the one that it hangs from."""
    above: dict[int, str] = {}
    tree = {}
    for line in (errors.__doc__ or "").splitlines():
        if not re.match(r"    [│├└D]", line):
            continue
        stem, names = re.fullmatch(r"([ │├└─]*)(\w+(?: / \w+)*).*", line).groups()
        depth = (len(stem) - 4) // 4
        for name in names.split(" / "):
            tree[name] = above.get(depth - 1, "Exception")
            above[depth] = name
    return tree


def test_every_class_hangs_where_the_drawing_says_and_none_is_missing_from_it():
    there = {name: kind.__base__.__name__ for name, kind in CLASSES.items()}
    assert drawn() == there


def test_the_drawing_was_really_read():
    assert drawn()["NoAudio"] == "BadInput"
    assert drawn()["Held"] == "Conflict"
    assert drawn()["DailiesError"] == "Exception"


def test_every_class_has_a_code_of_its_own():
    codes = [vars(kind).get("code") for kind in CLASSES.values()]
    assert None not in codes
    assert len(set(codes)) == len(codes)


def test_a_code_is_its_class_in_snake_case():
    spelled = {name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in CLASSES}
    assert {name: kind.code for name, kind in CLASSES.items()} == {**spelled, "DailiesError": "error"}


def test_every_error_can_be_caught_as_one_of_ours():
    assert all(issubclass(kind, DailiesError) for kind in CLASSES.values())


def test_held_says_by_whom_and_for_how_long():
    held = Held("video:1", "worker-7", 2.345)
    assert str(held) == "video:1 is held by worker-7 for another 2.3 s"
    assert (held.resource, held.by, held.expires_in) == ("video:1", "worker-7", 2.345)


def test_stopped_says_what_the_job_was_told():
    stopped = Stopped("job-1", "pause")
    assert str(stopped) == "job job-1 was told to pause"
    assert stopped.word == "pause"
