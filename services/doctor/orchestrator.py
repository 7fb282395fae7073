"""Prefect: which server, is it up, who works for it, and does it hold what prefect.yaml says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from packaging.version import Version

from dailies.errors import DailiesError
from services import server
from services.doctor.finding import Finding, Visit, last_line
from services.environment import environment


def look_for_server(visit: Visit) -> Iterator[Finding]:
    if url := server.configured():
        visit.url = url
        visit.answers = server.healthy(url)
        fix = "" if visit.answers else "start it, or unset PREFECT_API_URL to use one of our own"
        value = f"{url} (configured) {'answers' if visit.answers else 'does not answer'}"
        yield Finding("prefect", "server", value, visit.answers, fix)
    elif url := server.running():
        visit.url, visit.answers = url, True
        yield Finding("prefect", "server", f"{url} (our own) answers", True)
    else:
        yield Finding("prefect", "server", "not running, the next command starts one")


def prefect(visit: Visit) -> Iterator[Finding]:
    if not visit.answers:
        return
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateName,
        WorkerFilter,
        WorkerFilterStatus,
    )

    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    is_late = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Late"])))
    with talking_to(visit), get_client(sync_client=True) as client:
        yield server_version(client.api_version())
        pools = client.read_work_pools()
        for pool in pools:
            workers = client.read_workers_for_work_pool(pool.name, worker_filter=online)
            start = "dailies up" if pool.name == "cpu" else f"prefect worker start --pool {pool.name}"
            fix = "" if workers else f"`{start}` starts one"
            value = f"{len(workers)} workers online{', paused' if pool.is_paused else ''}"
            yield Finding("prefect", f"work pool {pool.name}", value, True if workers else None, fix)
        if not pools:
            yield Finding("prefect", "work pools", "none yet: `dailies up` creates them")
        late = client.count_flow_runs(flow_run_filter=is_late)
    fix = "start a worker for their pool (`dailies up`), or cancel them in the UI" if late else ""
    yield Finding("prefect", "late runs", str(late), late == 0, fix)


def server_version(there: str) -> Finding:
    """Prefect's own rule: a server may be newer than its clients, not older."""
    here = version("prefect")
    ok = Version(there) >= Version(here) and Version(there).major == Version(here).major
    fix = "" if ok else f"update the server to {here}, or install prefect=={there} here"
    return Finding("prefect", "version", f"server {there}, here {here}", ok, fix)


def drift(visit: Visit) -> Iterator[Finding]:
    if not visit.answers:
        yield Finding("drift", "prefect.yaml", "not compared: no server answers")
        return
    command = [sys.executable, "-m", "deployments.bootstrap", "--check", "--json"]
    left = max(visit.deadline - time.monotonic() - 0.5, 0.1)
    try:
        done = subprocess.run(
            command, env=environment(PREFECT_API_URL=visit.url), capture_output=True, text=True, timeout=left
        )
    except subprocess.TimeoutExpired:
        fix = "python -m deployments.bootstrap --check"
        yield Finding("drift", "prefect.yaml", f"not compared within {left:.0f} s", None, fix)
        return
    try:
        lines = list(map(str, json.loads(last_line(done.stdout))))
    except ValueError:
        raise DailiesError(f"the comparison failed: {last_line(done.stderr)}") from None
    yield from differences(lines)


def differences(lines: list[str]) -> Iterator[Finding]:
    if not lines:
        yield Finding("drift", "prefect.yaml", "the server is as the file says", True)
    elif all(line.endswith(" is missing") for line in lines) and any(line.startswith("work pool") for line in lines):
        yield Finding("drift", "prefect.yaml", "nothing of it is on this server yet: `dailies up` applies it")
    else:
        for line in lines:
            yield Finding("drift", "prefect.yaml", line, False, "python -m deployments.bootstrap")


@contextmanager
def talking_to(visit: Visit) -> Iterator[None]:
    """Prefect's settings in this thread: the server that was found, whatever was known when Prefect was imported."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
        temporary_settings,
    )

    found = {PREFECT_API_URL: visit.url or None, PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    with temporary_settings(found):
        yield
