"""ingest-media, the whole flow: what it leaves behind, and how each way to end looks in the ledger and in Prefect."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any
from uuid import UUID

import pytest
from PIL import Image
from prefect import State, tags
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import CancelledRun, CrashedRun
from prefect.flow_engine import run_flow_sync
from prefect.runtime import task_run
from prefect.states import Pending

from dailies.errors import BadInput, EmptyFile, Held, Injected, Missing, Truncated, Unreadable
from dailies.failpoints import fired
from dailies.ledger.records import Caps, Job, JobRequest, JobState
from dailies.ledger.sqlite import SqliteLedger
from dailies.media.sample import make_clip
from dailies.store.interface import Artifact
from flows.ingest_media import ingest_media
from tasks import _job
from tasks._job import Working, job_flow
from tasks._step import REGISTRY, Output, effect, work
from tasks.ingest import make_contact_sheet, probe_media
from tasks.supervision import sweep

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

VIDEO = "video:acme/v1"
KEY = "acme/client/videos/v1/clip.mp4"


@pytest.fixture
def end_of(client):
    """Runs ingest-media and gives its flow run as the API has it, and the job in the ledger."""

    def run(site, **parameters: Any) -> tuple[FlowRun, Job]:
        state = ingest_media(**{"tenant": "acme", "media_key": KEY, **parameters}, return_state=True)
        return client.read_flow_run(state.state_details.flow_run_id), newest(site)

    return run


@pytest.fixture
def at_once(monkeypatch):
    """A step that failed is tried again without a rest."""
    for step in REGISTRY.values():
        monkeypatch.setattr(step.task, "retry_delay_seconds", [0])


def newest(site) -> Job:
    (job, *_) = site.ledger.jobs.all()
    return job


def only(site) -> Job:
    (job,) = site.ledger.jobs.all()
    return job


def events(site, job: Job) -> list[str]:
    return [event.type.removeprefix("dailies.") for event in site.ledger.outbox.of(job.id)]


def steps(site, job: Job) -> dict[str, str]:
    return {unit.step: unit.state for unit in site.ledger.units.of(job.id)}


def sound(site) -> bool:
    return not any(site.ledger.audit(grace=0).values())


def test_a_clip_is_probed_drawn_and_published(site, clip, clip_bytes, end_of, client):
    flow_run, job = end_of(site)
    assert (job.state, job.message, job.subject, job.kind) == (JobState.DONE, "Done", "acme/v1", "ingest-media")
    assert (flow_run.state.type.value, flow_run.state.name) == ("COMPLETED", "Completed")
    assert events(site, job) == ["job.queued", "job.running", "job.done"]
    assert steps(site, job) == {"probe_media": "DONE", "make_contact_sheet": "DONE"}

    manifest = Artifact.from_json(job.result["manifest"])
    assert site.ledger.generations.current(VIDEO) == manifest.key
    assert manifest.key.startswith("acme/server/videos/v1/published/")
    assert site.store.holds(manifest)
    published = json.loads(site.store.get(manifest.key))
    assert published["probe"]["facts"] == {"sha256": job.result["sha256"], "size": len(clip_bytes)}
    probe = json.loads(site.store.get(published["probe"]["artifacts"][0]["key"]))
    assert [stream["kind"] for stream in probe["streams"]] == ["video", "audio"]
    assert (probe["streams"][0]["video"]["frames"], probe["decoded_us"] // 1_000_000) == (50, 2)

    known = site.ledger.videos.get("acme", "v1")
    picture = probe["streams"][0]["video"]
    assert (known.media_key, known.state) == (clip, "uploaded")
    assert known.metadata == {
        "sha256": job.result["sha256"],
        "size": len(clip_bytes),
        "duration_us": probe["decoded_us"],
        "width": picture["display_width"],
        "height": picture["display_height"],
    }
    sheet = published["contact_sheet"]["artifacts"][0]
    assert sheet == job.result["contact_sheet"]
    assert sheet["key"].startswith("acme/client/videos/v1/contact-sheet/")
    assert Image.open(io.BytesIO(site.store.get(sheet["key"]))).format == "PNG"
    assert sound(site)


def test_the_run_is_registered_as_a_job_under_its_own_id(site, clip, end_of):
    flow_run, job = end_of(site)
    assert {f"job:{job.id}", "attempt:1"} <= set(flow_run.tags)
    assert site.ledger.dispatch.jobs_of(str(flow_run.id)) == [job.id]
    assert job.params == {
        "tenant": "acme", "media_key": KEY, "accept_damaged": False, "site": "local", "patience_s": 30.0,
    }  # fmt: skip
    assert site.ledger.leases.holder(f"job:{job.id}") is None
    assert site.ledger.leases.holder(VIDEO) is None
    assert flow_run.name == f"ingest-{KEY}"


def test_it_shows_the_picture_and_the_facts_in_prefect(site, clip, end_of, client):
    flow_run, job = end_of(site)
    ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
    shown = {artifact.type: artifact for artifact in client.read_artifacts(artifact_filter=ours)}
    assert set(shown) == {"image", "markdown"}
    address = json.loads(shown["image"].data)["image_url"] if "{" in str(shown["image"].data) else shown["image"].data
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == site.store.get(job.result["contact_sheet"]["key"])
    assert job.result["sha256"][:16] in shown["markdown"].data


def test_the_same_content_gives_the_same_bytes_and_reuses_both_units(site, clip, end_of):
    _, first = end_of(site)
    before = {stored.key: site.store.get(stored.key) for stored in site.store.list("acme")}
    _, second = end_of(site)
    assert second.id != first.id
    assert second.result == first.result
    assert steps(site, second) == {"probe_media": "REUSED", "make_contact_sheet": "REUSED"}
    assert {stored.key: site.store.get(stored.key) for stored in site.store.list("acme")} == before


def test_the_same_bytes_uploaded_again_are_worked_on_again_and_give_the_same(site, clip, clip_bytes, end_of):
    _, first = end_of(site)
    before = {stored.key: site.store.get(stored.key) for stored in site.store.list("acme")}
    site.store.put(clip, clip_bytes)
    _, second = end_of(site)
    assert steps(site, second) == {"probe_media": "DONE", "make_contact_sheet": "REUSED"}
    assert second.result == first.result
    assert {stored.key: site.store.get(stored.key) for stored in site.store.list("acme")} == before


def test_another_tenant_with_the_same_bytes_gets_units_and_files_of_its_own(site, clip, clip_bytes, end_of):
    end_of(site)
    site.store.put(KEY.replace("acme", "apex"), clip_bytes)
    _, job = end_of(site, tenant="apex", media_key=KEY.replace("acme", "apex"))
    assert steps(site, job) == {"probe_media": "DONE", "make_contact_sheet": "DONE"}
    assert job.result["manifest"]["key"].startswith("apex/")
    assert "acme" not in site.store.get(job.result["manifest"]["key"]).decode()


BAD = {
    "missing": (None, KEY, Missing),
    "empty": (b"", KEY, EmptyFile),
    "text": (b"Meet me at noon.\n" * 100, KEY, Unreadable),
    "truncated": ("truncated", KEY, Truncated),
    "of another tenant": (b"", "apex/client/videos/v1/clip.mp4", BadInput),
    "escaping": (b"", "acme/client/videos/../../../secret/clip.mp4", BadInput),
    "escaping in one part": (b"", "acme/client/videos/../clip.mp4", BadInput),
}


@pytest.mark.expects_errors
@pytest.mark.parametrize(("data", "key", "error"), BAD.values(), ids=BAD)
def test_a_bad_upload_ends_failed_with_its_code_and_one_line(site, truncated_bytes, end_of, data, key, error):
    if data is not None:
        site.store.put(KEY, truncated_bytes if data == "truncated" else data)
    flow_run, job = end_of(site, media_key=key)
    assert (job.state, job.error_code, job.attempt, job.crashes) == (JobState.FAILED, error.code, 1, 1)
    assert job.error
    assert "\n" not in job.error
    assert (flow_run.state.type.value, flow_run.state.name) == ("FAILED", error.__name__)
    assert flow_run.state.message == job.error
    assert site.ledger.outbox.of(job.id)[-1].data["error_code"] == error.code
    assert site.ledger.generations.current(VIDEO) is None
    assert [stored.key for stored in site.store.list("acme")] == ([KEY] if data is not None else [])
    assert sound(site)


@pytest.mark.expects_errors
@pytest.mark.parametrize(("data", "key", "error"), BAD.values(), ids=BAD)
def test_a_direct_caller_gets_the_typed_error(site, truncated_bytes, data, key, error):
    if data is not None:
        site.store.put(KEY, truncated_bytes if data == "truncated" else data)
    with pytest.raises(error) as raised:
        ingest_media(tenant="acme", media_key=key)
    assert type(raised.value) is error
    assert str(raised.value) == only(site).error


def test_a_request_without_a_tenant_is_refused_without_a_job(site):
    with pytest.raises(BadInput, match="a job needs a tenant"):
        ingest_media(tenant="", media_key=KEY)
    assert site.ledger.jobs.all() == []


def test_what_can_be_decoded_of_a_truncated_file_is_taken_if_asked_for(site, truncated_bytes, end_of):
    site.store.put(KEY, truncated_bytes)
    _, job = end_of(site, accept_damaged=True)
    assert job.state is JobState.DONE
    manifest = json.loads(site.store.get(site.ledger.generations.current(VIDEO)))
    probe = json.loads(site.store.get(manifest["probe"]["artifacts"][0]["key"]))
    assert probe["shortfall_us"] > 0
    assert probe["decoded_us"] + probe["shortfall_us"] == probe["promised_us"]


def test_while_another_run_has_the_video_it_fails_at_once_without_patience(site, clip, end_of):
    site.ledger.leases.acquire(VIDEO, "somebody", 60)
    began = time.monotonic()
    flow_run, job = end_of(site, patience_s=0)
    assert time.monotonic() - began < 5
    assert (job.state, job.error_code) == (JobState.FAILED, Held.code)
    assert job.error.startswith(f"{VIDEO} is held by somebody for another ")
    assert (flow_run.state.name, flow_run.state.message) == ("Held", job.error)
    assert events(site, job) == ["job.queued", "job.running", "lease.blocked", "job.failed"]
    assert steps(site, job) == {}


def test_with_patience_it_waits_and_then_runs(site, clip, beside, eventually):
    rival = site.ledger.leases.acquire(VIDEO, "somebody", 60)
    running = beside(ingest_media, tenant="acme", media_key=clip, patience_s=20, return_state=True)
    eventually(lambda: "lease.blocked" in [kind for job in site.ledger.jobs.all() for kind in events(site, job)])
    assert (only(site).state, steps(site, only(site))) == (JobState.RUNNING, {})
    site.ledger.leases.release(rival)
    assert running.result(20).is_completed()
    job = only(site)
    assert events(site, job) == ["job.queued", "job.running", "lease.blocked", "job.done"]
    (blocked,) = (event for event in site.ledger.outbox.of(job.id) if event.type == "dailies.lease.blocked")
    assert blocked.data == {"resource": VIDEO, "held_by": "somebody", "patience_s": 20.0}
    assert site.ledger.generations.history(VIDEO)[0][0] > rival.fence


@pytest.mark.parametrize("word", ["cancel", "pause"])
def test_who_waits_for_the_video_can_be_stopped(site, clip, beside, eventually, word):
    site.ledger.leases.acquire(VIDEO, "somebody", 60)
    running = beside(ingest_media, tenant="acme", media_key=clip, patience_s=3, return_state=True)
    eventually(lambda: "lease.blocked" in [kind for job in site.ledger.jobs.all() for kind in events(site, job)])
    getattr(site.ledger.jobs, word)(only(site).id)
    state = running.result(10)
    if word == "cancel":
        assert (state.name, only(site).state) == ("Cancelled", JobState.CANCELED)
    else:
        assert (state.name, only(site).state) == ("Paused", JobState.PAUSED)


@pytest.fixture
def held_at(arm, beside, eventually):
    """Starts ingest-media and waits until it stands still at a failpoint, for the time that is given."""

    def start(point: str, seconds: float = 1.5):
        log = arm(f"{point}=sleep({seconds})")
        running = beside(ingest_media, tenant="acme", media_key=KEY, return_state=True)
        eventually(lambda: fired(log))
        return running

    return start


@pytest.mark.expects_errors
@pytest.mark.parametrize("point", ["probe_media:after", "make_contact_sheet:before", "publish_media:before"])
def test_a_cancel_while_it_runs_ends_it_and_nothing_is_published(site, clip, held_at, client, point):
    running = held_at(point)
    site.ledger.jobs.cancel(only(site).id)
    state = running.result(10)
    job = only(site)
    assert (job.state, events(site, job)[-1]) == (JobState.CANCELED, "job.canceled")
    assert client.read_flow_run(state.state_details.flow_run_id).state.name == "Cancelled"
    assert state.message == f"job {job.id} was told to cancel"
    assert site.ledger.generations.current(VIDEO) is None
    assert site.ledger.leases.holder(VIDEO) is None


@pytest.mark.expects_errors
def test_a_direct_caller_sees_that_it_was_canceled(site, clip, arm, beside, eventually):
    log = arm("probe_media:before=sleep(1)")
    running = beside(ingest_media, tenant="acme", media_key=clip)
    eventually(lambda: fired(log))
    site.ledger.jobs.cancel(only(site).id)
    with pytest.raises(CancelledRun, match="was told to cancel"):
        running.result(10)


@pytest.mark.expects_errors
def test_a_cancel_that_the_fence_tells_of_first_is_shown_as_a_cancel_too(site, client):
    """The keeper looks twice a second; a write can be refused before it has looked."""

    def cancel_itself(job: Working) -> Output:
        """Ends after its job was canceled, before the keeper could know."""
        job.site.ledger.jobs.cancel(job.job.id)
        return Output()

    step = work(version=1, timeout=10, retries=0)(cancel_itself)
    del REGISTRY["cancel_itself"]

    def canceled_midway(job: Working, tenant: str) -> None:
        """Cancels itself."""
        step(job)

    state = job_flow("canceled-midway", subject=lambda tenant: tenant)(canceled_midway)(tenant="a", return_state=True)
    assert only(site).state is JobState.CANCELED
    assert client.read_flow_run(state.state_details.flow_run_id).state.name == "Cancelled"


def test_the_steps_of_a_run_with_tags_ask_for_no_concurrency_slots(site):
    seen = []

    def look(job: Working) -> Output:
        """Which tags it has."""
        seen.append(task_run.tags)
        return Output()

    step = effect(timeout=10, retries=0)(look)
    del REGISTRY["look"]

    def tagged(job: Working, tenant: str) -> None:
        """Has one step in its own thread, one beside it."""
        step(job)
        step.submit(job).result()

    with tags("nightly"):
        job_flow("tagged", subject=lambda tenant: tenant)(tagged)(tenant="acme")
    assert seen == [[], []], "Prefect asks its server for a slot for every tag of a task, and a 503 would end the step"


@pytest.mark.expects_errors
def test_ctrl_c_cancels_the_job(site):
    def interrupted(job: Working, tenant: str) -> None:
        """Is interrupted."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job_flow("interrupted", subject=lambda tenant: tenant)(interrupted)(tenant="acme")
    assert only(site).state is JobState.CANCELED
    assert sound(site)


