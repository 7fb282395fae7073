"""The supervisor's sweep beside a Prefect API: what is lost is found, what waits is started, once."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Pending, Running, State

from blocks.site import OpenSite, open_site
from dailies.errors import Conflict, Fenced, Transient, Unreadable
from dailies.events.schemas import RECOVERY_STARTED
from dailies.failpoints import fired
from dailies.ledger.holding import TTL_S
from dailies.ledger.records import Caps, Job, JobRequest, JobState, Lease, VideoState
from dailies.ledger.sqlite import SqliteLedger
from flows.ingest_media import ingest_media, video_of
from flows.recover_jobs import recover_jobs
from services import supervisor
from services.environment import environment
from tasks import supervision
from tasks._hooks import cancel_job
from tasks._job import Working, job_flow
from tasks.supervision import BIND_GRACE_S, START_GRACE_S, Swept, sweep

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

PLENTY = Caps(total=50, per_tenant=50)
NONE = Caps(total=0, per_tenant=0)
NOBODY = "http://127.0.0.1:9/api"
LATER_S = START_GRACE_S + 1
CLIP = "acme/client/videos/v1/clip.mp4"
PARAMETERS = {"tenant": "acme", "media_key": CLIP}


@pytest.fixture
def deployed(deploy) -> str:
    return str(deploy(ingest_media))


@pytest.fixture
def submit(site) -> Callable[..., Job]:
    def ask(tenant: str = "acme", video: str = "v1", **more: Any) -> Job:
        params = {"tenant": tenant, "media_key": f"{tenant}/client/videos/{video}/clip.mp4"}
        return site.ledger.jobs.submit(JobRequest(tenant, "ingest-media", f"{tenant}/{video}", params, **more))

    return ask


@pytest.fixture
def run_of(site, client) -> Callable[[Job], FlowRun]:
    """The flow run of the job's current attempt, as the API has it."""

    def read(job: Job) -> FlowRun:
        (found,) = runs(client, job)
        return found

    return read


def runs(client: SyncPrefectClient, job: Job) -> list[FlowRun]:
    key = f"job:{job.id}:{job.attempt}"
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key])))


def later(site: OpenSite, seconds: float = LATER_S) -> OpenSite:
    """The same site to somebody whose clock is ahead."""
    return dataclasses.replace(site, ledger=SqliteLedger(site.ledger.path, clock=lambda: time.time() + seconds))


def start(site: OpenSite, job: Job, run_id: Any, ttl: float = TTL_S) -> Lease:
    return site.ledger.jobs.start(job.id, job.attempt, str(run_id), ttl)[1]


def die(site: OpenSite, job: Job, run_id: Any) -> Lease:
    """The job's run starts and is never heard of again."""
    lease = start(site, job, run_id, ttl=0.01)
    time.sleep(0.02)
    return lease


def sound(site: OpenSite) -> bool:
    return not any(site.ledger.audit(grace=0).values())


def test_a_waiting_job_gets_a_run_with_its_tags_parameters_and_idempotency_key(site, deployed, submit, run_of):
    site.ledger.tenants.set_tier("acme", "premium")
    job = submit()
    assert sweep(site, PLENTY) == Swept(dispatched=1, relayed=1)
    found = run_of(job)
    assert set(found.tags) == {
        f"job:{job.id}", "attempt:1", "tenant:acme", "tier:premium", "priority:70", "age-boosting:enabled",
    }  # fmt: skip
    assert found.parameters == {"site": "local", **job.params}
    assert str(found.deployment_id) == deployed
    assert found.state.is_scheduled()
    assert site.ledger.dispatch.jobs_of(str(found.id)) == [job.id]
    assert site.ledger.jobs.get(job.id).state is JobState.QUEUED


def test_only_free_slots_are_filled_the_most_urgent_first(site, deployed, submit, client):
    site.ledger.tenants.set_tier("rich", "enterprise")
    site.ledger.tenants.set_tier("paid", "premium")
    jobs = [submit(tenant, video) for tenant in ("free", "paid", "rich") for video in ("v1", "v2", "v3")]
    assert sweep(site, Caps(total=3, per_tenant=2)).dispatched == 3
    chosen = [job.subject for job in jobs if runs(client, job)]
    assert chosen == ["paid/v1", "rich/v1", "rich/v2"]
    assert sweep(site, Caps(total=3, per_tenant=2)).dispatched == 0


