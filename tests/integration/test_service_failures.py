"""S3, Redis or the ledger's file fails while a job runs: it ends whole or says why, and nothing is lost or made twice.

The job is ingest-media in this process, on a site that is saved in Prefect: a bucket behind the proxy of
``tests.servers.faulty``, a ledger in a file, and a stream in a real Redis. ``sweep`` is the recovery; what it starts is
run here as a worker would. Whatever happened, the end is compared with an undisturbed run, byte by byte.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow_sync
from prefect.states import Pending, State

from blocks.compute import LocalCompute
from blocks.redis import RedisStream as RedisBlock
from blocks.s3 import S3Bucket
from blocks.site import OpenSite, Site, SqliteLedger, open_site
from dailies.canonical import digest
from dailies.events import redis_stream
from dailies.events.redis_stream import Delivery, RedisStream, consume, never_lost
from dailies.ledger.records import Caps, Job, JobState
from dailies.ledger.sqlite import SqliteLedger as Book
from dailies.ledger.sqlite import database
from dailies.store import s3, s3_client
from flows.ingest_media import ingest_media
from services.supervisor import supervise
from tasks import _job
from tasks._job import Working, job_flow
from tasks._step import REGISTRY, Output, effect, work
from tasks.supervision import sweep
from tests.servers.faulty import Asked, Fate, Proxy, once, proxying
from tests.servers.redis import RedisServer, serving_redis
from tests.servers.s3 import Server, rclone_serving

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

PATIENCE_S = 20.0
TRIES = 2
ANSWER_S = 1.0
VIDEOS = ("v1", "v2")
ENDS = {"dailies.job.done", "dailies.job.failed", "dailies.job.canceled"}
ONCE = {"probe_media": 1, "make_contact_sheet": 1}

Wanted = Callable[[Asked], bool]


def key_of(video: str) -> str:
    return f"acme/client/videos/{video}/clip.mp4"


# ── the site, and what is seen of it at the end ───────────────────────────────────────────────────────────────────────


@dataclass
class Trial:
    """One site, with what can go wrong in it."""

    name: str
    site: OpenSite
    proxy: Proxy
    redis: RedisServer
    stream: str
    folder: Path
    client: SyncPrefectClient
    states: list[State[Any]] = field(default_factory=list)

    def ingest(self, video: str = "v1") -> Job:
        self.begin(video)
        return self.settle(video)

    def begin(self, video: str = "v1") -> None:
        """A run as a person starts one."""
        state = ingest_media(tenant="acme", media_key=key_of(video), site=self.name, return_state=True)
        self.states.append(state)

    def settle(self, video: str = "v1") -> Job:
        """Sweeps, with the runs that they bring, until its newest job is over."""
        end = time.monotonic() + PATIENCE_S
        while not (job := self.job(video)).final:
            assert time.monotonic() < end, f"{job.state} in attempt {job.attempt}: {job.message}"
            sweep(self.site, Caps())
            for run in self.site.ledger.dispatch.waiting(0):
                self.work(UUID(run.run_id))
        return job

    def work(self, run_id: UUID) -> None:
        """What a worker does with a run that was dispatched, and with no other."""
        flow_run = self.client.read_flow_run(run_id)
        if flow_run.state is None or not flow_run.state.is_scheduled():
            return
        self.client.set_flow_run_state(run_id, Pending())
        flow_run = self.client.read_flow_run(run_id)
        self.states.append(run_flow_sync(ingest_media, flow_run, parameters=flow_run.parameters, return_type="state"))

    def job(self, video: str = "v1") -> Job:
        (job, *_) = [job for job in self.site.ledger.jobs.all() if job.subject == f"acme/{video}"]
        return job

    def attempts(self, job: Job) -> dict[str, int]:
        return {unit.step: unit.attempts for unit in self.site.ledger.units.of(job.id)}

    def said(self) -> list[str]:
        """What the runs were shown to end in, line by line."""
        return [f"{state.name}: {state.message}" for state in self.states]


def whole(trial: Trial, expected: dict[str, bytes], *videos: str) -> None:
    """Every job ended well and once, by a sound ledger; its artifacts are there and are those of a quiet run."""
    sound(trial)
    for video in videos or ("v1",):
        job = trial.job(video)
        assert (job.state, job.message) == (JobState.DONE, "Done")
        current = trial.site.ledger.generations.current(f"video:acme/{video}")
        assert current == job.result["manifest"]["key"]
        theirs = {key: data for key, data in expected.items() if f"/videos/{video}/" in key}
        assert current in theirs
        trial.proxy.rule = lambda asked: "forward"
        assert objects(trial.site, video) == theirs


def sound(trial: Trial) -> None:
    book = trial.site.ledger
    assert {rule: found for rule, found in book.audit(grace=0).items() if found} == {}
    for job in book.jobs.all():
        assert [event.type for event in book.outbox.of(job.id) if event.type in ENDS] == [
            f"dailies.job.{job.state.lower()}"
        ]
    all_heard(trial)


def all_heard(trial: Trial) -> None:
    """A consumer that comes after it all, and keeps its inbox, hears each event of each job in order and once."""
    while trial.site.ledger.outbox.pending():
        sweep(trial.site, Caps(total=0))
    with listening(trial) as listener:
        in_order_and_once(trial, listener)


def in_order_and_once(trial: Trial, listener: Listener) -> None:
    book = trial.site.ledger
    jobs = book.jobs.all()
    expected = {job.id: [event.id for event in book.outbox.of(job.id)] for job in jobs}
    eventually(lambda: len(listener.heard) >= sum(map(len, expected.values())))
    eventually(lambda: all_read(trial, listener.group))
    assert {job.id: [each.id for each in listener.heard if each.job == job.id] for job in jobs} == expected


def all_read(trial: Trial, group: str) -> bool:
    """Copies would be read after the last that is new."""
    with trial.redis.client as client:
        (found,) = [each for each in client.xinfo_groups(trial.stream) if each["name"] == group]
        last = client.xinfo_stream(trial.stream)["last-generated-id"]
    return (found["pending"], found["last-delivered-id"]) == (0, last)


@dataclass
class Listener:
    """A group of its own, with an inbox of its own."""

    group: str = field(default_factory=lambda: f"listeners-{uuid4().hex[:8]}")
    heard: list[Delivery] = field(default_factory=list)


@contextmanager
def listening(trial: Trial) -> Iterator[Listener]:
    listener = Listener()
    stopped = threading.Event()

    def listen() -> None:
        stream = RedisStream(trial.redis.url, stream=trial.stream)
        book = Book(trial.folder / f"{listener.group}.db")
        consume(stream, listener.group, "one", never_lost(book.inbox, listener.heard.append), stopped=stopped)
        book.close()
        stream.close()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield listener
    finally:
        stopped.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def eventually(true: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def objects(site: OpenSite, video: str) -> dict[str, bytes]:
    folders = [f"acme/{side}/videos/{video}" for side in ("client", "server")]
    return {stored.key: site.store.get(stored.key) for folder in folders for stored in site.store.list(folder)}


@pytest.fixture(scope="module")
def rclone(tmp_path_factory) -> Iterator[Server]:
    with rclone_serving(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory) -> Iterator[RedisServer]:
    with serving_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def expected(fast_api, rclone, clip_bytes, tmp_path_factory) -> dict[str, bytes]:
    """What a run leaves that nobody disturbs, by key."""
    name = described("undisturbed", rclone, tmp_path_factory.mktemp("undisturbed"))
    site = uploaded(name, rclone, "undisturbed", clip_bytes)
    for video in VIDEOS:
        ingest_media(tenant="acme", media_key=key_of(video), site=name)
    left = {key: data for video in VIDEOS for key, data in objects(site, video).items()}
    site.ledger.close()
    assert len(left) == 4 * len(VIDEOS)
    return left


def described(prefix: str, server: Server, folder: Path, stream: RedisBlock | None = None) -> str:
    """Saves the site in Prefect; its name is the prefix of its objects."""
    bucket = S3Bucket(
        bucket=server.bucket,
        endpoint_url=server.url,
        access_key=server.access_key,
        secret_key=server.secret_key,
        prefix=prefix,
    )
    ledger, compute = SqliteLedger(path=str(folder / "its.db")), LocalCompute(path=str(folder / "calls"))
    save(Site(store=bucket, ledger=ledger, compute=compute, stream=stream), prefix)
    return prefix


def save(site: Site, name: str) -> None:
    """What ``site.save(name)`` does, without the second that it takes to describe the types anew each time."""
    with get_client(sync_client=True) as client:
        try:
            kind = client.read_block_type_by_slug("dailies-site")
        except ObjectNotFound:
            site.save(name)
            return
        schema = client.get_most_recent_block_schema_for_block_type(kind.id)
        assert schema
        data = site._to_block_document(name, schema.id, kind.id, include_secrets=True).data
        client.create_block_document(
            BlockDocumentCreate(name=name, data=data, block_schema_id=schema.id, block_type_id=kind.id)
        )


def uploaded(name: str, server: Server, prefix: str, data: bytes) -> OpenSite:
    for video in VIDEOS:
        server.store(prefix).put(key_of(video), data)
    return open_site(name)


@pytest.fixture
def impatient(monkeypatch) -> None:
    """The same rules with shorter rests, so that giving up takes a moment."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", TRIES)
    monkeypatch.setattr(s3_client, "ANSWER_S", ANSWER_S)
    monkeypatch.setattr(redis_stream, "ANSWER_S", 0.3)
    monkeypatch.setattr(_job, "RETRY_IN_S", 0.0)
    for step in REGISTRY.values():
        monkeypatch.setattr(step.task, "retry_delay_seconds", [0])


