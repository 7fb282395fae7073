"""What can be known without running anything: entry points, hooks, steps, imports."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint

import flows
import tasks
from tasks._step import POINTS, REGISTRY, Step

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def every_module(package) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(module.name for module in found)]


def every_flow() -> list[Flow]:
    modules = [importlib.import_module(name) for name in every_module(flows)]
    return list(
        {id(each): each for module in modules for each in vars(module).values() if isinstance(each, Flow)}.values()
    )


def every_step() -> list[Step]:
    for name in every_module(tasks):
        importlib.import_module(name)
    return list(REGISTRY.values())


def wrong_parameters(flow: Flow, given: dict) -> list[str]:
    unknown = [name for name in given if name not in flow.parameters.properties]
    known = {name: value for name, value in given.items() if name not in unknown}
    try:
        if known:
            flow.validate_parameters(known)
    except ParameterTypeError as error:
        return [*unknown, str(error)]
    return unknown


def wrong_hooks(flow: Flow) -> list[str]:
    """The worker calls hooks by keyword: with other names they silently do not run."""
    names = ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")
    hooks = [hook for name in names for hook in getattr(flow, f"{name}_hooks") or []]
    return [
        hook.__name__ for hook in hooks if list(inspect.signature(hook).parameters) != ["flow", "flow_run", "state"]
    ]


def faults_of(step: Step) -> list[str]:
    source = inspect.getsource(Step._work if step.kind == "work" else Step._effect)
    wanted = {
        "a docstring": bool((step.function.__doc__ or "").strip()),
        "a timeout": step.timeout > 0 and (step.task.timeout_seconds or 0) >= step.timeout,
        "its crash points": step.points == tuple(f"{step.name}:{point}" for point in POINTS),
        "its crash points in its body": all(f'failpoint(f"{{self.name}}:{point}")' in source for point in POINTS),
        "retries on transient errors only": step.task.retries == 0 or step.task.retry_condition_fn is not None,
        "no cache of Prefect's": step.task.cache_policy.__class__.__name__ == "_None",
    }
    return [what for what, there in wanted.items() if not there]


@pytest.mark.parametrize("entry", DEPLOYMENTS, ids=lambda entry: f"{entry['entrypoint']}/{entry['name']}")
def test_every_entrypoint_of_prefect_yaml_loads_and_takes_its_parameters(entry):
    flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    assert wrong_parameters(flow, entry.get("parameters", {})) == []


@pytest.mark.expects_errors
def test_a_parameter_that_the_flow_does_not_take_is_noticed():
    flow = load_flow_from_entrypoint("flows.recover_jobs.recover_jobs", use_placeholder_flow=False)
    assert wrong_parameters(flow, {"slot": 2}) == ["slot"]
    assert wrong_parameters(flow, {"slots": "many"}) != []


def test_deployments_are_named_once_and_say_what_is_expected_of_them():
    names = [(entry["entrypoint"], entry["name"]) for entry in DEPLOYMENTS]
    assert len(names) == len(set(names))
    for entry in DEPLOYMENTS:
        assert "dailies" in entry["tags"]
        if ".scenarios." in entry["entrypoint"]:
            assert {"expected:success", "expected:failure"} & set(entry["tags"])


def test_every_state_hook_has_the_exact_signature():
    found = every_flow()
    assert any(flow.on_cancellation_hooks for flow in found)
    assert {flow.name: wrong_hooks(flow) for flow in found if wrong_hooks(flow)} == {}


def test_a_hook_with_other_names_is_noticed():
    def cancelled(flow, run, state):
        pass

    careless = Flow(lambda: None, name="careless", on_cancellation=[cancelled])
    assert wrong_hooks(careless) == ["cancelled"]


def test_every_step_has_its_crash_points_its_timeout_and_an_invariant():
    steps = every_step()
    assert {step.kind for step in steps} == {"work", "effect"}
    assert {step.name: faults_of(step) for step in steps if faults_of(step)} == {}


def test_a_careless_step_is_noticed():
    def undocumented(job):
        raise AssertionError("never called")

    try:
        assert faults_of(Step(undocumented, "work", 1, timeout=0, retries=0)) == ["a docstring", "a timeout"]
    finally:
        del REGISTRY["undocumented"]


NO_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was opened while importing: {args}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_importing_the_flows_needs_no_network_and_no_server():
    names = [name for package in (flows, tasks) for name in every_module(package)]
    done = subprocess.run([sys.executable, "-c", NO_NETWORK, *names], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_command_line_answers_at_once():
    """The best of three, so that a busy machine does not decide."""
    command = [Path(sys.executable).with_name("dailies"), "--help"]
    took = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        took.append(time.monotonic() - start)
    assert "scenario" in done.stdout
    assert min(took) < 1.0


def test_the_command_line_imports_no_prefect_to_say_what_it_can():
    code = "import sys, services.cli; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
