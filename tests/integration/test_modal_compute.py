"""ModalCompute keeps the contract on a stand-in cloud; and what the installed client really does without an account."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import modal
import pytest
from grpclib import GRPCError, Status
from grpclib.server import Server
from modal_proto.api_grpc import ModalClientBase  # the client's own description of its server

from blocks.compute import ModalCompute as ModalBlock
from blocks.s3 import S3Bucket
from blocks.site import LocalFolder as LocalFolderBlock
from dailies import remote
from dailies.compute.interface import Busy, Canceled, StillRunning, UnknownCall, Unreachable
from dailies.compute.modal import ModalCompute
from dailies.errors import DailiesError, NotConfigured, TimedOut, Transient
from dailies.store.local import LocalFolder
from tests.compute_contract import PATIENCE_S, UNIT, ComputeContract, eventually, settled, world
from tests.compute_work import ROOT, TABLE
from tests.modal_stand_in import Cloud, Function, FunctionCall

pytestmark = pytest.mark.integration
REAL_TABLE = remote.TABLE
__all__ = ["world"]


@pytest.fixture
def store(tmp_path):
    return LocalFolder(tmp_path / "media")


@pytest.fixture
def cloud(tmp_path, store, monkeypatch) -> Iterator[Cloud]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cloud = Cloud(tmp_path / "cloud", {"DAILIES_STORE": json.dumps({"folder": str(store.root)})}, TABLE)
    yield cloud
    cloud.shut_down()


@pytest.fixture
def again(cloud):
    return lambda: ModalCompute("dailies", client=cloud)


@pytest.fixture
def compute(again):
    return again()


@pytest.fixture
def struck(cloud):
    return cloud.crash


class TestModalCompute(ComputeContract):
    """Functions on Modal keep the contract, as far as a stand-in can tell."""


# ── faults of the cloud ───────────────────────────────────────────────────────────────────────────────────────────────


def test_when_the_reply_to_a_submission_is_lost_the_unit_is_submitted_again_and_executed_once(compute, cloud, world):
    cloud.faults = ["lose_reply"]
    with pytest.raises(Unreachable, match="the stream was reset"):
        compute.submit("wait", world.payload(), UNIT)
    world.begun()
    with pytest.raises(Busy):
        compute.result(compute.submit("wait", world.payload(), UNIT), PATIENCE_S)
    threading.Timer(1.0, world.gate.touch).start()
    assert settled(compute, "wait", world.payload(), UNIT)["facts"]["waited"] is True
    assert world.executions == 1
    assert len(cloud.spawned) >= 3


def test_a_machine_that_is_taken_away_starts_again_on_the_same_input_at_once(compute, cloud, world, store):
    call = compute.submit("wait", world.payload(), UNIT)
    world.begun()
    cloud.preempt(call)
    start = time.monotonic()
    world.begun(2)
    assert time.monotonic() - start < 5, "it is its own claim that it finds, and need not watch it"
    world.gate.touch()
    answer = compute.result(call, PATIENCE_S)
    assert store.get(answer["artifacts"][0]["key"]) == b"through"
    assert [stored.key for stored in store.list("acme/server/videos/v1/calls") if "claim" in stored.key] == []


def test_a_machine_that_is_taken_away_after_it_finished_works_no_second_time(compute, cloud, world):
    call = compute.submit("count", world.payload(text="to be"), UNIT)
    answer = compute.result(call, PATIENCE_S)
    (cloud.folder / call / "output").unlink()
    cloud.preempt(call)
    assert compute.result(call, PATIENCE_S) == answer
    assert world.executions == 1


def test_a_result_that_is_not_kept_any_longer_is_found_by_submitting_the_unit_again(compute, cloud, world):
    call = compute.submit("count", world.payload(text="to be"), UNIT)
    answer = compute.result(call, PATIENCE_S)
    cloud.expire(call)
    with pytest.raises(UnknownCall, match="any longer"):
        compute.result(call, PATIENCE_S)
    assert settled(compute, "count", world.payload(text="to be"), UNIT) == answer
    assert world.executions == 1


@pytest.mark.parametrize("fault", ["no_gpu", "unavailable", "lost"])
def test_what_passes_is_unreachable_and_nothing_was_started(compute, cloud, world, fault):
    cloud.faults = [fault]
    with pytest.raises(Unreachable) as raised:
        compute.submit("count", world.payload(), UNIT)
    assert isinstance(raised.value, Transient)
    assert "\n" not in str(raised.value)
    assert cloud.spawned == []
    assert compute.result(compute.submit("count", world.payload(), UNIT), PATIENCE_S)["facts"]["words"] == 0


def test_a_cloud_that_does_not_answer_is_given_up_in_time(cloud, world):
    compute = ModalCompute("dailies", client=cloud, answer_s=0.5)
    cloud.faults = ["hang"]
    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"did not answer within 0\.5 s"):
        compute.submit("count", world.payload(), UNIT)
    assert time.monotonic() - start < 2


WRONG = {
    "no token": (("dailies", ""), "configured", "set token_id and token_secret"),
    "a wrong token": (("dailies", "", "ak-bad", "as-bad"), "", "set token_id and token_secret"),
    "half a token": (("dailies", "", "ak-good", ""), "", "two parts"),
    "no such app": (("dailies-2", ""), "", "modal deploy -m deployments.modal_app"),
    "no such environment": (("dailies", "staging"), "", "modal deploy -m deployments.modal_app"),
    "a forbidden app": (("dailies", "", "ak-good", "as-good"), "forbidden", "may not use app dailies"),
}


ASKED = {
    "submit": lambda compute, world: compute.submit("count", world.payload(), UNIT),
    "check": lambda compute, world: compute.check(),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("settings", "trouble", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_one_line_that_says_what_to_set(cloud, world, settings, trouble, message, asked):
    cloud.configured = trouble != "configured"
    cloud.faults = [trouble]
    cloud.table = TABLE if asked is ASKED["submit"] else REAL_TABLE
    with pytest.raises(NotConfigured, match=message) as raised:
        asked(ModalCompute(*settings, client=cloud), world)
    assert "\n" not in str(raised.value)
    assert cloud.spawned == []


def test_a_check_finds_what_is_deployed_and_starts_nothing(cloud):
    cloud.table = REAL_TABLE
    ModalCompute("dailies", client=cloud).check()
    assert cloud.spawned == []


def test_a_check_says_which_function_is_not_deployed_yet(cloud):
    with pytest.raises(NotConfigured, match="Modal has no probe_media in app dailies: run `modal deploy"):
        ModalCompute("dailies", client=cloud).check()


def test_a_check_of_a_cloud_that_does_not_answer_asks_whether_it_can_be_reached(cloud):
    cloud.faults = ["hang"]
    with pytest.raises(NotConfigured, match="can this machine reach Modal"):
        ModalCompute("dailies", client=cloud, answer_s=0.2).check()


def test_the_token_of_the_settings_is_the_one_that_is_used(cloud, world):
    cloud.configured = False
    compute = ModalCompute("dailies", "", "ak-good", "as-good", client=cloud)
    call = compute.submit("count", world.payload(text="to be"), UNIT)
    assert compute.result(call, PATIENCE_S)["facts"]["words"] == 2
    with pytest.raises(NotConfigured):
        ModalCompute("dailies", client=cloud).result(call, 1)


def test_the_block_opens_what_it_says_and_shows_no_secret(cloud, world):
    block = ModalBlock(app_name="films", environment="staging", token_id="ak-good", token_secret="as-hush", answer_s=2)
    compute = block.open(S3Bucket(bucket="films", access_key="a", secret_key="s"))
    assert (compute.app, compute.environment) == ("films", "staging")
    assert "as-hush" not in repr(block) + str(block.model_dump())
    assert compute.find(UNIT) is None
    assert compute.clean(0) == 0


def test_a_site_on_a_local_folder_cannot_work_on_modal_and_says_so():
    with pytest.raises(NotConfigured, match="give the site a 'Dailies S3 bucket'"):
        ModalBlock().open(LocalFolderBlock())


# ── every exception of the client ─────────────────────────────────────────────────────────────────────────────────────

known = modal.exception
AT_SUBMIT = {
    known.AuthError: NotConfigured,
    known.PermissionDeniedError: NotConfigured,
    known.NotFoundError: NotConfigured,
    known.InvalidError: NotConfigured,
    known.VersionError: NotConfigured,
    known.ConnectionError: Unreachable,
    known.ServiceError: Unreachable,
    known.InternalError: Unreachable,
    known.ConflictError: Unreachable,
    known.ResourceExhaustedError: Unreachable,
    known.TimeoutError: Unreachable,
    known.ClientClosed: Unreachable,
    known.DataLossError: Transient,
}
AT_RESULT = {
    known.TimeoutError: StillRunning,
    known.FunctionTimeoutError: TimedOut,
    known.OutputExpiredError: UnknownCall,
    known.NotFoundError: UnknownCall,
    known.InputCancellation: Canceled,
    known.RemoteError: Transient,
    known.InternalFailure: Transient,
    known.ExecutionError: Transient,
    known.ConnectionError: Unreachable,
    known.ServiceError: Unreachable,
    known.ResourceExhaustedError: Unreachable,
    known.AuthError: NotConfigured,
    known.PermissionDeniedError: NotConfigured,
    known.InvalidError: NotConfigured,
}


class Raising:
    """A client in whose place every question ends so."""

    exception = known

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.Function = self.FunctionCall = self

    def from_name(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error

    from_id = from_name


@pytest.mark.parametrize(("kind", "ours"), AT_SUBMIT.items(), ids=lambda kind: kind.__name__)
def test_each_error_of_the_client_at_a_submission_is_one_of_ours(kind, ours):
    with pytest.raises(DailiesError, match="so it is") as raised:
        ModalCompute("dailies", client=Raising(kind("so\nit is"))).submit("count", {}, UNIT)
    assert type(raised.value) is ours


@pytest.mark.parametrize(("kind", "ours"), AT_RESULT.items(), ids=lambda kind: kind.__name__)
def test_each_error_of_the_client_at_a_result_is_one_of_ours(kind, ours):
    with pytest.raises(DailiesError) as raised:
        ModalCompute("dailies", client=Raising(kind("so\nit is"))).result("fc-1", 1)
    assert type(raised.value) is ours
    assert "\n" not in str(raised.value)


def test_what_ends_this_process_is_not_taken_for_an_answer():
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind):
            ModalCompute("dailies", client=Raising(kind())).result("fc-1", 1)


# ── the stand-in and the installed client ─────────────────────────────────────────────────────────────────────────────


def shape(function: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters if each.name not in ("self", "cls")]


def pairs(cloud: Cloud) -> dict[str, tuple[Any, Any]]:
    return {
        "Function.from_name": (modal.Function.from_name, cloud.Function.from_name),
        "Function.spawn": (modal.Function.spawn, Function.spawn),
        "Function.hydrate": (modal.Function.hydrate, Function.hydrate),
        "FunctionCall.from_id": (modal.FunctionCall.from_id, cloud.FunctionCall.from_id),
        "FunctionCall.get": (modal.FunctionCall.get, FunctionCall.get),
        "FunctionCall.cancel": (modal.FunctionCall.cancel, FunctionCall.cancel),
        "Client.from_credentials": (modal.Client.from_credentials, cloud.Client.from_credentials),
    }


def test_the_stand_in_has_the_signatures_of_the_installed_client(cloud):
    assert {name: shape(ours) for name, (_, ours) in pairs(cloud).items()} == {
        name: shape(real) for name, (real, _) in pairs(cloud).items()
    }
    for name, (real, ours) in pairs(cloud).items():
        assert hasattr(real, "aio") >= hasattr(ours, "aio"), name
    assert cloud.exception is modal.exception
    assert isinstance(modal.FunctionCall.object_id, property)


def test_a_stand_in_that_drifted_is_noticed(cloud):
    async def get(self, timeout: float | None = 10, *, index: int = 0) -> Any:
        raise AssertionError("never called")

    assert shape(get) != shape(modal.FunctionCall.get)


# ── the installed client itself ───────────────────────────────────────────────────────────────────────────────────────

ASK = """
import sys, threading, time
from dailies.compute.modal import ANSWER_S, ModalCompute
from dailies.errors import DailiesError
asked, patience, *token = sys.argv[1:]
compute = ModalCompute("dailies", "", *token, answer_s=float(patience) or ANSWER_S)
questions = {
    "submit": lambda: compute.submit("probe_media", {"tenant": "acme"}, "unit"),
    "result": lambda: compute.result("fc-0123456789", 0.2),
    "cancel": lambda: compute.cancel("fc-0123456789"),
}
for question in asked.split():
    start = time.monotonic()
    try:
        questions[question]()
    except DailiesError as error:
        took = time.monotonic() - start
        print(question, type(error).__name__, f"{took:.2f}", threading.active_count(), error, sep="|")