def test_a_slot_that_becomes_free_is_filled_by_the_next(site, deployed, submit, client, run_of):
    first, second = submit(video="v1"), submit(video="v2")
    one = Caps(total=1, per_tenant=1)
    assert sweep(site, one).dispatched == 1
    lease = start(site, first, run_of(first).id)
    assert sweep(site, one).dispatched == 0
    site.ledger.jobs.done(lease, {})
    assert sweep(site, one).dispatched == 1
    assert len(runs(client, second)) == 1


def test_a_second_sweep_creates_nothing_twice(site, deployed, submit, client):
    job = submit()
    assert [sweep(site, PLENTY).dispatched for _ in range(3)] == [1, 0, 0]
    assert len(runs(client, job)) == 1


def test_two_sweeps_at_once_create_nothing_twice(site, deployed, submit, client, beside):
    jobs = [submit(tenant, video) for tenant in ("acme", "apex") for video in ("v1", "v2", "v3")]
    sweeps = [beside(lambda: sweep(open_site(), Caps(total=4, per_tenant=2))) for _ in range(2)]
    assert sum(one.result(20).dispatched for one in sweeps) == 4
    assert sorted(len(runs(client, job)) for job in jobs) == [0, 0, 1, 1, 1, 1]
    assert all(len(site.ledger.dispatch.jobs_of(str(run.id))) == 1 for job in jobs for run in runs(client, job))


def test_a_dispatcher_that_died_before_it_created_the_run_is_made_good(site, deployed, submit, run_of):
    job = submit()
    assert site.ledger.dispatch.next(PLENTY) == job
    assert sweep(site, PLENTY).dispatched == 0
    sweep(later(site, BIND_GRACE_S + 1), PLENTY)
    assert site.ledger.dispatch.jobs_of(str(run_of(job).id)) == [job.id]


def test_a_dispatcher_that_died_before_it_wrote_the_run_down_costs_no_second_run(site, deployed, submit, client):
    job = submit()
    site.ledger.dispatch.next(PLENTY)
    created = client.create_flow_run_from_deployment(
        client.read_deployment_by_name("ingest-media/cpu").id,
        parameters=job.params,
        tags=[f"job:{job.id}", "attempt:1"],
        idempotency_key=f"job:{job.id}:1",
    )
    sweep(later(site, BIND_GRACE_S + 1), PLENTY)
    assert [run.id for run in runs(client, job)] == [created.id]
    assert site.ledger.dispatch.jobs_of(str(created.id)) == [job.id]


def test_a_job_whose_worker_died_gets_another_attempt_and_its_run_is_crashed(site, deployed, submit, client, run_of):
    job = submit()
    sweep(site, PLENTY)
    dead = run_of(job)
    client.set_flow_run_state(dead.id, Running(), force=True)
    die(site, job, dead.id)
    swept = sweep(site, PLENTY)
    assert (swept.recovered, swept.shown, swept.dispatched) == (1, 1, 1)
    again = site.ledger.jobs.get(job.id)
    assert (again.state, again.attempt, again.crashes) == (JobState.QUEUED, 2, 1)
    assert again.message == "Recovered after restart"
    shown = client.read_flow_run(dead.id).state
    assert shown.is_crashed()
    assert job.id in shown.message
    assert run_of(again).id != dead.id
    assert {f"job:{job.id}", "attempt:2"} <= set(run_of(again).tags)
    assert [event.data["recovery"] for event in site.ledger.outbox.of(job.id)] == [False, False, True, True]
    assert sweep(site, PLENTY) == Swept()
    assert sound(site)


def test_a_job_that_died_in_every_attempt_is_failed(site, deployed, submit, client, run_of):
    job = submit(max_attempts=2)
    for attempt in (1, 2):
        sweep(site, PLENTY)
        job = site.ledger.jobs.get(job.id)
        assert job.attempt == attempt
        die(site, job, run_of(job).id)
    assert sweep(site, PLENTY).failed == 1
    dead = site.ledger.jobs.get(job.id)
    assert (dead.state, dead.error_code, dead.crashes) == (JobState.FAILED, "died", 2)
    assert dead.error == "its worker died in each of 2 attempts"
    assert run_of(dead).state.is_crashed()
    assert sweep(site, PLENTY) == Swept()
    assert sound(site)


