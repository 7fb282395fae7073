"""The work pools and their queues: where flow runs get their machine.

What a run needs is in its pool's job template. A site may change the defaults there (its image, its secrets): they are
kept. What the template is made of is ours, and is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from dailies.home import home
from deployments import modal_worker
from deployments.docker import pool as docker_pool

# The automation against zombies waits for three of these.
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


@dataclass(frozen=True)
class Pool:
    """``limit`` is how many of its runs may be going on at once; None leaves it to the workers."""

    type: str
    description: str
    template: Callable[[], dict[str, Any]]
    queue: str
    limit: int | None = None


POOLS = {
    "cpu": Pool(
        "process",
        "A process for each flow run, on the machine of its worker.",
        ProcessWorker.get_default_base_job_template,
        queue="cpu",
    ),
    "cpu-docker": Pool(
        "docker",
        "A container for each flow run, from the image of deployments/docker/Dockerfile.",
        lambda: docker_pool.template(home()),
        queue="cpu",
    ),
    "gpu": Pool(
        "modal",
        "A Modal sandbox with a GPU for each flow run.",
        modal_worker.base_job_template,
        queue="gpu",
        limit=2,  # each of them costs money by the second
    ),
}


def drift(client: SyncPrefectClient) -> list[str]:
    return [line for name, pool in POOLS.items() for line in pool_drift(client, name, pool)]


def pool_drift(client: SyncPrefectClient, name: str, pool: Pool) -> list[str]:
    found = read(client, name)
    if found is None:
        return [f"work pool {name} is missing"]
    if found.type != pool.type:
        return [f"work pool {name} is of type {found.type!r}, not {pool.type!r}: delete it, and it is made anew"]
    lines = []
    if shape(found.base_job_template) != shape(template(pool)):
        lines.append(f"work pool {name}: its job template is another one")
    if found.concurrency_limit != pool.limit:
        lines.append(f"work pool {name}: its limit is {found.concurrency_limit}, not {pool.limit}")
    if pool.queue not in {queue.name for queue in client.read_work_queues(work_pool_name=name)}:
        lines.append(f"work queue {name}/{pool.queue} is missing")
    return lines


def apply(client: SyncPrefectClient) -> None:
    for name, pool in POOLS.items():
        found = read(client, name)
        if found is None:
            client.create_work_pool(
                WorkPoolCreate(
                    name=name,
                    type=pool.type,
                    description=pool.description,
                    base_job_template=template(pool),
                    concurrency_limit=pool.limit,
                )
            )
        elif found.type == pool.type:
            kept = with_defaults_of(found.base_job_template, template(pool))
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=kept, concurrency_limit=pool.limit))
        if pool.queue not in {queue.name for queue in client.read_work_queues(work_pool_name=name)}:
            client.create_work_queue(pool.queue, work_pool_name=name)


def read(client: SyncPrefectClient, name: str) -> WorkPool | None:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def template(pool: Pool) -> dict[str, Any]:
    made = deepcopy(pool.template())
    env = made["variables"]["properties"]["env"]
    env["default"] = {**HEARTBEAT, **env.get("default", {})}
    return made


def shape(job_template: dict[str, Any]) -> dict[str, Any]:
    """The template without the defaults, which are the site's own."""
    bare = deepcopy(job_template)
    for variable in properties(bare).values():
        variable.pop("default", None)
    return bare


def with_defaults_of(found: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    merged = deepcopy(made)
    kept = properties(found)
    for name, variable in properties(merged).items():
        if "default" in kept.get(name, {}):
            variable["default"] = kept[name]["default"]
    return merged


def properties(job_template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = job_template.get("variables", {}).get("properties", {})
    return found
