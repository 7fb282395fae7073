"""A benchmark that takes an hour is stopped long before its end: it leaves neither a process nor a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration import conftest as integration

pytestmark = pytest.mark.integration
eventually = integration.eventually

CATALOG, ALL = ["benchmarks.catalog"], ["benchmarks", "catalog"]


@pytest.mark.parametrize(
    ("command", "number", "to"),
    [
        pytest.param(CATALOG, signal.SIGINT, os.killpg, id="by Ctrl-C"),
        pytest.param(CATALOG, signal.SIGTERM, os.kill, id="by SIGTERM"),
        pytest.param(ALL, signal.SIGTERM, os.kill, id="by SIGTERM to whoever started it"),
    ],
)
def test_stopped_in_the_midst_it_leaves_nothing(tmp_path, eventually, command, number, to):
    place = tmp_path / "tmp"
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--quick", "--videos", "3000", "--out", str(tmp_path / "growth.png")],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Who is started in the background of a shell hears no Ctrl-C, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "made up" in line), "")
        assert said, process.stderr.read()
        family = eventually(lambda: at_work(process.pid))
        to(process.pid, number)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert list(place.iterdir()) == []
    assert not Path(tmp_path / "growth.png").exists()


def at_work(pid: int) -> list[psutil.Process]:
    """Its processes, once one of them has a stage to do."""
    found = psutil.Process(pid).children(recursive=True)
    return found if any("dailies.compute.child" in " ".join(each.cmdline()) for each in found) else []