@pytest.fixture
def execute(client):
    """What a worker does with a run that the supervisor has created, in this process."""

    def run(run_id: str) -> State[Any]:
        flow_run = client.read_flow_run(UUID(run_id))
        client.set_flow_run_state(flow_run.id, Pending())
        flow_run = client.read_flow_run(flow_run.id)
        return run_flow_sync(ingest_media, flow_run, parameters=flow_run.parameters, return_type="state")

    return run


@pytest.mark.expects_errors
def test_a_paused_job_is_resumed_by_the_sweep_and_reuses_what_it_had(
    site, clip, held_at, deploy, execute, client, eventually
):
    deploy(ingest_media)
    running = held_at("probe_media:after")
    site.ledger.jobs.pause(only(site).id)
    state = running.result(10)
    paused = only(site)
    assert (paused.state, paused.attempt, paused.crashes) == (JobState.PAUSED, 1, 0)
    shown = client.read_flow_run(state.state_details.flow_run_id).state
    assert (shown.type.value, shown.name) == ("CANCELLED", "Paused")
    assert steps(site, paused) == {"probe_media": "DONE"}
    assert sweep(site, Caps()).dispatched == 0

    site.ledger.jobs.resume(paused.id)
    assert sweep(site, Caps()).dispatched == 1
    (run,) = site.ledger.dispatch.waiting(0)
    assert run.attempt == 2
    assert execute(run.run_id).is_completed()
    done = only(site)
    assert (done.state, done.attempt) == (JobState.DONE, 2)
    reuses = {unit.step: (unit.state, unit.attempts, unit.reuses) for unit in site.ledger.units.of(done.id)}
    assert reuses == {"probe_media": ("DONE", 1, 1), "make_contact_sheet": ("DONE", 1, 0)}
    assert site.ledger.generations.current(VIDEO) == done.result["manifest"]["key"]
    assert sound(site)


