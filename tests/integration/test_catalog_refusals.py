"""What update-catalog is given and cannot use: the flow and the command each say so in one line, and change nothing."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from dailies.canonical import canonical_json, file_digest, write_atomically
from dailies.catalog.generation import name_of, publish
from dailies.catalog.reader import CATALOG
from dailies.catalog.schema import APPLICATION
from dailies.catalog.update import OWNER
from dailies.compute.child import Children
from dailies.ledger.records import JobState
from flows.update_catalog import update_catalog
from services import cli
from tasks import catalog as steps
from tests.unit.catalog.generations import built

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api"), pytest.mark.expects_errors]

RESOURCE = "catalog:acme/catalogs/main"
IMPATIENT = "tests.integration.impatient_stage:run_stage"
PR_SET_SECUREBITS, NOROOT = 28, 1


@pytest.fixture
def prod(site, tmp_path) -> Path:
    """A catalogue of which one generation is published."""
    prod = tmp_path / "catalog"
    lease = site.ledger.leases.acquire(RESOURCE, "whoever made it", 60.0)
    built(prod, name_of(lease.fence))
    write_atomically(prod / OWNER, [canonical_json({"resource": RESOURCE})])
    publish(site.ledger, lease, prod, name_of(lease.fence))
    site.ledger.leases.release(lease)
    return prod


@pytest.fixture
def database(prod) -> Path:
    (found,) = prod.glob(f"gen-*/{CATALOG}")
    return found


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Children.call
    monkeypatch.setattr(Children, "call", lambda self, function, **more: call(self, IMPATIENT, **more))
    monkeypatch.setattr(steps.begin_update.task, "retries", 0)


def by_flow(site, prod: Path, whitelist: Path, capfd, monkeypatch) -> tuple[JobState, list[str]]:
    update_catalog(tenant="acme", whitelist=str(whitelist), prod=str(prod), return_state=True)
    (job,) = site.ledger.jobs.all()
    return job.state, job.error.splitlines()


def by_command(site, prod: Path, whitelist: Path, capfd, monkeypatch) -> tuple[int, list[str]]:
    """From the program's own entry on: only its start is left out, which takes longer than all the rest."""
    command = ["dailies", "catalog", "update", "--whitelist", str(whitelist), "--prod", str(prod)]
    monkeypatch.setattr(sys, "argv", command)
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capfd.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in said)
    return left.value.code, [line.removeprefix("dailies: ") for line in said if line.startswith("dailies: ")]


WAYS = [pytest.param(by_flow, id="flow"), pytest.param(by_command, id="command")]
FINAL = {by_flow: JobState.FAILED, by_command: 1}
AGAIN = {by_flow: JobState.QUEUED, by_command: 1}


def everything(site, prod: Path) -> dict[str, Any]:
    """Each file of the folder, and what the ledger knows of the catalogue."""
    return {
        "files": {
            str(path.relative_to(prod)): (path.stat().st_mode, file_digest(path) if path.is_file() else "")
            for path in prod.rglob("*")
        },
        "published": site.ledger.generations.history(RESOURCE),
        "held by": site.ledger.leases.holder(RESOURCE),
    }


@pytest.fixture
def whitelist(tmp_path) -> Path:
    path = tmp_path / "hosts.json"
    path.write_text('["a.invalid"]')
    return path


@pytest.fixture
def refused(site, prod, database, whitelist, capfd, monkeypatch) -> Callable[..., None]:
    def check(
        way: Callable[..., Any],
        said: str,
        ends: dict[Any, Any] = FINAL,
        meanwhile: AbstractContextManager[None] | None = None,
    ) -> None:
        before = everything(site, prod)
        with meanwhile or nullcontext():
            ended, lines = way(site, prod, whitelist, capfd, monkeypatch)
        assert lines == [said.format(whitelist=whitelist, prod=prod, database=database)]
        assert ended == ends[way]
        assert everything(site, prod) == before

    return check


# ── the whitelist ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ("a.example\n", "the whitelist {whitelist} is not JSON: it must be a list of hosts"),
        ("", "the whitelist {whitelist} is not JSON: it must be a list of hosts"),
        ('{"data": []}', "the whitelist {whitelist} is empty: there is nothing to crawl"),
        ('["https://a.example/"]', "the host 'https://a.example/' is a URL: write it like video.example.org"),
        (
            '["a.example", "127.0.0.1"]',
            "the host 127.0.0.1 is a loopback address: only public hosts are crawled (allow_private)",
        ),
        (
            '{"data": [{"host": "localhost"}]}',
            "the host localhost is this machine: only public hosts are crawled (allow_private)",
        ),
        ('["10.0.0.7"]', "the host 10.0.0.7 is a private address: only public hosts are crawled (allow_private)"),
    ],
    ids=["no JSON", "nothing", "empty", "a URL", "loopback", "this machine", "private"],
)
def test_a_whitelist_that_cannot_be_used(refused, whitelist, way, hosts, said):
    whitelist.write_text(hosts)
    refused(way, said)


# ── the production ────────────────────────────────────────────────────────────────────────────────────────────────────


def pragma(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.chmod(0o644)
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA {statement}")

    return change


def cut_short(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 9000)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "there is no production database at {database}"),
        (
            lambda path: shutil.rmtree(path.parent),
            "gen-000001 of catalog:acme/catalogs/main is not in {prod}: name the folder where it lies, or begin anew "
            "with nothing (--fresh, or resume=false)",
        ),
        (pragma("user_version = 99"), "{database} has schema version 99, and this program knows version 1"),
        (
            pragma(f"application_id = {APPLICATION['staging']}"),
            "{database} is not a production database of the catalogue",
        ),
        (cut_short, "{database} is no SQLite database, or a damaged one: database disk image is malformed"),
    ],
    ids=["no file", "no folder", "another version", "another database", "cut short"],
)
def test_a_production_that_cannot_be_used(refused, database, way, spoil, said):
    spoil(database)
    refused(way, said)


LOCK = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """By a process of its own: whoever reads the file in the same one would unlock it."""
    command = [sys.executable, "-c", LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield
        process.communicate(timeout=10)


@pytest.mark.parametrize("way", WAYS)
def test_a_production_that_another_program_has_locked_is_worth_another_try(refused, database, way):
    database.chmod(0o644)
    refused(way, "{database} is locked by another program: try again when it is done", AGAIN, locked(database))


@contextmanager
def without_rights(path: Path, mode: int) -> Iterator[None]:
    """What is started meanwhile has none of an administrator's rights over files, also where we are one."""
    prctl = ctypes.CDLL(None).prctl
    if os.geteuid() == 0 and prctl(PR_SET_SECUREBITS, NOROOT, 0, 0, 0) != 0:
        pytest.skip("an administrator who cannot do without the rights of one")
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)
        prctl(PR_SET_SECUREBITS, 0, 0, 0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_cannot_be_written(refused, prod, way):
    said = "{prod}/.staging.db.new cannot be opened: see to the rights to it and to its folder"
    refused(way, said, meanwhile=without_rights(prod, 0o555))


@pytest.mark.parametrize("way", WAYS)
def test_a_production_that_cannot_be_read(refused, database, way):
    said = "{database} cannot be opened: see to the rights to it and to its folder"
    refused(way, said, meanwhile=without_rights(database, 0o000))
