"""One machine, everything on it, and a person in front of the Prefect UI."""

import json
import os
import shutil
import signal
import socket
import time

import httpx
import pytest

from dailies.ledger.records import JobState
from dailies.ledger.sqlite import SqliteLedger
from dailies.media.sample import make_clip
from dailies.scenarios.processes import free_port, port_in_use
from tests.e2e.conftest import DAILIES, PREFECT, Machine, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Without these a headless Chromium asks the outside world for updates.
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """`dailies up`, and one run of lock-contention/smoke on it."""
    machine, port = Machine(tmp_path_factory.mktemp("machine")), free_port()
    with machine.up(port) as api:
        machine.env["PREFECT_API_URL"] = api
        done = machine.run(PREFECT, "deployment", "run", "lock-contention/smoke", "--watch", timeout=180)
        yield machine, api, done
    assert not port_in_use(port), "Ctrl-C left the server"
    assert machine.processes() == [], "Ctrl-C left processes"


def latest_run(api: str, flow: str) -> dict:
    wanted = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}}}
    runs = httpx.post(f"{api}/flow_runs/filter", json={**wanted, "sort": "START_TIME_DESC"}).json()
    return runs[0]


def artifacts_of(api: str, run_id: str) -> dict[str, dict]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    return {one["key"]: one for one in httpx.post(f"{api}/artifacts/filter", json=wanted).json()}


def test_the_smoke_deployment_completes(smoke):
    _, api, done = smoke
    assert done.returncode == 0, done.stdout + done.stderr
    run = latest_run(api, "lock-contention")
    assert run["state"]["type"] == "COMPLETED"
    assert "checks held" in run["state"]["message"]
    table = json.loads(artifacts_of(api, run["id"])["lock-contention-checks"]["data"])
    assert {row["result"] for row in table} == {"passed"}


def test_the_nightly_is_scheduled(smoke):
    """Schedules that never fire are how a nightly suite dies unnoticed."""
    _, api, _ = smoke
    wanted = {
        "flows": {"name": {"any_": ["lock-contention"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    runs = httpx.post(f"{api}/flow_runs/filter", json=wanted).json()
    assert runs
    assert all(run["expected_start_time"][11:16] == "02:00" for run in runs)
    assert all(run["parameters"]["mode"] == "full" for run in runs)


def test_canceling_a_running_run_in_prefect_cancels_its_job_for_good(smoke):
    """Through the worker: it ends the run with the signal that a shut-down uses, too."""
    machine, api, _ = smoke
    key = "acme/client/videos/v1/clip.mp4"
    make_clip(machine.dailies / "media" / key, seconds=2)
    held = {"DAILIES_FAILPOINTS": "make_contact_sheet:before=sleep(60)", "DAILIES_FAILPOINTS_LOG": f"{machine.home}/f"}
    deployment = httpx.get(f"{api}/deployments/name/ingest-media/cpu").json()["id"]
    body = {"parameters": {"tenant": "acme", "media_key": key}, "job_variables": {"env": held}}
    run = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json=body).json()["id"]
    wait_for(lambda: (machine.home / "f").exists(), 60)
    httpx.post(f"{api}/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}, "force": False})
    wait_for(lambda: httpx.get(f"{api}/flow_runs/{run}").json()["state"]["type"] == "CANCELLED", 60)
    ledger = SqliteLedger(machine.dailies / "ledger.db")
    (job,) = [job for job in ledger.jobs.all() if job.params["media_key"] == key]
    time.sleep(7)  # longer than a new attempt would take to be queued
    assert (ledger.jobs.get(job.id).state, ledger.jobs.get(job.id).attempt) == (JobState.CANCELED, 1)
    assert ledger.generations.current("video:acme/v1") is None
    ledger.close()


def test_doctor_finds_a_machine_that_is_up_healthy(smoke):
    machine, _, _ = smoke
    done = machine.run(DAILIES, "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_person_finds_the_check_table_and_the_contact_sheet(smoke, tmp_path):
    from playwright.sync_api import sync_playwright

    _, api, _ = smoke
    ui, run = api.removesuffix("/api"), latest_run(api, "lock-contention")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        open_artifact(page, ui, run, "lock-contention-checks")
        page.get_by_role("cell", name="race: never two inside").first.wait_for()
        assert page.get_by_role("cell", name="FAILED").count() == 0
        open_artifact(page, ui, run, "contact-sheet")
        picture = page.locator("img[src^='data:image/png']").first
        picture.wait_for()
        assert picture.evaluate("picture => picture.naturalWidth") == 1280
        page.screenshot(path=tmp_path / "contact-sheet.png")
        browser.close()


def open_artifact(page, ui: str, run: dict, key: str) -> None:
    """From the run to its artifacts, to the one of that name, to its newest version: as a person clicks."""
    page.goto(f"{ui}/v2/runs/flow-run/{run['id']}?tab=Artifacts")
    page.get_by_role("heading", name=key, exact=True).click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()


def test_a_taken_port_is_somebody_elses_server_and_not_ours(machine):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = machine.run(DAILIES, "up", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "did not start on port" in done.stderr
    assert "Traceback" not in done.stderr
    assert machine.processes() == []


def test_a_server_that_dies_under_up_comes_back_on_its_port(machine):
    with machine.up(free_port()) as api:
        first = machine.server()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: machine.server() not in (None, first) and answers(api), 60)
    assert machine.processes() == []


def answers(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