@pytest.fixture
def trial(impatient, expected, rclone, redis, clip_bytes, client, deploy, tmp_path) -> Iterator[Trial]:
    with trying(rclone, redis, clip_bytes, client, tmp_path) as trial:
        deploy(ingest_media)
        yield trial


@contextmanager
def trying(server: Server, redis: RedisServer, data: bytes, client: SyncPrefectClient, folder: Path) -> Iterator[Trial]:
    prefix = f"trial-{uuid4().hex[:8]}"
    with proxying(server.url) as proxy:
        block = RedisBlock(url=redis.url, stream=prefix)
        name = described(prefix, replace(server, url=proxy.url), folder, block)
        site = uploaded(name, server, prefix, data)
        yield Trial(name, site, proxy, redis, prefix, folder, client)
        site.ledger.close()


def asks(method: str, part: str) -> Wanted:
    return lambda asked: asked.method == method and part in asked.path


READS_CLIP = asks("GET", "clip.mp4")
READS_PROBE = asks("GET", "/probe/")
LOOKS = asks("HEAD", "clip.mp4")
WRITES_PROBE = asks("PUT", "/probe/")
WRITES_SHEET = asks("PUT", "/contact-sheet/")
WRITES_MANIFEST = asks("PUT", "/published/")


# ── S3 ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