@pytest.mark.expects_errors
def test_a_failure_beyond_the_retries_queues_the_next_attempt(
    site, clip, arm, at_once, deploy, execute, client, monkeypatch
):
    deploy(ingest_media)
    monkeypatch.setattr(_job, "RETRY_IN_S", 0.0)
    log = arm("; ".join(f"{point}=raise" for point in make_contact_sheet.points))
    state = ingest_media(tenant="acme", media_key=clip, return_state=True)
    assert len(fired(log)) == 1 + make_contact_sheet.task.retries
    job = only(site)
    assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 2, 1)
    assert (job.error_code, job.message) == (Injected.code, f"Trying again: {job.error}")
    shown = client.read_flow_run(state.state_details.flow_run_id).state
    assert (shown.type.value, shown.name) == ("FAILED", "Requeued")
    assert shown.message == f"{job.error}; attempt 2 follows"
    assert site.ledger.generations.current(VIDEO) is None

    assert sweep(site, Caps()).dispatched == 1
    (run,) = site.ledger.dispatch.waiting(0)
    assert execute(run.run_id).is_completed()
    assert (only(site).state, only(site).attempt) == (JobState.DONE, 2)
    assert sound(site)


@pytest.mark.expects_errors
def test_a_direct_caller_gets_the_error_of_an_attempt_that_is_tried_again(site, clip, arm, at_once):
    arm("; ".join(f"{point}=raise" for point in probe_media.points))
    with pytest.raises(Injected, match="failpoint probe_media:committed"):
        ingest_media(tenant="acme", media_key=clip)
    assert only(site).state is JobState.QUEUED


