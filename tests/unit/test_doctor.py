"""Doctor says what is wrong, in findings: it never raises, never hangs and never shows a secret."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dailies.canonical import canonical_json
from dailies.errors import BadInput
from dailies.ledger.records import JobRequest
from dailies.ledger.sqlite import SqliteLedger
from dailies.scenarios.journal import Journal, expect
from dailies.scenarios.verdict import conclude
from services.doctor import Finding, examine, render, run, to_json
from services.doctor.configuration import HIDDEN, configuration, hide_secrets
from services.doctor.finding import Examination, Visit
from services.doctor.machine import codec_finding, existing, folder, room
from services.doctor.orchestrator import differences, server_version
from services.doctor.site import failures, jobs, ledger, scenarios, store

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no Prefect server."""
    for name in [name for name in os.environ if name.startswith(("DAILIES_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DAILIES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    return tmp_path / "home"


@pytest.fixture
def visit() -> Visit:
    return Visit("local", time.monotonic() + 9)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """It takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


def one(findings: list[Finding], area: str, name: str = "") -> Finding:
    (found,) = [each for each in findings if each.area == area and (not name or each.name == name)]
    return found


def bad(findings: list[Finding]) -> list[str]:
    return [f"{each.area} {each.name}" for each in findings if each.ok is False]


def shown(findings: list[Finding]) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(render(findings))
    return console.export_text()


def test_importing_it_does_not_import_prefect() -> None:
    code = "import sys, services.doctor; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_sound_machine_without_a_server_is_well(house: Path) -> None:
    findings = examine("local")
    assert bad(findings) == []
    assert {each.area for each in findings} >= {
        "versions", "paths", "store", "ledger", "events", "prefect", "drift", "jobs", "failures", "scenarios",
        "media", "gpu", "configuration",
    }  # fmt: skip
    assert one(findings, "prefect").value == "not running, the next command starts one"
    assert one(findings, "store").ok is True
    assert one(findings, "ledger").ok is True
    assert one(findings, "configuration", "DAILIES_HOME").value == str(house)


def test_the_exit_code_and_the_json_agree(capsys: pytest.CaptureFixture[str], house: Path) -> None:
    assert run("local", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (house / "ledger.db").write_bytes(b"not a database, whatever its name says" * 200)
    assert run("local", as_json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert any("restore it from a copy" in each["value"] for each in said["findings"] if each["area"] == "ledger")


def test_a_home_that_cannot_be_created_is_a_finding_with_its_fix(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house.write_text("a file in the way")
    monkeypatch.setenv("DAILIES_HOME", str(house / "below"))
    assert run("local", as_json=False) == 1
    assert "Traceback" not in capsys.readouterr().out
    findings = examine("local")
    found = one(findings, "paths", "DAILIES_HOME")
    assert found.ok is False
    assert "cannot be created" in found.value
    assert f"{house} is a file" in found.fix
    # What has nothing to do with it is examined all the same.
    assert one(findings, "media", "h264").ok is True
    assert {"store examination", "ledger examination"} <= set(bad(findings))


def test_a_folder_of_somebody_else_is_named_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK and Path(path) == tmp_path)
    (found,) = folder("media", tmp_path / "media", "DAILIES_HOME")
    assert found.ok is False
    assert found.fix == f"make {tmp_path} writable for this user, or set DAILIES_HOME to another folder"
    (found,) = folder("media", tmp_path, "DAILIES_HOME")
    assert found.value == f"{tmp_path} is not writable"


def test_what_exists_of_a_path(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path) == tmp_path


@pytest.mark.parametrize(("free", "ok"), [(10.0, True), (9.9, None), (1.0, None), (0.9, False)])
def test_room_for_media(free: float, ok: bool | None) -> None:
    assert room(free, "DAILIES_HOME")[0] is ok
    assert bool(room(free, "DAILIES_HOME")[1]) is (ok is not True)


def test_the_store_is_left_as_it_was(house: Path, visit: Visit) -> None:
    (house / "media").mkdir(parents=True)
    (house / "media" / "film.mp4").write_bytes(b"film")
    (found,) = store(visit)
    assert found.ok is True
    assert [path.name for path in (house / "media").rglob("*")] == ["film.mp4"]


def test_each_broken_rule_of_the_ledger_is_named(house: Path, visit: Visit) -> None:
    past = SqliteLedger(house / "ledger.db", clock=lambda: time.time() - 100)
    past.leases.acquire("video:a/b", "a dead worker", 1)
    (found,) = ledger(visit)
    assert (found.name, found.ok, found.value) == ("expired lease still held", False, "video:a/b")
    assert "supervisor" in found.fix


def test_a_lease_that_has_just_expired_is_left_to_the_sweep(house: Path, visit: Visit) -> None:
    past = SqliteLedger(house / "ledger.db", clock=lambda: time.time() - 5)
    past.leases.acquire("video:a/b", "a late worker", 1)
    assert [found.ok for found in ledger(visit)] == [True]
    assert {found.name: found.value for found in jobs(visit)}["expired leases"] == "video:a/b"


def test_jobs_that_wait_while_nothing_runs(house: Path, visit: Visit) -> None:
    book = SqliteLedger(house / "ledger.db", clock=lambda: time.time() - 600)
    book.jobs.submit(JobRequest("acme", "ingest-media", "acme/film"))
    found = {each.name: each for each in jobs(visit)}
    assert found["states"].value.startswith("QUEUED 1 · PAUSED 0")
    assert found["oldest QUEUED"].value == "10 min, and nothing is running"
    assert found["oldest QUEUED"].ok is False
    assert found["events not yet delivered"].value == "1 (oldest 10 min)"


def test_a_job_that_waits_behind_a_running_one_is_no_fault(house: Path, visit: Visit) -> None:
    book = SqliteLedger(house / "ledger.db", clock=lambda: time.time() - 600)
    book.jobs.submit(JobRequest("acme", "ingest-media", "acme/film"))
    running = book.jobs.submit(JobRequest("acme", "ingest-media", "acme/other"), run_id="run")
    book.jobs.start(running.id, 1, "run", 10_000)
    assert {each.name: each.ok for each in jobs(visit)}["oldest QUEUED"] is None


def test_the_newest_five_failures_with_code_and_reason(house: Path, visit: Visit) -> None:
    moment = 1_700_000_000.0
    book = SqliteLedger(house / "ledger.db", clock=lambda: moment)
    for number in range(7):
        moment += 60
        job = book.jobs.submit(JobRequest("acme", "ingest-media", f"acme/{number}"), run_id=f"run-{number}")
        _, lease = book.jobs.start(job.id, 1, f"run-{number}", 60)
        book.jobs.failed(lease, BadInput(f"film {number}\nis no film"))
    found = list(failures(visit))
    assert [each.value.split("film ")[1][0] for each in found] == ["6", "5", "4", "3", "2"]
    assert found[0].value == "2023-11-14 22:20:20+00:00 bad_input: film 6 is no film"
    # What went wrong yesterday does not make today's installation ill.
    assert {each.ok for each in found} == {None}


def journal(name: str, home: Path, passes: bool) -> None:
    made = Journal(name, seed=7)
    made.checks.append(expect("nothing was lost", 10 if passes else 9, 10))
    for when in ("before", "after"):
        made.steady_state[when].append(expect("steady", 1, 1))
    conclude(made)
    made.write(home)


def test_the_last_verdicts_and_damaged_journals(house: Path, visit: Visit) -> None:
    assert [each.value for each in scenarios(visit)] == ["none yet"]
    journal("sound", house, passes=True)
    journal("broken", house, passes=False)
    (house / "runs" / "last" / "torn.json").write_bytes(canonical_json({"scenario": "torn"})[:-5])
    found = {each.name: each for each in scenarios(visit)}
    assert {name: each.ok for name, each in found.items()} == {"sound": True, "broken": False, "torn": None}
    assert "nothing was lost" in found["broken"].value
    assert "dailies scenario broken" in found["broken"].fix
    assert "not a scenario's journal" in found["torn"].value


SECRETS = {
    "PREFECT_API_KEY": "pnu_abcdef",
    "DAILIES_GATEWAY_TOKEN": "tok-123456",
    "PREFECT_API_AUTH_STRING": "admin:hunter2x",
    "DAILIES_S3_SECRET": "s3cr3t-value",
    "DAILIES_DB_PASSWORD": "letmein-now",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://prefect:swordfish@db/prefect",
    "DAILIES_REDIS": "redis://:opensesame@cache:6379/0",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"Authorization": "Bearer eyJhbGciOi"}',
    "DAILIES_WEBHOOK": "https://example.test/hook?token=abc123def",
}
OPEN = {
    "DAILIES_SERVER_IDLE_S": "600",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "DAILIES_STREAM": "redis://cache:6379/0",
    "DAILIES_NOTE": "/home/author/keys",
}


def test_no_secret_is_shown_and_everything_else_is(monkeypatch: pytest.MonkeyPatch, visit: Visit) -> None:
    for name, value in {**SECRETS, **OPEN}.items():
        monkeypatch.setenv(name, value)
    found = {each.name: each.value for each in configuration(visit)}
    assert {name: found[name] for name in SECRETS} == dict.fromkeys(SECRETS, HIDDEN)
    # The control: the same way of looking does see what is no secret.
    assert {name: found[name] for name in OPEN} == OPEN
    everything = hide_secrets(configuration(visit))
    for text in (to_json(everything), shown(everything)):
        assert not [value for value in SECRETS.values() if value in text]
        assert all(value in text for value in OPEN.values())


def test_an_error_that_quotes_a_secret_is_cleaned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://operator:hunter2x@127.0.0.1:9/api")
    findings = examine("local")
    server = next(each for each in findings if each.area == "prefect")
    assert (server.ok, HIDDEN in server.value) == (False, True)
    assert "hunter2x" not in to_json(findings)
    quoted = Finding("site", "s", "no answer from https://me:pass-word@host/x", False)
    assert hide_secrets([quoted])[0].value == f"no answer from https://{HIDDEN}@host/x"


def test_an_examination_that_raises_is_a_finding_and_keeps_what_it_found() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("area", "first", "found")
        raise RuntimeError("went\nwrong")

    examination = Examination("area", broken)
    examination.start()
    found = examination.result(time.monotonic() + 5)
    assert [(each.value, each.ok) for each in found] == [("found", None), ("RuntimeError: went wrong", False)]


def test_an_examination_that_hangs_is_a_finding_too() -> None:
    ended = threading.Event()

    def hanging() -> Iterator[Finding]:
        yield Finding("area", "first", "found")
        ended.wait()

    examination = Examination("area", hanging)
    examination.start()
    found = examination.result(time.monotonic() + 0.1)
    ended.set()
    assert [each.value for each in found] == ["found", "no answer in time"]
    assert found[1].ok is False


def test_a_silent_server_does_not_hang_doctor(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", silent_server)
    before = time.monotonic()
    findings = examine("local")
    assert time.monotonic() - before < 10
    assert any(each.area == "prefect" and each.ok is False for each in findings)
    assert one(findings, "events").ok is False
    assert one(findings, "store").ok is True


def test_a_server_that_refuses_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    findings = examine("local")
    server = one(findings, "prefect", "server")
    assert (server.ok, server.fix) == (False, "start it, or unset PREFECT_API_URL to use one of our own")
    assert one(findings, "drift").value == "not compared: no server answers"


def test_a_named_site_needs_its_server() -> None:
    found = one(examine("staging"), "ledger")
    assert (found.ok, found.value) == (False, "site 'staging' is described in Prefect, which does not answer")


@pytest.mark.parametrize(("codec", "kind"), [("h264", "video"), ("vp9", "video"), ("aac", "audio")])
def test_codecs_really_work(codec: str, kind: str) -> None:
    assert codec_finding(codec, kind).ok is True


def test_a_codec_that_is_not_there() -> None:
    found = codec_finding("no-such-codec", "video")
    assert found.ok is False
    assert "pip install" in found.fix


def test_a_server_may_be_newer_but_not_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.doctor.orchestrator.version", lambda _name: "3.8.8")
    assert [server_version(there).ok for there in ("3.8.8", "3.9.1", "3.8.7", "4.0.0")] == [True, True, False, False]


def test_drift_is_bad_only_where_something_was_applied() -> None:
    assert [each.ok for each in differences([])] == [True]
    fresh = ["deployment a/b is missing", "work pool cpu is missing"]
    assert [each.ok for each in differences(fresh)] == [None]
    assert [each.ok for each in differences(["deployment a/b is missing"])] == [False]
    assert [each.ok for each in differences([*fresh, "deployment c/d: tags is [], prefect.yaml says ['x']"])] == [
        False
    ] * 3