@pytest.mark.parametrize("word", ["cancel", "pause"])
def test_the_scheduled_run_of_a_job_that_is_called_off_is_cancelled(site, deployed, submit, run_of, word):
    job = submit()
    sweep(site, PLENTY)
    getattr(site.ledger.jobs, word)(job.id)
    assert sweep(site, PLENTY).shown == 1
    assert run_of(job).state.is_cancelled()
    assert job.id in run_of(job).state.message
    assert sweep(site, PLENTY) == Swept()


def test_a_run_that_ended_by_itself_keeps_its_state(site, deployed, submit, client, run_of):
    job = submit()
    sweep(site, PLENTY)
    client.set_flow_run_state(run_of(job).id, Completed(name="Mine"), force=True)
    site.ledger.jobs.cancel(job.id)
    assert sweep(site, PLENTY).shown == 0
    assert run_of(job).state.name == "Mine"


def test_the_video_of_a_job_that_was_canceled_does_not_go_on_saying_that_it_is_worked_on(site, submit, caplog):
    job = submit()
    site.ledger.dispatch.next(PLENTY)
    site.ledger.dispatch.bind(job.id, 1, "run-1")
    start(site, job, "run-1")
    site.ledger.videos.register("acme", "v1", job.params["media_key"])
    video = site.ledger.leases.acquire("video:acme/v1", "run-1", TTL_S)
    site.ledger.videos.update(video, state=VideoState.PROCESSING)
    assert sweep(site, NONE).settled == 0
    site.ledger.jobs.cancel(job.id)
    with caplog.at_level(logging.INFO, "dailies.supervisor"):
        assert sweep(site, NONE).settled == 1
    assert "action=settle video=acme/v1 error_code=canceled" in caplog.messages
    settled = site.ledger.videos.get("acme", "v1")
    assert (settled.state, settled.error_code) == (VideoState.ERROR, "canceled")
    event = site.ledger.outbox.of(job.id)[-1]
    assert (event.type, event.subject, event.data["error_code"]) == ("dailies.video.error", "acme/v1", "canceled")
    assert sweep(site, NONE) == Swept()
    assert sound(site)


@job_flow("half-way", subject=video_of)
def half_way(job: Working, tenant: str, media_key: str, error: str) -> None:
    """Says that it works on the video, and comes to grief."""
    job.site.ledger.videos.register(tenant, "v1", media_key)
    job.site.ledger.videos.update(job.claim, state=VideoState.PROCESSING)
    raise Unreadable(error) if error == "not media" else Transient(error)


@pytest.mark.expects_errors
def test_the_video_of_a_run_that_fails_says_so_at_once_without_any_sweep(site):
    half_way(tenant="acme", media_key=CLIP, error="not media", return_state=True)
    (job,) = site.ledger.jobs.all()
    settled = site.ledger.videos.get("acme", "v1")
    assert (settled.state, settled.error_code, settled.error) == (VideoState.ERROR, "unreadable", "not media")
    assert [event.type for event in site.ledger.outbox.of(job.id)][-2:] == ["dailies.job.failed", "dailies.video.error"]


@pytest.mark.expects_errors
def test_the_video_of_a_run_that_will_be_tried_again_goes_on_saying_that_it_is_worked_on(site):
    half_way(tenant="acme", media_key=CLIP, error="once more", return_state=True)
    assert site.ledger.jobs.all()[0].state is JobState.QUEUED
    assert sweep(site, NONE).settled == 0
    assert site.ledger.videos.get("acme", "v1").state is VideoState.PROCESSING


@pytest.mark.expects_errors
def test_a_video_that_cannot_be_settled_hides_nothing_of_its_jobs_end_and_the_next_sweep_settles_it(site, client):
    deny = """CREATE TRIGGER deny BEFORE INSERT ON outbox WHEN new.type = 'dailies.video.error'
              BEGIN SELECT RAISE(ABORT, 'no more events'); END"""
    with closing(sqlite3.connect(site.ledger.path, isolation_level=None)) as ledger:
        ledger.execute(deny)
        state = half_way(tenant="acme", media_key=CLIP, error="not media", return_state=True)
        assert (state.name, state.message) == ("Unreadable", "not media")
        assert site.ledger.jobs.all()[0].state is JobState.FAILED
        assert site.ledger.videos.get("acme", "v1").state is VideoState.PROCESSING, "with its event or not at all"
        ledger.execute("DROP TRIGGER deny")
    assert sweep(site, NONE).settled == 1
    assert site.ledger.videos.get("acme", "v1").error_code == "unreadable"
    assert sound(site)


