"""What becomes of a call on a bad way: replies lost, the server gone for a while, the wrong address, the wrong key."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from postgrest.exceptions import APIError

from dailies.canonical import canonical_json
from dailies.errors import BadInput, Held, Injected, NotConfigured, Transient
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Call, JobState, Lease, VideoState, video_resource
from dailies.ledger.supabase import SupabaseLedger
from dailies.ledger.supabase import api as transport
from tests.supabase.proxy import losing
from tests.supabase.servers import MIGRATIONS, SERVICE_KEY, free_port, instead, migrate, running_api
from tests.unit.ledger.contract.world import TTL, at_once, request, running, states, with_work_under_way

pytestmark = pytest.mark.supabase


@pytest.fixture
def lossy(api) -> Iterator[tuple[Any, SupabaseLedger]]:
    with losing(api.port) as proxy:
        far = SupabaseLedger(proxy.url, SERVICE_KEY)
        far.leases.holder("nothing")  # so that what is lost is the reply that a test means
        yield proxy, far
        far.close()


# ── a lost reply ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("times", [1, 3])
def test_a_lease_whose_reply_was_lost_is_given_out_once(ledger, lossy, times):
    proxy, far = lossy
    proxy.lose(times)
    lease = far.leases.acquire("video:1", "a", TTL)
    assert proxy.lost == times
    assert lease.fence == 1
    assert ledger.leases.holder("video:1") == lease


def test_without_the_kept_answer_its_own_lost_lease_stands_in_the_way(ledger, lossy, database):
    """The control of the test above."""
    proxy, far = lossy
    kept = "(SELECT answer FROM dailies.answers WHERE request = _request)"
    proxy.lose(1)
    with instead(database, "answered", kept, "NULL"), pytest.raises(Held) as refused:
        far.leases.acquire("video:1", "a", TTL)
    assert refused.value.by == "a"


def test_a_job_whose_reply_was_lost_is_accepted_once_also_without_a_key(ledger, lossy):
    proxy, far = lossy
    proxy.lose(2)
    job = far.jobs.submit(request())
    assert proxy.lost == 2
    assert list(ledger.jobs.all()) == [job]
    assert states(ledger, job.id) == ["QUEUED"]


def test_a_job_whose_end_was_not_heard_of_ended_once(ledger, lossy):
    proxy, far = lossy
    job, lease = running(ledger)
    proxy.lose(2)
    done = far.jobs.done(lease, {"answer": 42})
    assert proxy.lost == 2
    assert (done.state, done.result) == (JobState.DONE, {"answer": 42})
    assert states(ledger, job.id) == ["QUEUED", "RUNNING", "DONE"]


def test_a_video_whose_settling_was_not_heard_of_is_settled_once_and_still_told_of(ledger, lossy):
    proxy, far = lossy
    job, lease = running(ledger, subject="acme/v1")
    ledger.videos.register("acme", "v1", "key")
    video = ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)
    ledger.videos.update(video, state=VideoState.PROCESSING)
    ledger.jobs.cancel(job.id)
    proxy.lose(2)
    settled = far.videos.settle()
    assert proxy.lost == 2
    assert list(settled) == [ledger.videos.get("acme", "v1")]
    assert [event.type for event in ledger.outbox.of(job.id)].count("dailies.video.error") == 1


def test_a_failure_that_was_not_heard_of_costs_one_attempt(ledger, lossy):
    proxy, far = lossy
    job, lease = running(ledger)
    proxy.lose(1)
    again = far.jobs.failed(lease, Injected("the network"), retry_in=0)
    assert proxy.lost == 1
    assert (again.attempt, again.crashes) == (2, 1)
    assert ledger.jobs.get(job.id) == again


def reuse(far: SupabaseLedger, lease: Lease) -> None:
    far.units.complete(lease, "unit-1", "probe", "d", 1, reused=True)


def accept(far: SupabaseLedger, lease: Lease) -> None:
    assert far.inbox.accept("dailies/ledger", "event-1"), "refused to who asked first"


EFFECTS: dict[str, tuple[Callable[[SupabaseLedger, Lease], Any], Callable[[Ledger, str], Any], Any]] = {
    "begin": (
        lambda far, lease: far.units.begin(lease, "unit-0", "probe"),
        lambda ledger, job: [unit.attempts for unit in ledger.units.of(job)],
        [1, 1],
    ),
    "complete and tell": (
        lambda far, lease: far.units.complete(lease, "unit-1", "probe", "d", 1, event=("dailies.chunk.done", {})),
        lambda ledger, job: len(ledger.outbox.of(job)),
        4,
    ),
    "reuse": (reuse, lambda ledger, job: [unit.reuses for unit in ledger.units.of(job)], [1]),
    "emit": (
        lambda far, lease: far.outbox.emit(lease, "dailies.note", "late", {}),
        lambda ledger, job: len(ledger.outbox.of(job)),
        4,
    ),
    "hand back": (
        lambda far, lease: far.jobs.hand_back(lease, "told to stop"),
        lambda ledger, job: ledger.jobs.get(job).attempt,
        2,
    ),
    "accept": (
        lambda far, lease: far.inbox.accept("a", "1") or pytest.fail("refused to its own first asker"),
        None,
        None,
    ),
    "release": (lambda far, lease: far.leases.release(lease), None, None),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_what_was_done_and_not_heard_of_is_not_done_again(ledger, lossy, effect):
    act, look, expected = EFFECTS[effect]
    proxy, far = lossy
    job, lease = with_work_under_way(ledger)
    proxy.lose(1)
    act(far, lease)
    assert proxy.lost == 1
    assert look is None or look(ledger, job.id) == expected


def test_a_claim_whose_reply_was_lost_is_the_same_claim(ledger, lossy):
    proxy, far = lossy
    jobs = [ledger.jobs.submit(request(subject=f"video-{number}")) for number in range(3)]
    wanted = json.dumps([[job.id, job.attempt, job.tenant] for job in jobs])
    proxy.lose(2)
    claimed = far._api.tell("dispatch_claim", wanted=wanted, total=9, per_tenant=9)
    assert proxy.lost == 2
    assert claimed["id"] == jobs[0].id
    assert {job.id for job, _ in ledger.dispatch.ranked()} == {job.id for job in jobs[1:]}, "one claim took one job"


def test_a_refusal_whose_reply_was_lost_is_a_refusal(ledger, lossy):
    proxy, far = lossy
    held = ledger.leases.acquire("video:1", "a", TTL)
    proxy.lose(1)
    with pytest.raises(Held) as refused:
        far.leases.acquire("video:1", "b", TTL)
    assert (proxy.lost, refused.value.by) == (1, "a")
    assert ledger.leases.holder("video:1") == held


def test_answers_are_forgotten_after_an_hour(ledger, clock, database):
    ledger.leases.acquire("video:1", "a", TTL)
    clock.advance(3599)
    ledger.jobs.recover()
    assert len(database.execute("SELECT 1 FROM dailies.answers").fetchall()) == 2
    clock.advance(2)
    ledger.jobs.recover()
    assert len(database.execute("SELECT 1 FROM dailies.answers").fetchall()) == 2, "the first is gone, and this is new"


# ── gone for a while ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_outlast_a_server_that_is_away_and_comes_back(postgres, ledger):
    port = free_port()
    far = SupabaseLedger(f"http://127.0.0.1:{port}", SERVICE_KEY)
    with running_api(postgres, "ledger", port):
        far.leases.acquire("video:0", "a", TTL)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(far.leases.acquire, f"video:{number}", "a", TTL) for number in range(1, 5)]
        time.sleep(1)
        assert not any(call.done() for call in waiting)
        with running_api(postgres, "ledger", port):
            leases = [call.result(15) for call in waiting]
    assert [lease.fence for lease in leases] == [1, 1, 1, 1]
    assert [ledger.leases.holder(lease.resource) for lease in leases] == leases


def test_a_frozen_server_that_wakes_to_the_same_call_several_times_does_it_once(postgres, ledger, monkeypatch):
    """Each try that was given up lies in the server's queue, and all of them are carried out when it goes on."""
    monkeypatch.setattr(transport, "REPLY_S", 0.3)
    with running_api(postgres, "ledger") as frozen:
        far = SupabaseLedger(frozen.url, SERVICE_KEY)
        far.leases.holder("nothing")
        os.kill(frozen.process.pid, signal.SIGSTOP)
        threading.Timer(1.5, os.kill, (frozen.process.pid, signal.SIGCONT)).start()
        job = far.jobs.submit(request())
        lease = far.leases.acquire("video:1", "a", TTL)
        time.sleep(0.5)
    assert list(ledger.jobs.all()) == [job]
    assert ledger.leases.holder("video:1") == lease
    assert lease.fence == 1


