"""The deployments of prefect.yaml.

A deployment on the pool ``gpu`` keeps its schedule only where a Modal token is configured: without one, every run of it
would wait in vain.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow, load_flow_from_entrypoint

from dailies.compute.modal_token import token_is_missing

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "prefect.yaml"
OURS = "dailies"
PAID_POOL = "gpu"


def wanted() -> dict[str, dict[str, Any]]:
    """The deployments of prefect.yaml by their full name, flow/deployment."""
    found = {}
    for entry in yaml.safe_load(FILE.read_text())["deployments"]:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        found[f"{flow.name}/{entry['name']}"] = entry
    return found


def present(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The deployments on the server that carry our tag and run a flow of ours; what a site adds is its own."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[OURS]))
    found = [one for one in client.read_deployments(deployment_filter=tagged) if is_ours(one)]
    return {f"{client.read_flow(one.flow_id).name}/{one.name}": one for one in found}


def is_ours(found: DeploymentResponse) -> bool:
    return (found.entrypoint or "").startswith("flows.")


def drift(client: SyncPrefectClient) -> list[str]:
    here, there = wanted(), present(client)
    lines = [f"deployment {name} is missing" for name in here if name not in there]
    lines += [
        f"deployment {name} is on the server but not in prefect.yaml, and goes" for name in there if name not in here
    ]
    for name in here.keys() & there.keys():
        lines += [f"deployment {name}: {what}" for what in differences(here[name], there[name])]
    return sorted(lines)


def differences(entry: dict[str, Any], found: DeploymentResponse) -> Iterator[str]:
    limit, options = found.global_concurrency_limit, found.concurrency_options
    pool = entry["work_pool"]
    pairs: dict[str, tuple[Any, Any]] = {
        "entrypoint": (entry["entrypoint"], found.entrypoint),
        "description": (entry["description"], found.description),
        "work pool": (pool["name"], found.work_pool_name),
        "work queue": (pool["work_queue_name"], found.work_queue_name),
        "job variables": (pool.get("job_variables", {}), found.job_variables),
        "parameters": (entry.get("parameters", {}), found.parameters),
        "tags": (sorted(entry["tags"]), sorted(found.tags)),
        "limit": (
            entry.get("concurrency_limit", {}).get("limit"),
            limit.limit if limit else None,
        ),
        "collision strategy": (
            entry.get("concurrency_limit", {}).get("collision_strategy"),
            options.collision_strategy.value if options else None,
        ),
        "schedules": (
            sorted((schedule["cron"], is_on(entry)) for schedule in entry.get("schedules", [])),
            sorted((getattr(one.schedule, "cron", ""), one.active) for one in found.schedules),
        ),
    }
    if "pull" in entry:  # else it is the folder of whoever deployed last
        pairs["pull steps"] = (entry["pull"], found.pull_steps or [])
    for what, (should, is_) in pairs.items():
        if should != is_:
            yield f"{what} is {is_!r}, prefect.yaml says {should!r}"


def is_on(entry: dict[str, Any]) -> bool:
    return entry["work_pool"]["name"] != PAID_POOL or not token_is_missing()


def notes() -> list[str]:
    """What is left out on purpose, and why."""
    off = [name for name, entry in wanted().items() if entry.get("schedules") and not is_on(entry)]
    return [f"deployment {name} has its schedule off: {token_is_missing()}" for name in off]


def apply(client: SyncPrefectClient) -> None:
    # `prefect deploy` never deletes a deployment that left the file, and leaves the schedules of one that lost them.
    here = wanted()
    for name, found in present(client).items():
        if name not in here:
            client.delete_deployment(found.id)
        elif not here[name].get("schedules"):
            for schedule in found.schedules:
                client.delete_deployment_schedule(found.id, schedule.id)
    deploy()
    for name, found in present(client).items():
        for schedule in found.schedules:
            if schedule.active != is_on(here[name]):
                client.update_deployment_schedule(found.id, schedule.id, active=is_on(here[name]))


def deploy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"prefect deploy failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
