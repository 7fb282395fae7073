"""Events through a real Redis: what arrives, in which order and how often, whatever dies on the way."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from blocks.redis import RedisStream as RedisBlock
from dailies.errors import DailiesError, Injected, NotConfigured, TimedOut, Transient
from dailies.events import redis_stream
from dailies.events import relay as relaying
from dailies.events.fanout import Fanout
from dailies.events.interface import cloud_event
from dailies.events.redis_stream import RECENT, Delivery, RedisStream, consume, never_lost, never_twice
from dailies.events.relay import relay
from dailies.failpoints import environment, fired
from dailies.ledger.records import Event, JobRequest
from dailies.ledger.sqlite import SqliteLedger
from tests.servers.redis import RedisServer, free_port, serving_redis

pytestmark = pytest.mark.integration

GROUP = "listeners"
SOON_S = 5.0
WAIT_S = 30.0
SECRET = "a-secret-nobody-prints"


@pytest.fixture(scope="module")
def redis(tmp_path_factory) -> Iterator[RedisServer]:
    """For tests that leave it running and keep to a stream of their own."""
    with serving_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def mortal(tmp_path) -> Iterator[RedisServer]:
    """For tests that kill, freeze or empty it."""
    with serving_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def name() -> str:
    return f"events-{uuid4().hex[:8]}"


@pytest.fixture
def stream(redis, name) -> Iterator[RedisStream]:
    stream = RedisStream(redis.url, stream=name)
    yield stream
    stream.close()


@pytest.fixture
def fragile(mortal, name) -> Iterator[RedisStream]:
    stream = RedisStream(mortal.url, stream=name)
    yield stream
    stream.close()


@pytest.fixture
def ledger(tmp_path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def event(number: int, job: str = "job-1") -> Event:
    data = {"job": job, "number": number, "title": "naïve\n{✓}"}
    return Event(number, f"{number:032x}", "dailies/ledger", "dailies.job.done", "video-1", 1.7e9 + number, data, job)


def some(count: int, start: int = 0, jobs: int = 1) -> list[Event]:
    return [event(number, f"job-{number % jobs}") for number in range(start, start + count)]


def submit(ledger: SqliteLedger, count: int) -> list[str]:
    return [ledger.jobs.submit(JobRequest("acme", "ingest-media", f"video-{n}")).id for n in range(count)]


def entries(server: RedisServer, name: str) -> list[dict[str, str]]:
    with server.client as client:
        return [fields for _, fields in client.xrange(name)]


def ids(server: RedisServer, name: str) -> list[str]:
    return [fields["id"] for fields in entries(server, name)]


def ids_of(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


def unacknowledged(server: RedisServer, name: str) -> int:
    with server.client as client:
        return client.xpending(name, GROUP)["pending"]


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.002)


def one_line(error: BaseException) -> str:
    said = str(error)
    assert "\n" not in said
    assert len(said) <= redis_stream.LONGEST_LINE
    assert SECRET not in said
    return said


# ── what is published ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_published_is_read_back_equal_and_in_its_order(redis, stream, name):
    events = some(250, jobs=3)
    stream.publish(events)
    found = entries(redis, name)
    assert [json.loads(fields["event"]) for fields in found] == [cloud_event(event) for event in events]
    flat = ("id", "source", "type", "subject", "job")
    assert [[fields[key] for key in flat] for fields in found] == [[getattr(e, key) for key in flat] for e in events]


def test_a_batch_of_nothing_makes_no_stream(redis, stream, name):
    stream.publish([])
    with redis.client as client:
        assert not client.exists(name)


def test_the_ledgers_events_arrive_in_the_order_of_each_job(redis, stream, name, ledger):
    jobs = submit(ledger, 30)
    for job in jobs[::3]:
        ledger.jobs.pause(job)
        ledger.jobs.resume(job)
        ledger.jobs.cancel(job)
    assert relay(ledger, stream) == 60
    heard = [json.loads(fields["event"]) for fields in entries(redis, name)]
    for job in jobs:
        assert [e for e in heard if e["data"]["job"] == job] == [cloud_event(e) for e in ledger.outbox.of(job)]
    assert [e["data"]["state"] for e in heard if e["data"]["job"] == jobs[0]] == [
        "QUEUED",
        "PAUSED",
        "QUEUED",
        "CANCELED",
    ]


def test_a_batch_that_is_there_already_is_not_appended_again(redis, stream, name):
    events = some(100)
    stream.publish(events[:60])
    stream.publish(events)
    stream.publish(events)
    assert ids(redis, name) == ids_of(events)


def test_the_same_id_from_another_source_is_another_event(redis, stream, name):
    one, other = event(1), Event(**{**vars(event(1)), "source": "another/ledger"})
    stream.publish([one, other, one])
    assert [fields["source"] for fields in entries(redis, name)] == ["dailies/ledger", "another/ledger"]


def test_a_late_batch_of_a_relay_long_frozen_makes_copies(redis, stream, name):
    """The limit of the guard, and the reason for inboxes."""
    late, others = some(5), some(RECENT, start=100)
    stream.publish(late)
    stream.publish(others)
    stream.publish(late)
    assert ids(redis, name) == ids_of([*late, *others, *late])


def test_many_relays_at_once_make_one_copy_and_keep_batches_whole(redis, name, tmp_path):
    batches = [some(20, start=20 * number) for number in range(6)] * 2

    def publish(batch: list[Event]) -> None:
        own = RedisStream(redis.url, stream=name)
        own.publish(batch)
        own.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(publish, batches))
    found = ids(redis, name)
    runs = [found[at : at + 20] for at in range(0, len(found), 20)]
    assert sorted(runs) == [ids_of(batch) for batch in batches[:6]]


def test_the_stream_keeps_about_as_many_as_it_was_told(redis, name):
    stream = RedisStream(redis.url, stream=name, max_length=100)
    for start in range(0, 2000, 100):
        stream.publish(some(100, start=start))
    stream.close()
    found = ids(redis, name)
    assert 100 <= len(found) <= 300
    assert found == ids_of(some(2000))[-len(found) :]


def test_entries_of_others_do_not_disturb_a_publication(redis, stream, name):
    with redis.client as client:
        client.xadd(name, {"only": "one field"})
    stream.publish(some(3))
    assert [fields.get("id") for fields in entries(redis, name)] == [None, *ids_of(some(3))]


# ── a reply that is lost ──────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def losing_replies(server: RedisServer) -> Iterator[tuple[str, threading.Event]]:
    """A way to the server on which, while the event is set, commands arrive and the answer ends in a cut connection."""
    losing, over = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.02)
    threads = []

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", server.port)) as upstream:
            client.settimeout(0.02)
            upstream.settimeout(WAIT_S)
            while not over.is_set():
                try:
                    asked = client.recv(1 << 20)
                except TimeoutError:
                    continue
                if not asked:
                    return
                upstream.sendall(asked)
                answer = upstream.recv(1 << 20)
                if losing.is_set() and b"XADD" not in answer:
                    return
                client.sendall(answer)

    def accept() -> None:
        while not over.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0", losing
    finally:
        over.set()
        for thread in (acceptor, *threads):
            thread.join()
        listener.close()


@pytest.mark.parametrize(("recent", "copies"), [(RECENT, 0), (1, 9)], ids=["guarded", "as good as unguarded"])
def test_a_lost_reply_is_transient_and_the_next_try_makes_no_copies(redis, name, ledger, recent, copies):
    submit(ledger, 10)
    expected = ids_of(ledger.outbox.pending())
    with losing_replies(redis) as (url, losing):
        stream = RedisStream(url, stream=name, recent=recent)
        stream.check()
        losing.set()
        with pytest.raises(Transient) as raised:
            relay(ledger, stream)
        one_line(raised.value)
        assert ids(redis, name) == expected, "the batch was appended; only its answer was lost"
        assert ids_of(ledger.outbox.pending()) == expected
        losing.clear()
        assert relay(ledger, stream) == 10
        stream.close()
    assert ids(redis, name)[:10] == expected
    assert ids(redis, name)[10:] == expected[:copies]


# ── a server that goes away ───────────────────────────────────────────────────────────────────────────────────────────


def test_while_it_is_down_events_wait_in_the_outbox_and_then_all_arrive(mortal, fragile, name, ledger):
    jobs = submit(ledger, 5)
    assert relay(ledger, fragile) == 5
    mortal.stop()
    jobs += submit(ledger, 5)
    for _ in range(3):
        with pytest.raises(Transient) as raised:
            relay(ledger, fragile)
        assert str(mortal.port) in one_line(raised.value)
    assert [event.job for event in ledger.outbox.pending()] == jobs[5:]
    mortal.start()
    assert relay(ledger, fragile) == 5
    assert [fields["job"] for fields in entries(mortal, name)] == jobs
    assert list(ledger.outbox.pending()) == []


def test_a_frozen_server_times_out_soon_and_what_it_then_does_late_makes_no_copies(mortal, fragile, name, ledger):
    submit(ledger, 20)
    expected = ids_of(ledger.outbox.pending())
    fragile.check()
    mortal.freeze()
    start = time.monotonic()
    with pytest.raises(TimedOut) as raised:
        relay(ledger, fragile)
    assert time.monotonic() - start < SOON_S
    one_line(raised.value)
    assert ids_of(ledger.outbox.pending()) == expected
    mortal.revive()
    assert relay(ledger, fragile) == 20
    assert ids(mortal, name) == expected
    with mortal.client as client:
        runs = int(client.info("commandstats")["cmdstat_evalsha"]["calls"])
    assert runs >= 3, "the check, the batch that it was sent while frozen, and the batch sent again"


def test_a_server_that_takes_no_writes_now_is_transient_and_takes_nothing_of_a_batch(mortal, fragile, name):
    with mortal.client as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(Transient, match="maxmemory") as raised:
            fragile.publish(some(10))
        one_line(raised.value)
        assert not client.exists(name)
        client.config_set("maxmemory", 0)
        client.replicaof("127.0.0.1", free_port())
        with pytest.raises(Transient, match="read only replica") as raised:
            fragile.publish(some(10))
        one_line(raised.value)
        client.replicaof("NO", "ONE")
    fragile.publish(some(10))
    assert ids(mortal, name) == ids_of(some(10))


def test_a_server_that_still_loads_is_transient(tmp_path, name):
    with serving_redis(tmp_path / "redis", "", "--aof-use-rdb-preamble", "no") as server:
        stream = RedisStream(server.url, stream=name)
        with server.client as client:
            client.eval("for n = 1, 400000 do redis.call('SET', 'key:' .. n, 'x') end", 0)
        server.stop()
        said = []
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(server.start)
            while not starting.done():
                try:
                    stream.publish(some(1))
                except Transient as error:
                    said.append(str(error))
            starting.result()
        stream.publish(some(1))
        assert any("loading" in each for each in said)
        assert ids(server, name) == ids_of(some(1))
        stream.close()


def test_flushed_away_is_gone_from_the_stream_and_kept_by_the_outbox(mortal, fragile, name, ledger):
    before = submit(ledger, 4)
    relay(ledger, fragile)
    heard: list[str] = []
    listen(fragile, ledger, heard, until=4)
    with mortal.client as client:
        client.flushall()
    assert relay(ledger, fragile) == 0, "delivered means that Redis answered"
    assert entries(mortal, name) == []
    assert [len(ledger.outbox.of(job)) for job in before] == [1, 1, 1, 1]
    after = submit(ledger, 4)
    relay(ledger, fragile)
    assert [fields["job"] for fields in entries(mortal, name)] == after
    listen(fragile, ledger, heard, until=8)
    assert heard == [*before, *after], "the group that vanished is made again, from the oldest entry"


def test_a_server_killed_during_a_publication_loses_nothing_and_repeats_no_effect(
    mortal, fragile, name, ledger, monkeypatch
):
    monkeypatch.setattr(relaying, "BATCH", 5)
    monkeypatch.setattr(redis_stream, "RETRY_S", 0.05)
    jobs = submit(ledger, 300)
    failures: list[str] = []

    def relay_all() -> None:
        own, sink = SqliteLedger(ledger.path), RedisStream(mortal.url, stream=name)
        end = time.monotonic() + WAIT_S
        while own.outbox.pending(1) and time.monotonic() < end:
            try:
                relay(own, sink)
            except Transient as error:
                failures.append(one_line(error))
                time.sleep(0.02)
        sink.close()
        own.close()

    heard: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        relaying_all = pool.submit(relay_all)
        listening = pool.submit(listen, fragile, ledger, heard, 300)
        wait_until(lambda: len(ids(mortal, name)) >= 60)
        mortal.kill()
        left = len(ledger.outbox.pending(1000))
        wait_until(lambda: failures)
        mortal.start()
        relaying_all.result()
        listening.result()
    assert 0 < left < 300, "it was killed in the middle"
    assert heard == jobs
    assert [fields["job"] for fields in entries(mortal, name)] == jobs
    assert list(ledger.outbox.pending()) == []


# ── what is set up wrong ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Iterator[RedisServer]:
    with serving_redis(tmp_path_factory.mktemp("locked"), SECRET) as server:
        yield server


def refused(stream: RedisStream, kind: type[Exception] = NotConfigured) -> str:
    """What ``check`` says, within the time and in one line; and that ``publish`` ends as ``kind``, as soon."""
    for use, error in ((stream.check, NotConfigured), (lambda: stream.publish(some(1)), kind)):
        start = time.monotonic()
        with pytest.raises(error) as raised:
            use()
        assert time.monotonic() - start < SOON_S
        said = one_line(raised.value)
        if use == stream.check:
            answer = said
    stream.close()
    return answer


def test_a_wrong_password_or_none_is_told(locked, redis):
    for password in (None, "wrong"):
        assert "set the password" in refused(RedisStream(locked.url, password))
    assert "set the password" in refused(RedisStream(redis.url, SECRET))
    assert "set the password" in refused(RedisStream(f"redis://nobody:{SECRET}x@127.0.0.1:{locked.port}/0"))
    RedisStream(locked.url, SECRET).check()


def test_a_port_where_nobody_listens_is_told_and_only_passing_for_a_run():
    port = free_port()
    said = refused(RedisStream(f"redis://:{SECRET}@127.0.0.1:{port}/0"), Transient)
    assert str(port) in said
    assert "does the server run" in said


def test_a_server_that_never_answers_is_told(redis):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        said = refused(RedisStream(f"redis://127.0.0.1:{mute.getsockname()[1]}/0"), TimedOut)
    assert "does the server run" in said


def test_a_server_that_is_no_redis_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet_twice() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                with client:
                    client.recv(1 << 20)
                    client.sendall(b"220 mail.example ready\r\n")

        greeting = threading.Thread(target=greet_twice)
        greeting.start()
        assert "set its address and port" in refused(RedisStream(f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))
        greeting.join()


def test_a_key_of_another_type_is_told_and_left_alone(redis, stream, name):
    with redis.client as client:
        client.set(name, "mine")
        assert "set another stream" in refused(stream)
        assert client.get(name) == "mine"


def test_a_user_who_may_not_write_is_told(redis, name):
    with redis.client as client:
        for rights in (["+@read"], ["+@read", "+@scripting"]):
            client.acl_setuser("reader", enabled=True, passwords=[f"+{SECRET}"], keys=["*"], categories=rights)
            stream = RedisStream(f"redis://reader@127.0.0.1:{redis.port}/0", SECRET, stream=name)
            assert "allow this user" in refused(stream)
            client.acl_deluser("reader")


def test_what_is_no_address_or_database_is_told(redis):
    urls = ("http://host", f"not:{SECRET}@an address", "redis://host:many/0", f"redis://:{SECRET}/{SECRET}@host")
    for url in (*urls, f"redis://host:many?password={SECRET}@there", "redis://[host", ""):
        with pytest.raises(NotConfigured, match="no address of a Redis") as raised:
            RedisStream(url)
        one_line(raised.value)
        assert SECRET not in "".join(traceback.format_exception(raised.value)), "nor where it came from"
    assert "no database" in refused(RedisStream(f"redis://127.0.0.1:{redis.port}/99"))


def test_a_check_leaves_nothing_and_a_good_one_says_nothing(redis, stream, name):
    stream.check()
    with redis.client as client:
        assert not client.exists(name)


# ── who hears ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def listen(stream: RedisStream, ledger: SqliteLedger, heard: list[str], until: int) -> int:
    """An inbox-keeping consumer in this process, whose effect is to write the job down."""
    stopped = threading.Event()
    own = SqliteLedger(ledger.path)

    def write_down(each: Delivery) -> None:
        heard.append(each.job)
        if len(heard) >= until:
            stopped.set()

    with ending(stopped):
        made = consume(stream, GROUP, "one", never_lost(own.inbox, write_down), stopped=stopped)
    own.close()
    return made


@contextmanager
def ending(stopped: threading.Event) -> Iterator[None]:
    """A consumer that never hears what it waits for must not hold up the tests."""
    timer = threading.Timer(WAIT_S, stopped.set)
    timer.start()
    yield
    timer.cancel()


def test_a_consumer_hears_everything_equal_in_order_and_acknowledges_it(redis, stream, name):
    events, heard, stopped = some(35, jobs=3), [], threading.Event()
    stream.publish(events)

    def decide(each: Delivery) -> bool:
        assert unacknowledged(redis, name) > 0, "acknowledged only after the effect"
        heard.append(each)
        if len(heard) == len(events):
            stopped.set()
        return True

    with ending(stopped):
        assert consume(stream, GROUP, "one", decide, stopped=stopped) == len(events)
    assert [each.event for each in heard] == [cloud_event(event) for event in events]
    assert [(each.id, each.source, each.job) for each in heard] == [(e.id, e.source, e.job) for e in events]
    assert not any(each.again for each in heard)
    assert unacknowledged(redis, name) == 0
    assert stream.take(GROUP, "one") == []


def test_a_consumer_that_is_stopped_leaves_the_rest_to_the_next(stream):
    stream.publish(some(5))
    heard: list[str] = []

    def until(number: int, stopped: threading.Event) -> Callable[[Delivery], bool]:
        def decide(each: Delivery) -> bool:
            heard.append(each.id)
            if each.id == event(number).id:
                stopped.set()
            return True

        return decide

    for last, expected in ((2, 3), (4, 2)):
        stopped = threading.Event()
        with ending(stopped):
            assert consume(stream, GROUP, "one", until(last, stopped), stopped=stopped) == expected
    assert heard == ids_of(some(5))


def test_two_members_may_make_the_group_at_once(stream):
    stream.publish(some(1))
    for _ in range(2):
        stream._make_group(GROUP)
    assert [each.id for each in stream.take(GROUP, "one")] == ids_of(some(1))


def test_another_group_hears_everything_too(stream):
    stream.publish(some(3))
    for group in ("one", "other"):
        taken = stream.take(group, "me")
        assert [each.id for each in taken] == ids_of(some(3))


def test_who_keeps_no_inbox_makes_the_effects_of_copies_twice(redis, stream, name, ledger):
    late = some(5)
    stream.publish(late)
    stream.publish(some(RECENT, start=100))
    stream.publish(late)
    careless: Counter[str] = Counter()
    while taken := stream.take("careless", "one"):
        careless.update(each.id for each in taken)
        stream.acknowledge("careless", *(each.entry for each in taken))
    assert [careless[event.id] for event in late] == [2] * 5, "the copies are real"
    for rule in (never_lost, never_twice):
        own = SqliteLedger(ledger.path.with_name(f"{rule.__name__}.db"))
        effects: list[str] = []
        decide = rule(own.inbox, lambda each, effects=effects: effects.append(each.id))
        made = 0
        while taken := stream.take(rule.__name__, "one"):
            made += sum(decide(each) for each in taken)
            stream.acknowledge(rule.__name__, *(each.entry for each in taken))
        own.close()
        assert effects == ids_of([*late, *some(RECENT, start=100)])
        assert made == len(effects)


def test_nobody_gets_new_entries_while_another_still_has_some(redis, stream, name):
    stream.publish(some(20))
    first = stream.take(GROUP, "one")
    assert [each.id for each in first] == ids_of(some(10))
    assert stream.take(GROUP, "two") == []
    stream.acknowledge(GROUP, *(each.entry for each in first[:9]))
    assert stream.take(GROUP, "two") == []
    with redis.client as client:
        [[_, raw]] = client.xreadgroup(GROUP, "raw", {name: ">"}, count=1)
        assert raw[0][1]["id"] == event(10).id, "which a plain XREADGROUP would have handed out"
        client.xack(name, GROUP, raw[0][0])
    stream.acknowledge(GROUP, first[9].entry)
    assert [each.id for each in stream.take(GROUP, "two")] == ids_of(some(9, start=11))


def test_what_a_member_left_is_its_own_at_once_and_anothers_after_a_while(stream):
    stream.publish(some(3))
    stream.take(GROUP, "one")
    mine = stream.take(GROUP, "one", claim_after=WAIT_S)
    assert [(each.id, each.again) for each in mine] == [(id, True) for id in ids_of(some(3))]
    assert stream.take(GROUP, "two", claim_after=WAIT_S) == []
    time.sleep(0.2)
    theirs = stream.take(GROUP, "two", claim_after=0.1)
    assert [(each.id, each.again) for each in theirs] == [(id, True) for id in ids_of(some(3))]
    assert stream.take(GROUP, "one", claim_after=WAIT_S) == []


def test_two_members_share_a_group_and_each_jobs_effects_stay_in_order(redis, name, ledger, monkeypatch):
    monkeypatch.setattr(redis_stream, "LOOK_S", 0.0005)
    events = some(240, jobs=4)
    publisher = RedisStream(redis.url, stream=name)
    publisher.publish(events)
    effects: list[tuple[str, str]] = []
    stopped = threading.Event()

    def member(me: str) -> int:
        own, stream = SqliteLedger(ledger.path), RedisStream(redis.url, stream=name)

        def effect(each: Delivery) -> None:
            effects.append((me, each.id))
            if len(effects) == len(events):
                stopped.set()

        made = consume(stream, GROUP, me, never_twice(own.inbox, effect), stopped=stopped)
        stream.close()
        own.close()
        return made

    with ending(stopped), ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(member, ("one", "two")))
    publisher.close()
    assert [id for _, id in effects] == ids_of(events)
    assert sum(counts) == len(events)
    assert all(counts), "or one of them had it all"
    assert unacknowledged(redis, name) == 0


def test_an_effect_that_fails_passingly_is_made_before_any_later_one(stream, ledger, monkeypatch):
    monkeypatch.setattr(redis_stream, "RETRY_S", 0.01)
    stream.publish(some(5))
    effects, failing, stopped = [], [Transient("later"), TimedOut("later still")], threading.Event()

    def effect(each: Delivery) -> None:
        if each.id == event(2).id and failing:
            raise failing.pop()
        effects.append(each.id)
        if len(effects) == 5:
            stopped.set()

    with ending(stopped):
        assert consume(stream, GROUP, "one", never_lost(ledger.inbox, effect), stopped=stopped) == 5
    assert effects == ids_of(some(5))


def test_an_acknowledgement_that_does_not_get_through_repeats_no_effect(redis, stream, name, ledger, arm, monkeypatch):
    monkeypatch.setattr(redis_stream, "RETRY_S", 0.01)
    stream.publish(some(5))
    effects: list[str] = []
    stopped = threading.Event()

    def effect(each: Delivery) -> None:
        effects.append(each.id)
        if len(effects) == 5:
            stopped.set()

    log = arm("events.before_ack#3=raise")
    with ending(stopped):
        assert consume(stream, GROUP, "one", never_lost(ledger.inbox, effect), stopped=stopped) == 5
    assert len(fired(log)) == 1
    assert effects == ids_of(some(5))
    assert unacknowledged(redis, name) == 0


def test_an_effect_that_fails_for_good_ends_the_consumer_and_stays_for_the_next(stream, ledger):
    stream.publish(some(3))
    effects: list[str] = []
    failing = [ValueError("broken")]

    def effect(each: Delivery) -> None:
        if failing:
            raise failing.pop()
        effects.append(each.id)
        if len(effects) == 3:
            stopped.set()

    stopped = threading.Event()
    decide = never_lost(ledger.inbox, effect)
    with pytest.raises(ValueError, match="broken"):
        consume(stream, GROUP, "one", decide, stopped=stopped)
    with ending(stopped):
        assert consume(stream, GROUP, "one", decide, stopped=stopped) == 3
    assert effects == ids_of(some(3))


def test_an_effect_that_must_never_be_made_twice_says_when_it_failed(stream, ledger):
    stream.publish(some(1))
    stopped = threading.Event()

    def effect(each: Delivery) -> None:
        raise Injected("half-way")

    with pytest.raises(DailiesError, match=f"{event(0).id} failed and will not be tried again: half-way") as raised:
        consume(stream, GROUP, "one", never_twice(ledger.inbox, effect), stopped=stopped)
    assert not isinstance(raised.value, Transient), "or it would be taken up again, and silently passed over"


def test_entries_that_nobody_can_handle_are_told_and_do_not_block(redis, stream, name, caplog):
    stream.publish(some(2))
    assert len(stream.take(GROUP, "one")) == 2
    with redis.client as client:
        client.xtrim(name, maxlen=0, approximate=False)
        client.xadd(name, {"who": "somebody else"})
    stream.publish(some(1, start=5))
    caplog.set_level(logging.WARNING, "dailies.events")
    assert stream.take(GROUP, "two", claim_after=0) == []
    assert caplog.text.count("trimmed before it was handled") == 2
    assert [each.id for each in stream.take(GROUP, "two")] == [event(5).id]
    assert caplog.text.count("not written by dailies") == 1
    assert unacknowledged(redis, name) == 1


def test_a_consumer_outlives_a_server_that_is_started_anew(mortal, fragile, name, ledger, monkeypatch):
    monkeypatch.setattr(redis_stream, "RETRY_S", 0.05)
    heard: list[str] = []
    jobs = submit(ledger, 6)
    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen, RedisStream(mortal.url, stream=name), ledger, heard, 6)
        fragile.publish(ledger.outbox.pending(3))
        wait_until(lambda: len(heard) == 3)
        mortal.kill()
        time.sleep(0.2)
        mortal.start()
        relay(ledger, fragile)
        listening.result()
    assert heard == jobs


# ── who dies while hearing ────────────────────────────────────────────────────────────────────────────────────────────

CONSUMER = """
import sqlite3, sys, threading
from pathlib import Path
from dailies.events.redis_stream import RedisStream, consume, never_lost, never_twice
from dailies.ledger.sqlite import SqliteLedger

