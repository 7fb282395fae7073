"""Flows in containers, beside host processes that use the same ledger and the same files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from dailies.failpoints import fired
from dailies.ledger.records import Job, JobState
from dailies.media.sample import make_clip
from dailies.scenarios.journal import read
from deployments.docker import pool
from tests.docker.conftest import Site
from tests.docker.engine import FIGURES, IMAGE, ROOT, Engine
from tests.e2e.conftest import wait_for

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

TENANT = "acme"
IMAGE_USER = 10001
# Counts under a lease for some seconds while somebody else does the same, and says under which fences it held it.
COUNT = """
import sys, time
from pathlib import Path
from dailies.errors import Held
from dailies.ledger.sqlite import SqliteLedger
folder, me, fences = Path(sys.argv[1]), sys.argv[2], []
ledger, counter = SqliteLedger(folder / "shared.db"), folder / "counter"
(folder / me).touch()
while not all((folder / name).exists() for name in ("host", "container")):
    pass
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        lease = ledger.leases.acquire("counter", me, 60)
    except Held:
        continue
    counter.write_text(str(int(counter.read_text()) + 1))
    fences.append(lease.fence)
    ledger.leases.release(lease)
    time.sleep(0.005)  # SQLite's lock is not fair: who always wants it leaves nothing to the other
