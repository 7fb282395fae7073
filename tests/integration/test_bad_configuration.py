"""What is set up wrong, connection by connection: one line that says what to set, wherever its user looks."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.flow_engine import run_flow_sync
from prefect.settings import get_current_settings
from prefect.states import Pending

from blocks.compute import ModalCompute
from blocks.redis import RedisStream
from blocks.s3 import S3Bucket
from blocks.site import PrefectEvents, Site, SqliteLedger, open_site
from dailies.errors import DailiesError, NotConfigured, Transient
from dailies.ledger.records import Caps, JobRequest, JobState
from dailies.store import s3
from flows.ingest_media import ingest_media
from services.doctor.finding import Examination, Visit
from services.doctor.site import compute, ledger, store, stream
from services.environment import environment
from tasks import supervision
from tasks.supervision import sweep
from tests.integration.test_modal_compute import really
from tests.integration.test_service_failures import save as save_site
from tests.servers.redis import RedisServer, free_port, serving_redis
from tests.servers.s3 import Server, rclone_serving

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

SOON_S = 5.0
KEY = "acme/client/videos/v1/clip.mp4"
SECRET = "a-secret-nobody-prints"
NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Place:
    """What is there to be connected to."""

    folder: Path
    s3: Server
    redis: RedisServer
    page: str
    nothing: str
    mail: int


def bucket(place: Place, **wrong: str) -> S3Bucket:
    right = {
        "bucket": place.s3.bucket,
        "endpoint_url": place.s3.url,
        "access_key": place.s3.access_key,
        "secret_key": place.s3.secret_key,
    }
    return S3Bucket(**{**right, **wrong})


Part = Callable[[Place], Any]
WHO = "set access_key and secret_key of a user who may list, read, write and delete"
NO_S3 = "what answers there is no S3: set endpoint_url"
UNWRITABLE = "/proc/ledger.db"  # also for root, whom no mode of a folder keeps out

STORES: dict[str, tuple[Part, str]] = {
    "a wrong key": (lambda place: bucket(place, access_key="another-key"), WHO),
    "a wrong secret": (lambda place: bucket(place, secret_key=SECRET), WHO),
    "no key": (lambda place: bucket(place, access_key=""), "set access_key and secret_key"),
    "no such bucket": (lambda place: bucket(place, bucket="no-such-bucket"), "set bucket to one that exists"),
    "no name": (lambda place: bucket(place, bucket=""), "set bucket to one that exists"),
    "no address": (lambda place: bucket(place, endpoint_url="not a url"), "not a url.*: set endpoint_url"),
    "a page of the web": (lambda place: bucket(place, endpoint_url=place.page), NO_S3),
    "a server that has nothing": (lambda place: bucket(place, endpoint_url=place.nothing), NO_S3),
}
LEDGERS: dict[str, tuple[Part, str]] = {
    "a folder": (lambda place: SqliteLedger(path=str(place.folder)), "cannot be opened for writing: unable to open"),
    "below a file": (
        lambda place: SqliteLedger(path=str(place.folder / "file" / "its.db")),
        "cannot create the .*file",
    ),
    "not writable": (lambda place: SqliteLedger(path=UNWRITABLE), f"{UNWRITABLE} cannot be opened for writing"),
}
STREAMS: dict[str, tuple[Part, str]] = {
    "a wrong port": (
        lambda place: RedisStream(url=f"redis://127.0.0.1:{free_port()}/0", password=SECRET),
        "is url right, and does the server run",
    ),
    "a wrong password": (lambda place: RedisStream(url=place.redis.url, password=SECRET), "set the password"),
    "no password": (lambda place: RedisStream(url=place.redis.url), "set the password"),
    "no Redis": (lambda place: RedisStream(url=f"redis://127.0.0.1:{place.mail}/0"), "set its address and port"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    (folder / "file").write_text("in the way")
    with (
        rclone_serving(tmp_path_factory.mktemp("rclone")) as s3,
        serving_redis(tmp_path_factory.mktemp("redis"), "another-password") as redis,
        web(200) as page,
        web(404) as nothing,
        greeting() as mail,
    ):
        yield Place(folder, s3, redis, page, nothing, mail)


@contextmanager
def web(status: int) -> Iterator[str]:
    """Says the same to everything, as many a server does that was meant for people."""
    page = b"<!doctype html>\n<html><title>Welcome</title>\n<p>Nothing here speaks S3.</html>\n"

    class Handler(BaseHTTPRequestHandler):
        def say(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response_only(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(page)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = say

        def log_message(self, *args: object) -> None:
            """The tests say what they want to know."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def greeting() -> Iterator[int]:
    """Greets whoever comes as a mail server does."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.request.sendall(b"220 mail.example ready\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def soon(use: Callable[[], Any], kind: type[DailiesError] = NotConfigured, within: float = SOON_S) -> str:
    """What is said when it is used, in one line and in time."""
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        use()
    assert time.monotonic() - began < within
    return one_line(str(raised.value))


def one_line(said: str) -> str:
    assert said.strip() == said != ""
    assert "\n" not in said
    assert "Traceback" not in said
    assert len(said) <= 300
    assert SECRET not in said
    return said


def says(said: str, what: str) -> bool:
    return re.search(what, said) is not None


@pytest.fixture
def saved(request, tmp_path) -> Callable[..., str]:
    """Saves a site with these parts, and the right ones for the rest; gives its name."""
    name = f"site-{abs(hash(request.node.nodeid)):x}"

    def save(**parts: Any) -> str:
        save_site(Site(**{"ledger": SqliteLedger(path=str(tmp_path / "its.db")), **parts}), name)
        return name

    return save


@pytest.fixture
def run(client) -> Callable[[str], Any]:
    """ingest-media on that site: its flow run as the API has it."""

    def ingest(site: str, within: float = SOON_S) -> Any:
        began = time.monotonic()
        state = ingest_media(tenant="acme", media_key=KEY, site=site, return_state=True)
        assert time.monotonic() - began < within
        return client.read_flow_run(state.state_details.flow_run_id)

    return ingest


def visited(site: str, area: str, examination: Callable[..., Any]) -> str:
    """What one examination of `dailies doctor --site SITE` finds: the one thing that is wrong."""
    visit = Visit(site, time.monotonic() + SOON_S, str(get_current_settings().api.url), True)
    asked = Examination(area, partial(examination, visit))
    asked.start()
    (found,) = asked.result(visit.deadline)
    assert (found.area, found.ok) == (area, False)
    return one_line(found.value)


# ── the store ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("part", "what"), STORES.values(), ids=STORES)
def test_a_check_of_the_store_says_what_to_set(place, part, what):
    assert says(soon(lambda: part(place).open().check()), checked(part, what))


def checked(part: Part, what: str) -> str:
    """What a check says; of a page, botocore makes a failure of the server."""
    return "is endpoint_url right" if part is STORES["a page of the web"][0] else what


@pytest.mark.parametrize(("part", "what"), STORES.values(), ids=STORES)
def test_each_first_use_of_the_store_says_what_to_set(place, part, what):
    for use in (
        lambda: part(place).open().stat(KEY),
        lambda: next(part(place).open().list("acme")),
    ):
        assert says(soon(use), what)


@pytest.mark.expects_errors
@pytest.mark.parametrize(("part", "what"), STORES.values(), ids=STORES)
def test_a_run_whose_store_is_set_up_wrong_fails_once_and_says_what_to_set_and_so_does_doctor(
    place, saved, run, tmp_path, part, what
):
    name = saved(store=part(place))
    assert says(visited(name, "store", store), checked(part, what))
    flow_run = run(name)
    assert (flow_run.state.type.value, flow_run.state.name) == ("FAILED", "NotConfigured")
    assert says(one_line(flow_run.state.message), what)
    with SqliteLedgerOf(tmp_path) as book:
        for job in book.jobs.all():
            assert (job.state, job.error_code, job.error) == (
                JobState.FAILED, "not_configured", flow_run.state.message,
            )  # fmt: skip
            assert (job.attempt, job.crashes) == (1, 1)
            assert [event.type for event in book.outbox.of(job.id)][-1] == "dailies.job.failed"
            assert not any(book.audit().values())


def test_a_store_where_nobody_listens_is_told_at_once_by_a_check_and_is_passing_for_a_use(place):
    nobody = bucket(place, endpoint_url=NOBODY).open()
    assert says(soon(nobody.check, within=1.0), "is endpoint_url right, and does the server run")
    said = soon(lambda: nobody.stat(KEY), Transient)
    assert says(said, "127.0.0.1:9.*: is endpoint_url right, and does the server run")
    deep = f"acme/client/videos/v1/{'long-' * 30}.mp4"
    assert said.endswith(soon(lambda: nobody.stat(deep), Transient)[-40:]), "however long the key is"


def test_a_check_of_a_store_that_takes_connections_and_never_answers_asks_once_and_is_not_patient(place, monkeypatch):
    assert s3.CHECK_S < SOON_S
    monkeypatch.setattr(s3, "CHECK_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = bucket(place, endpoint_url=f"http://127.0.0.1:{mute.getsockname()[1]}").open()
        assert says(soon(silent.check, within=1.9), "is endpoint_url right, and does the server run")


@pytest.mark.expects_errors
def test_a_run_whose_store_nobody_listens_at_is_tried_again_and_says_what_to_look_at(place, saved, run, tmp_path):
    """It cannot be told from a server that is just being restarted, which must cost no job."""
    flow_run = run(saved(store=bucket(place, endpoint_url=NOBODY)))
    assert (flow_run.state.type.value, flow_run.state.name) == ("FAILED", "Requeued")
    assert says(one_line(flow_run.state.message), "is endpoint_url right, and does the server run.*attempt 2 follows")
    with SqliteLedgerOf(tmp_path) as book:
        (job,) = book.jobs.all()
    assert (job.state, job.error_code, job.attempt) == (JobState.QUEUED, "transient", 2)


def test_a_store_that_is_set_up_right_passes_every_one_of_these(place, saved, run, clip_bytes, tmp_path):
    block = bucket(place)
    block.open().check()
    block.open().put(KEY, clip_bytes)
    name = saved(store=block)
    assert run(name, 60).state.type.value == "COMPLETED"
    visit = Visit(name, time.monotonic() + SOON_S, str(get_current_settings().api.url), True)
    assert [(found.ok, found.value) for found in store(visit)] == [(True, "writes, reads back and deletes")]


# ── the ledger, and the site itself ───────────────────────────────────────────────────────────────────────────────────


class SqliteLedgerOf:
    """The ledger of the site under test, which a run has closed."""

    def __init__(self, folder: Path) -> None:
        self._opened = SqliteLedger(path=str(folder / "its.db")).open()

    def __enter__(self) -> Any:
        return self._opened

    def __exit__(self, *error: object) -> None:
        self._opened.close()


@pytest.mark.expects_errors
@pytest.mark.parametrize(("part", "what"), LEDGERS.values(), ids=LEDGERS)
def test_a_ledger_that_cannot_be_written_is_told_to_its_opener_to_a_run_and_to_doctor(place, saved, run, part, what):
    assert says(soon(lambda: part(place).open()), what)
    name = saved(ledger=part(place))
    assert says(visited(name, "ledger", ledger), what)
    flow_run = run(name)
    assert (flow_run.state.type.value, flow_run.state.name) == ("FAILED", "NotConfigured")
    assert says(one_line(flow_run.state.message), what)


@pytest.mark.expects_errors
def test_a_run_on_a_site_that_nobody_saved_fails_and_says_how_to_save_it(run):
    assert says(soon(lambda: open_site("nowhere")), "no site 'nowhere': save a 'Dailies site' block")
    flow_run = run("nowhere")
    assert (flow_run.state.type.value, flow_run.state.name) == ("FAILED", "NotConfigured")
    assert says(one_line(flow_run.state.message), "no site 'nowhere': save a 'Dailies site' block")
    with pytest.raises(NotConfigured, match="no site 'nowhere'"):
        ingest_media(tenant="acme", media_key=KEY, site="nowhere")


@pytest.mark.expects_errors
def test_a_job_whose_worker_cannot_open_its_site_is_not_given_three_runs(site, deploy, client, monkeypatch):
    """The supervisor opened the site on its machine; on the worker's it is not to be had."""
    deploy(ingest_media)
    monkeypatch.setattr(supervision, "START_GRACE_S", 0.0)
    params = {"tenant": "acme", "media_key": KEY, "site": "nowhere"}
    job = site.ledger.jobs.submit(JobRequest("acme", "ingest-media", "acme/v1", params))
    assert sweep(site, Caps()).dispatched == 1
    (waiting,) = site.ledger.dispatch.waiting(0)
    begin(client, waiting.run_id)
    sweep(site, Caps(total=0))
    refused = site.ledger.jobs.get(job.id)
    assert (refused.state, refused.error_code, refused.attempt) == (JobState.FAILED, "not_configured", 1)
    assert says(one_line(refused.error), "save a 'Dailies site' block")