# What becomes of which request, and how often, all in one attempt of the job.
Fault = tuple[Wanted, Fate, int]
PASSING: dict[str, list[Fault]] = {
    "what asking again mends": [
        (WRITES_PROBE, 503, 1),
        (READS_PROBE, "drop", 1),
        (WRITES_SHEET, "lose", 1),
        (LOOKS, "drop", 1),
    ],
    "refused, or done and never heard of, for all tries of a request": [
        (WRITES_SHEET, 503, TRIES),
        (WRITES_MANIFEST, "lose", TRIES),
    ],
    "an upload and a probe, each cut off and then with a bit flipped": [
        (READS_CLIP, "cut", 1),
        (READS_CLIP, "garble", 1),
        (READS_PROBE, "cut", 1),
        (READS_PROBE, "garble", 1),
    ],
    "an upload that stalls in mid-body, a probe nobody answers for": [
        (READS_CLIP, "stall", 1),
        (READS_PROBE, "drop", TRIES),
    ],
}


def each_in_turn(faults: list[Fault]) -> Callable[[Asked], Fate]:
    rules = [once(wanted, fate, times) for wanted, fate, times in faults]
    return lambda asked: next((fate for rule in rules if (fate := rule(asked)) != "forward"), "forward")


def fired(trial: Trial, faults: list[Fault]) -> bool:
    """Each as often as it should, to whom it was meant for, and nothing else."""
    counted = [sum(wanted(asked) and fate == its for its, asked in trial.proxy.fired) for wanted, fate, _ in faults]
    return counted == [times for *_, times in faults] and sum(counted) == len(trial.proxy.fired)


@pytest.mark.expects_errors
@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_faults_that_pass_cost_no_attempt_and_change_no_byte(trial, expected, faults):
    trial.proxy.rule = each_in_turn(faults)
    job = trial.ingest()
    assert fired(trial, faults)
    assert (job.attempt, job.crashes) == (1, 0)
    assert trial.attempts(job) == ONCE
    whole(trial, expected)