url, stream, name, folder, rule, last = sys.argv[1:]
effects = sqlite3.connect(Path(folder, "effects.db"), isolation_level=None)
inbox = SqliteLedger(Path(folder, "ledger.db")).inbox
stopped = threading.Event()

def write_down(each):
    effects.execute("INSERT INTO effects (id, by) VALUES (?, ?)", (each.id, name))

def in_one_transaction(each):
    effects.execute("BEGIN IMMEDIATE")
    known = (each.source, each.id)
    new = effects.execute("INSERT INTO inbox VALUES (?, ?) ON CONFLICT DO NOTHING", known).rowcount == 1
    if new:
        write_down(each)
    effects.execute("COMMIT")
    return new

def without_an_inbox(each):
    write_down(each)
    return True

rules = {
    "transaction": in_one_transaction,
    "careless": without_an_inbox,
    "never_lost": never_lost(inbox, write_down),
    "never_twice": never_twice(inbox, write_down),
}

def decide(each):
    if each.id == last:
        stopped.set()
    return rules[rule](each)

consume(RedisStream(url, stream=stream), "listeners", name, decide, stopped=stopped, claim_after=0.5)
"""


@pytest.mark.parametrize(
    ("rule", "point", "times"),
    [
        ("transaction", "events.before_ack", 1),
        ("never_twice", "events.before_ack", 1),
        ("never_lost", "events.before_ack", 2),
        ("careless", "events.before_ack", 2),
        ("never_twice", "events.after_accept", 0),
        ("never_lost", "events.after_accept", 1),
    ],
)
def test_a_consumer_that_is_killed_leaves_the_rest_to_the_other(redis, stream, name, tmp_path, rule, point, times):
    """``times``: how often the effect of the event that it died over is made in the end."""
    events, log, database = some(8), tmp_path / "faults.jsonl", tmp_path / "effects.db"
    stream.publish(events)
    with sqlite3.connect(database) as effects:
        effects.execute("CREATE TABLE effects (place INTEGER PRIMARY KEY, id TEXT, by TEXT)")
        effects.execute("CREATE TABLE inbox (source TEXT, id TEXT, PRIMARY KEY (source, id))")
    for member, expected in (("victim", -signal.SIGKILL), ("heir", 0)):
        words = [redis.url, name, member, str(tmp_path), rule, events[-1].id]
        child = subprocess.run(
            [sys.executable, "-c", CONSUMER, *words],
            env={**os.environ, **environment(f"{point}#3=kill", log)},
            check=False,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
        assert child.returncode == expected
    assert len(fired(log)) == 1
    made = effects.execute("SELECT id, by FROM effects ORDER BY place").fetchall()
    effects.close()
    counts = Counter(id for id, _ in made)
    assert [counts[event.id] for event in events] == [1, 1, times, 1, 1, 1, 1, 1]
    assert list(dict.fromkeys(id for id, _ in made)) == [event.id for event in events if counts[event.id]]
    assert {id for id, by in made if by == "heir"} >= set(ids_of(events[3:]))
    assert unacknowledged(redis, name) == 0


# ── several sinks ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Listener:
    """Writes down every event that it is given."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def publish(self, events: Sequence[Event]) -> None:
        self.heard += ids_of(events)
        time.sleep(0.001)


