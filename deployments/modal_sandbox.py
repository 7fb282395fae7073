"""What a sandbox is given: its settings, its image, and of the worker's Prefect settings what a run needs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseJobConfiguration, BaseVariables
from pydantic import BaseModel, Field

from dailies.errors import NotConfigured

if TYPE_CHECKING:
    from modal import Image

ROOT = Path(__file__).resolve().parent.parent
IN_IMAGE = "/opt/dailies"
PACKAGES = ("dailies", "tasks", "flows", "blocks", "services", "deployments")
RUN_TAG = "dailies.flow-run"
POOL_TAG = "dailies.work-pool"
TO_SANDBOX = re.compile(r"PREFECT_(API|CLIENT|CLOUD|DEBUG|FLOWS|LOGGING|RESULTS|RUNNER|TASKS|TELEMETRY)_")
OF_THIS_MACHINE = re.compile(r"_(PATH|FILE|HOME)$|DATABASE")
LONGEST_S = 86400


class SandboxSettings(BaseModel):
    """What a pool, a deployment or a single run may say about its sandbox."""

    image: str = Field(
        default="",
        description="Registry image with Dailies in it, best by digest. Left empty, Modal gets the project as this "
        "worker has it, so that worker and run are never of different versions, and builds only its dependencies.",
    )
    gpu: str | None = Field(
        default=None,
        description="GPU to attach, such as T4, L4 or A100-80GB, with a count as in H100:2. Empty for none.",
    )
    cpu: float = Field(default=1.0, gt=0, description="CPU cores to reserve; fractions are allowed.")
    memory: int = Field(default=2048, ge=512, description="Memory to reserve, in MiB. Prefect alone needs about 400.")
    timeout: int = Field(
        default=3600,
        ge=60,
        le=LONGEST_S,
        description="Seconds after which Modal ends the sandbox whatever happens: the most that a run can cost. "
        "At most 86400; Modal's own default of 300 would end most runs half way.",
    )
    app: str = Field(default="dailies", description="Modal app that the sandboxes belong to; created when missing.")
    environment: str | None = Field(
        default=None,
        title="Modal Environment",
        description="Modal environment of app, secrets and volumes. Empty for the default of the worker's token.",
    )
    secrets: list[str] = Field(
        default_factory=list,
        description="Names of Modal secrets whose values the run gets as environment variables.",
    )
    volumes: dict[str, str] = Field(
        default_factory=dict,
        description="Modal volumes by the path where they are mounted, such as /models: whisper-models. "
        "Missing ones are created.",
    )
    region: str | None = Field(
        default=None,
        description="Where to run, such as eu or us-east. Naming one costs more and waits longer. Empty for anywhere.",
    )


class ModalVariables(SandboxSettings, BaseVariables):
    pass


class ModalJobConfiguration(SandboxSettings, BaseJobConfiguration):
    @classmethod
    def _base_environment(cls) -> dict[str, str]:
        settings = super()._base_environment()
        return {name: value for name, value in settings.items() if means_the_same_there(name)}

    def tags(self, flow_run: FlowRun, pool: str) -> dict[str, str]:
        """The user's labels as far as Modal takes them; a flow run's own id and pool cannot be overridden."""
        own = {name: value for name, value in self.labels.items() if not name.startswith("prefect.io/")}
        found = {tag(name): tag(value) for name, value in own.items()}
        return {**found, "dailies.run-name": tag(flow_run.name), RUN_TAG: str(flow_run.id), POOL_TAG: tag(pool)}


def project_image(gpu: bool) -> Image:
    """This project as it is here, as if checked out there; only what it depends on is built, when that changes.

    `pip install` would leave behind the files that are no code: migrations, templates, prefect.yaml.
    """
    from modal import Image

    if not (ROOT / "pyproject.toml").exists():
        raise NotConfigured("this worker does not run from the project's folder: set the job variable `image`")
    pins = f"{IN_IMAGE}/constraints.txt"
    image = Image.debian_slim(python_version=f"{sys.version_info.major}.{sys.version_info.minor}")
    image = image.add_local_file(ROOT / "constraints.txt", pins, copy=True).pip_install_from_pyproject(
        str(ROOT / "pyproject.toml"), optional_dependencies=["gpu"] if gpu else [], extra_options=f"--constraint {pins}"
    )
    image = image.env({"PYTHONPATH": IN_IMAGE, "DO_NOT_TRACK": "1"}).workdir(IN_IMAGE)
    for name in ("pyproject.toml", "prefect.yaml", "prefect.toml"):
        image = image.add_local_file(ROOT / name, f"{IN_IMAGE}/{name}")
    for name in PACKAGES:
        image = image.add_local_dir(ROOT / name, f"{IN_IMAGE}/{name}", ignore=["**/__pycache__", "**/.*"])
    return image


def means_the_same_there(setting: str) -> bool:
    return bool(TO_SANDBOX.match(setting)) and not OF_THIS_MACHINE.search(setting)


def tag(text: str) -> str:
    """Modal's tags are 1 to 63 letters, digits, dashes, dots and underscores."""
    return re.sub(r"[^a-zA-Z0-9._-]", "-", text)[:63] or "-"