@pytest.mark.expects_errors
def test_a_server_that_is_gone_costs_one_attempt_and_what_was_done_before_is_reused(trial, expected):
    trial.proxy.rule = once(WRITES_SHEET, "away")
    trial.begin()
    job = trial.job()
    assert (job.state, job.attempt, job.error_code) == (JobState.QUEUED, 2, "transient")
    assert "Could not connect to the endpoint URL" in job.error
    assert not trial.proxy.listens

    trial.proxy.come()
    job = trial.settle()
    assert trial.proxy.count == {"away": 1}
    assert (job.attempt, job.crashes) == (2, 1)
    assert trial.attempts(job) == {"probe_media": 1, "make_contact_sheet": 2}
    assert trial.said()[0].startswith("Requeued: ")
    whole(trial, expected)


@pytest.mark.expects_errors
def test_a_server_that_stays_away_fails_the_job_with_its_code_after_three_attempts(trial):
    trial.proxy.rule = once(WRITES_PROBE, "away")
    job = trial.ingest()
    assert (job.state, job.error_code, job.attempt, job.crashes) == (JobState.FAILED, "transient", 3, 3)
    assert job.error.endswith("is endpoint_url right, and does the server run?")
    assert trial.site.ledger.generations.current("video:acme/v1") is None
    assert trial.proxy.count == {"away": 1}
    sound(trial)


@pytest.mark.expects_errors
def test_a_refusal_in_the_middle_ends_the_job_at_once_and_the_next_one_goes_on_from_there(trial, expected):
    trial.proxy.rule = once(WRITES_SHEET, 403)
    job = trial.ingest()
    assert trial.proxy.count == {403: 1}
    assert (job.state, job.error_code, job.attempt, job.crashes) == (JobState.FAILED, "not_configured", 1, 1)
    assert "set access_key and secret_key" in job.error
    assert trial.said() == [f"NotConfigured: {job.error}"]
    assert trial.site.ledger.generations.current("video:acme/v1") is None
    assert trial.attempts(job) == ONCE
    sound(trial)

    later = trial.ingest()
    assert later.id != job.id
    assert {unit.step: unit.state for unit in trial.site.ledger.units.of(later.id)} == {
        "probe_media": "REUSED", "make_contact_sheet": "DONE",
    }  # fmt: skip
    whole(trial, expected)


def test_answers_that_come_later_than_a_lease_lives_cost_nothing_but_time(trial, expected, monkeypatch):
    monkeypatch.setattr(_job, "TTL_S", 0.9)
    monkeypatch.setattr(s3_client, "ANSWER_S", 30.0)
    trial.proxy.late_s = 1.0
    late = (READS_CLIP, WRITES_SHEET)
    trial.proxy.rule = lambda asked: "late" if any(wanted(asked) for wanted in late) else "forward"
    began = time.monotonic()
    job = trial.ingest()
    assert trial.proxy.count == {"late": 3}
    assert time.monotonic() - began > trial.proxy.count["late"] * trial.proxy.late_s
    assert (job.attempt, trial.attempts(job)) == (1, ONCE)
    whole(trial, expected)


@pytest.mark.expects_errors
def test_a_reused_file_that_comes_damaged_is_made_again_and_is_the_same(trial, expected):
    trial.ingest()
    trial.proxy.rule = once(READS_PROBE, "garble")
    again = trial.ingest()
    assert trial.proxy.count == {"garble": 1}
    assert {unit.step: unit.state for unit in trial.site.ledger.units.of(again.id)} == {
        "probe_media": "DONE", "make_contact_sheet": "REUSED",
    }  # fmt: skip
    whole(trial, expected)


@pytest.fixture
def keep_film(impatient) -> Iterator[Any]:
    """A flow with what ingest-media has not: a file that goes up in parts, and something to delete."""

    def send_film(job: Working, path: str) -> Output:
        """Puts the file there, however often it is asked to."""
        return Output(artifacts=(job.site.store.put_file("acme/client/videos/v1/film.bin", Path(path)),))

    def drop_clips(job: Working) -> Output:
        """Deletes what there is of it."""
        job.site.store.delete("acme/client/videos/v2")
        return Output()

    send, drop = work(version=1, timeout=60)(send_film), effect(timeout=60)(drop_clips)
    for step in (send, drop):
        step.task.retry_delay_seconds = [0]

    def film(job: Working, tenant: str, path: str) -> dict[str, Any]:
        """Sends one and drops another."""
        sent = send(job, path)
        drop(job)
        return sent.artifacts[0].to_json()

    yield job_flow("keep-film", subject=lambda tenant, path: "acme/v1")(film)
    for step in (send, drop):
        del REGISTRY[step.name]


