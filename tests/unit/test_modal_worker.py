"""What the Modal worker says, refuses and passes on; and that its stand-in is still like Modal."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import modal
import pytest
from modal import exception as theirs
from modal.sandbox._common import _is_v1_sandbox_id
from prefect import settings
from prefect.settings import temporary_settings

from dailies.errors import DailiesError, NotConfigured, Transient
from deployments import modal_sandbox, modal_worker
from deployments.modal_sandbox import PACKAGES, POOL_TAG, ROOT, RUN_TAG, ModalJobConfiguration, project_image
from deployments.modal_worker import LOST, NO_TOKEN, base_job_template, in_our_words, refuse_unreachable
from tests.sandbox_stand_in import Cloud, Sandbox, StandInWorker, alive

pytestmark = pytest.mark.unit

RUN = SimpleNamespace(id="0190-run", name="crop acme/v1 " + "x" * 80)
CONNECT = """
import asyncio, time
from deployments.modal_worker import ModalWorker, in_our_words
import modal
start = time.monotonic()
try:
    with in_our_words():
        asyncio.run(ModalWorker("gpu")._app("dailies", None))
except Exception as error:
    print(type(error).__name__, time.monotonic() - start, error, sep="|")
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path, "http://127.0.0.1:9/api")
    yield made
    made.close()


def start(cloud: Cloud, *command: str, timeout: int = 60) -> Sandbox:
    return asyncio.run(cloud.create.aio(*command, env={}, tags={}, timeout=timeout))


def ended(cloud: Cloud, sandbox: Sandbox, **patience: float) -> modal_worker.Ending:
    """The worker's judgement, which needs no Prefect."""
    worker = StandInWorker("gpu")
    vars(worker).update(cloud=cloud, **patience)
    configuration = ModalJobConfiguration.model_construct(timeout=1, memory=2048)
    return asyncio.run(asyncio.wait_for(worker._ended(sandbox, configuration), 30))


def connect(tmp_path: Path, **more: str) -> tuple[str, float, str]:
    """What a worker with the real client of Modal meets: the error's kind, after how long, and its text."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "PREFECT_"))}
    environment = {**kept, "HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "none.toml"), **more}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout, done.stderr
    kind, seconds, text = done.stdout.strip().split("|")
    return kind, float(seconds), text


def test_no_token_is_one_line_at_once(tmp_path: Path) -> None:
    kind, seconds, text = connect(tmp_path)
    assert (kind, text) == ("NotConfigured", NO_TOKEN)
    assert seconds < 5


def test_a_modal_that_is_not_reached_is_given_up_within_five_seconds(tmp_path: Path) -> None:
    """The client by itself would go on for a minute. The listener accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        token = {"MODAL_TOKEN_ID": "ak-none", "MODAL_TOKEN_SECRET": "as-none", "MODAL_SERVER_URL": address}
        kind, seconds, text = connect(tmp_path, **token)
    assert kind == "TimedOut"
    assert "Modal did not answer within 4.5 s" in text
    assert 4 < seconds < 8


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "http://127.0.0.1:4200/api",
        "http://127.8.8.8/api",
        "http://localhost:4200/api",
        "http://prefect.localhost/api",
        "http://[::1]:4200/api",
        "http://0.0.0.0:4200/api",
        "http://169.254.1.1/api",
    ],
)
def test_an_address_of_this_machine_is_refused_in_one_line(url: str | None) -> None:
    with pytest.raises(NotConfigured, match=r"cannot reach the Prefect API at .*: set PREFECT_API_URL") as refused:
        refuse_unreachable(url)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["https://prefect.example/api", "http://203.0.113.9:4200/api", "http://[2001:db8::1]/api"]
)
def test_an_address_elsewhere_is_taken(url: str) -> None:
    refuse_unreachable(url)


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (theirs.AuthError("Token missing. Could not authenticate"), NotConfigured, "set MODAL_TOKEN_ID and"),
        (theirs.NotFoundError("Secret 'x' not found"), NotConfigured, "asked of Modal: Secret 'x' not found"),
        (theirs.InvalidError("Invalid GPU type\nmore"), NotConfigured, "job variables ask for: Invalid GPU type"),
        (theirs.PermissionDeniedError("not yours"), NotConfigured, "not yours"),
        (theirs.ImageBuildError("pip failed", "im-1"), NotConfigured, "pip failed"),
        (theirs.ConflictError("Sandbox already finished"), Transient, "ended before it began: Sandbox already"),
        (theirs.ResourceExhaustedError("Insufficient capacity"), Transient, "Modal: Insufficient capacity"),
        (theirs.ConnectionError(""), Transient, "Modal: ConnectionError"),
        (theirs.ServiceError("unavailable"), Transient, "Modal: unavailable"),
        (theirs.TimeoutError("late"), Transient, "Modal: late"),
        (ConnectionResetError("reset"), Transient, "Modal: reset"),
    ],
)
def test_each_exception_of_modal_is_one_line_of_ours(raised: Exception, kind: type[DailiesError], says: str) -> None:
    with pytest.raises(kind) as met, in_our_words(not_found="asked of Modal"):
        raise raised
    assert says in str(met.value)
    assert len(str(met.value).splitlines()) == 1


