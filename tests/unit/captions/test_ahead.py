"""Items that a second thread makes: the same ones, in order, with its faults, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dailies.captions.ahead import ahead

pytestmark = pytest.mark.unit


def running() -> int:
    return sum(thread.name == "ahead" for thread in threading.enumerate())


def test_the_items_come_in_their_order_and_the_thread_ends() -> None:
    assert list(ahead(range(1000), 3)) == list(range(1000))
    assert running() == 0


def test_what_the_maker_raises_is_raised_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("the film ends here")

    items = ahead(broken(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="the film ends here"):
        next(items)
    assert running() == 0


def test_the_maker_is_never_further_ahead_than_asked() -> None:
    made = []
    allowed = threading.Semaphore(0)

    def counted() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            allowed.release()
            yield number

    items = ahead(counted(), 2)
    assert next(items) == 0
    # One is taken, two wait in the queue and one is in the maker's hand.
    for _ in range(4):
        assert allowed.acquire(timeout=5)
    assert not allowed.acquire(timeout=0.3)
    assert made == [0, 1, 2, 3]
    items.close()


def test_who_leaves_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = ahead(endless(), 2)
    assert next(items) == 1
    items.close()
    assert closed.is_set()
    assert running() == 0