def test_a_database_that_is_blocked_for_longer_than_a_reply_may_take_does_it_once(
    postgres, ledger, database, monkeypatch, api
):
    """Several tries of one call are in the database at the same time: the later ones wait for the first."""
    monkeypatch.setattr(transport, "REPLY_S", 0.3)
    far = SupabaseLedger(api.url, SERVICE_KEY)
    job, lease = running(ledger)
    with postgres.connect("ledger") as rival, ThreadPoolExecutor(1) as pool:
        rival.execute("BEGIN")
        rival.execute("LOCK TABLE dailies.units IN ACCESS EXCLUSIVE MODE")
        begun = pool.submit(far.units.begin, lease, "unit-1", "probe")
        time.sleep(1.5)
        tries = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'ledger' AND wait_event_type = 'Lock'"
        assert database.execute(tries).fetchone()[0] > 1, "asked more than once"
        rival.execute("COMMIT")
        assert begun.result(10).attempts == 1
    time.sleep(0.2)
    assert [unit.attempts for unit in ledger.units.of(job.id)] == [1]


def test_patience_has_an_end():
    far = SupabaseLedger(f"http://127.0.0.1:{free_port()}", SERVICE_KEY, patience=0.5)
    began = time.monotonic()
    with pytest.raises(Transient, match="does not answer now"):
        far.leases.acquire("video:1", "a", TTL)
    assert 0.4 < time.monotonic() - began < 2


