"""Doctor beside a real Prefect server: what it holds, who works for it, and how it differs from prefect.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import State, StateType

from services import server
from services.doctor import Finding, examine, run
from services.environment import environment

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own, that no environment variable names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DAILIES_", "PREFECT_"))]:
            patch.delenv(name)
        patch.setenv("DAILIES_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("DAILIES_SERVER_IDLE_S", "120")
        patch.setenv("PREFECT_API_URL", "")
        patch.setenv("DO_NOT_TRACK", "1")
        address = server.start()
        try:
            yield address
        finally:
            assert server.stop()


@pytest.fixture
def client(url: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        yield client


def bootstrap(url: str) -> None:
    command = [sys.executable, "-m", "deployments.bootstrap"]
    subprocess.run(command, env=environment(PREFECT_API_URL=url), check=True, capture_output=True)


def of(area: str, findings: list[Finding]) -> dict[str, Finding]:
    return {each.name: each for each in findings if each.area == area}


def eventually(look: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_a_fresh_server_is_well_and_empty(url: str) -> None:
    findings = examine("local")
    assert [each for each in findings if each.ok is False] == []
    about = of("prefect", findings)
    assert about["server"].value == f"{url} (our own) answers"
    assert about["version"].ok is True
    assert about["work pools"].value == "none yet: `dailies up` creates them"
    assert about["late runs"].value == "0"
    assert of("drift", findings)["prefect.yaml"].ok is None
    assert of("events", findings)["site local"].ok is True


def test_asking_twice_leaves_one_event(url: str) -> None:
    asked = {"filter": {"event": {"name": ["dailies.doctor.asked"]}}}

    def total() -> int:
        return int(httpx.post(f"{url}/events/filter", json=asked).json()["total"])

    examine("local")
    examine("local")
    assert eventually(lambda: total() > 0)
    assert total() == 1


def test_drift_workers_and_late_runs(
    url: str, client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bootstrap(url)
    findings = examine("local")
    assert of("drift", findings)["prefect.yaml"].ok is True
    pool = of("prefect", findings)["work pool cpu"]
    assert (pool.value, pool.ok) == ("0 workers online", None)

    deployment = client.read_deployment_by_name("lock-contention/nightly")
    late = client.create_flow_run_from_deployment(deployment.id)
    client.set_flow_run_state(late.id, State(type=StateType.SCHEDULED, name="Late"), force=True)
    httpx.post(f"{url}/work_pools/cpu/workers/heartbeat", json={"name": "one"}).raise_for_status()
    client.delete_deployment(client.read_deployment_by_name("lock-contention/smoke").id)
    capsys.readouterr()
    assert run("local", as_json=True) == 1
    said = {(each["area"], each["name"]): each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert said["prefect", "work pool cpu"]["value"] == "1 workers online"
    assert (said["prefect", "late runs"]["value"], said["prefect", "late runs"]["ok"]) == ("1", False)
    assert said["drift", "prefect.yaml"]["value"] == "deployment lock-contention/smoke is missing"
    assert said["drift", "prefect.yaml"]["ok"] is False


def test_a_site_that_is_not_saved_there_is_a_finding(url: str) -> None:
    found = of("ledger", examine("staging"))["examination"]
    assert found.ok is False
    assert "staging" in found.value
