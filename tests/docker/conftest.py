"""One engine and one image for all container tests, and a machine with its Prefect server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from dailies.ledger.sqlite import SqliteLedger
from dailies.scenarios.processes import Child, free_port
from dailies.store.local import LocalFolder
from deployments.docker import pool
from tests.docker.engine import FIGURES, Engine, NoEngine
from tests.e2e.conftest import PREFECT, Machine, wait_for

FLOWS = {
    "ingest-media": "flows.ingest_media.ingest_media",
    "lock-contention": "flows.scenarios.lock_contention.lock_contention",
}


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    try:
        made = Engine()
    except NoEngine as why:
        pytest.skip(str(why))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Engine:
    """The engine with our image in it."""
    try:
        engine.make_image()
    except NoEngine as why:
        pytest.skip(str(why))
    return engine


@dataclass
class Site:
    """A host with server, supervisor and a worker of each pool, whose ledger and store the containers share."""

    machine: Machine
    engine: Engine
    client: SyncPrefectClient  # asks again when a busy server answers 503

    @property
    def home(self) -> Path:
        return self.machine.dailies

    @property
    def store(self) -> LocalFolder:
        return LocalFolder(self.home / "media")

    @property
    def ledger(self) -> SqliteLedger:
        return SqliteLedger(self.home / "ledger.db")

    def start(self, deployment: str, parameters: dict[str, Any], **job_variables: Any) -> UUID:
        found = self.client.read_deployment_by_name(deployment).id
        made = self.client.create_flow_run_from_deployment(found, parameters=parameters, job_variables=job_variables)
        return made.id

    def state(self, run: UUID) -> State[Any]:
        state = self.client.read_flow_run(run).state
        assert state is not None
        return state

    def ended(self, run: UUID, seconds: float = 90) -> State[Any]:
        """The state in which Prefect shows that the run ended."""
        wait_for(lambda: self.state(run).is_final(), seconds)
        return self.state(run)

    def cancel(self, run: UUID) -> None:
        done = self.machine.run(PREFECT, "flow-run", "cancel", str(run))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(image: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    machine, start = Machine(tmp_path_factory.mktemp("machine")), time.monotonic()
    machine.env["PREFECT_WORKER_QUERY_SECONDS"] = "1"
    with machine.up(free_port()) as api:
        machine.env["PREFECT_API_URL"] = api
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            deploy(client, machine.dailies)
            worker = start_worker(machine, image)
            FIGURES["server, supervisor and workers"] = f"{time.monotonic() - start:.1f} s"
            try:
                yield Site(machine, image, client)
            finally:
                worker.terminate(grace=20)
    assert machine.processes() == []


def deploy(client: SyncPrefectClient, home: Path) -> None:
    """Under a name of our own, beside what prefect.yaml deploys."""
    client.create_work_pool(pool.work_pool(home), overwrite=True)
    for flow, entrypoint in FLOWS.items():
        client.create_deployment(
            flow_id=client.create_flow_from_name(flow),
            name="in-container",
            entrypoint=entrypoint,
            work_pool_name=pool.NAME,
            pull_steps=pool.PULL,
        )


def start_worker(machine: Machine, engine: Engine) -> Child:
    log = machine.home / "docker-worker.log"
    command: list[str | Path] = [PREFECT, "worker", "start", "--pool", pool.NAME, "--name", "docker"]
    worker = engine.nursery.popen(command, env={**machine.env, **engine.env}, log=log)
    wait_for(lambda: "started" in log.read_text() or not worker.alive, 60)
    assert worker.alive, log.read_text()
    return worker


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("containers", sep="-")
        for what, figure in FIGURES.items():
            terminalreporter.line(f"{what}: {figure}")
