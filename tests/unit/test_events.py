"""From the outbox to whoever listens: in order, at least once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dailies.errors import NotConfigured, Transient
from dailies.events import relay as relaying
from dailies.events.fanout import Fanout
from dailies.events.interface import cloud_event
from dailies.events.prefect_api import PrefectEvents, as_prefect
from dailies.events.relay import hurry, relay
from dailies.failpoints import environment, fired
from dailies.ledger.records import Event, JobRequest
from dailies.ledger.sqlite import SqliteLedger

pytestmark = pytest.mark.unit

EVENT = Event(7, "0f" * 16, "dailies/ledger", "dailies.job.done", "video-1", 1_700_000_000.25, {"n": [1, "ü"]}, "job-1")


class Listener:
    """Takes ``room`` events and then, in the middle of a batch, no more."""

    def __init__(self, room: float = float("inf")) -> None:
        self.heard: list[Event] = []
        self.batches: list[int] = []
        self.room = room

    def publish(self, events):
        self.batches.append(len(events))
        for event in events:
            if len(self.heard) >= self.room:
                raise Transient("the stream is down")
            self.heard.append(event)

    def await_events(self, count):
        until = time.monotonic() + 5
        while len(self.heard) < count and time.monotonic() < until:
            time.sleep(0.01)


@pytest.fixture
def ledger(tmp_path):
    ledger = SqliteLedger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def submit(ledger: SqliteLedger, count: int) -> list[str]:
    return [ledger.jobs.submit(JobRequest("acme", "ingest-media", f"video-{n}")).id for n in range(count)]


def test_a_cloud_event_has_the_fields_of_the_standard():
    outside = cloud_event(EVENT)
    assert outside == {
        "specversion": "1.0",
        "id": "0f" * 16,
        "source": "dailies/ledger",
        "type": "dailies.job.done",
        "subject": "video-1",
        "time": "2023-11-14T22:13:20.250000+00:00",
        "datacontenttype": "application/json",
        "data": {"n": [1, "ü"]},
    }
    assert datetime.fromisoformat(outside["time"]) == datetime.fromtimestamp(EVENT.time, UTC)
    assert json.loads(json.dumps(outside)) == outside


def test_an_event_of_the_ledger_says_outside_what_it_says_inside(ledger):
    [job] = submit(ledger, 1)
    [event] = ledger.outbox.of(job)
    outside = cloud_event(event)
    assert (outside["type"], outside["subject"], outside["data"]["job"]) == ("dailies.job.queued", "video-0", job)


def test_what_is_pending_is_delivered_once_in_its_order(ledger):
    jobs = submit(ledger, 3)
    ledger.jobs.cancel(jobs[0])
    listener = Listener()
    assert relay(ledger, listener) == 4
    assert [(event.job, event.data["state"]) for event in listener.heard] == [
        *((job, "QUEUED") for job in jobs),
        (jobs[0], "CANCELED"),
    ]
    assert relay(ledger, listener) == 0
    assert len(listener.heard) == 4
    assert list(ledger.outbox.pending()) == []


def test_nothing_pending_bothers_nobody(ledger):
    listener = Listener()
    assert relay(ledger, listener) == 0
    assert listener.batches == []


def test_many_events_go_in_batches(ledger, monkeypatch):
    monkeypatch.setattr(relaying, "BATCH", 4)
    jobs = submit(ledger, 10)
    listener = Listener()
    assert relay(ledger, listener) == 10
    assert listener.batches == [4, 4, 2]
    assert [event.job for event in listener.heard] == jobs


def test_a_listener_that_fails_midway_gets_its_batch_again(ledger, monkeypatch):
    monkeypatch.setattr(relaying, "BATCH", 4)
    jobs = submit(ledger, 10)
    listener = Listener(room=6)
    with pytest.raises(Transient):
        relay(ledger, listener)
    assert [event.job for event in ledger.outbox.pending()] == jobs[4:], "the batch it answered for is delivered"
    listener.room = float("inf")
    assert relay(ledger, listener) == 6
    assert [event.job for event in listener.heard] == [*jobs[:6], *jobs[4:]]
    assert len({event.id for event in listener.heard}) == 10, "the copies carry the same ids"


def test_who_listens_through_an_inbox_acts_once(ledger, monkeypatch):
    monkeypatch.setattr(relaying, "BATCH", 4)
    jobs = submit(ledger, 10)
    listener = Listener(room=6)
    with pytest.raises(Transient):
        relay(ledger, listener)
    listener.room = float("inf")
    relay(ledger, listener)
    acted = [event.job for event in listener.heard if ledger.inbox.accept(event.source, event.id)]
    assert acted == jobs


def test_the_first_of_two_hears_at_once_and_in_order_while_the_second_is_still_busy(tmp_path, ledger):
    class Slow(Listener):
        def publish(self, events):
            time.sleep(0.5)
            super().publish(events)

    class Quick(Listener):
        def publish(self, events):
            super().publish(events)
            at.extend(time.time() for _ in events)

    at: list[float] = []
    quick, slow = Quick(), Slow()
    sinks, over = Fanout([quick, slow]), threading.Event()
    beside = threading.Thread(target=hurry, args=(SqliteLedger(tmp_path / "ledger.db"), sinks, over.is_set))
    beside.start()
    busy = threading.Thread(target=lambda: [relay(ledger, sinks) for _ in iter(over.is_set, True)])
    busy.start()
    jobs = []
    for _ in range(8):
        jobs += submit(ledger, 1)
        time.sleep(0.1)
    time.sleep(1.5)
    over.set()
    beside.join()
    busy.join()
    assert [event.job for event in quick.heard] == [event.job for event in slow.heard] == jobs
    late = [heard - event.time for heard, event in zip(at, quick.heard, strict=True)]
    assert max(late) < 0.3, "without the hurry an event waits for the second to end with those before it"
    assert list(ledger.outbox.pending()) == []


@pytest.mark.parametrize("method", ["mark", "pending", "wait"])
def test_a_ledger_that_is_away_for_a_moment_does_not_end_the_hurry(tmp_path, ledger, monkeypatch, method):
    own, first, over, failed = SqliteLedger(tmp_path / "ledger.db"), Listener(), threading.Event(), threading.Event()
    usual = getattr(own.outbox, method)

    def once_away(*asked):
        if not failed.is_set():
            failed.set()
            raise Transient("the ledger is locked")
        return usual(*asked)

    monkeypatch.setattr(relaying, "REST_S", 0.01)
    monkeypatch.setattr(own.outbox, method, once_away)
    beside = threading.Thread(target=hurry, args=(own, Fanout([first, Listener()]), over.is_set))
    beside.start()
    assert failed.wait(5)
    jobs = submit(ledger, 2)
    first.await_events(2)
    over.set()
    beside.join()
    assert [event.job for event in first.heard] == jobs


@pytest.mark.parametrize("away", [0, 1])
def test_while_one_is_away_the_other_goes_on_in_order_and_without_copies(ledger, away):
    sinks = [Listener(), Listener()]
    lost, there = sinks[away], sinks[1 - away]
    both, jobs = Fanout(sinks), submit(ledger, 250)
    lost.room = 0
    for heard in (100, 200, 250, 250):
        with pytest.raises(Transient):
            relay(ledger, both)
        assert [event.job for event in there.heard] == jobs[:heard]
    assert len(ledger.outbox.pending(1000)) == 250, "nothing counts that only one has heard"
    lost.room = float("inf")
    assert relay(ledger, both) == 250
    assert [event.job for event in lost.heard] == [event.job for event in there.heard] == jobs
    assert max(lost.batches) == 100, "who comes back is not given all of it at once"
    assert both.ahead == 0


def test_it_goes_on_only_so_far_as_is_remembered(ledger):
    lost, there = Listener(room=0), Listener()
    both, jobs = Fanout([there, lost], remembered=220), submit(ledger, 400)
    for _ in range(5):
        with pytest.raises(Transient):
            relay(ledger, both)
    assert [event.job for event in there.heard] == jobs[:220]


def test_the_first_goes_on_at_once_as_well(tmp_path, ledger):
    first, over = Listener(), threading.Event()
    sinks, jobs = Fanout([first, Listener(room=0)]), submit(ledger, 130)
    with pytest.raises(Transient):
        relay(ledger, sinks)
    beside = threading.Thread(target=hurry, args=(SqliteLedger(tmp_path / "ledger.db"), sinks, over.is_set))
    beside.start()
    first.await_events(130)
    over.set()
    beside.join()
    assert [event.job for event in first.heard] == jobs


def test_a_first_that_is_away_is_given_what_it_missed_by_the_relay(tmp_path, ledger):
    first, second = Listener(room=0), Listener()
    sinks, over = Fanout([first, second]), threading.Event()
    beside = threading.Thread(target=hurry, args=(SqliteLedger(tmp_path / "ledger.db"), sinks, over.is_set))
    beside.start()
    jobs = submit(ledger, 3)
    with pytest.raises(Transient):
        relay(ledger, sinks)
    assert [event.job for event in ledger.outbox.pending()] == jobs, "nothing counts that only one has heard"
    first.room = float("inf")
    relay(ledger, sinks)
    over.set()
    beside.join()
    assert [event.job for event in first.heard] == [event.job for event in second.heard] == jobs


def test_what_is_committed_while_relaying_is_relayed_too(ledger):
    class Busy(Listener):
        def publish(self, events):
            super().publish(events)
            if len(self.heard) < 3:
                submit(ledger, 1)

    submit(ledger, 1)
    assert relay(ledger, Busy()) == 3


RELAY = """
import sys
from pathlib import Path
from dailies.events.fanout import Fanout
from dailies.events.interface import cloud_event
from dailies.events.relay import hurry, relay
from dailies.failpoints import failpoint
from dailies.ledger.sqlite import SqliteLedger

