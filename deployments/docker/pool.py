"""The work pool cpu-docker: how its worker makes a container for each flow run.

The worker leaves the containers that ended, for their exit status and log. Whoever keeps it running clears them away:
`docker container prune --filter label=io.prefect.work-pool-name=cpu-docker`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect.client.schemas.actions import WorkPoolCreate
from prefect_docker.worker import DockerWorker

NAME = "cpu-docker"
IMAGE = "dailies"
# As in the Dockerfile.
CODE = "/app"
HOME = "/var/lib/dailies"
PREFECT_HOME = "/home/dailies/.prefect"
# What every deployment to this pool has to say as its `pull`: otherwise `prefect deploy` notes the folder that it was
# called in, which no container has.
PULL = [{"prefect.deployments.steps.set_working_directory": {"directory": CODE}}]


def work_pool(host_home: Path, image: str = IMAGE) -> WorkPoolCreate:
    """Containers share ``host_home``, the DAILIES_HOME of this machine, and run as the user who creates the pool."""
    return WorkPoolCreate(name=NAME, type=DockerWorker.type, base_job_template=template(host_home, image))


def template(host_home: Path, image: str = IMAGE) -> dict[str, Any]:
    """Prefect's own template with our defaults, so that a deployment or a run can still set each of them."""
    made: dict[str, Any] = DockerWorker.get_default_base_job_template()
    for name, value in job_variables(host_home, image).items():
        made["variables"]["properties"][name]["default"] = value
    return made


def job_variables(host_home: Path, image: str = IMAGE) -> dict[str, Any]:
    return {
        "image": image,
        # Built on this machine and in no registry: for a tag `latest` Prefect would ask one before every run.
        "image_pull_policy": "Never",
        # `dailies up` serves the API on 127.0.0.1 alone.
        "network_mode": "host",
        # A container that is removed as it ends takes its exit status along, and a kill looks like a success.
        "auto_remove": False,
        # One ledger for host and containers. SQLite's locks and shared memory hold between them, for it is one kernel
        # and one file system; a network share, or another machine, needs a site with Supabase and S3 instead.
        "volumes": [f"{host_home}:{HOME}"],
        # The worker hands its own settings on, among them a PREFECT_HOME that exists on the host alone.
        "env": {"DAILIES_HOME": HOME, "PREFECT_HOME": PREFECT_HOME},
        "container_create_kwargs": {
            # What a killed flow leaves behind becomes a child of process 1, and Prefect would never reap it.
            "init": True,
            # Whoever owns the shared folder: with the image's own user, each side could not write the other's files.
            "user": f"{os.getuid()}:{os.getgid()}",
        },
    }