"""
TWICE = "submit result cancel submit result cancel"


class Said(NamedTuple):
    question: str
    kind: str
    took: float
    threads: int
    message: str


def really(questions: str, *token: str, server: str = "", patience: float = 0) -> list[Said]:
    """What the installed client says to a process without any configuration of its own, question by question."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    environment = {**kept, "MODAL_CONFIG_PATH": os.devnull, **({"MODAL_SERVER_URL": server} if server else {})}
    done = subprocess.run(
        [sys.executable, "-c", ASK, questions, str(patience), *token],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("|", 4) for line in done.stdout.splitlines()]
    said = [Said(question, kind, float(took), int(threads), text) for question, kind, took, threads, text in lines]
    assert [each.question for each in said] == questions.split()
    assert all(each.threads <= 2 for each in said), "the client's own thread, and no more for every question"
    return said


def test_the_installed_client_without_a_token_is_one_line_at_once():
    for each in really(TWICE):
        assert (each.kind, each.took < 5) == ("NotConfigured", True)
        assert "set token_id and token_secret in the block 'Dailies Modal compute'" in each.message


@contextmanager
def deaf() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def closed() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("server", [deaf, closed])
def test_the_installed_client_gives_up_on_a_server_that_does_not_answer_within_five_seconds(server):
    with server() as url:
        (said,) = really("submit", "ak-1", "as-1", server=url)
    assert said.kind == "Unreachable"
    assert 3.5 < said.took < 5
    assert "did not answer within 4 s" in said.message