class File:
    def publish(self, events):
        with open(sys.argv[2], "a") as file:
            for event in events:
                print(event.id, file=file)
        failpoint("published")

relay(SqliteLedger(Path(sys.argv[1])), File())
"""


def test_a_relay_killed_between_publishing_and_marking_publishes_again(ledger, tmp_path):
    submit(ledger, 3)
    heard, log = tmp_path / "heard", tmp_path / "faults"
    for expected in (-signal.SIGKILL, 0):
        child = subprocess.run(
            [sys.executable, "-c", RELAY, str(ledger.path), str(heard)],
            env={**os.environ, **environment("published=kill", log)},
            check=False,
        )
        assert child.returncode == expected
    assert len(fired(log)) == 1
    ids = heard.read_text().split()
    assert ids[:3] == ids[3:]
    assert len(ids) == 6
    assert list(ledger.outbox.pending()) == []


# ── to a Prefect server ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def api():
    """An HTTP server that keeps what it is sent, and answers with ``server.status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.received.append((self.path, self.headers.get("authorization"), json.loads(body)))
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(b"because")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.status = [], 204
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}/api"


def test_prefect_gets_an_event_with_the_whole_cloud_event_inside():
    outside = as_prefect(EVENT)
    assert uuid.UUID(outside["id"]).hex == EVENT.id
    assert (outside["event"], outside["occurred"]) == (EVENT.type, cloud_event(EVENT)["time"])
    assert outside["resource"] == {"prefect.resource.id": "dailies.video-1", "prefect.resource.name": "video-1"}
    assert outside["related"] == [{"prefect.resource.id": "dailies.job.job-1", "prefect.resource.role": "job"}]
    assert outside["payload"] == cloud_event(EVENT)