print(*fences)
"""


def put_clip(site: Site, video: str) -> str:
    key = f"{TENANT}/client/videos/{video}/clip.mp4"
    make_clip(site.home / "media" / key, seconds=6)
    return key


def job_of(site: Site, key: str) -> Job:
    (job,) = [job for job in site.ledger.jobs.all() if job.params["media_key"] == key]
    return job


def state_of(site: Site, job: Job) -> tuple[JobState, int]:
    now = site.ledger.jobs.get(job.id)
    return now.state, now.attempt


def made(site: Site, video: str) -> dict[str, bytes]:
    """The published files of a video, by what they are."""
    current = site.ledger.generations.current(f"video:{TENANT}/{video}")
    assert current is not None
    manifest = json.loads(site.store.get(current))
    return {name: site.store.get(part["artifacts"][0]["key"]) for name, part in manifest.items()}


@pytest.fixture(scope="module")
def on_the_host(site: Site) -> dict[str, bytes]:
    """What a run of the same clip makes without any container."""
    run = site.start("ingest-media/cpu", {"tenant": TENANT, "media_key": put_clip(site, "host")})
    assert site.ended(run).type == StateType.COMPLETED
    assert site.engine.containers(run) == []
    return made(site, "host")


def test_a_run_in_a_container_makes_what_a_run_on_the_host_makes(site: Site, on_the_host: dict[str, bytes]):
    key = put_clip(site, "contained")
    start = time.monotonic()
    run = site.start("ingest-media/in-container", {"tenant": TENANT, "media_key": key})
    assert site.ended(run).type == StateType.COMPLETED
    FIGURES["ingest-media in a container, asked for to Completed"] = f"{time.monotonic() - start:.1f} s"
    (container,) = site.engine.containers(run)
    wait_for(lambda: site.engine.inspect(container, ".State.Status") == "exited", 10)
    assert site.engine.inspect(container, ".State.ExitCode") == "0"
    assert site.engine.inspect(container, ".Config.Image") == IMAGE
    assert state_of(site, job_of(site, key)) == (JobState.DONE, 1)
    assert made(site, "contained") == on_the_host
    assert on_the_host["contact_sheet"].startswith(b"\x89PNG")


def test_a_killed_container_costs_the_unit_it_was_in_and_no_more(site: Site, on_the_host: dict[str, bytes]):
    key = put_clip(site, "killed")
    log = "killed.jsonl"
    armed = {
        "DAILIES_FAILPOINTS": "make_contact_sheet:before=hang",
        "DAILIES_FAILPOINTS_LOG": f"{pool.HOME}/{log}",
    }
    run = site.start("ingest-media/in-container", {"tenant": TENANT, "media_key": key}, env=armed)
    wait_for(lambda: fired(site.home / log), 60)
    (container,) = site.engine.containers(run)
    site.engine.docker("kill", "--signal", "KILL", container)
    killed = time.monotonic()
    assert site.engine.inspect(container, ".State.ExitCode") == "137"
    job = job_of(site, key)
    wait_for(lambda: state_of(site, job) == (JobState.RUNNING, 2), 60)
    FIGURES["container killed to the job running in the next"] = f"{time.monotonic() - killed:.1f} s"
    wait_for(lambda: site.ledger.jobs.get(job.id).final, 60)
    done = site.ledger.jobs.get(job.id)
    assert (done.state, done.attempt, done.crashes) == (JobState.DONE, 2, 1)
    redone = {unit.step: (unit.attempts, unit.reuses) for unit in site.ledger.units.of(job.id)}
    assert redone == {"probe_media": (1, 1), "make_contact_sheet": (2, 0)}
    assert site.ended(run).type == StateType.CRASHED
    assert made(site, "killed") == on_the_host
    assert [rule for rule, found in site.ledger.audit().items() if found] == []


def test_a_canceled_run_takes_its_container_along_and_is_not_begun_again(site: Site):
    key = put_clip(site, "canceled")
    log = "canceled.jsonl"
    armed = {
        "DAILIES_FAILPOINTS": "make_contact_sheet:before=sleep(120)",
        "DAILIES_FAILPOINTS_LOG": f"{pool.HOME}/{log}",
    }
    run = site.start("ingest-media/in-container", {"tenant": TENANT, "media_key": key}, env=armed)
    wait_for(lambda: fired(site.home / log), 60)
    start = time.monotonic()
    site.cancel(run)
    asked = time.monotonic()
    assert site.ended(run).type == StateType.CANCELLED
    wait_for(lambda: site.engine.containers(run, "--filter", "status=running") == [], 60)
    FIGURES["canceled to no container running"] = (
        f"{time.monotonic() - asked:.1f} s after `prefect flow-run cancel`, which took {asked - start:.1f} s"
    )
    time.sleep(7)  # longer than a new attempt would take to be queued
    assert state_of(site, job_of(site, key)) == (JobState.CANCELED, 1)
    assert len(site.engine.containers(run)) == 1
    assert site.ledger.generations.current(f"video:{TENANT}/canceled") is None


def test_lock_contention_passes_in_a_container_as_the_images_own_user(site: Site, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, IMAGE_USER, IMAGE_USER)
    start = time.monotonic()
    run = site.start(
        "lock-contention/in-container",
        {"mode": "quick"},
        volumes=[f"{home}:{pool.HOME}"],
        container_create_kwargs={"init": True, "user": f"{IMAGE_USER}:{IMAGE_USER}"},
    )
    state = site.ended(run, 150)
    FIGURES["lock-contention in a container, asked for to Completed"] = f"{time.monotonic() - start:.1f} s"
    assert state.is_completed(), state.message
    journal = read(home / "runs" / "last" / "lock-contention.json")
    assert json.loads((home / "runs" / "last" / "lock-contention.json").read_text())["status"] == "passed"
    assert [check.name for _, check in journal.every_check() if not check.passed] == []
    assert all(fault.fired for fault in journal.faults)
    assert len(journal.faults) == 3
    assert len(site.engine.containers(run)) == 1
    assert {path.stat().st_uid for path in home.rglob("*")} == {IMAGE_USER}


def test_host_and_container_share_one_ledger_at_the_same_time(image: Engine, tmp_path: Path):
    """The locks and the shared memory of SQLite hold across the border of a container."""
    (tmp_path / "counter").write_text("0")
    host = subprocess.Popen(
        [sys.executable, "-c", COUNT, tmp_path, "host"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        options = ("--volume", f"{tmp_path}:{pool.HOME}")
        inside = image.run("python", "-c", COUNT, pool.HOME, "container", user=f"{os.getuid()}", options=options)
        outside, _ = host.communicate(timeout=60)
    finally:
        host.kill()
        host.wait()
    assert host.returncode == 0
    theirs, ours = [*map(int, inside.split())], [*map(int, outside.split())]
    assert min(len(theirs), len(ours)) > 10
    assert len({*theirs, *ours}) == len(theirs) + len(ours), "two held it under one fence"
    assert theirs[0] < ours[-1]
    assert ours[0] < theirs[-1], "they did not do it at the same time, so nothing was tried"
    assert int((tmp_path / "counter").read_text()) == len(theirs) + len(ours), "two counted at once"
