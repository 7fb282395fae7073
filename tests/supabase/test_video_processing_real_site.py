"""video-processing-e2e on a site of real services, and process-video where the wire loses replies."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from blocks import SupabaseLedger
from dailies.captions.sample import make_film
from dailies.ledger.records import JobState, VideoState
from dailies.scenarios.unreliable import kind_of
from dailies.store.interface import Artifact
from flows.process_video import process_video
from tests.e2e.conftest import DAILIES
from tests.servers.faulty import Asked, Fate, Proxy, proxying
from tests.supabase import test_real_site
from tests.supabase.servers import SERVICE_KEY

pytestmark = [pytest.mark.supabase, pytest.mark.e2e, pytest.mark.slow]
staging = test_real_site.staging
FAULTS = ("compute killed", "store loses a reply", "ledger loses a reply")
KEY = "acme/client/videos/lossy/film.mp4"


def test_the_scenario_passes_and_leaves_the_site_as_it_was(staging, tmp_path):
    staging.save("staging")
    report = tmp_path / "report.json"
    words = ["-p", "site=staging", "-p", f"faults={','.join((*FAULTS, 'no video'))}", "--report", report]
    done = staging.machine.run(DAILIES, "scenario", "video-processing-e2e", *words, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    journal = json.loads(report.read_text())
    assert (journal["status"], journal["parameters"]["site"]) == ("passed", "staging")
    assert {fault["name"]: fault["fired"] for fault in journal["faults"]} == dict.fromkeys(FAULTS, 1)
    jobs = staging.ledger.jobs.all(limit=10_000)
    assert {job.kind for job in jobs} == {"process-video"}, "it did its work here"
    assert all(job.final for job in jobs)
    assert not any(staging.ledger.audit().values())
    assert list(staging.store.store().list("scenario")) == []


class Losing:
    """Loses the first reply of each kind, and says of which."""

    def __init__(self, kind) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self.lost: Counter[str] = Counter()

    def __call__(self, asked: Asked) -> Fate:
        kind = self._kind(asked)
        with self._lock:
            if not kind or self.lost[kind]:
                return "forward"
            self.lost[kind] += 1
        return "lose"


def written(asked: Asked) -> str:
    """What an object is of that is put; the first part of the path is the bucket."""
    return kind_of(asked.path.split("/", 2)[2]) if asked.method == "PUT" else ""


def called(asked: Asked) -> str:
    return asked.path.rpartition("/rpc/")[2] if "/rpc/" in asked.path else ""


@contextmanager
def losing(target: str, kind) -> Iterator[tuple[Proxy, Losing]]:
    with proxying(target) as proxy:
        proxy.rule = rule = Losing(kind)
        yield proxy, rule


def test_a_video_comes_to_its_layout_though_the_first_reply_to_each_kind_of_write_is_lost(
    staging, tmp_path, monkeypatch
):
    monkeypatch.setenv("DAILIES_HOME", staging.machine.env["DAILIES_HOME"])
    store = staging.store.store()
    store.put_file(KEY, make_film(tmp_path / "film.mp4", 4))
    with losing(staging.store.url, written) as (s3, puts), losing(staging.api.url, called) as (api, calls):
        staging.save(
            "lossy",
            store=staging.block.store.model_copy(update={"endpoint_url": s3.url}),
            ledger=SupabaseLedger(url=api.url, service_key=SERVICE_KEY),
        )
        settings = {PREFECT_API_URL: staging.prefect, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        with temporary_settings(settings):
            state = process_video(tenant="acme", media_key=KEY, site="lossy", return_state=True)
        assert state.is_completed(), state
        assert {"probe", "contact-sheet", "published", "raw-ocr.db.gz", "full_frames", "layout.png"} <= set(puts.lost)
        assert {"job_start", "job_done", "video_update", "unit_complete", "generation_publish", "call_become"} <= set(
            calls.lost
        )
        assert (s3.count["lose"], api.count["lose"]) == (puts.lost.total(), calls.lost.total())

    (job,) = [job for job in staging.ledger.jobs.all() if job.subject == "acme/lossy"]
    assert (job.state, job.attempt, job.crashes, job.error) == (JobState.DONE, 1, 0, "")
    video = staging.ledger.videos.get("acme", "lossy")
    assert (video.state, video.version, video.error) == (VideoState.AWAITING_LAYOUT, 2, "")
    told = [event.type for event in staging.ledger.outbox.of(job.id)]
    assert [kind for kind in told if ".video." in kind] == ["dailies.video.processing", "dailies.video.awaiting_layout"]
    assert told.count("dailies.job.running") == told.count("dailies.job.done") == 1
    assert [(unit.state, unit.attempts) for unit in staging.ledger.units.of(job.id)] == [("DONE", 1)] * 4
    manifest = json.loads(store.get(staging.ledger.generations.current("video:acme/lossy")))
    files = [Artifact.from_json(each) for part in manifest.values() for each in part["artifacts"]]
    assert len(files) > 20
    assert all(store.holds(file) for file in files)
    assert not any(staging.ledger.audit(grace=10).values())