def test_events_are_posted_together_and_the_answer_is_the_receipt(api, ledger):
    submit(ledger, 3)
    expected = [as_prefect(event) for event in ledger.outbox.pending()]
    sink = PrefectEvents(url(api), {"authorization": "Bearer a-token"})
    assert relay(ledger, sink) == 3
    assert api.received == [("/api/events", "Bearer a-token", expected)]
    sink.publish([])
    assert len(api.received) == 1
    sink.close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [(301, Transient), (403, NotConfigured), (404, NotConfigured), (422, Transient), (503, Transient)],
)
def test_an_answer_that_is_no_yes_leaves_the_events_pending(api, ledger, status, kind):
    submit(ledger, 2)
    api.status = status
    sink = PrefectEvents(url(api))
    with pytest.raises(kind, match=f"refused the events \\({status} because.*set api_url"):
        relay(ledger, sink)
    assert len(ledger.outbox.pending()) == 2
    api.status = 200
    assert relay(ledger, sink) == 2
    sink.close()


def test_a_server_that_is_not_there_is_worth_another_try(api, ledger):
    submit(ledger, 1)
    nobody = PrefectEvents("http://127.0.0.1:9/api", timeout=1)
    with pytest.raises(Transient, match="did not take the events"):
        relay(ledger, nobody)
    assert len(ledger.outbox.pending()) == 1
    nobody.close()


def test_without_an_address_it_says_what_to_configure():
    with pytest.raises(NotConfigured, match="PREFECT_API_URL"):
        PrefectEvents("")
