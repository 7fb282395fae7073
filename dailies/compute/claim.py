"""Who works on a unit, written beside where its result will be: so that the same unit is not paid for twice at once.

A claim is a hint about money, never about right and wrong: results are the same bytes whoever makes them. It is judged
alive by changing while it is watched, so that no two clocks are compared.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dailies.canonical import canonical_json
from dailies.compute.interface import Busy
from dailies.errors import DailiesError, Missing, Transient
from dailies.store.interface import Store

BEAT_S = 2.0
PATIENCE_S = 3 * BEAT_S
LOOK_S = 0.2


@contextmanager
def claimed(store: Store, key: str, holder: str) -> Iterator[None]:
    """Hold the claim for the length of the block; raise ``Busy`` while another holder is alive.

    ``holder`` outlives its process: a machine that is taken away and starts again on the same input is the same holder.
    """
    if held_by(store, key) not in (None, holder) and is_alive(store, key):
        raise Busy(f"another call works on this unit: {key}")
    ended = threading.Event()
    beating = threading.Thread(target=beat, args=(store, key, holder, ended), daemon=True)
    put(store, key, holder, 0)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(DailiesError):  # nothing beats any more, so that it counts for nothing in seconds
            store.delete(key)


def held_by(store: Store, key: str) -> str | None:
    try:
        return str(json.loads(store.get(key))["holder"])
    except (Missing, ValueError, KeyError, TypeError):
        return None


def is_alive(store: Store, key: str) -> bool:
    first = store.stat(key)
    deadline = time.monotonic() + PATIENCE_S
    while first is not None and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        now = store.stat(key)
        if now is None:
            return False
        if now.version != first.version:
            return True
    return False


def beat(store: Store, key: str, holder: str, ended: threading.Event) -> None:
    count = 0
    while not ended.wait(BEAT_S):
        count += 1
        with suppress(Transient):  # a store that is away for a moment costs a beat, not the work
            put(store, key, holder, count)


def put(store: Store, key: str, holder: str, count: int) -> None:
    store.put(key, canonical_json({"beat": count, "holder": holder}))