def ends_upload(asked: Asked) -> bool:
    return asked.method == "POST" and "uploadId" in asked.query


def deletes(asked: Asked) -> bool:
    return asked.method == "POST" and "delete" in asked.query


@pytest.mark.expects_errors
@pytest.mark.parametrize("times", [1, TRIES], ids=["once", "for all tries of a request"])
def test_a_lost_answer_to_the_end_of_an_upload_and_to_a_delete_does_them_once(trial, keep_film, tmp_path, times):
    path = tmp_path / "film.bin"
    path.write_bytes(b"frame after frame" * (s3.PART_SIZE // 16))
    faults: list[Fault] = [(ends_upload, "lose", times), (deletes, "lose", times)]
    trial.proxy.rule = each_in_turn(faults)
    state = keep_film(tenant="acme", path=str(path), site=trial.name, return_state=True)
    assert state.is_completed(), state.message
    assert fired(trial, faults)
    job = trial.job()
    assert (job.state, job.attempt) == (JobState.DONE, 1)
    assert job.result["sha256"] == digest(path.read_bytes())
    assert digest(trial.site.store.get(job.result["key"])) == job.result["sha256"]
    assert list(trial.site.store.list("acme/client/videos/v2")) == []
    assert trial.attempts(job) == {"send_film": 1}
    answer = trial.site.store._client.list_multipart_uploads(Bucket="media", Prefix=trial.name)
    assert answer.get("Uploads", []) == []
    sound(trial)


# ── the ledger's file ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def locking(trial: Trial, wanted: Wanted, seconds: float) -> Iterator[list[float]]:
    """Somebody takes the ledger's write lock when that is asked for, and keeps it so long; gives when he let go."""
    freed: list[float] = []
    threads: list[threading.Thread] = []
    due = once(wanted, "lock")

    def lock(locked: threading.Event) -> None:
        somebody = sqlite3.connect(trial.site.ledger.path, isolation_level=None)
        somebody.execute("BEGIN IMMEDIATE")
        locked.set()
        time.sleep(seconds)
        somebody.execute("ROLLBACK")
        somebody.close()
        freed.append(time.monotonic())

    def rule(asked: Asked) -> Fate:
        if due(asked) == "lock":
            locked = threading.Event()
            threads.append(threading.Thread(target=lock, args=(locked,)))
            threads[-1].start()
            assert locked.wait(PATIENCE_S)
        return "forward"

    trial.proxy.rule = rule
    yield freed
    for thread in threads:
        thread.join()


@pytest.mark.expects_errors
def test_a_ledger_locked_for_longer_than_anybody_waits_costs_one_attempt(trial, expected, monkeypatch):
    """Not even its failure can be written down: the lease runs out, and the sweep finds the job."""
    monkeypatch.setattr(database, "BUSY_S", 0.3)
    monkeypatch.setattr(_job, "TTL_S", 1.0)
    with locking(trial, WRITES_SHEET, 3.0) as freed:
        job = trial.ingest()
    assert len(freed) == 1
    assert "cannot take a write now: database is locked" in trial.said()[0]
    assert (job.attempt, job.crashes) == (2, 1)
    assert trial.attempts(job) == {"probe_media": 1, "make_contact_sheet": 2}
    assert [event.type for event in trial.site.ledger.outbox.of(job.id)].count("dailies.job.running") == 2
    whole(trial, expected)


@pytest.mark.expects_errors
def test_a_ledger_locked_for_longer_than_a_lease_lives_costs_one_attempt(trial, expected, monkeypatch):
    """What waited is written, as nobody took over meanwhile; but the lease is over, and the sweep finds the job."""
    monkeypatch.setattr(_job, "TTL_S", 1.0)
    with locking(trial, WRITES_SHEET, 1.5) as freed:
        job = trial.ingest()
    assert len(freed) == 1
    assert trial.said()[0].startswith("Superseded: ")
    assert (job.attempt, job.crashes) == (2, 1)
    assert trial.attempts(job) == ONCE
    whole(trial, expected)


@pytest.mark.expects_errors
def test_a_ledger_that_is_locked_when_a_run_begins_leaves_nothing_half_begun(trial, expected, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.3)
    somebody = sqlite3.connect(trial.site.ledger.path, isolation_level=None)
    somebody.execute("BEGIN IMMEDIATE")
    state = ingest_media(tenant="acme", media_key=key_of("v1"), site=trial.name, return_state=True)
    somebody.execute("ROLLBACK")
    somebody.close()
    assert (state.name, state.is_failed()) == ("Transient", True)
    assert "cannot take a write now: database is locked" in state.message
    assert trial.site.ledger.jobs.all() == []
    assert (trial.ingest().attempt, trial.attempts(trial.job())) == (1, ONCE)
    whole(trial, expected)


@pytest.mark.expects_errors
def test_a_ledger_that_is_locked_after_it_was_opened_leaves_nothing_half_begun_either(trial, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.3)
    somebody = sqlite3.connect(trial.site.ledger.path, isolation_level=None)

    def subject(tenant: str) -> str:
        somebody.execute("BEGIN IMMEDIATE")
        return f"{tenant}/v1"

    def never(job: Working, tenant: str) -> None:
        """Is not reached."""
        raise AssertionError

    state = job_flow("never-begun", subject=subject)(never)(tenant="acme", site=trial.name, return_state=True)
    somebody.execute("ROLLBACK")
    somebody.close()
    assert (state.name, state.is_failed()) == ("Transient", True)
    assert "cannot take a write now: database is locked" in state.message
    assert trial.site.ledger.jobs.all() == []


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fragile(impatient, expected, rclone, clip_bytes, client, deploy, tmp_path) -> Iterator[Trial]:
    """With a Redis of its own, that may be ill-treated."""
    with (
        serving_redis(tmp_path / "redis") as redis,
        trying(rclone, redis, clip_bytes, client, tmp_path) as trial,
    ):
        yield trial


@contextmanager
def supervised(trial: Trial, beside: Callable[..., Any]) -> Iterator[None]:
    ended = threading.Event()
    supervising = beside(supervise, open_site(trial.name), Caps(total=0), ended)
    try:
        yield
    finally:
        ended.set()
        supervising.result(PATIENCE_S)


def at(steps: dict[Wanted, Callable[[], None]], done: list[str]) -> Callable[[Asked], Fate]:
    """Does each of these when what it waits for is first asked."""
    left = dict(steps)

    def rule(asked: Asked) -> Fate:
        for wanted in [wanted for wanted in left if wanted(asked)]:
            act = left.pop(wanted)
            act()
            done.append(act.__name__)
        return "forward"

    return rule


@pytest.mark.parametrize(("spoil", "mend"), [("kill", "start"), ("freeze", "revive")], ids=["gone", "frozen"])
def test_while_redis_is_away_jobs_go_on_and_afterwards_it_has_every_event_in_order(
    fragile, expected, beside, caplog, spoil, mend
):
    """It goes in the middle of the first job, and comes back in the middle of the second."""
    done: list[str] = []
    fragile.proxy.rule = at(
        {
            asks("PUT", "v1/probe/"): getattr(fragile.redis, spoil),
            asks("PUT", "v2/contact-sheet/"): getattr(fragile.redis, mend),
        },
        done,
    )
    with listening(fragile) as listener, supervised(fragile, beside):
        jobs = [fragile.ingest(video) for video in VIDEOS]
        assert done == [spoil, mend]
        eventually(lambda: fragile.site.ledger.outbox.pending() == [])
        in_order_and_once(fragile, listener)
    assert "cannot append to it" in caplog.text
    assert [fragile.attempts(job) for job in jobs] == [ONCE, ONCE]
    whole(fragile, expected, *VIDEOS)


def test_what_was_heard_before_redis_was_flushed_is_not_heard_again_and_the_rest_is_heard(fragile, beside):
    done: list[str] = []
    with listening(fragile) as listener, supervised(fragile, beside):

        def flush() -> None:
            in_order_and_once(fragile, listener)
            with fragile.redis.client as client:
                assert client.xlen(fragile.stream) == len(listener.heard) > 0
                client.flushall()

        fragile.proxy.rule = at({asks("PUT", "v1/contact-sheet/"): flush}, done)
        fragile.ingest()
        assert done == ["flush"]
        eventually(lambda: fragile.site.ledger.outbox.pending() == [])
        in_order_and_once(fragile, listener)
        with fragile.redis.client as client:
            assert 0 < client.xlen(fragile.stream) < len(listener.heard), "what it had before is gone there"
    assert {rule: found for rule, found in fragile.site.ledger.audit(grace=0).items() if found} == {}
