"""A transcription in a process of its own is told to cancel or to pause: what ends, how fast, and what is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dailies import failpoints
from dailies.ledger.records import Job, JobState
from dailies.media.keys import MediaKey
from dailies.speech.dtmf import TALLY
from dailies.speech.sample import make_talk
from tasks.published import published
from tests.integration import conftest as integration

pytestmark = [pytest.mark.recovery, pytest.mark.usefixtures("fast_api")]
home, site, eventually = integration.home, integration.site, integration.eventually

KEY = "acme/client/videos/v1/talk.wav"
PHRASES = 5
PROGRAM = """
import sys
from flows.transcribe_media import transcribe_media
transcribe_media(tenant="acme", media_key=sys.argv[1], engine="dtmf", parallel=int(sys.argv[2]), return_state=True)
"""


@pytest.fixture
def start(site, home, tmp_path, fast_api) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """The flow in a process of its own, with these failpoints, on an upload of many phrases."""
    make_talk(tmp_path / "talk.wav", PHRASES)
    site.store.put_file(KEY, tmp_path / "talk.wav")
    started = []

    def begin(faults: str = "", parallel: int = 2) -> subprocess.Popen[bytes]:
        env = {**os.environ, "DAILIES_HOME": str(home), "PREFECT_API_URL": fast_api, TALLY: str(home / "tally.jsonl")}
        armed = failpoints.environment(faults, home / "faults.jsonl")
        with (home / "flow.log").open("ab") as log:
            command = [sys.executable, "-c", PROGRAM, KEY, str(parallel)]
            started.append(subprocess.Popen(command, env={**env, **armed}, stderr=log))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def only(site) -> Job:
    (job,) = site.ledger.jobs.all()
    return job


def heard(home: Path) -> int:
    path = home / "tally.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def ears_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [one for one in psutil.Process(process.pid).children(recursive=True) if "hear_file" in str(one.cmdline())]


def left_behind(site, home: Path) -> list[str]:
    stored = [found.key for found in site.store.list("acme") if "/work-" in found.key]
    return stored + [str(path) for path in (home / "work").glob("*")]


def test_a_canceled_job_ends_with_all_its_processes_within_two_seconds(site, home, start, eventually):
    process = start("speech.hear#3=hang")
    eventually(lambda: failpoints.fired(home / "faults.jsonl"), 60)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(ears_of(process)) == 2
    began = time.monotonic()
    site.ledger.jobs.cancel(only(site).id)
    process.wait(20)
    eventually(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in tree[1:]), 10)
    assert time.monotonic() - began < 2.0
    job = only(site)
    assert (job.state, job.message) == (JobState.CANCELED, "Canceled")
    assert left_behind(site, home) == []
    assert "transcript" not in published(site, MediaKey.parse("acme", KEY))


def test_a_cancel_stays_final_when_the_last_unit_ends_at_the_same_moment(site, home, start, eventually):
    process = start("publish_transcript:after=stop")
    eventually(lambda: failpoints.fired(home / "faults.jsonl"), 60)
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    site.ledger.jobs.cancel(only(site).id)
    psutil.Process(process.pid).resume()
    process.wait(30)
    assert only(site).state is JobState.CANCELED
    assert [event.type for event in site.ledger.outbox.of(only(site).id)][-1] == "dailies.job.canceled"
    assert not any(site.ledger.audit(grace=0).values())


def test_a_paused_job_ends_what_is_under_way_begins_nothing_and_goes_on_where_it_was(site, home, start, eventually):
    process = start("speech.hear#2=sleep(2)", parallel=1)
    eventually(lambda: failpoints.fired(home / "faults.jsonl"), 60)
    site.ledger.jobs.pause(only(site).id)
    process.wait(60)
    job = only(site)
    assert (job.state, job.message) == (JobState.PAUSED, "Paused")
    done = heard(home)
    assert done == 2, "the one under way ends, and none is begun"
    told = [event.type for event in site.ledger.outbox.of(job.id)]
    assert told.count("dailies.chunk.transcribed") == done, "what was under way is not lost"
    assert any(key.endswith(".f32") for key in left_behind(site, home)), "who is paused keeps his files"
    assert only(site).state is JobState.PAUSED, "nobody resumes it but who is told to"
    assert list(site.ledger.jobs.recover()) == []


def test_canceled_while_paused_it_leaves_nothing_once_the_machine_is_swept(site, home, start, eventually):
    process = start("speech.hear#2=sleep(2)", parallel=1)
    eventually(lambda: failpoints.fired(home / "faults.jsonl"), 60)
    site.ledger.jobs.pause(only(site).id)
    process.wait(60)
    assert left_behind(site, home)
    site.ledger.jobs.cancel(only(site).id)
    program = "from blocks.site import open_site; from tasks._leftovers import clear_orphans"
    command = [sys.executable, "-c", f"{program}; clear_orphans(open_site(), 0.0)"]
    subprocess.run(command, env={**os.environ, "DAILIES_HOME": str(home)}, check=True)
    assert left_behind(site, home) == []


@pytest.mark.parametrize("times", [1, 100])
def test_a_run_that_is_told_to_stop_hands_its_job_back_however_often_it_is_told(site, home, start, eventually, times):
    process = start("speech.hear#2=hang")
    eventually(lambda: failpoints.fired(home / "faults.jsonl"), 60)
    for _ in range(times):
        process.terminate()
        time.sleep(0.005)
    process.wait(30)
    job = only(site)
    assert (job.state, job.attempt, job.crashes, job.message) == (JobState.QUEUED, 2, 0, "Its worker was told to stop")
    assert any(key.endswith(".f32") for key in left_behind(site, home)), "the next attempt goes on with them"
