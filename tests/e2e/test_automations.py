"""What the server does by itself: it ends a run that died without a word, and tells of a scenario that failed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import UUID

import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed, Pending, Running

from dailies.scenarios.processes import free_port
from deployments import automations
from tests.e2e.conftest import Machine, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ZOMBIE = """
import time
from prefect import flow, tags

@flow
def doomed():
    open({marker!r}, "w").close()
    time.sleep(300)

with tags("{tag}", "{name}"):
    doomed()
"""


class Alerts(HTTPServer):
    """Takes what a notification block sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Alerts

    def do_POST(self) -> None:
        self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """The test says what came; nobody needs it on the terminal."""


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[tuple[Machine, str]]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    with machine.up(free_port()) as url:
        machine.env["PREFECT_API_URL"] = url
        yield machine, url


@pytest.fixture
def client(api) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api[1]}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def alerts() -> Iterator[Alerts]:
    server = Alerts()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def beating(url: str, run_id: UUID) -> bool:
    resource = {"id": [f"prefect.flow-run.{run_id}"]}
    asked = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": resource}}
    return bool(httpx.post(f"{url}/events/filter", json=asked).json()["total"])


def run_named(client: SyncPrefectClient, name: str):
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[name])))
    return found[0] if found else None


@pytest.mark.parametrize(("tag", "ends"), [("dailies", "CRASHED"), ("a-strangers", "RUNNING")])
def test_a_run_of_ours_that_died_without_a_word_becomes_crashed(api, client, tmp_path, tag, ends):
    machine, url = api
    found = automations.present(client)["dailies: zombie run"]
    quick = found.trigger.model_copy(update={"within": timedelta(seconds=10)})
    sooner = {**found.model_dump(exclude={"id", "owner_resource"}), "trigger": quick}
    client.update_automation(found.id, automations.AutomationCore.model_validate(sooner))
    marker, name = tmp_path / "begun", f"zombie-{tag}"
    program = ZOMBIE.format(marker=str(marker), tag=tag, name=name)
    process = subprocess.Popen([sys.executable, "-c", program], env=machine.env, start_new_session=True)
    try:
        wait_for(marker.exists, 60)
        wait_for(lambda: beating(url, run_named(client, name).id), 30)
    finally:
        process.kill()
        process.wait()
    assert run_named(client, name).state.type.value == "RUNNING", "nobody was there to end it"
    if ends == "CRASHED":
        wait_for(lambda: run_named(client, name).state.type.value == ends, 60)
        assert run_named(client, name).state.message == "No heartbeat for 90 seconds"
    else:
        with pytest.raises(AssertionError):
            wait_for(lambda: run_named(client, name).state.type.value != "RUNNING", 20)


def test_a_run_whose_worker_was_stopped_while_it_was_starting_becomes_crashed(api, client):
    found = automations.present(client)["dailies: run that never started"]
    quick = found.trigger.model_copy(update={"within": timedelta(seconds=10)})
    sooner = {**found.model_dump(exclude={"id", "owner_resource"}), "trigger": quick}
    client.update_automation(found.id, automations.AutomationCore.model_validate(sooner))
    stuck = client.create_flow_run(an_empty_flow(), tags=["dailies"])
    client.set_flow_run_state(stuck.id, Pending(name="Submitting"), force=True)
    lively = client.create_flow_run(an_empty_flow(), tags=["dailies"])
    client.set_flow_run_state(lively.id, Pending(), force=True)
    client.set_flow_run_state(lively.id, Running(), force=True)
    wait_for(lambda: client.read_flow_run(stuck.id).state.is_crashed(), 60)
    assert client.read_flow_run(lively.id).state.is_running()


def test_a_scenario_that_was_expected_to_pass_and_did_not_is_told(api, client, alerts):
    block = CustomWebhookNotificationBlock(
        name="alerts",
        url=f"http://127.0.0.1:{alerts.server_port}/",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
    )
    block.save("dailies-alerts")
    done = api[0].run(sys.executable, "-m", "deployments.bootstrap")
    assert "changed: automation 'dailies: failed scenario' is missing" in done.stdout

    def end(state, *tags: str) -> UUID:
        run = client.create_flow_run(scenario, tags=["dailies", *tags])
        client.set_flow_run_state(run.id, state, force=True)
        return run.id

    scenario = an_empty_flow()
    end(Completed(message="all is well"), "expected:success")
    end(Failed(message="somebody else's"), "expected:failure")
    end(Failed(name="Inconclusive", message="the fault did not fire"), "expected:success")
    end(Crashed(message="the worker died"), "expected:success")
    wait_for(lambda: len(alerts.got) >= 2, 60)
    assert sorted(alert["subject"] for alert in alerts.got) == ["sham ended Crashed", "sham ended Inconclusive"]
    assert any("the fault did not fire" in alert["body"] for alert in alerts.got)


def an_empty_flow():
    from prefect import flow

    @flow(name="sham")
    def sham() -> None:
        """Ends as it is told."""

    return sham