# ── wrongly set up ────────────────────────────────────────────────────────────────────────────────────────────────────


class Stranger(BaseHTTPRequestHandler):
    """A web server, but no Supabase."""

    status = 200

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextmanager
def stranger(status: int) -> Iterator[str]:
    handler = type("Handler", (Stranger,), {"status": status})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def told_within(seconds: float, what: str) -> Iterator[None]:
    """One line, in time, that says what to do."""
    began = time.monotonic()
    with pytest.raises(NotConfigured, match=what) as told:
        yield
    assert time.monotonic() - began < seconds
    assert "\n" not in str(told.value)


def test_a_ledger_that_is_set_up_passes_its_check(ledger):
    ledger.check()


def test_a_wrong_key_is_told_at_once(api):
    far = SupabaseLedger(api.url, "sb_secret_somebody_elses")
    with told_within(5, "does not know this key: set service_key"):
        far.check()
    with told_within(2, "does not know this key"):
        far.leases.acquire("video:1", "a", TTL)


def test_an_address_where_nobody_listens_is_told_by_the_check():
    url = f"http://127.0.0.1:{free_port()}"
    with told_within(5, f"no ledger answers at {url} .*set url"):
        SupabaseLedger(url, SERVICE_KEY).check()


def test_an_address_that_never_answers_is_told_by_the_check():
    with socket.create_server(("127.0.0.1", 0)) as silent, told_within(5, "no ledger answers at"):
        SupabaseLedger(f"http://127.0.0.1:{silent.getsockname()[1]}", SERVICE_KEY).check()


