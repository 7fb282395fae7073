"""A scenario's GPU twin is skipped with its reason where nobody can pay for it, and left alone where somebody can."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Completed, Crashed, Failed

from dailies.errors import BadInput
from dailies.scenarios.verdict import Verdict
from flows.scenarios.lock_contention import lock_contention
from services import gpu_twin
from tasks.supervision import sweep

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

TWIN = ["dailies", "infra:gpu", "expected:success", "suite:smoke"]
WHY = "no Modal token is configured: set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or run `modal token new`"


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))


@pytest.fixture
def pool(client):
    name = f"gpu-{uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=name, type="modal"))
    yield name
    client.delete_work_pool(name)


@pytest.fixture
def due(client, pool):
    """A run of a deployment with these tags, which waits for a worker."""

    made: list[UUID] = []

    def make(*tags: str) -> UUID:
        flow_id = client.create_flow_from_name(lock_contention.name)
        deployment = client.create_deployment(flow_id, f"twin-{uuid4().hex[:8]}", work_pool_name=pool, tags=list(tags))
        made.append(client.create_flow_run_from_deployment(deployment).id)
        return made[-1]

    yield make
    for run in made:
        client.delete_flow_run(run)


def state_of(client, run: UUID):
    return client.read_flow_run(run).state


def test_a_twin_that_is_due_is_skipped_and_says_why(site, client, due):
    run = due(*TWIN)
    assert sweep(site).skipped == 1
    state = state_of(client, run)
    assert (state.type.value, state.name, state.message) == ("COMPLETED", "Skipped", WHY)
    assert sweep(site).skipped == 0


@pytest.mark.parametrize("without", ["dailies", "infra:gpu", "expected:success"])
def test_nobody_elses_run_is_touched(site, client, due, without):
    run = due(*(tag for tag in TWIN if tag != without))
    assert sweep(site).skipped == 0
    assert state_of(client, run).is_scheduled()


def test_where_there_is_a_token_the_twin_waits_for_its_worker(site, client, due, monkeypatch):
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-test")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-test")
    run = due(*TWIN)
    assert sweep(site).skipped == 0
    assert state_of(client, run).is_scheduled()


def test_where_a_worker_elsewhere_is_online_the_twin_is_left_to_it(site, client, pool, due):
    client.request("POST", "/work_pools/{name}/workers/heartbeat", path_params={"name": pool}, json={"name": "far"})
    run = due(*TWIN)
    assert sweep(site).skipped == 0
    assert state_of(client, run).is_scheduled()


def test_the_command_skips_too_and_leaves_the_reason_in_a_journal(home, tmp_path):
    said: list[str] = []
    assert gpu_twin.run("lock-contention", "quick", tmp_path / "report.json", said.append) == 4
    assert said == [f"lock-contention-gpu: skipped: {WHY}"]
    journal = json.loads((tmp_path / "report.json").read_text())
    assert (journal["scenario"], journal["status"], journal["skipped"]) == ("lock-contention-gpu", "skipped", WHY)
    assert json.loads((home / "runs" / "last" / "lock-contention-gpu.json").read_text()) == journal


@pytest.mark.parametrize(("name", "mode"), [("nonsense", "quick"), ("lock-contention", "slow")])
def test_a_wrong_word_is_told_before_anything_is_skipped(name, mode):
    with pytest.raises(BadInput, match=f"{name if name == 'nonsense' else mode}.*choose from"):
        gpu_twin.run(name, mode, None, lambda line: None)


@pytest.mark.parametrize("words", [["-p", "site=elsewhere"], ["--seed", "7"]])
def test_what_the_twin_would_not_hear_is_refused(words):
    command = [sys.executable, "-m", "services.cli", "scenario", "lock-contention", "--gpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "leave out -p and --seed" in done.stderr


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (Completed(), Verdict.PASSED),
        (Completed(name="Skipped"), Verdict.SKIPPED),
        (Failed(name="Violated"), Verdict.VIOLATED),
        (Failed(name="Inconclusive"), Verdict.INCONCLUSIVE),
        (Crashed(), Verdict.ERROR),
    ],
)
def test_the_state_of_the_run_is_its_verdict(state, verdict):
    assert gpu_twin.verdict_of(state) is verdict