@pytest.mark.expects_errors
def test_a_job_whose_deployment_does_not_exist_is_failed_at_once(site, deployed, submit):
    lost, good = submit(deployment="ingest-media/moon", base=100.0), submit(video="v2")
    sweep(site, PLENTY)
    refused = site.ledger.jobs.get(lost.id)
    assert (refused.state, refused.error_code, refused.attempt) == (JobState.FAILED, "not_configured", 1)
    assert refused.error == "there is no deployment ingest-media/moon: run `dailies up`, or deploy it"
    assert site.ledger.dispatch.unbound(0) == []
    (bound,) = site.ledger.dispatch.waiting(0)
    assert bound.job == good.id
    assert sound(site)


def stranger(client: SyncPrefectClient, **about: Any) -> FlowRun:
    @flow(name="stranger")
    def strange() -> None:
        """Not ours."""

    return client.create_flow_run(strange, state=Running(), **about)


@task
def nothing() -> None:
    """The task that a subflow run hangs from."""


def test_a_run_without_the_jobs_tag_is_never_touched(site, submit, client):
    job = submit()
    foreign = stranger(client, tags=["job:another"])
    site.ledger.dispatch.next(PLENTY)
    site.ledger.dispatch.bind(job.id, 1, str(foreign.id))
    die(site, job, foreign.id)
    swept = sweep(site, NONE)
    assert (swept.recovered, swept.shown) == (1, 0)
    assert client.read_flow_run(foreign.id).state.is_running()
    assert site.ledger.dispatch.unshown() == []


def test_a_subflow_run_is_never_touched(site, submit, client):
    job = submit()
    parent = client.create_task_run(nothing, flow_run_id=stranger(client).id, dynamic_key="0")
    child = stranger(client, tags=[f"job:{job.id}"], parent_task_run_id=parent.id)
    site.ledger.dispatch.next(PLENTY)
    site.ledger.dispatch.bind(job.id, 1, str(child.id))
    die(site, job, child.id)
    assert sweep(site, NONE).shown == 0
    assert client.read_flow_run(child.id).state.is_running()


def test_runs_of_nobody_are_left_alone(site, deployed, submit, client):
    bystander = stranger(client)
    submit()
    sweep(site, PLENTY)
    sweep(later(site), PLENTY)
    assert client.read_flow_run(bystander.id).state.is_running()


@pytest.mark.parametrize("state", [Pending(), Running(), Completed()], ids=lambda state: state.name)
def test_a_run_that_never_started_its_job_is_given_up(
    site, deployed, submit, client, run_of, eventually, monkeypatch, state
):
    job = submit()
    sweep(site, PLENTY)
    client.set_flow_run_state(run_of(job).id, state, force=True)
    assert sweep(site, NONE) == Swept()
    monkeypatch.setattr(supervision, "START_GRACE_S", 0.2)
    eventually(lambda: sweep(site, PLENTY) and site.ledger.jobs.get(job.id).attempt == 2)
    sweep(site, PLENTY)
    assert run_of(job).state.is_completed() if state.is_final() else run_of(job).state.is_crashed()
    assert site.ledger.dispatch.jobs_of(str(run_of(site.ledger.jobs.get(job.id)).id)) == [job.id]
    assert sound(site)


@pytest.mark.parametrize("state", [None, Pending(), Running()], ids=["waits for a worker", "picked up", "running"])
def test_a_run_that_waited_long_for_its_worker_is_not_given_up_when_one_has_just_come(
    site, deployed, submit, client, run_of, state
):
    job = submit()
    sweep(site, PLENTY)
    if state:
        client.set_flow_run_state(run_of(job).id, state, force=True)
    assert sweep(later(site), NONE) == Swept()
    assert site.ledger.jobs.get(job.id) == job
    start(site, job, run_of(job).id)