def test_what_is_not_of_modal_passes_unchanged() -> None:
    with pytest.raises(KeyError), in_our_words():
        raise KeyError("a defect of ours")
    with pytest.raises(theirs.NotFoundError), in_our_words():
        raise theirs.NotFoundError("where not found means something to the caller")


def test_every_job_variable_has_a_description_and_reaches_the_sandbox() -> None:
    template = base_job_template()
    variables = template["variables"]["properties"]
    assert [name for name, field in variables.items() if len(field.get("description", "")) < 20] == []
    assert template["job_configuration"] == {name: f"{{{{ {name} }}}}" for name in variables}
    assert variables["timeout"]["default"] == 3600
    assert variables["app"]["default"] == "dailies"


def test_of_this_workers_settings_a_run_gets_only_what_means_the_same_elsewhere(tmp_path: Path) -> None:
    worker = {
        settings.PREFECT_API_URL: "https://prefect.example/api",
        settings.PREFECT_API_KEY: "key",
        settings.PREFECT_LOGGING_LEVEL: "DEBUG",
        settings.PREFECT_HOME: tmp_path,
        settings.PREFECT_LOCAL_STORAGE_PATH: tmp_path,
        settings.PREFECT_API_DATABASE_CONNECTION_URL: "postgresql+asyncpg://user:secret@db/prefect",
        settings.PREFECT_WORKER_QUERY_SECONDS: 1,
    }
    with temporary_settings(worker):
        passed = ModalJobConfiguration._base_environment()
    wanted = {"PREFECT_API_URL": "https://prefect.example/api", "PREFECT_API_KEY": "key"}
    assert wanted.items() <= passed.items()
    assert passed["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert [name for name in passed if any(word in name for word in ("HOME", "PATH", "DATABASE", "WORKER"))] == []
    assert not any("secret" in value for value in passed.values())


def test_tags_are_what_modal_takes_and_the_runs_own_cannot_be_taken_over() -> None:
    labels = {"team/a": "dailies & co", "empty": "", RUN_TAG: "somebody-else", "prefect.io/flow-id": "1"}
    tags = ModalJobConfiguration(labels=labels).tags(RUN, "gpu pool")
    modal._utils.name_utils.check_tag_dict(tags)
    assert tags[RUN_TAG] == "0190-run"
    assert tags[POOL_TAG] == "gpu-pool"
    assert tags["team-a"] == "dailies---co"
    assert tags["dailies.run-name"].startswith("crop-acme-v1-x")
    assert "prefect.io-flow-id" not in tags


def test_the_image_holds_every_package_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(f"{name}*" for name in PACKAGES) == sorted(project)
    assert isinstance(project_image(gpu=True), modal.Image)
    assert isinstance(project_image(gpu=False), modal.Image)


def test_a_worker_without_the_projects_folder_asks_for_an_image(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(modal_sandbox, "ROOT", tmp_path)
    with pytest.raises(NotConfigured, match="set the job variable `image`"):
        project_image(gpu=False)


def test_prefects_commands_do_not_pay_for_modals_import() -> None:
    code = "import sys, deployments.modal_worker; sys.exit('modal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("exit 0", 0, ""),
        ("exit 127", 127, ""),
        ("kill -KILL $$", 137, "most often because memory ran out: raise the job variable `memory` (now 2048 MiB)"),
        ("kill -TERM $$", 143, ""),
        ("exit 124", 124, "the command ended with 124 by itself"),
    ],
)
def test_how_a_command_ends_is_told_by_its_code(cloud: Cloud, command: str, code: int, why: str) -> None:
    ending = ended(cloud, start(cloud, "sh", "-c", command))
    assert ending.code == code
    assert ending.why.endswith(why)
    assert bool(ending.why) == bool(why)


