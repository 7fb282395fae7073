"""Ten videos at once on one machine, and an approval as a person gives it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from blocks.site import open_site
from dailies.captions.databases import read_captions
from dailies.captions.sample import make_film, truth
from dailies.ledger.records import JobRequest, JobState
from dailies.media.keys import MediaKey
from dailies.scenarios.processes import free_port
from tasks.published import published
from tests.e2e.conftest import PREFECT, Machine, wait_for
from tests.e2e.test_up import CHROMIUM, QUIET

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 4
JOBS, SLOTS = 10, 2
GIB = 1 << 30


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[tuple[Machine, str, list[str]]]:
    """`dailies up` with ten uploads in its store."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    keys = [f"acme/client/videos/v{number}/film.mp4" for number in range(JOBS)]
    film = make_film(machine.home / "film.mp4", SECONDS)
    for key in keys:
        path = machine.dailies / "media" / key
        path.parent.mkdir(parents=True)
        shutil.copyfile(film, path)
    with machine.up(free_port()) as api:
        machine.env["PREFECT_API_URL"] = api
        yield machine, api, keys
    assert machine.processes() == [], "Ctrl-C left processes"


@pytest.fixture
def site(up, monkeypatch) -> Iterator[Any]:
    monkeypatch.setenv("DAILIES_HOME", str(up[0].dailies))
    site = open_site()
    yield site
    site.ledger.close()


def request_for(key: str) -> JobRequest:
    params = {"tenant": "acme", "media_key": key}
    return JobRequest("acme", "process-video", f"acme/{key.split('/')[3]}", params, "process-video/cpu")


def memory_of(home: Path) -> int:
    """Of all that runs with this home, server and worker included; pages that are shared count for each."""
    total = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAILIES_HOME") == str(home):
                total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


@pytest.mark.timeout(600)
def test_ten_videos_at_once_all_end_right_within_the_caps(up, site):
    machine, _, keys = up
    jobs = [site.ledger.jobs.submit(request_for(key)).id for key in keys]
    most, peak, begin = 0, 0, time.monotonic()

    def ended() -> bool:
        nonlocal most, peak
        most = max(most, len(site.ledger.jobs.all(JobState.RUNNING)))
        peak = max(peak, memory_of(machine.dailies))
        return all(site.ledger.jobs.get(job).final for job in jobs)

    wait_for(ended, 540)
    taken = time.monotonic() - begin
    assert [site.ledger.jobs.get(job).state for job in jobs] == [JobState.DONE] * JOBS
    assert most == SLOTS
    regions = [published(site, MediaKey.parse("acme", key))["layout"]["facts"]["regions"] for key in keys]
    assert regions[0]
    assert all(found == regions[0] for found in regions), "the same film, ten times"
    assert {video.state for video in site.ledger.videos.all("acme")} == {"awaiting_layout"}
    assert not any(site.ledger.audit().values())
    assert peak < 4 * GIB
    print(f"ten process-video jobs: {taken:.0f} s, at most {most} at once, {peak / GIB:.2f} GiB in all")  # noqa: T201


def test_a_person_approves_with_a_rectangle(up, site):
    machine, _, keys = up
    crop = json.dumps({"top": 0.55, "bottom": 1.0})
    done = machine.run(
        PREFECT, "deployment", "run", "crop-and-infer/cpu", "--watch",
        "-p", "tenant=acme", "-p", f"media_key={keys[0]}", "-p", f"crop={crop}", timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    captions = published(site, MediaKey.parse("acme", keys[0]))["captions"]
    database = next(each["key"] for each in captions["artifacts"] if each["key"].endswith("captions.db.gz"))
    assert [(row.start_us, row.end_us, row.text) for row in read_captions(site.store.get(database))] == truth(SECONDS)
    assert site.ledger.videos.get("acme", "v0").state == "ready"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_form_of_the_approval_describes_the_rectangle_field_by_field(up):
    from playwright.sync_api import sync_playwright

    _, api, _ = up
    deployment = httpx.get(f"{api}/deployments/name/crop-and-infer/cpu").json()["id"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.goto(f"{api.removesuffix('/api')}/deployments/deployment/{deployment}/run")
        page.get_by_text("media_key").first.wait_for()
        text = page.inner_text("body")
        browser.close()
    assert "The rectangle to read from" in text