@pytest.mark.expects_errors
def test_a_zombie_that_finishes_later_cannot_change_the_job(site, clip, client, arm, beside, eventually):
    log = arm("make_contact_sheet:after=sleep(2)")
    running = beside(ingest_media, tenant="acme", media_key=clip, return_state=True)
    eventually(lambda: fired(log))
    (job,) = site.ledger.jobs.all()
    run_id = site.ledger.leases.holder(f"job:{job.id}").holder
    swept = sweep(later(site), NONE)
    assert (swept.recovered, swept.shown) == (1, 1)
    assert site.ledger.leases.holder("video:acme/v1") is None, "what a lost run held must not wait for its ttl"
    recovered = site.ledger.jobs.get(job.id)
    assert (recovered.state, recovered.attempt) == (JobState.QUEUED, 2)
    with pytest.raises(Abort, match="already in terminal state CRASHED"):
        running.result(20)
    assert site.ledger.jobs.get(job.id) == recovered
    assert site.ledger.generations.current("video:acme/v1") is None
    assert client.read_flow_run(UUID(run_id)).state.is_crashed()
    assert sound(site)


def test_a_zombie_with_the_lease_of_a_dead_attempt_is_refused(site, deployed, submit, run_of):
    job = submit()
    sweep(site, PLENTY)
    lease = die(site, job, run_of(job).id)
    sweep(site, PLENTY)
    after = site.ledger.jobs.get(job.id)
    with pytest.raises(Fenced):
        site.ledger.jobs.done(lease, {"by": "a zombie"})
    with pytest.raises(Fenced):
        site.ledger.units.complete(lease, "key", "step", "digest", {})
    with pytest.raises(Conflict):
        site.ledger.jobs.start(job.id, 1, lease.holder, TTL_S)
    assert site.ledger.jobs.get(job.id) == after


@pytest.fixture
def nobody_answers() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        yield


def test_while_the_api_is_down_the_ledger_is_swept_all_the_same(site, submit, caplog, nobody_answers):
    lost, waiting = submit(video="v1"), submit(video="v2")
    site.ledger.dispatch.next(PLENTY)
    site.ledger.dispatch.bind(lost.id, 1, str(uuid4()))
    die(site, lost, site.ledger.dispatch.waiting(0)[0].run_id)
    with caplog.at_level(logging.WARNING, "dailies.supervisor"):
        swept = sweep(open_site(), PLENTY)
    assert (swept.recovered, swept.dispatched, swept.shown, swept.relayed) == (1, 0, 0, 0)
    assert site.ledger.jobs.get(lost.id).message == "Recovered after restart"
    assert site.ledger.jobs.get(waiting.id).state is JobState.QUEUED
    assert len([record for record in caplog.records if record.message.startswith("action=later")]) >= 2
    assert len(site.ledger.dispatch.unshown()) == 1
    assert [event.type for event in site.ledger.outbox.pending()][-1] == RECOVERY_STARTED
    assert len(site.ledger.outbox.pending()) == 5


def test_what_was_left_while_the_api_was_down_is_done_when_it_is_back(site, deployed, submit, client):
    job = submit()
    with temporary_settings({PREFECT_API_URL: NOBODY}):
        assert sweep(open_site(), PLENTY).dispatched == 0
    assert runs(client, job) == []
    swept = sweep(later(site, BIND_GRACE_S + 1), PLENTY)
    assert swept.relayed == 1
    assert len(runs(client, job)) == 1
    assert site.ledger.outbox.pending() == []


def test_events_are_delivered_with_a_receipt(site, submit):
    jobs = [submit(video=f"v{number}") for number in range(3)]
    site.ledger.jobs.cancel(jobs[0].id)
    assert len(site.ledger.outbox.pending()) == 4
    assert sweep(site, NONE).relayed == 4
    assert site.ledger.outbox.pending() == []
    assert sweep(site, NONE).relayed == 0


def test_events_wait_while_nobody_answers(site, submit, nobody_answers):
    submit()
    assert sweep(open_site(), NONE).relayed == 0
    (event,) = site.ledger.outbox.pending()
    assert event.type == "dailies.job.queued"