def test_a_timeout_is_124_and_ends_all_processes(cloud: Cloud) -> None:
    note = cloud.folder / "note"
    sandbox = start(cloud, "sh", "-c", f"sleep 60 & echo $! > {note}; wait", timeout=1)
    ending = ended(cloud, sandbox)
    assert ending.code == 124
    assert "reached its timeout of 1 s" in ending.why
    assert not alive(int(note.read_text()))


def test_a_sandbox_that_is_not_answered_for_is_given_up_only_when_it_can_no_longer_live(cloud: Cloud) -> None:
    sandbox = start(cloud, "sleep", "60")
    cloud.fail = [theirs.ServiceError("unavailable")] * 1000
    began = time.monotonic()
    ending = ended(cloud, sandbox, grace_s=1.0)
    assert ending == (LOST, "Modal did not answer until the sandbox's own timeout had passed")
    assert 2 <= time.monotonic() - began < 10
    assert 2 < 1000 - len(cloud.fail) < 20


def test_a_question_without_an_answer_holds_up_nothing_else(cloud: Cloud) -> None:
    """Both are asked about by one event loop; the second has long ended when the first is asked again."""
    sandboxes = [start(cloud, "sh", "-c", "exit 3") for _ in range(2)]
    worker = StandInWorker("gpu")
    vars(worker).update(cloud=cloud, answer_s=3.0)
    configuration = ModalJobConfiguration()
    seconds = []

    async def follow(sandbox: Sandbox) -> None:
        began = time.monotonic()
        assert (await worker._ended(sandbox, configuration)).code == 3
        seconds.append(time.monotonic() - began)

    async def both() -> None:
        cloud.silent = 1
        await asyncio.gather(*map(follow, sandboxes))

    asyncio.run(both())
    assert seconds[0] < 2 < 3 <= seconds[1]


def test_the_stand_in_refuses_what_modal_would_refuse(cloud: Cloud) -> None:
    with pytest.raises(TypeError, match="gpus"):
        cloud.create.aio("true", gpus="T4")
    with pytest.raises(TypeError, match="sandbox_id"):
        cloud.from_id.aio(name="sb-1")
    with pytest.raises(TypeError, match="grace"):
        start(cloud, "true").terminate.aio(grace=3)
    with pytest.raises(theirs.NotFoundError):
        asyncio.run(cloud.from_id.aio("sb-unknown"))


def test_what_the_worker_uses_of_modal_is_there() -> None:
    """Shape for shape: what is awaited there is awaited here, what is iterated is iterated."""
    assert inspect.isasyncgen(modal.Sandbox.list.aio(app_id="ap-1", tags={}))
    for call in (modal.Sandbox.create, modal.Sandbox.from_id, modal.App.lookup):
        assert inspect.iscoroutinefunction(call.aio)
    for name in ("poll", "wait", "terminate", "get_tags"):
        assert inspect.iscoroutinefunction(getattr(modal.Sandbox, name).aio)
    assert isinstance(modal.Sandbox.object_id, property)
    assert isinstance(modal.App.app_id, property)
    assert "environment_name" in inspect.signature(modal.Secret.from_name).parameters


def test_the_stand_ins_ids_are_those_of_a_sandbox_with_a_gpu(cloud: Cloud) -> None:
    assert _is_v1_sandbox_id(start(cloud, "true").object_id)
