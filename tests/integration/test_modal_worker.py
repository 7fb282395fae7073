"""Flow runs in sandboxes: the real worker and a real Prefect API; only Modal is played by child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from modal.exception import ConnectionError as NoConnection
from modal.exception import InvalidError, ResourceExhaustedError, ServiceError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling, Completed, Crashed, Running

from deployments.modal_sandbox import POOL_TAG, RUN_TAG
from deployments.modal_worker import NO_TOKEN, ModalWorker, base_job_template
from tests.sandbox_stand_in import PUBLIC, Cloud, Sandbox, StandInWorker, alive

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

PREFECT = Path(sys.executable).with_name("prefect")
PATIENCE_S = 30.0
FLOWS = """
import os, subprocess, sys, time
from pathlib import Path
from prefect import flow

@flow
def develops(note: str):
    Path(note).write_text("developed")

@flow
def fails(note: str):
    raise ValueError("no such reel")

@flow
def sleeps(note: str):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(f"{note}.new").write_text(f"{os.getpid()} {child.pid}")
    os.rename(f"{note}.new", note)
    time.sleep(600)
"""


class Pool:
    """A pool of the worker's type, with a deployment for each way to run."""

    def __init__(self, client: SyncPrefectClient, folder: Path) -> None:
        self.client, self.folder, self.name = client, folder, f"gpu-{uuid4().hex[:8]}"
        (folder / "reel.py").write_text(FLOWS)
        template = base_job_template()
        client.create_work_pool(WorkPoolCreate(name=self.name, type="modal-stand-in", base_job_template=template))

    def start(self, flow: str = "develops", public: bool = True, **variables: Any) -> UUID:
        """A run of the flow, found by its module's name as ours are; with a `command`, only that command is run."""
        environment = {"PYTHONPATH": str(self.folder), **({"PREFECT_API_URL": PUBLIC} if public else {})}
        deployment = self.client.create_deployment(
            self.client.create_flow_from_name(flow),
            f"gpu-{uuid4().hex[:8]}",
            work_pool_name=self.name,
            entrypoint=f"reel.{flow}",
            job_variables={"env": environment, **variables},
        )
        run = self.client.create_flow_run_from_deployment(deployment, parameters={"note": ""})
        self.client.update_flow_run(run.id, parameters={"note": str(self.note(run.id))})
        return run.id

    def note(self, run: UUID) -> Path:
        return self.folder / f"{run}.txt"

    def read(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def state(self, run: UUID) -> StateType:
        return self.read(run).state.type

    def says(self, run: UUID) -> str:
        return self.read(run).state.message or ""


class Studio:
    """A pool, the machines that it pays for, and a worker between the two."""

    def __init__(self, pool: Pool, cloud: Cloud) -> None:
        self.pool, self.cloud = pool, cloud

    @asynccontextmanager
    async def working(self, **patience: float) -> AsyncIterator[ModalWorker]:
        worker = StandInWorker(self.pool.name)
        vars(worker).update(cloud=self.cloud, **patience)
        async with worker:
            await worker.get_and_submit_flow_runs()
            yield worker

    def through(
        self, run: UUID, then: Callable[[], Coroutine[Any, Any, None]] | None = None, **patience: float
    ) -> FlowRun:
        """The run as it is when the worker is done with it; ``then`` happens once its sandbox is there."""

        async def scenario() -> None:
            async with self.working(**patience):
                if then:
                    await until(lambda: self.pool.read(run).infrastructure_pid)
                    await then()

        asyncio.run(asyncio.wait_for(scenario(), 2 * PATIENCE_S))
        return self.pool.read(run)

    def sandbox(self, run: UUID) -> Sandbox:
        """The one sandbox of the run; a second one would have been paid for twice."""
        (found,) = [one for one in self.cloud.running.values() if one.tags[RUN_TAG] == str(run)]
        return found


async def until(true: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def pool(fast_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with get_client(sync_client=True) as client:
        pool = Pool(client, tmp_path_factory.mktemp("pool"))
        yield pool
        client.delete_work_pool(pool.name)


@pytest.fixture
def studio(pool: Pool, fast_api: str, tmp_path: Path) -> Iterator[Studio]:
    cloud = Cloud(tmp_path, fast_api)
    yield Studio(pool, cloud)
    cloud.close()
    assert [process.cmdline() for one in cloud.running.values() for process in one.processes()] == []


@pytest.fixture(scope="module")
def shift(
    pool: Pool, fast_api: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Studio, dict[str, UUID]]]:
    """Three real flow runs side by side, one of them cancelled once it runs; each takes seconds to start."""
    cloud = Cloud(tmp_path_factory.mktemp("cloud"), fast_api)
    studio = Studio(pool, cloud)
    runs = {"completed": pool.start("develops"), "failed": pool.start("fails"), "cancelled": pool.start("sleeps")}

    async def scenario() -> None:
        async with studio.working():
            await until(lambda: pool.note(runs["cancelled"]).exists(), 3 * PATIENCE_S)
            pool.client.set_flow_run_state(runs["cancelled"], Cancelling())

    asyncio.run(asyncio.wait_for(scenario(), 4 * PATIENCE_S))
    yield studio, runs
    cloud.close()


def test_a_run_completes_in_a_sandbox_that_is_found_by_its_id_and_its_tags(shift) -> None:
    studio, runs = shift
    run, sandbox = studio.pool.read(runs["completed"]), studio.sandbox(runs["completed"])
    assert run.state.type == StateType.COMPLETED
    assert studio.pool.note(run.id).read_text() == "developed"
    assert run.infrastructure_pid == sandbox.object_id
    assert (sandbox.returncode, sandbox.terminated) == (0, 0)
    assert sandbox.tags == {"dailies.run-name": run.name, RUN_TAG: str(run.id), POOL_TAG: studio.pool.name}


def test_a_flow_that_raises_has_failed_by_its_own_account_and_not_crashed(shift) -> None:
    studio, runs = shift
    assert studio.pool.state(runs["failed"]) == StateType.FAILED
    assert "no such reel" in studio.pool.says(runs["failed"])


def test_a_cancelled_run_leaves_no_process_in_its_sandbox(shift) -> None:
    studio, runs = shift
    assert studio.pool.state(runs["cancelled"]) == StateType.CANCELLED
    engine, child = studio.pool.note(runs["cancelled"]).read_text().split()
    assert not alive(int(engine))
    assert not alive(int(child))
    assert studio.sandbox(runs["cancelled"]).returncode is not None


def test_a_killed_command_is_crashed_and_named_as_out_of_memory(studio: Studio) -> None:
    run = studio.pool.start(command="sleep 60")

    async def kill() -> None:
        studio.pool.client.set_flow_run_state(run, Running(), force=True)
        os.kill(studio.sandbox(run).process.pid, signal.SIGKILL)

    found = studio.through(run, kill)
    assert found.state.type == StateType.CRASHED
    assert studio.sandbox(run).returncode == 137
    assert "killed (SIGKILL), most often because memory ran out" in found.state.message
    assert "(now 2048 MiB)" in found.state.message


def test_the_sandbox_gets_what_the_job_variables_say(studio: Studio) -> None:
    wishes = {"gpu": "T4", "cpu": 2.5, "memory": 4096, "timeout": 7200, "region": "eu"}
    more = {"secrets": ["supabase"], "volumes": {"/models": "whisper"}, "labels": {"team/a": "dailies & co"}}
    run = studio.pool.start(command="true", **wishes, **more)
    studio.through(run)
    (made,) = studio.cloud.created
    assert {name: made[name] for name in wishes} == wishes
    assert made["command"] == ("true",)
    assert made["tags"]["team-a"] == "dailies---co"
    assert [*made["volumes"]] == ["/models"]
    assert len(made["secrets"]) == 1
    assert made["env"]["PREFECT__FLOW_RUN_ID"] == str(run)
    assert made["env"]["PREFECT_API_URL"] == PUBLIC
    assert not [name for name in made["env"] if name.startswith(("PREFECT_HOME", "PREFECT_SERVER_"))]


def test_a_command_that_ends_well_without_ending_its_run_does_not_leave_it_open(studio: Studio) -> None:
    run = studio.through(studio.pool.start(command="true"))
    assert run.state.type == StateType.CRASHED
    assert "ended with 0 and left the run" in run.state.message


def test_a_sandbox_that_modal_no_longer_knows_is_a_crash_of_its_run_alone(studio: Studio) -> None:
    lost, beside = studio.pool.start(command="sleep 60"), studio.pool.start(command="sh -c 'sleep 2; exit 7'")

    async def lose() -> None:
        studio.cloud.lost.add(studio.sandbox(lost).object_id)

    run = studio.through(lost, lose)
    assert run.state.type == StateType.CRASHED
    assert "Modal no longer knows the sandbox" in run.state.message
    assert "status code 7" in studio.pool.says(beside)


def test_a_modal_that_does_not_answer_for_a_while_loses_no_sandbox(studio: Studio) -> None:
    run = studio.pool.start(command="sh -c 'sleep 1; exit 7'")

    async def fail() -> None:
        studio.cloud.fail += [ServiceError("unavailable"), NoConnection("reset"), ResourceExhaustedError("slow down")]
        studio.cloud.silent = 1

    assert "status code 7" in studio.through(run, fail, answer_s=0.5).state.message
    assert (studio.cloud.fail, studio.cloud.silent) == ([], 0)


def test_a_run_that_takes_too_long_is_told_which_timeout_it_met(studio: Studio) -> None:
    studio.cloud.timeout_s = 1.0
    run = studio.through(studio.pool.start(command="sleep 60"))
    assert run.state.type == StateType.CRASHED
    assert "reached its timeout of 3600 s: raise the job variable `timeout`" in run.state.message
    assert studio.sandbox(run.id).processes() == []


def test_a_sandbox_terminated_from_outside_is_not_called_out_of_memory(studio: Studio) -> None:
    run = studio.pool.start(command="sleep 60")

    async def terminate() -> None:
        await studio.sandbox(run).terminate.aio()

    assert "terminated from outside" in studio.through(run, terminate).state.message


def test_a_run_cancelled_while_no_gpu_is_free_is_called_off(studio: Studio) -> None:
    run = studio.pool.start(command="sleep 60")
    studio.cloud.capacity.clear()

    async def scenario() -> None:
        async with studio.working():
            await until(lambda: studio.cloud.waiting)
            studio.pool.client.set_flow_run_state(run, Cancelling())

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
    assert studio.pool.state(run) == StateType.CANCELLED
    assert (studio.cloud.waiting, studio.cloud.created) == (0, [])


def test_a_run_cancelled_before_its_process_has_begun_does_not_keep_the_gpu(studio: Studio) -> None:
    run = studio.pool.start(command="sleep 60")

    async def cancel() -> None:
        studio.pool.client.set_flow_run_state(run, Cancelling())

    started = time.monotonic()
    assert studio.through(run, cancel).state.type == StateType.CANCELLED
    assert time.monotonic() - started < 15
    assert studio.sandbox(run).terminated == 1
    assert studio.sandbox(run).processes() == []


def test_a_run_that_is_over_keeps_its_sandbox_for_the_grace_and_no_longer(studio: Studio) -> None:
    crashed, completed = studio.pool.start(command="sleep 60"), studio.pool.start(command="sleep 60")
    client = studio.pool.client

    async def scenario() -> None:
        async with studio.working(grace_s=3.0):
            await until(lambda: len(studio.cloud.running) == 2)
            for run, end in ((crashed, Crashed()), (completed, Completed())):
                client.set_flow_run_state(run, Running(), force=True)
                client.set_flow_run_state(run, end)
            await asyncio.sleep(1)
            assert all(one.processes() for one in studio.cloud.running.values())

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
    assert [one.processes() for one in studio.cloud.running.values()] == [[], []]
    assert (studio.pool.state(crashed), studio.pool.state(completed)) == (StateType.CRASHED, StateType.COMPLETED)


def test_a_run_that_was_retried_elsewhere_keeps_its_state_and_not_its_old_sandbox(studio: Studio) -> None:
    run = studio.pool.start(command="sleep 60")

    async def retry() -> None:
        await asyncio.sleep(1)  # the worker must have seen its own sandbox on record
        studio.pool.client.set_flow_run_state(run, Running(), force=True)
        assert studio.sandbox(run).processes()
        studio.pool.client.update_flow_run(run, infrastructure_pid="sb-another")

    assert studio.through(run, retry).state.type == StateType.RUNNING
    assert studio.sandbox(run).processes() == []


def test_the_next_worker_takes_up_what_the_one_before_left_running(studio: Studio) -> None:
    left, stopped, unwanted = (studio.pool.start(command="sleep 60") for _ in range(3))

    async def first() -> None:
        async with studio.working():
            await until(lambda: all(studio.pool.read(run).infrastructure_pid for run in (left, stopped, unwanted)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(first())
    assert all(studio.sandbox(run).processes() for run in (left, stopped, unwanted))

    async def second() -> None:
        studio.pool.client.set_flow_run_state(unwanted, Cancelling())
        async with studio.working():
            await until(lambda: studio.pool.state(unwanted) == StateType.CANCELLED)
            os.kill(studio.sandbox(left).process.pid, signal.SIGKILL)
            os.kill(studio.sandbox(stopped).process.pid, signal.SIGTERM)

    asyncio.run(asyncio.wait_for(second(), PATIENCE_S))
    assert studio.sandbox(unwanted).processes() == []
    assert "most often because memory ran out" in studio.pool.says(left)
    assert studio.pool.state(stopped) == StateType.CRASHED
    assert "non-zero status code 143" in studio.pool.says(stopped)


def test_infrastructure_is_killed_by_its_id_and_a_stranger_is_said_not_to_be_there(studio: Studio) -> None:
    from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound

    run = studio.pool.start(command="sleep 60")

    async def scenario() -> None:
        async with studio.working(poll_s=2.0) as worker:  # seldom, or its own question meets the failure
            await until(lambda: studio.pool.read(run).infrastructure_pid)
            sandbox = studio.sandbox(run)
            configuration = worker.job_configuration()
            with pytest.raises(InfrastructureNotFound, match="knows no sandbox sb-unknown"):
                await worker.kill_infrastructure("sb-unknown", configuration)
            studio.cloud.fail += [ServiceError("unavailable")]
            with pytest.raises(InfrastructureNotAvailable, match="may still be running: Modal: unavailable"):
                await worker.kill_infrastructure(sandbox.object_id, configuration)
            assert sandbox.processes()
            await worker.kill_infrastructure(sandbox.object_id, configuration)
            assert sandbox.processes() == []

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


@pytest.mark.expects_errors
def test_a_local_api_is_refused_in_one_line_before_anything_is_paid(studio: Studio) -> None:
    run = studio.through(studio.pool.start(command="true", public=False))
    assert run.state.type == StateType.CRASHED
    assert "NotConfigured: a Modal sandbox cannot reach the Prefect API at http://127.0.0.1" in run.state.message
    assert "set PREFECT_API_URL" in run.state.message
    assert len(run.state.message.splitlines()) == 1
    assert studio.cloud.created == []


@pytest.mark.expects_errors
def test_what_modal_refuses_is_said_in_one_line_and_the_worker_works_on(studio: Studio) -> None:
    studio.cloud.refuse = InvalidError("Invalid GPU type: 'T40'\nSee the list")
    run = studio.pool.start(command="true", gpu="T40")

    async def scenario() -> None:
        async with studio.working() as worker:
            await until(lambda: studio.pool.state(run) == StateType.CRASHED)
            studio.cloud.refuse = None
            after = studio.pool.start(command="sh -c 'exit 7'")
            await worker.get_and_submit_flow_runs()
            await until(lambda: "status code 7" in studio.pool.says(after))

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))
    assert studio.pool.says(run).endswith("Modal refuses what the job variables ask for: Invalid GPU type: 'T40'")


def test_prefects_own_command_finds_the_type_and_without_a_token_says_at_once_what_to_do(
    client: SyncPrefectClient, fast_api: str, tmp_path: Path
) -> None:
    """The real client of Modal: without a token it sends nothing."""
    pool = Pool.__new__(Pool)
    pool.client, pool.folder, pool.name = client, tmp_path, f"gpu-{uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=pool.name, type="modal", base_job_template=base_job_template()))
    run = pool.start(command="true")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "PREFECT_"))}
    environment = {**kept, "HOME": str(tmp_path), "MODAL_CONFIG_PATH": str(tmp_path / "none.toml")}
    done = subprocess.run(
        [PREFECT, "worker", "start", "--type", "modal", "--pool", pool.name, "--run-once"],
        env={**environment, "PREFECT_API_URL": fast_api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    client.delete_work_pool(pool.name)
    assert done.returncode == 0, done.stdout + done.stderr
    found = pool.read(run)
    assert found.state.type == StateType.CRASHED
    assert found.state.message == f"Failed to submit flow run to infrastructure: NotConfigured: {NO_TOKEN}"
    assert f"left were not looked for: {NO_TOKEN}" in (done.stdout + done.stderr).replace("\n", " ")
