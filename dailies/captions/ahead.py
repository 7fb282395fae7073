"""Work that goes on while its results are used: decoding beside reading, on a second core."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


class _End:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items in the same order, made by a thread that is at most `depth` of them ahead.

    What the thread raises is raised here; a caller that leaves early ends the thread.
    """
    made: queue.Queue[Item | _End] = queue.Queue(depth)
    left = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, left), name="ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        left.set()
        thread.join()


def _make(items: Iterable[Item], made: queue.Queue[Item | _End], left: threading.Event) -> None:
    end = _End()
    source = iter(items)
    try:
        for item in source:
            if not _put(made, item, left):
                break
    except BaseException as error:  # noqa: BLE001
        # Whatever it is, it belongs to the one who asked for the items.
        end = _End(error)
    finally:
        if hasattr(source, "close"):
            source.close()
    _put(made, end, left)


def _put(made: queue.Queue[Item | _End], item: Item | _End, left: threading.Event) -> bool:
    while not left.is_set():
        try:
            made.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
