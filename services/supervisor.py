"""The supervisor: a sweep every second, and events as soon as they are committed."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blocks.site import OpenSite, open_site
from dailies.errors import DailiesError, Held, NotConfigured, Transient
from dailies.events.fanout import Fanout
from dailies.events.relay import hurry, relay
from dailies.ledger.holding import holding
from dailies.ledger.records import Caps
from tasks._leftovers import clear_orphans
from tasks.supervision import sweep

log = logging.getLogger("dailies.supervisor")
SWEEP_S = 1.0
IDLE_S = 1.0
CLEAN_S = 3600.0
KEPT_S = 7 * 24 * 3600.0


def supervise(site: OpenSite, caps: Caps, ended: threading.Event) -> None:
    beside = [
        threading.Thread(target=relay_events, args=(site, ended), name="relay"),
        threading.Thread(target=clean_up, args=(site, ended), name="clean"),
    ]
    for thread in beside:
        thread.start()
    try:
        while not ended.wait(SWEEP_S):
            sweep(site, caps)
    finally:
        ended.set()
        for thread in beside:
            thread.join()


def clean_up(site: OpenSite, ended: threading.Event) -> None:
    """Once an hour, and not between two sweeps: a large store takes minutes, and a dead worker's job must not wait."""
    since = time.time() - KEPT_S
    while not ended.is_set():
        begun = time.time()
        if clean(site, since):
            since = begun - CLEAN_S
        ended.wait(CLEAN_S)
    site.ledger.close()


def clean(site: OpenSite, since: float) -> bool:
    """What killed writers left in the store, the folders of calls whose result nobody will ask for any more, and the
    working files of jobs that ended since. False where those could not all be looked through."""
    whole = cleaned("working files", lambda: clear_orphans(site, since))
    for what in (site.store, site.compute):
        cleaned(type(what).__name__, functools.partial(what.clean, KEPT_S))
    return whole


def cleaned(what: str, how: Callable[[], int]) -> bool:
    try:
        log.info("action=clean what=%s removed=%s", what, how())
    except (OSError, DailiesError) as error:
        log.warning("action=later what=%s error=%s", what, error)
        return False
    return True


def relay_events(site: OpenSite, ended: threading.Event) -> None:
    """Woken by whoever commits. One supervisor relays at a time, so that a job's events leave in their order."""
    me = f"{socket.gethostname()}:{os.getpid()}"
    while not ended.is_set():
        try:
            with holding(site.ledger, "relay", me) as keeper, hurrying(site, keeper.stopped, ended):
                while not (ended.is_set() or keeper.stopped.is_set()):
                    mark = site.ledger.outbox.mark()
                    if site.events is not None:
                        relay(site.ledger, site.events)
                    site.ledger.outbox.wait(mark, IDLE_S)
        except Held:
            ended.wait(IDLE_S)
        except (Transient, NotConfigured) as error:
            log.warning("action=later error=%s", error)
            ended.wait(IDLE_S)
        except Exception:  # the sweep delivers too, but seconds later
            log.exception("action=later")
            ended.wait(IDLE_S)
    site.ledger.close()


@contextmanager
def hurrying(site: OpenSite, *over: threading.Event) -> Iterator[None]:
    """Within the relay's lease as well: what two told at once would come in two orders."""
    if not isinstance(site.events, Fanout):
        yield
        return
    done = threading.Event()
    is_over = lambda: any(event.is_set() for event in (done, *over))  # noqa: E731 - three flags, one question
    thread = threading.Thread(target=hurry, args=(site.ledger, site.events, is_over), name="hurry")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.supervisor", description=__doc__)
    parser.add_argument("--site", default="local", help="the connections to use")
    parser.add_argument("--slots", type=int, default=2, help="how many jobs may run at once")
    parser.add_argument("--slots-per-tenant", type=int, default=2, help="how many of them for one tenant")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        site = open_site(options.site)
    except DailiesError as error:
        parser.exit(1, f"dailies: {error}\n")
    log.info("action=start site=%s slots=%s", options.site, options.slots)
    supervise(site, Caps(options.slots, options.slots_per_tenant), ended)
    log.info("action=stop")


if __name__ == "__main__":
    main()