@pytest.mark.parametrize("server", [deaf, closed])
def test_the_installed_client_gives_up_on_every_question_as_soon_as_it_is_told_to(server):
    with server() as url:
        for said in really(TWICE, "ak-1", "as-1", server=url, patience=0.5):
            assert (said.kind, said.took < 2.5) == ("Unreachable", True)


@contextmanager
def refusing(status: Status) -> Iterator[str]:
    """A server of the client's own protocol that refuses whatever it is asked."""

    async def refuse(self: Any, stream: Any) -> None:
        await stream.recv_message()
        raise GRPCError(status, "so it is")

    names = ModalClientBase.__abstractmethods__
    service = type("Refusing", (ModalClientBase,), dict.fromkeys(names, refuse))()
    loop = asyncio.new_event_loop()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))

    async def start() -> Server:
        server = Server([service])
        await server.start(sock=listener)
        return server

    server = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


REFUSED = {
    Status.UNAUTHENTICATED: ["NotConfigured"] * 3,
    Status.PERMISSION_DENIED: ["NotConfigured"] * 3,
    Status.NOT_FOUND: ["NotConfigured", "UnknownCall", "UnknownCall"],
    Status.INVALID_ARGUMENT: ["NotConfigured"] * 3,
    Status.RESOURCE_EXHAUSTED: ["Unreachable"] * 3,
    Status.UNAVAILABLE: ["Unreachable"] * 3,
}


@pytest.mark.parametrize(("status", "ours"), REFUSED.items(), ids=lambda part: getattr(part, "name", ""))
def test_the_installed_client_turned_away_by_a_server_of_its_protocol(status, ours):
    with refusing(status) as url:
        said = really("submit result cancel", "ak-1", "as-1", server=url)
    assert [each.kind for each in said] == ours
    assert all(each.took < 5 for each in said)


def test_a_call_that_nobody_cancelled_is_not_taken_for_cancelled(compute, cloud, world):
    call = compute.submit("wait", world.payload(), UNIT)
    world.begun()
    cloud.crash(call)
    with pytest.raises(Transient, match="the container was lost"):
        compute.result(call, PATIENCE_S)
    eventually(lambda: cloud.containers[call].poll() is not None)
