"""What is in the image, and what is not."""

import json
from pathlib import Path

import pytest
import yaml

from deployments.docker import pool
from tests.docker.engine import ROOT, Engine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

INSTALLED = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
STRAYS = ("-name", ".env", "-o", "-name", ".secret", "-o", "-name", "*.whl", "-o", "-name", "Dockerfile")
WRITABLE = "import os; print(*(os.access(os.environ[name], os.W_OK) for name in ('HOME', 'DAILIES_HOME')), os.getuid())"
LOAD = (
    "from prefect.flows import load_flow_from_entrypoint as load; print(load('flows.ingest_media.ingest_media').name)"
)


def test_it_holds_the_code_and_nothing_else_of_the_checkout(image: Engine):
    found = image.run("find", "/app", "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\n").split()
    assert sorted(found) == [
        "blocks", "dailies", "deployments", "flows", "prefect.toml", "prefect.yaml", "pyproject.toml", "services",
        "tasks",
    ]  # fmt: skip
    assert image.run("find", "/app", "/opt", "/home", "/var/lib/dailies", *STRAYS, user="0") == ""


def test_every_package_in_it_is_the_pinned_one(image: Engine):
    installed: dict[str, str] = json.loads(image.run("python", "-c", INSTALLED))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line and line[0] != "#")
    # Ourselves, and what only Pythons before 3.11.3 want, for which a user of the default base needs no pin.
    own = {"dailies", "async-timeout"}
    names = {name.lower().replace("_", "-").replace(".", "-"): version for name, version in installed.items()}
    pinned = {name.replace(".", "-"): version for name, version in pinned.items()}
    assert {name: version for name, version in names.items() if pinned.get(name) != version}.keys() <= own
    assert {"prefect", "prefect-docker", "av", "supabase", "modal"} <= names.keys()


def test_nothing_to_build_or_install_with_is_left_in_it(image: Engine):
    found = image.run("sh", "-c", "ls -d /build /opt/dailies/bin/pip; command -v gcc cc make git; true")
    assert found == ""


@pytest.mark.parametrize("user", ["", "12345:12345"])
def test_any_user_may_run_it_and_by_default_it_is_not_root(image: Engine, user: str):
    said = image.run("python", "-c", WRITABLE, user=user).split()
    assert said == ["True", "True", user.partition(":")[0] or "10001"]
    assert "scenario" in image.run("dailies", "--help", user=user)


def test_flows_are_found_by_their_entrypoints_from_any_folder(image: Engine):
    assert image.run("python", "-c", LOAD, options=("--workdir", "/tmp")).split() == ["ingest-media"]


def test_the_pool_names_the_folders_of_the_image(image: Engine):
    assert image.run("pwd").strip() == pool.CODE
    told = pool.job_variables(Path("/somewhere"))["env"]
    own = dict(line.split("=", 1) for line in image.run("env").splitlines())
    assert told == {name: own[name] for name in ("DAILIES_HOME", "PREFECT_HOME")}


def test_what_is_deployed_to_the_pool_runs_from_the_code_of_the_image():
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    contained = {entry["name"]: entry.get("pull") for entry in entries if entry["work_pool"]["name"] == pool.NAME}
    assert contained
    assert {name: pull for name, pull in contained.items() if pull != pool.PULL} == {}