def test_canceling_the_run_in_prefect_cancels_its_job(site, deployed, submit, client, run_of):
    job, other = submit(video="v1"), submit(video="v2")
    sweep(site, PLENTY)
    start(site, job, run_of(job).id)
    cancel_job(flow=ingest_media, flow_run=run_of(job), state=State(type="CANCELLING"))
    assert site.ledger.jobs.get(job.id).state is JobState.CANCELED
    assert site.ledger.jobs.get(other.id).state is JobState.QUEUED
    cancel_job(flow=ingest_media, flow_run=run_of(job), state=State(type="CANCELLED"))
    assert cancel_job in ingest_media.on_cancellation_hooks


def test_a_person_who_cancels_a_run_that_no_worker_took_cancels_its_job(site, deployed, submit, client, run_of):
    """None of our code ran that could have heard of it: no engine, no hook."""
    job = submit()
    sweep(site, PLENTY)
    client.set_flow_run_state(run_of(job).id, Cancelled(), force=True)
    sweep(later(site), NONE)
    assert site.ledger.jobs.get(job.id).state is JobState.CANCELED
    sweep(later(site), PLENTY)
    assert site.ledger.jobs.get(job.id).attempt == 1


def test_canceling_the_run_of_an_earlier_attempt_leaves_the_job_alone(site, deployed, submit, run_of):
    job = submit()
    sweep(site, PLENTY)
    first = run_of(job)
    die(site, job, first.id)
    sweep(site, PLENTY)
    cancel_job(flow=ingest_media, flow_run=first, state=State(type="CANCELLED"))
    assert site.ledger.jobs.get(job.id).state is JobState.QUEUED


@pytest.fixture
def no_grace(monkeypatch):
    monkeypatch.setattr(supervision, "LEASELESS_GRACE_S", 0.0)