@pytest.mark.parametrize("status", [200, 404, 401, 403])
def test_the_address_of_something_else_is_told(status):
    with stranger(status) as url:
        far = SupabaseLedger(url, SERVICE_KEY)
        with told_within(5, "set url|set service_key|expose"):
            far.check()
        with told_within(2, "set url|set service_key|expose"):
            far.jobs.all()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 520])
def test_a_gateway_that_cannot_now_is_worth_another_try(status):
    with stranger(status) as url, pytest.raises(Transient, match=f"{status} <html>welcome"):
        SupabaseLedger(url, SERVICE_KEY, patience=0.3).jobs.all()


NO_ADDRESS = [
    "",
    "project.supabase.co",
    "ftp://127.0.0.1",
    "postgres://127.0.0.1/postgres",
    "http://",
    "https:///rest",
    "http://a b",
    "http://a\nb",
    "http://[::1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:port",
    "http://127.0.0.1/?apikey=x",
]


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_address_is_told_before_anything_is_asked(url):
    with told_within(1, r"https://PROJECT\.supabase\.co"):
        SupabaseLedger(url, SERVICE_KEY)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "schlüssel", "\t"])
def test_what_is_no_key_is_told_before_anything_is_asked(key):
    with told_within(1, "set service_key"):
        SupabaseLedger("http://127.0.0.1:1", key)


def test_the_blanks_around_a_pasted_address_and_key_are_no_part_of_them(api, ledger):
    SupabaseLedger(f" {api.url}/\n", f" {SERVICE_KEY}\n").check()