def test_each_sink_gets_everything_in_order_and_one_that_is_down_floods_nobody(mortal, fragile, name, ledger):
    listener, alone = Listener(), Listener()
    fanout = Fanout([listener, fragile])
    submit(ledger, 4)
    assert relay(ledger, fanout) == 4
    mortal.stop()
    submit(ledger, 3)
    for _ in range(4):
        submit(ledger, 1)
        with pytest.raises(Transient, match="cannot append"):
            relay(ledger, fanout)
        alone.publish(ledger.outbox.pending())
    assert len(ledger.outbox.pending()) == 7, "nothing counts as delivered that one of them lacks"
    assert len(listener.heard) == len(set(listener.heard)) == 11
    assert len(alone.heard) == 4 + 5 + 6 + 7, "without its memory it would have had copies"
    mortal.start()
    assert relay(ledger, fanout) == 7
    assert ids(mortal, name) == listener.heard
    assert len(listener.heard) == 11


def test_a_sink_that_comes_first_and_is_down_keeps_nothing_from_the_others(ledger):
    listener, nobody = Listener(), RedisStream(f"redis://127.0.0.1:{free_port()}/0")
    submit(ledger, 3)
    with pytest.raises(Transient):
        relay(ledger, Fanout([nobody, listener]))
    assert listener.heard == ids_of(ledger.outbox.pending())