def shown_running(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    client.set_flow_run_state(run.id, Running(), force=True)
    return client.read_flow_run(run.id)


@pytest.mark.usefixtures("no_grace")
def test_a_run_that_a_zombie_set_back_to_running_is_crashed_again(site, deployed, submit, client, run_of):
    job = submit()
    sweep(site, PLENTY)
    dead = run_of(job)
    die(site, job, dead.id)
    sweep(site, PLENTY)
    shown_running(client, dead)
    assert sweep(site, PLENTY) == Swept(reconciled=1)
    state = client.read_flow_run(dead.id).state
    assert state.is_crashed()
    assert f"job {job.id}, which is QUEUED in attempt 2" in state.message


@pytest.mark.usefixtures("no_grace")
def test_a_run_whose_last_word_was_lost_is_shown_as_its_job_ended(site, deployed, submit, client, run_of):
    endings = {
        "v1": (lambda lease: site.ledger.jobs.done(lease, {}), "COMPLETED"),
        "v2": (lambda lease: site.ledger.jobs.failed(lease, Unreadable("not media")), "FAILED"),
        "v3": (site.ledger.jobs.paused, "CANCELLED"),
    }
    jobs = {video: submit(video=video) for video in endings}
    sweep(site, PLENTY)
    for video, (end, _) in endings.items():
        run = shown_running(client, run_of(jobs[video]))
        end(start(site, jobs[video], run.id))
    assert sweep(site, PLENTY).reconciled == 3
    for video, (_, expected) in endings.items():
        assert client.read_flow_run(run_of(jobs[video]).id).state.type == expected
    assert client.read_flow_run(run_of(jobs["v2"]).id).state.message == "not media"


@pytest.mark.usefixtures("no_grace")
def test_healthy_runs_and_those_of_others_are_never_touched(site, deployed, submit, client, run_of):
    """Its lease is alive; its job is another site's; its job is nobody's here; it is part of another run."""
    healthy, elsewhere = submit(video="v1"), submit(video="v2")
    sweep(site, PLENTY)
    start(site, healthy, run_of(healthy).id)
    theirs = run_of(elsewhere)
    client._client.patch(f"/flow_runs/{theirs.id}", json={"parameters": {**theirs.parameters, "site": "production"}})
    deployment = client.read_deployment_by_name("ingest-media/cpu").id
    unknown = client.create_flow_run_from_deployment(deployment, parameters=PARAMETERS, tags=["job:0123456789abcdef"])
    plain = client.create_flow_run_from_deployment(deployment, parameters=PARAMETERS)
    for run in (run_of(healthy), theirs, unknown, plain):
        shown_running(client, run)
    for _ in range(3):
        assert sweep(site, PLENTY).reconciled == 0
    assert all(client.read_flow_run(run.id).state.is_running() for run in (run_of(healthy), theirs, unknown, plain))


def test_a_run_without_a_lease_gets_the_time_to_speak_for_itself(site, deployed, submit, client, run_of, monkeypatch):
    job = submit()
    sweep(site, PLENTY)
    run = shown_running(client, run_of(job))
    site.ledger.jobs.done(start(site, job, run.id), {})
    assert sweep(site, PLENTY).reconciled == 0
    assert supervision.LEASELESS_GRACE_S < 60, "what has no lease is reconciled within a minute"
    monkeypatch.setattr(supervision, "LEASELESS_GRACE_S", 0.0)
    assert sweep(site, PLENTY).reconciled == 1


def test_the_flow_recover_jobs_sweeps_once_and_returns_its_counts(site, deployed, submit, run_of):
    job, waiting = submit(video="v1"), submit(video="v2")
    sweep(site, Caps(total=1, per_tenant=1))
    die(site, job, run_of(job).id)
    counts = recover_jobs(slots=1, slots_per_tenant=1)
    assert {what: count for what, count in counts.items() if count} == {
        "recovered": 1,
        "dispatched": 1,
        "shown": 1,
        "relayed": 3,
    }
    assert {site.ledger.jobs.get(one.id).attempt for one in (job, waiting)} == {1, 2}
    assert len(site.ledger.dispatch.waiting(0)) == 1


@pytest.fixture
def supervisors(fast_api, home) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started = []

    def begin() -> subprocess.Popen[bytes]:
        log = (home.parent / f"supervisor-{len(started)}.log").open("wb")
        command = [sys.executable, "-m", "services.supervisor", "--slots", "2"]
        env = environment(PREFECT_API_URL=fast_api, DAILIES_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED="false")
        started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stopped_within(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    process.send_signal(signal.SIGTERM)
    return process.wait(seconds) == 0


@pytest.mark.recovery
def test_a_supervisor_process_recovers_dispatches_relays_and_stops_when_told(
    site, deployed, submit, client, run_of, supervisors, eventually
):
    job = submit()
    sweep(site, PLENTY)
    die(site, job, run_of(job).id)
    process = supervisors()
    eventually(lambda: site.ledger.jobs.get(job.id).attempt == 2)
    again = site.ledger.jobs.get(job.id)
    eventually(lambda: len(runs(client, again)) == 1)
    eventually(lambda: not site.ledger.outbox.pending())
    assert again.message == "Recovered after restart"
    assert stopped_within(3, process)
    assert site.ledger.leases.holder("relay") is None


def test_a_ledger_that_is_away_while_the_supervisor_cleans_up_costs_no_more_than_a_later_clean_up(
    site, monkeypatch, caplog, beside, eventually
):
    def away(*_: object) -> int:
        raise Transient("the ledger does not answer")

    monkeypatch.setattr(supervisor, "CLEAN_S", 0.2)
    monkeypatch.setattr(supervisor, "clear_orphans", away)
    ended = threading.Event()
    running = beside(supervisor.supervise, site, NONE, ended)
    with caplog.at_level(logging.WARNING, "dailies.supervisor"):
        eventually(lambda: sum("what=working files" in record.message for record in caplog.records) >= 2)
    assert not running.done()
    ended.set()
    running.result(10)


@pytest.mark.recovery
def test_two_supervisors_at_once_do_no_harm(site, deployed, submit, client, run_of, supervisors, eventually):
    pair = [supervisors(), supervisors()]
    eventually(lambda: site.ledger.leases.holder("relay"))
    jobs = [submit(tenant, video) for tenant in ("acme", "apex") for video in ("v1", "v2")]
    eventually(lambda: len(site.ledger.dispatch.waiting(0)) == 2)
    first = next(job for job in jobs if runs(client, job))
    die(site, first, run_of(first).id)
    eventually(lambda: site.ledger.jobs.get(first.id).attempt == 2)
    eventually(lambda: len(site.ledger.dispatch.waiting(0)) == 2 and not site.ledger.outbox.pending())
    assert all(stopped_within(3, process) for process in pair)
    assert max(len(runs(client, job)) for job in jobs) == 1
    assert [job.attempt for job in map(site.ledger.jobs.get, (job.id for job in jobs))].count(2) == 1
    assert len(site.ledger.outbox.of(first.id)) == 4
    assert sound(site)