def begin(client: Any, run_id: str) -> None:
    """What a worker does with a run that was dispatched."""
    client.set_flow_run_state(UUID(run_id), Pending())
    flow_run = client.read_flow_run(UUID(run_id))
    run_flow_sync(ingest_media, flow_run, parameters=flow_run.parameters, return_type="state")


def test_a_supervisor_of_a_broken_site_ends_with_one_line(place, saved, tmp_path):
    name = saved(ledger=SqliteLedger(path=str(place.folder)))
    done = subprocess.run(
        [sys.executable, "-m", "services.supervisor", "--site", name],
        env=environment(PREFECT_API_URL=str(get_current_settings().api.url), DAILIES_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("dailies: ")]
    assert says(one_line(said), "cannot be opened for writing")
    assert "Traceback" not in done.stderr


# ── where events go ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("part", "what"), STREAMS.values(), ids=STREAMS)
def test_a_check_of_the_stream_says_what_to_set(place, part, what):
    assert says(soon(lambda: part(place).open().check()), what)


@pytest.mark.parametrize(("part", "what"), STREAMS.values(), ids=STREAMS)
def test_a_sweep_and_doctor_say_what_is_wrong_with_the_stream_and_events_are_kept(
    place, saved, submitted, caplog, part, what
):
    name = saved(stream=part(place))
    assert says(visited(name, "stream", stream), what)
    site, job = submitted(name)
    assert says(swept(site, caplog), what)
    assert [event.type for event in site.ledger.outbox.pending()] == ["dailies.job.queued"]
    assert site.ledger.jobs.get(job).state is JobState.QUEUED


def test_a_sweep_says_that_the_api_for_events_does_not_answer_and_keeps_them(saved, submitted, caplog):
    site, _ = submitted(saved(events=PrefectEvents(api_url=f"{NOBODY}/api")))
    assert says(swept(site, caplog), "did not take the events: .*is api_url right")
    assert len(site.ledger.outbox.pending()) == 1


def test_a_run_is_not_kept_from_its_work_by_events_that_cannot_leave(place, saved, run, site, clip, tmp_path):
    name = saved(stream=STREAMS["a wrong password"][0](place), events=PrefectEvents(api_url=f"{NOBODY}/api"))
    assert run(name, 60).state.type.value == "COMPLETED"
    with SqliteLedgerOf(tmp_path) as book:
        assert [event.type for event in book.outbox.pending()] == [
            "dailies.job.queued", "dailies.job.running", "dailies.job.done",
        ]  # fmt: skip


@pytest.fixture
def submitted() -> Iterator[Callable[[str], tuple[Any, str]]]:
    opened = []

    def submit(name: str) -> tuple[Any, str]:
        site = open_site(name)
        opened.append(site)
        return site, site.ledger.jobs.submit(JobRequest("acme", "ingest-media", "acme/v1")).id

    yield submit
    for site in opened:
        site.ledger.close()


def swept(site: Any, caplog: pytest.LogCaptureFixture) -> str:
    """The one thing that a sweep complains of, within its time."""
    began = time.monotonic()
    sweep(site, Caps(total=0))
    assert time.monotonic() - began < SOON_S
    (said,) = [each.getMessage() for each in caplog.records if each.name == "dailies.supervisor"]
    assert said.startswith("action=later error=")
    return one_line(said.removeprefix("action=later error="))


# ── compute ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_modal_without_a_token_says_what_to_set_at_once():
    (said,) = really("submit")
    assert (said.kind, said.took < SOON_S) == ("NotConfigured", True)
    assert says(one_line(said.message), "set token_id and token_secret in the block 'Dailies Modal compute'")


@pytest.mark.parametrize("half", [{"token_id": "ak-1"}, {"token_secret": SECRET}], ids=["id alone", "secret alone"])
def test_half_a_token_of_modal_is_told_before_anybody_is_asked_and_by_doctor(place, saved, half):
    what = "two parts: set token_id and token_secret in the block 'Dailies Modal compute'"
    functions = ModalCompute(**half).open(bucket(place))
    assert says(soon(lambda: functions.submit("probe_media", {"tenant": "acme"}, "unit")), what)
    name = saved(store=bucket(place), compute=ModalCompute(**half))
    assert says(visited(name, "compute", compute), what)


def test_modal_beside_a_local_folder_says_what_the_site_needs(saved):
    name = saved(compute=ModalCompute())
    assert says(soon(lambda: open_site(name)), "give the site a 'Dailies S3 bucket'")


# ── dailies doctor ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_names_everything_that_is_wrong_with_a_site_in_one_go(place, saved):
    name = saved(
        store=bucket(place, secret_key=SECRET),
        ledger=SqliteLedger(path=str(place.folder)),
        events=PrefectEvents(api_url=f"{NOBODY}/api"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "doctor", "--site", name, "--json"],
        env=environment(PREFECT_API_URL=str(get_current_settings().api.url)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    wrong = {each["area"]: each["value"] for each in json.loads(done.stdout)["findings"] if each["ok"] is False}
    assert says(one_line(wrong["store"]), WHO)
    assert says(one_line(wrong["ledger"]), "cannot be opened for writing")
    assert says(one_line(wrong["events"]), "did not take the events: .*is api_url right")
    assert SECRET not in done.stdout + done.stderr
