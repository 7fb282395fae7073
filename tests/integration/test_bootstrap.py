"""The server is brought to what the files say, and every difference is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound

from blocks import RedisStream
from dailies.errors import NotConfigured
from deployments import automations, block_types, bootstrap, flow_deployments, pools
from services import up
from tasks.scenario import delete_pool

pytestmark = pytest.mark.integration

TOKEN = {"MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test"}
NIGHTLY = "lock-contention/nightly"
UNSTARTED = "dailies: run that never started"
ZOMBIE, ALERT = "dailies: zombie run", "dailies: failed scenario"


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    for name in TOKEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))


@pytest.fixture
def server(client, fast_api, monkeypatch, no_token):
    """A server as bootstrap leaves it, whatever the test before did to it."""
    monkeypatch.setenv("PREFECT_API_URL", fast_api)  # `prefect deploy` is a process of its own
    if bootstrap.drift(client):
        bootstrap.apply(client)
    return client


def deployment(client, name):
    return client.read_deployment_by_name(name)


def test_what_is_missing_is_made_and_the_second_time_there_is_nothing_to_do(server):
    assert bootstrap.drift(server) == []
    for name in pools.POOLS:
        server.delete_work_pool(name)
    for found in flow_deployments.present(server).values():
        server.delete_deployment(found.id)
    for found in automations.present(server).values():
        server.delete_automation(found.id)
    missing = bootstrap.drift(server)
    assert {line.removesuffix(" is missing") for line in missing} == {
        *(f"work pool {name}" for name in pools.POOLS),
        *(f"deployment {name}" for name in flow_deployments.wanted()),
        f"automation {ZOMBIE!r}",
        f"automation {UNSTARTED!r}",
    }
    assert bootstrap.apply(server) == missing
    assert bootstrap.drift(server) == []
    assert bootstrap.apply(server) == []


def test_every_pool_is_of_its_type_and_explains_every_variable_of_its_form(server):
    found = {name: server.read_work_pool(name) for name in pools.POOLS}
    assert {name: (pool.type, pool.concurrency_limit) for name, pool in found.items()} == {
        "cpu": ("process", None),
        "cpu-docker": ("docker", None),
        "gpu": ("modal", 2),
    }
    for name, pool in found.items():
        variables = pools.properties(pool.base_job_template)
        assert {variable for variable, field in variables.items() if not field.get("description")} == set(), name
        assert variables["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def without_a_command(template):
    template["variables"]["properties"].pop("command")
    template["job_configuration"].pop("command")
    return WorkPoolUpdate(base_job_template=template)


def template_without_a_variable(client):
    client.update_work_pool("cpu", without_a_command(client.read_work_pool("cpu").base_job_template))
    return "work pool cpu: its job template is another one"


def limit_raised(client):
    client.update_work_pool("gpu", WorkPoolUpdate(concurrency_limit=50))
    return "work pool gpu: its limit is 50, not 2"


def queue_deleted(client):
    client.delete_work_queue_by_id(client.read_work_queue_by_name("gpu", work_pool_name="gpu").id)
    return "work queue gpu/gpu is missing"


@pytest.mark.parametrize("change", [template_without_a_variable, limit_raised, queue_deleted])
def test_a_changed_pool_is_named_and_mended(server, change):
    line = change(server)
    assert pools.drift(server) == [line]
    pools.apply(server)
    assert pools.drift(server) == []


def test_a_site_keeps_its_own_defaults_in_a_pools_form(server):
    template = server.read_work_pool("cpu-docker").base_job_template
    template["variables"]["properties"]["image"]["default"] = "our/dailies:7"
    server.update_work_pool("cpu-docker", WorkPoolUpdate(base_job_template=template))
    assert pools.drift(server) == []
    server.update_work_pool("cpu-docker", without_a_command(template))
    pools.apply(server)
    assert pools.drift(server) == []
    kept = server.read_work_pool("cpu-docker").base_job_template
    assert kept["variables"]["properties"]["image"]["default"] == "our/dailies:7"


def test_changed_deployments_are_named_and_mended(server):
    nightly, smoke = deployment(server, NIGHTLY), deployment(server, "lock-contention/smoke")
    server.update_deployment(nightly.id, DeploymentUpdate(parameters={"mode": "quick"}, description="changed"))
    server.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=False)
    added = DeploymentScheduleCreate(schedule=CronSchedule(cron="5 * * * *"), active=True)
    server.create_deployment_schedules(smoke.id, [(added.schedule, added.active)])
    server.delete_deployment(deployment(server, "ingest-media/cpu").id)
    stranger = server.create_flow_from_name("stranger")
    server.create_deployment(stranger, "theirs", tags=["not-ours"])
    server.create_deployment(stranger, "left-behind", tags=["dailies"], entrypoint="flows.gone.gone")
    server.create_deployment(stranger, "of-the-site", tags=["dailies"], entrypoint="their/flows.py:one")
    server.update_deployment(
        deployment(server, "ingest-media/docker").id, DeploymentUpdate(job_variables={"image": "another"})
    )
    assert flow_deployments.drift(server) == [
        "deployment ingest-media/cpu is missing",
        "deployment ingest-media/docker: job variables is {'image': 'another'}, prefect.yaml says {}",
        "deployment lock-contention/nightly: description is 'changed', prefect.yaml says "
        "'Prove that a lease has one holder, whatever dies or freezes. Full size.'",
        "deployment lock-contention/nightly: parameters is {'mode': 'quick'}, prefect.yaml says {'mode': 'full'}",
        "deployment lock-contention/nightly: schedules is [('0 2 * * *', False)], prefect.yaml says "
        "[('0 2 * * *', True)]",
        "deployment lock-contention/smoke: schedules is [('5 * * * *', True)], prefect.yaml says []",
        "deployment stranger/left-behind is on the server but not in prefect.yaml, and goes",
    ]
    flow_deployments.apply(server)
    assert flow_deployments.drift(server) == []
    assert deployment(server, "stranger/theirs").tags == ["not-ours"]
    assert deployment(server, "stranger/of-the-site").tags == ["dailies"]
    with pytest.raises(ObjectNotFound):
        deployment(server, "stranger/left-behind")


def test_the_gpu_twin_is_scheduled_where_there_is_a_token_and_says_why_where_there_is_none(server, monkeypatch):
    twin = "lock-contention/gpu-nightly"
    assert [schedule.active for schedule in deployment(server, twin).schedules] == [False]
    assert [note for note in flow_deployments.notes() if twin in note] == [
        f"deployment {twin} has its schedule off: no Modal token is configured: set MODAL_TOKEN_ID and "
        "MODAL_TOKEN_SECRET, or run `modal token new`"
    ]
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    assert flow_deployments.notes() == []
    told = flow_deployments.drift(server)
    assert any(line.startswith(f"deployment {twin}: schedules") for line in told)
    assert all("/gpu-nightly: schedules" in line for line in told)
    flow_deployments.apply(server)
    assert [schedule.active for schedule in deployment(server, twin).schedules] == [True]


def test_every_scenario_deployment_has_its_gpu_twin():
    entries = flow_deployments.wanted()
    scenarios = {name for name, entry in entries.items() if any(tag.startswith("suite:") for tag in entry["tags"])}
    plain = {name for name in scenarios if "/gpu-" not in name}
    assert {name.replace("/", "/gpu-", 1) for name in plain} == scenarios - plain
    for name in plain:
        twin = entries[name.replace("/", "/gpu-", 1)]
        assert twin["work_pool"]["name"] == "gpu"
        asks_for_it = {"gpu": True} if name.startswith("orchestrator-smoke/") else {}
        assert twin["parameters"] == entries[name]["parameters"] | asks_for_it
        assert twin.get("schedules") == entries[name].get("schedules")


def automation_changed(client):
    found = automations.present(client)[ZOMBIE]
    changed = {**found.model_dump(exclude={"id", "owner_resource"}), "description": "changed"}
    client.update_automation(found.id, AutomationCore.model_validate(changed))
    return f"automation {ZOMBIE!r}: its description is another one"


def automation_left_behind(client):
    found = automations.present(client)[ZOMBIE]
    stray = AutomationCore(name="dailies: stray", trigger=found.trigger, actions=[DoNothing()])
    client.create_automation(stray)
    return "automation 'dailies: stray' is on the server but not in the file"


@pytest.mark.parametrize("change", [automation_changed, automation_left_behind])
def test_a_changed_automation_is_named_and_mended(server, change):
    line = change(server)
    assert automations.drift(server) == [line]
    automations.apply(server)
    assert automations.drift(server) == []


def test_an_automation_that_a_site_switched_off_stays_off(server):
    found = automations.present(server)[ZOMBIE]
    server.pause_automation(found.id)
    assert automations.drift(server) == []
    automation_changed(server)
    automations.apply(server)
    assert automations.present(server)[ZOMBIE].enabled is False


def test_a_strangers_automation_is_left_alone(server):
    found = automations.present(server)[ZOMBIE]
    theirs = AutomationCore(name="theirs", trigger=found.trigger, actions=[DoNothing()])
    kept = server.create_automation(theirs)
    assert automations.drift(server) == []
    automations.apply(server)
    assert server.read_automation(kept).name == "theirs"
    server.delete_automation(kept)


def test_the_alert_joins_when_there_is_a_block_to_send_it_through(server):
    assert ALERT not in automations.present(server)
    assert [note for note in automations.notes(server) if ALERT in note] == [
        f"automation {ALERT!r} is left out: save a notification block named 'dailies-alerts' first"
    ]
    block = CustomWebhookNotificationBlock(name="alerts", url="http://127.0.0.1:9/alert")
    saved = block.save("dailies-alerts")
    assert automations.drift(server) == [f"automation {ALERT!r} is missing"]
    automations.apply(server)
    assert automations.notes(server) == []
    assert automations.present(server)[ALERT].actions[0].block_document_id == saved
    server.delete_automation(automations.present(server)[ALERT].id)
    server.delete_block_document(saved)


def test_only_a_notification_block_is_taken_for_the_alert(server):
    saved = RedisStream(url="redis://127.0.0.1:9/0").save("dailies-alerts")
    try:
        assert ALERT not in automations.wanted(server)
        assert any(ALERT in note for note in automations.notes(server))
    finally:
        server.delete_block_document(saved)


def command(url: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "deployments.bootstrap"]
    return subprocess.run(
        words, env={**os.environ, "PREFECT_API_URL": url}, capture_output=True, text=True, timeout=120
    )


def test_what_could_not_be_mended_is_no_change_and_no_success(server, fast_api):
    server.delete_work_pool("cpu-docker")
    server.create_work_pool(WorkPoolCreate(name="cpu-docker", type="process"))
    try:
        done = command(fast_api)
        assert done.returncode == 1
        assert "drift: work pool cpu-docker is of type 'process', not 'docker': delete it" in done.stdout
    finally:
        server.delete_work_pool("cpu-docker")


def test_an_address_that_is_no_prefect_api_is_one_line(fast_api):
    done = command(fast_api.removesuffix("/api"))
    assert done.returncode == 1
    assert "Its address ends in /api" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scenarios_pool_takes_its_deployments_along(client):
    client.create_work_pool(WorkPoolCreate(name="scenario-test", type="process"))
    flow = client.create_flow_from_name("ingest-media")
    ours = client.create_deployment(flow, "scenario-test", work_pool_name="scenario-test", tags=["scenario-test"])
    other = client.create_deployment(flow, "another", tags=["another"])
    delete_pool(client, "scenario-test")
    with pytest.raises(ObjectNotFound):
        client.read_deployment(ours)
    assert client.read_deployment(other).name == "another"
    client.delete_deployment(other)


def test_a_block_of_other_fields_is_named(server, monkeypatch):
    kind = block_types.ours()[0]
    monkeypatch.setattr(kind, "_calculate_schema_checksum", classmethod(lambda cls: "sha256:another"))
    assert f"block type {kind.get_block_type_slug()} has other fields on the server" in block_types.drift(server)


def test_every_block_type_of_ours_explains_itself_in_its_form():
    for kind in block_types.ours():
        assert kind.__doc__, kind.__name__
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"


def test_what_came_to_differ_by_the_apply_is_said_too(client, monkeypatch, capsys):
    class Worse:
        """A part that ends differently wrong."""

        lines = ("a pool is missing",)

        def drift(self, _client) -> list[str]:
            return list(self.lines)

        def apply(self, _client) -> None:
            self.lines = ("the pool has another template",)

    monkeypatch.setattr(bootstrap, "PARTS", (Worse(),))
    monkeypatch.setattr(bootstrap, "notes", lambda _client: [])
    monkeypatch.setattr(sys, "argv", ["bootstrap"])
    assert bootstrap.main() == 1
    assert capsys.readouterr().out == "changed: a pool is missing\ndrift: the pool has another template\n"


def test_an_automation_does_not_differ_by_the_order_of_its_events():
    """As a set they have none, but their JSON does: it made one start of `dailies up` in eight give up."""
    trigger = automations.declared()[0]["trigger"]
    events = [f"event.{number}" for number in range(50)]
    here, there = (
        EventTrigger.model_validate({**trigger, "after": after, "expect": after}) for after in (events, events[::-1])
    )
    assert list(here.after) != list(there.after), "the orders have to differ for this to prove anything"
    assert automations.comparable(here) == automations.comparable(there)


def test_up_says_what_still_differs_after_all_was_applied(monkeypatch, tmp_path):
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "__init__.py").touch()
    says = "print('drift: a pool'); print('note: x'); raise SystemExit(1)"
    (tmp_path / "deployments" / "bootstrap.py").write_text(says)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.up.environment", lambda: {**os.environ, "PYTHONPATH": str(tmp_path)})
    with pytest.raises(NotConfigured, match=r"^the deployments could not be applied: drift: a pool$"):
        up.bootstrap()