@pytest.mark.parametrize(("what", "error"), [(socket.EAI_NONAME, NotConfigured), (socket.EAI_AGAIN, Transient)])
def test_a_name_that_there_is_not_is_told_at_once_and_one_that_cannot_be_looked_up_now_is_tried_again(
    monkeypatch, what, error
):
    def look_up(*args: object, **options: object) -> None:
        raise socket.gaierror(what, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(error):
        SupabaseLedger("http://nobody.invalid", SERVICE_KEY, patience=0.2).jobs.all()


def test_a_project_without_the_migrations_is_told_to_apply_them(postgres):
    with postgres.database("bare"), running_api(postgres, "bare") as bare:
        far = SupabaseLedger(bare.url, SERVICE_KEY)
        with told_within(5, "supabase db push --workdir deployments"):
            far.check()
        with told_within(2, "supabase db push --workdir deployments"):
            far.jobs.submit(request())


def test_a_project_that_does_not_serve_the_schema_is_told_to_expose_it(postgres):
    with postgres.database("hidden") as database:
        migrate(database, MIGRATIONS)
        with (
            running_api(postgres, "hidden", schemas=("public",)) as hidden,
            told_within(5, "add 'dailies' to the exposed schemas"),
        ):
            SupabaseLedger(hidden.url, SERVICE_KEY).check()


@pytest.mark.parametrize(("version", "advice"), [("0", "db push"), ("99", "use the dailies that brought it there")])
def test_a_ledger_of_another_schema_is_told(ledger, database, version, advice):
    with (
        instead(database, "version", f"'{transport.SCHEMA_VERSION}'", f"'{version}'"),
        told_within(5, f"schema {version}.*{advice}"),
    ):
        ledger.check()


def test_a_mistake_in_our_own_sql_is_not_called_anything_else(ledger, database):
    with (
        instead(database, "job_get", "WHERE id = _job", "WHERE idd = _job"),
        pytest.raises(APIError, match="idd"),
    ):
        ledger.jobs.get("nobody")


# ── what is kept, and by whom ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_kept_comes_back_as_it_was(ledger):
    odd = {
        "big": 2**63 + 1,
        "small": 5e-324,
        "third": 1 / 3,
        "one": 1.0,
        "nul": "a\0b",
        "quotes": "'\"\\\n\u2028",
        "emoji": "🎬",
        "keys": {"é": 1, "z": 2, "A": None, "": []},
    }
    job, lease = running(ledger, params=odd)
    assert ledger.jobs.get(job.id).params == odd
    assert ledger.units.complete(lease, "unit-1", "probe", "d", odd).result == odd
    ledger.outbox.emit(lease, "dailies.note", "1", odd)
    assert ledger.outbox.of(job.id)[-1].data == odd
    assert canonical_json(ledger.jobs.done(lease, odd).result) == canonical_json(odd)


def test_a_reason_with_what_postgresql_cannot_keep_still_reaches_the_ledger(ledger):
    _, lease = running(ledger)
    failed = ledger.jobs.failed(lease, Injected("a\0b'; DROP TABLE dailies.jobs; --"))
    assert failed.error == "a\N{REPLACEMENT CHARACTER}b'; DROP TABLE dailies.jobs; --"


def test_a_name_with_what_postgresql_cannot_keep_is_refused(ledger):
    with pytest.raises(BadInput, match="cannot keep"):
        ledger.leases.acquire("video:\0", "a", TTL)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_does_not_have_is_refused_as_by_the_embedded_ledger(ledger, value):
    _, lease = running(ledger)
    with pytest.raises(ValueError):
        ledger.jobs.done(lease, {"value": value})


def test_more_rows_than_an_api_gives_out_at_once_all_come_back(ledger, database):
    job = ledger.jobs.submit(request())
    database.execute(
        """INSERT INTO dailies.outbox (id, source, type, subject, job, time, data)
           SELECT 'e-' || number, 's', 't', 'u', %s, 0, '{}' FROM generate_series(1, 2500) AS number""",
        [job.id],
    )
    assert len(ledger.outbox.pending(limit=10_000)) == 2501
    assert len(ledger.outbox.of(job.id)) == 2501


def test_a_call_cannot_end_in_a_state_that_there_is_not(ledger):
    _, lease = running(ledger)
    ledger.calls.intend(lease, "unit-1")
    with pytest.raises(BadInput, match="VANISHED"):
        ledger.calls.ended(lease, "unit-1", "VANISHED")
    assert ledger.calls.intend(lease, "unit-1") == Call("unit-1", lease.resource.removeprefix("job:"), "", "INTENDED")


def test_one_ledger_object_serves_many_threads(ledger, another):
    shared = another()
    ids = at_once(8, lambda number: shared.jobs.submit(request(subject=f"video-{number}")).id)
    assert {job.id for job in ledger.jobs.all()} == set(ids)


def test_a_ledger_that_is_sent_to_another_process_opens_its_own_connection_there(ledger, another):
    sent = pickle.loads(pickle.dumps(another()))
    job = sent.jobs.submit(request())
    assert (sent._api.url, sent._api.key, sent._api.patience) == (ledger._api.url, SERVICE_KEY, ledger._api.patience)
    assert ledger.jobs.get(job.id) == job


def write_in_child(ledger: SupabaseLedger) -> None:
    for number in range(20):
        ledger.tenants.set_tier(f"child-{number}", "premium")


def test_a_forked_process_uses_a_connection_of_its_own(ledger):
    ledger.tenants.set_tier("parent", "enterprise")
    child = multiprocessing.get_context("fork").Process(target=write_in_child, args=(ledger,))
    child.start()
    for number in range(20):
        ledger.tenants.set_tier(f"parent-{number}", "premium")
    child.join(20)
    assert child.exitcode == 0
    assert {ledger.tenants.tier(f"{who}-{n}") for who in ("parent", "child") for n in range(20)} == {"premium"}


def test_the_lease_of_a_video_survives_a_lost_reply_to_its_change(ledger, lossy):
    proxy, far = lossy
    ledger.videos.register("acme", "v1", "key")
    _, lease = running(ledger)
    video = ledger.leases.acquire(video_resource("acme", "v1"), lease.holder, TTL)
    proxy.lose(2)
    assert far.videos.update(video, state=VideoState.PROCESSING).version == 1
    assert proxy.lost == 2
    assert [event.type for event in ledger.outbox.pending() if "video" in event.type] == ["dailies.video.processing"]