def recover_from_afar(site) -> Job:
    """A supervisor by whose clock the lease has expired."""
    (job,) = SqliteLedger(site.ledger.path, clock=lambda: time.time() + 60).jobs.recover()
    return job


@pytest.mark.expects_errors
@pytest.mark.parametrize("point", ["probe_media:after", "make_contact_sheet:before", "publish_media:before"])
def test_a_superseded_attempt_changes_nothing(site, clip, held_at, client, point):
    running = held_at(point)
    before = recover_from_afar(site)
    assert (before.state, before.attempt, before.message) == (JobState.QUEUED, 2, "Recovered after restart")
    units = steps(site, before)
    state = running.result(10)
    assert only(site) == before
    assert steps(site, before) == units
    assert site.ledger.generations.current(VIDEO) is None
    shown = client.read_flow_run(state.state_details.flow_run_id).state
    assert (shown.type.value, shown.name) == ("CRASHED", "Superseded")
    assert events(site, before) == ["job.queued", "job.running", "job.queued", "recovery.started"]


@pytest.mark.expects_errors
def test_a_zombie_cannot_point_back_what_a_later_run_has_published(site, clip, held_at, end_of):
    running = held_at("publish_media:before", 3.0)
    recover_from_afar(site)
    SqliteLedger(site.ledger.path, clock=lambda: time.time() + 60).leases.sweep()
    site.ledger.jobs.cancel(only(site).id)
    _, later = end_of(site)
    assert later.state is JobState.DONE
    history = site.ledger.generations.history(VIDEO)
    assert not running.done()
    with pytest.raises((CrashedRun, CancelledRun)):
        running.result(10).result()
    assert site.ledger.generations.history(VIDEO) == history


