"""Bring a Prefect server to what prefect.yaml says; with --check, only say how it differs.

`python -m deployments.bootstrap [--check] [--json]`. Safe to run again: what is there already is updated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import get_current_settings

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "prefect.yaml"
POOLS = {"cpu": "process"}
OURS = "dailies"


def wanted() -> dict[str, dict[str, Any]]:
    """The deployments of prefect.yaml by their full name, flow/deployment."""
    found = {}
    for entry in yaml.safe_load(FILE.read_text())["deployments"]:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        found[f"{flow.name}/{entry['name']}"] = entry
    return found


def present(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The deployments on the server that carry our tag."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[OURS]))
    found = client.read_deployments(deployment_filter=ours)
    return {f"{client.read_flow(one.flow_id).name}/{one.name}": one for one in found}


def drift(client: SyncPrefectClient) -> list[str]:
    """Every difference between server and file, in words."""
    here, there = wanted(), present(client)
    lines = [f"work pool {name} is missing" for name in POOLS if not pool_exists(client, name)]
    lines += [f"deployment {name} is missing" for name in here if name not in there]
    lines += [f"deployment {name} is on the server but not in prefect.yaml" for name in there if name not in here]
    for name in here.keys() & there.keys():
        lines += [f"deployment {name}: {what}" for what in differences(here[name], there[name])]
    return sorted(lines)


def differences(entry: dict[str, Any], found: DeploymentResponse) -> list[str]:
    crons = sorted(schedule["cron"] for schedule in entry.get("schedules", []))
    pairs = {
        "entrypoint": (entry["entrypoint"], found.entrypoint),
        "work pool": (entry["work_pool"]["name"], found.work_pool_name),
        "parameters": (entry.get("parameters", {}), found.parameters),
        "tags": (sorted(entry["tags"]), sorted(found.tags)),
        "schedules": (crons, sorted(getattr(one.schedule, "cron", "") for one in found.schedules)),
    }
    return [
        f"{what} is {is_!r}, prefect.yaml says {should!r}" for what, (should, is_) in pairs.items() if should != is_
    ]


def pool_exists(client: SyncPrefectClient, name: str) -> bool:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        return False
    return True


def apply(client: SyncPrefectClient) -> list[str]:
    """Create and update; returns what was different before."""
    changes = drift(client)
    for name, kind in POOLS.items():
        if not pool_exists(client, name):
            client.create_work_pool(WorkPoolCreate(name=name, type=kind))
    # `prefect deploy` never deletes a deployment that left the file, and leaves the schedules of one that lost them.
    here = wanted()
    for name, found in present(client).items():
        if name not in here:
            client.delete_deployment(found.id)
        elif not here[name].get("schedules"):
            for schedule in found.schedules:
                client.delete_deployment_schedule(found.id, schedule.id)
    deploy()
    return changes


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


@contextmanager
def unreachable_in_one_line() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        sys.exit(f"the Prefect server at {get_current_settings().api.url} does not answer: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.bootstrap", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something differs")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    options = parser.parse_args()
    if not get_current_settings().api.url:
        sys.exit("no Prefect server is configured: set PREFECT_API_URL, or use `dailies up`")
    with unreachable_in_one_line(), get_client(sync_client=True) as client:
        lines = drift(client) if options.check else apply(client)
    said = [f"{'drift' if options.check else 'changed'}: {line}" for line in lines] or ["nothing to change"]
    sys.stdout.write(json.dumps(lines) if options.json else "\n".join(said))
    sys.stdout.write("\n")
    return 1 if options.check and lines else 0


if __name__ == "__main__":
    sys.exit(main())
