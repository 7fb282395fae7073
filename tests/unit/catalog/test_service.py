"""The serving process around a publication: stopped once, started once, and never anybody else's."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import psutil
import pytest

from dailies.catalog.service import GENERATION, service
from dailies.errors import BadInput, NotConfigured, Transient

pytestmark = pytest.mark.unit

SERVER = (
    "import os, pathlib, time; pathlib.Path(os.environ['SEEN']).write_text(os.environ['DAILIES_GENERATION']);"
    "time.sleep(60)"
)


@pytest.fixture
def serving(tmp_path, monkeypatch, eventually_true):
    """A server that writes down what it was told to serve, and is ended with the test."""
    seen = tmp_path / "seen"
    monkeypatch.setenv("SEEN", str(seen))
    server = service(f'process:{sys.executable} -c "{SERVER}"', tmp_path)
    yield server, seen
    server.stop()


@pytest.fixture
def eventually_true():
    import time

    def wait(true, seconds=10.0):
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until
            time.sleep(0.02)

    return wait


def pid_of(folder: Path) -> int:
    return int(json.loads((folder / "service.json").read_bytes())["pid"])


def test_none_does_nothing(tmp_path):
    server = service("none", tmp_path)
    server.stop()
    server.start(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_is_told_its_generation_and_started_once(tmp_path, serving, eventually_true):
    server, seen = serving
    server.start(tmp_path / "gen-000001")
    eventually_true(lambda: seen.exists() and seen.read_text())
    assert seen.read_text() == str(tmp_path / "gen-000001")
    first = pid_of(tmp_path)
    server.start(tmp_path / "gen-000002")
    assert pid_of(tmp_path) == first
    server.stop()
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    server.stop()
    server.start(tmp_path / "gen-000002")
    eventually_true(lambda: seen.read_text() == str(tmp_path / "gen-000002"))
    assert pid_of(tmp_path) != first


def test_a_pid_that_is_somebody_elses_by_now_is_not_ended(tmp_path, serving):
    server, _ = serving
    (tmp_path / "service.json").write_text(json.dumps({"pid": os.getpid(), "born": 1.0}))
    server.stop()
    assert not (tmp_path / "service.json").exists()


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """A stand-in that writes down what it is asked; the exit status is in a file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "systemctl"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho nope >&2\nexit $(cat {tmp_path}/status)\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "status").write_text("0")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def test_a_unit_is_stopped_and_started(systemctl):
    server = service("systemd:browser.service", systemctl)
    server.stop()
    server.start(systemctl / "gen-000001")
    assert (systemctl / "asked").read_text() == "stop browser.service\nstart browser.service\n"


def test_a_unit_that_cannot_be_stopped_is_said(systemctl):
    (systemctl / "status").write_text("5")
    with pytest.raises(Transient, match=r"systemctl stop browser\.service failed: nope"):
        service("systemd:browser.service", systemctl).stop()


def test_without_systemd_the_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotConfigured, match="there is no systemctl here to stop x: use service=none"):
        service("systemd:x", tmp_path).stop()


def test_a_command_that_is_not_there_is_said(tmp_path):
    with pytest.raises(NotConfigured, match="cannot start /nowhere/server"):
        service("process:/nowhere/server --port 1", tmp_path).start(tmp_path)
    assert GENERATION not in os.environ


@pytest.mark.parametrize("how", ["", "systemd", "systemd:", "process:", "none:x", "sysv:x", "process: "])
def test_what_is_no_service_is_refused(tmp_path, how):
    with pytest.raises(BadInput):
        service(how, tmp_path)