def test_a_run_for_an_attempt_that_is_over_has_nothing_to_do(site, clip, deploy, execute, client):
    deploy(ingest_media)
    job = site.ledger.jobs.submit(JobRequest("acme", "ingest-media", "acme/v1", {"tenant": "acme", "media_key": KEY}))
    sweep(site, Caps())
    (run,) = site.ledger.dispatch.waiting(0)
    site.ledger.jobs.cancel(job.id)
    state = execute(run.run_id)
    assert (state.type.value, state.name) == ("CRASHED", "Superseded")
    assert (only(site).state, steps(site, job)) == (JobState.CANCELED, {})


def test_two_runs_on_the_same_video_go_one_after_the_other(site, clip, beside, eventually):
    runs: list[Any] = [beside(ingest_media, tenant="acme", media_key=clip, return_state=True) for _ in range(2)]
    assert all(run.result(20).is_completed() for run in runs)
    jobs = site.ledger.jobs.all()
    assert [job.state for job in jobs] == [JobState.DONE] * 2
    assert sorted(state for job in jobs for state in steps(site, job).values()) == ["DONE"] * 2 + ["REUSED"] * 2
    assert len(site.ledger.generations.history(VIDEO)) == 2
    assert sound(site)


@pytest.mark.expects_errors
@pytest.mark.parametrize("step", ["probe_media", "make_contact_sheet"])
def test_an_upload_that_changes_while_it_is_read_is_refused_and_nothing_is_recorded(
    site, clip, arm, beside, eventually, tmp_path, step
):
    log = arm(f"{step}:before=sleep(1)")
    running = beside(ingest_media, tenant="acme", media_key=clip, return_state=True)
    eventually(lambda: fired(log))
    site.store.put(clip, make_clip(tmp_path / "other.mp4", seconds=3).read_bytes())
    assert running.result(30).name == "Changed"
    (job,) = site.ledger.jobs.all()
    assert (job.state, job.error_code) == (JobState.FAILED, "changed")
    assert [unit.step for unit in site.ledger.units.of(job.id) if unit.state == "DONE" and unit.step == step] == []
    assert site.ledger.generations.current("video:acme/v1") is None