def test_what_must_be_set_up_is_said_before_what_passes(locked, ledger):
    listener, nobody = Listener(), RedisStream(f"redis://127.0.0.1:{free_port()}/0")
    submit(ledger, 3)
    with pytest.raises(NotConfigured, match="set the password"):
        relay(ledger, Fanout([nobody, RedisStream(locked.url, "wrong"), listener]))
    assert len(listener.heard) == 3


def test_a_sweep_and_a_relay_that_offer_the_same_make_no_copies():
    listener = Listener()
    fanout = Fanout([listener])
    offered = [some(count) for count in (50, 60, 70, 80)] * 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fanout.publish, offered))
    assert listener.heard == ids_of(some(80))


def test_what_a_sink_took_is_forgotten_in_the_end():
    listener = Listener()
    fanout = Fanout([listener], remembered=10)
    fanout.publish(some(30))
    fanout.publish(some(30)[20:])
    assert len(listener.heard) == 30
    fanout.publish(some(30)[:20])
    assert len(listener.heard) == 50


# ── the block ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_block_opens_its_stream_and_shows_no_secret(locked, name):
    block = RedisBlock(url=locked.url, password=SECRET, stream=name, max_length=1000)
    sink = block.open()
    sink.check()
    sink.publish(some(2))
    sink.close()
    assert ids(locked, name) == ids_of(some(2))
    assert SECRET not in repr(block)
    assert SECRET not in str(block.model_dump(mode="json"))
    described = RedisBlock.model_json_schema()["properties"]
    assert all(described[field].get("description") for field in described)
    assert (RedisBlock._block_type_name, RedisBlock._block_type_slug) == (
        "Dailies Redis stream",
        "dailies-redis-stream",
    )
