"""A list that changes while it is read: everything that stays in it is found, and the reading ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dailies.catalog.paging import MOST_STUCK, OVERLAP, Cursor, ask, from_the_top, skip, take

pytestmark = pytest.mark.unit

COUNT = 10
# After a page: how many go in on top, how many are taken away, and from where (a share of the list).
Change = tuple[int, int, float]


class Shifting:
    def __init__(self, size: int, changes: list[Change]) -> None:
        self.items = [f"v{number}" for number in range(size)]
        self.changes = list(changes)
        self.ever, self.asked = set(self.items), 0

    def page(self, start: int, count: int) -> tuple[list[str], int]:
        self.asked += 1
        found, total = self.items[start : start + count], len(self.items)
        if self.changes:
            added, taken, where = self.changes.pop(0)
            at = int(where * len(self.items))
            del self.items[at : at + taken]
            fresh = [f"n{self.asked}-{number}" for number in range(added)]
            self.items = fresh + self.items
            self.ever |= set(fresh)
        return found, total


def walk(page: Callable[[int, int], tuple[list[str], int | None]], most: int = 400) -> tuple[list[str], Cursor]:
    cursor, kept = Cursor(), dict[str, int]()
    for _ in range(most):
        keys, total = page(ask(cursor, COUNT), COUNT)
        # As it is after a kill: what is not in the tail is not remembered.
        cursor = Cursor.of(cursor.start, cursor.total, cursor.idle, cursor.tail())
        cursor, word = take(cursor, COUNT, keys, total, {key for key in keys if key in kept})
        if word != "back":
            kept.update(dict.fromkeys(keys, 0))
        if word == "end" and cursor.moved and not cursor.top:
            cursor = from_the_top(cursor)
        elif word == "end":
            return list(kept), cursor
    raise AssertionError("the reading does not end")


@pytest.mark.parametrize("size", [0, 1, 5, 9, 10, 11, 15, 20, 95, 100])
def test_a_list_that_stays_as_it_is_is_read_once_and_whole(size: int) -> None:
    shifting = Shifting(size, [])
    found, cursor = walk(shifting.page)
    assert found == shifting.items
    assert not cursor.gap
    assert shifting.asked <= 1 + size // (COUNT - OVERLAP)


def test_what_is_taken_away_above_us_pulls_nothing_past_us() -> None:
    shifting = Shifting(60, [(0, 3, 0.0), (0, 4, 0.0)])
    found, cursor = walk(shifting.page)
    assert set(shifting.items) <= set(found)
    assert not cursor.gap


def test_more_than_the_overlap_taken_away_makes_it_step_back() -> None:
    shifting = Shifting(100, [(0, 0, 0.0), (0, 0, 0.0), (0, 0, 0), (0, 0, 0), (0, 24, 0.0)])
    found, cursor = walk(shifting.page)
    assert cursor.retreats > 0
    assert set(shifting.items) <= set(found)
    assert not cursor.gap


def test_what_is_put_on_top_is_read_at_the_end() -> None:
    shifting = Shifting(40, [(0, 0, 0.0), (2, 0, 0.0), (13, 0, 0.0)])
    found, cursor = walk(shifting.page)
    assert set(found) == shifting.ever
    assert len(found) == 55
    assert cursor.top


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 120),
    st.lists(st.tuples(st.integers(0, 12), st.just(0), st.just(0.0)), max_size=6),
)
def test_whatever_is_added_while_the_list_is_read_is_found(size: int, changes: list[Change]) -> None:
    shifting = Shifting(size, changes)
    found, cursor = walk(shifting.page)
    there_before = {name for name in shifting.ever if name.startswith("v")}
    assert there_before <= set(found)
    assert not cursor.gap


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 120),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12), st.floats(0, 1)), max_size=8),
)
def test_whatever_stays_is_found_however_much_is_added_and_taken(size: int, changes: list[Change]) -> None:
    """Only where both happen between two requests can they hide each other beyond what the overlap shows."""
    shifting = Shifting(size, changes)
    found, cursor = walk(shifting.page)
    stayed = {name for name in shifting.items if name.startswith("v")}
    assert stayed <= set(found) or cursor.gap


def test_a_host_that_gives_the_same_page_for_ever_is_left() -> None:
    asked = 0

    def page(start: int, count: int) -> tuple[list[str], int]:
        nonlocal asked
        asked += 1
        return [f"v{number}" for number in range(count)], 1000

    found, cursor = walk(page)
    assert (len(found), cursor.gap) == (COUNT, True)
    assert asked <= MOST_STUCK + 2  # and the top once more, because what we know seems to have moved down


def test_a_list_without_any_order_ends_and_is_not_called_whole() -> None:
    """Each page is another one: it steps back so often and no more, and then reads on."""
    asked = 0

    def page(start: int, count: int) -> tuple[list[str], int]:
        nonlocal asked
        asked += 1
        return [f"r{asked}-{number}" for number in range(count if asked < 60 else 2)], 100

    _, cursor = walk(page)
    assert cursor.gap
    assert asked < 100


def test_a_total_that_promises_more_than_comes_is_not_whole() -> None:
    shifting = Shifting(25, [])
    found, cursor = walk(lambda start, count: (shifting.page(start, count)[0], 40))
    assert (len(found), cursor.gap) == (25, True)


def test_a_total_that_promises_less_cuts_nothing_off() -> None:
    shifting = Shifting(47, [])
    found, cursor = walk(lambda start, count: (shifting.page(start, count)[0], 3))
    assert (len(found), cursor.gap) == (47, False)


def test_a_host_that_gives_fewer_than_are_asked_for_is_read_on() -> None:
    shifting = Shifting(47, [])
    found, cursor = walk(lambda start, count: shifting.page(start, 7))
    assert (len(found), cursor.gap) == (47, False)


def test_a_host_that_gives_all_at_once_is_read_once() -> None:
    shifting = Shifting(47, [])
    found, cursor = walk(lambda start, count: shifting.page(start, 1000))
    assert (len(found), cursor.gap, shifting.asked) == (47, False, 2)


def test_after_a_page_that_is_skipped_there_is_a_gap_and_no_stepping_back() -> None:
    cursor, _ = take(Cursor(), COUNT, [f"v{number}" for number in range(10)], 40, ())
    cursor = skip(cursor, COUNT)
    assert (cursor.start, cursor.gap, cursor.broken) == (15, True, 1)
    after, word = take(cursor, COUNT, [f"v{number}" for number in range(10, 20)], 40, ())
    assert (word, after.start, after.broken, after.gap) == ("on", 25, 0, True)


def test_a_cursor_survives_being_written_down() -> None:
    cursor = replace(Cursor(7, ("a", "b"), 12, 1), moved=True, retreats=3, top=2, gap=True)
    assert Cursor.of(cursor.start, cursor.total, cursor.idle, cursor.tail()) == cursor
    assert Cursor.of(0, None, 0, "[]") == Cursor()


def test_below_a_page_that_was_skipped_no_part_of_it_is_asked_for_again() -> None:
    cursor = skip(Cursor(40, ("a", "b")), COUNT)
    assert (cursor.start, ask(cursor, COUNT)) == (45, 45)
