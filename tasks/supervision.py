"""One sweep over a site: what is lost is found again, what waits is started, what is over is shown as over.

Any number of supervisors may sweep at the same time, and any of them may die between two lines: each decision is one
conditional statement of the ledger, each call to Prefect can be made again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Crashed, Failed

from blocks.site import OpenSite
from dailies.compute.modal_token import token_is_missing
from dailies.errors import Missing, NotConfigured, Transient
from dailies.events.relay import relay
from dailies.ledger.priority import priority_tags
from dailies.ledger.records import RECOVERED, Caps, Job, JobState, Run, job_resource
from tasks._compute import reap_orphans
from tasks._leftovers import clear

log = logging.getLogger("dailies.supervisor")
START_GRACE_S = 60.0
BIND_GRACE_S = 5.0
# A run that has just ended in the ledger says so to Prefect itself, if it lives.
LEASELESS_GRACE_S = 30.0
PAGE = 200


@dataclass
class Swept:
    recovered: int = 0
    failed: int = 0
    leases_ended: int = 0
    dispatched: int = 0
    shown: int = 0
    relayed: int = 0
    skipped: int = 0
    reaped: int = 0
    settled: int = 0
    reconciled: int = 0

    def __str__(self) -> str:
        return " ".join(f"{name}={count}" for name, count in asdict(self).items() if count) or "nothing to do"

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def sweep(site: OpenSite, caps: Caps | None = None) -> Swept:
    """The ledger comes first and needs nobody else; where Prefect does not answer, the next sweep tries again."""
    swept = Swept()
    guarded(lambda: recover(site, swept))
    guarded(lambda: reap(site, swept))
    guarded(lambda: settle(site, swept))
    if not get_current_settings().api.url:  # a client would bring up a temporary server for itself
        log.warning("action=later error=no Prefect API is configured: set PREFECT_API_URL")
        return swept
    with get_client(sync_client=True) as client:
        parts: list[Callable[[], None]] = [
            lambda: show_endings(site, client, swept),
            lambda: chase_unstarted(site, client),
            lambda: reconcile(site, client, swept),
            lambda: dispatch(site, client, caps or Caps(), swept),
            lambda: skip_gpu_twins(client, swept),
        ]
        for part in parts:
            guarded(part)
    guarded(lambda: deliver(site, swept))
    return swept


def guarded(part: Callable[[], None]) -> None:
    """One bad row or a server that is away must not keep the other parts from their work."""
    try:
        part()
    except (httpx.HTTPError, Transient, NotConfigured) as error:
        log.warning("action=later error=%s", str(error) or type(error).__name__)
    except Exception:
        log.exception("action=later")


def recover(site: OpenSite, swept: Swept) -> None:
    for job in site.ledger.jobs.recover():
        log.warning("action=recover job=%s attempt=%s state=%s message=%s", job.id, job.attempt, job.state, job.message)
        if job.final:
            swept.failed += 1
            clear(site, job)
        else:
            swept.recovered += 1
    swept.leases_ended += len(site.ledger.leases.sweep())


def reap(site: OpenSite, swept: Swept) -> None:
    """Work elsewhere whose job is over is not to be paid for any longer."""
    swept.reaped += reap_orphans(site)


def settle(site: OpenSite, swept: Swept) -> None:
    """A video must not say that it is worked on once its job is over, whoever or whatever ended that."""
    for video in site.ledger.videos.settle():
        log.info("action=settle video=%s/%s error_code=%s", video.tenant, video.video, video.error_code)
        swept.settled += 1


def show_endings(site: OpenSite, client: SyncPrefectClient, swept: Swept) -> None:
    """Attempts that ended in the ledger without their run being able to say so."""
    for run in site.ledger.dispatch.unshown():
        flow_run = find_run(client, run)
        if flow_run is not None and not (flow_run.state and flow_run.state.is_final()):
            client.set_flow_run_state(flow_run.id, ending(run), force=True)
            log.info("action=show run=%s job=%s ending=%s", run.run_id, run.job, run.ending)
            swept.shown += 1
        site.ledger.dispatch.shown(run.job, run.attempt)


def ending(run: Run) -> State[Any]:
    if run.ending == "cancelled":
        return Cancelled(message=f"Job {run.job} was canceled or paused")
    return Crashed(message=f"The worker of job {run.job} stopped renewing its lease: {RECOVERED.lower()}")


def find_run(client: SyncPrefectClient, run: Run) -> FlowRun | None:
    """The flow run of this attempt, if it is ours to touch: top-level, and tagged with this very job."""
    try:
        flow_run = client.read_flow_run(UUID(run.run_id))
    except (ObjectNotFound, ValueError):  # none yet, none any more, or one that is not Prefect's
        return None
    ours = not flow_run.parent_task_run_id and f"job:{run.job}" in flow_run.tags
    return flow_run if ours else None


def reconcile(site: OpenSite, client: SyncPrefectClient, swept: Swept) -> None:
    """Runs that Prefect shows as running although the ledger gave their job's lease to nobody, or to another run.

    The ledger's own list of endings misses those whose word to Prefect was lost after it was ticked off there, and
    those that a zombie set back to running.
    """
    for run in running(client):
        job = job_of(site, run)
        if job is None or not leaseless(site, job, run):
            continue
        client.set_flow_run_state(run.id, as_recorded(job, run), force=True)
        log.warning("action=reconcile run=%s job=%s state=%s", run.id, job.id, job.state)
        swept.reconciled += 1


def running(client: SyncPrefectClient) -> Iterator[FlowRun]:
    """Top-level runs of jobs that have been running for longer than a start takes."""
    grace = timedelta(seconds=LEASELESS_GRACE_S)
    going_on = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
        start_time=FlowRunFilterStartTime.model_validate({"before_": datetime.now(UTC) - grace}),
        parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=True),
    )
    offset = 0
    while found := client.read_flow_runs(flow_run_filter=going_on, limit=PAGE, offset=offset):
        yield from found
        offset += len(found)


def job_of(site: OpenSite, run: FlowRun) -> Job | None:
    """None where it is no job's run, or the job of another site: that one's supervisor sees to it."""
    ids = [tag.removeprefix("job:") for tag in run.tags if tag.startswith("job:")]
    if len(ids) != 1 or run.parameters.get("site", "local") != site.name:
        return None
    try:
        return site.ledger.jobs.get(ids[0])
    except Missing:
        return None


def leaseless(site: OpenSite, job: Job, run: FlowRun) -> bool:
    """Not only now but since a while: between two statements of its own a healthy run may seem to have none."""
    lease = site.ledger.leases.holder(job_resource(job.id))
    if lease is not None and lease.holder == str(run.id):
        return False
    return datetime.now(UTC).timestamp() - job.updated_at > LEASELESS_GRACE_S


def as_recorded(job: Job, run: FlowRun) -> State[Any]:
    """What the ledger knows of the attempt that this run was."""
    last = f"attempt:{job.attempt}" in run.tags
    if last and job.state is JobState.DONE:
        return Completed(message=f"Job {job.id} is done; its run could not say so")
    if last and job.state is JobState.FAILED:
        return Failed(message=job.error or f"Job {job.id} failed")
    if last and job.state in (JobState.CANCELED, JobState.PAUSED):
        return Cancelled(message=f"Job {job.id} was canceled or paused")
    return Crashed(message=f"It has no lease on job {job.id}, which is {job.state} in attempt {job.attempt}")


def chase_unstarted(site: OpenSite, client: SyncPrefectClient) -> None:
    """A run that ended, or was picked up by a worker that then died, before it could start its job.

    A run that still waits for a worker is left to wait: another one would wait no less.
    """
    for run in site.ledger.dispatch.waiting(START_GRACE_S):
        flow_run = find_run(client, run)
        state = flow_run.state if flow_run else None
        if state is not None and state.is_cancelled():  # by a person, before any of our code ran that could hear of it
            site.ledger.jobs.cancel(run.job)
            log.info("action=cancel job=%s run=%s", run.job, run.run_id)
        elif lost(state):
            site.ledger.dispatch.give_up(run.job, run.attempt, refused(state))
            log.warning("action=give_up job=%s attempt=%s run=%s", run.job, run.attempt, run.run_id)


def refused(state: State[Any] | None) -> NotConfigured | None:
    """A run that could not open its site says so and ends; another one could not open it either."""
    if state is not None and state.is_failed() and state.name == NotConfigured.__name__:
        return NotConfigured(state.message or "its run found the site not configured")
    return None


def lost(state: State[Any] | None) -> bool:
    """Over, or on its way for longer than any start takes; how long it waited before that says nothing."""
    if state is None or state.is_final():
        return True
    taken = datetime.now(UTC) - state.timestamp
    return (state.is_pending() or state.is_running()) and taken > timedelta(seconds=START_GRACE_S)


def dispatch(site: OpenSite, client: SyncPrefectClient, caps: Caps, swept: Swept) -> None:
    for claimed in site.ledger.dispatch.unbound(BIND_GRACE_S):
        create_run(site, client, claimed)
    while (job := site.ledger.dispatch.next(caps)) is not None:
        create_run(site, client, job)
        swept.dispatched += 1


def create_run(site: OpenSite, client: SyncPrefectClient, job: Job) -> None:
    """The idempotency key makes a second creation return the first run, so dying before ``bind`` costs nothing."""
    try:
        deployment = client.read_deployment_by_name(job.deployment)
    except ObjectNotFound:
        missing = NotConfigured(f"there is no deployment {job.deployment}: run `dailies up`, or deploy it")
        site.ledger.dispatch.give_up(job.id, job.attempt, missing)
        log.error("action=refuse job=%s error=%s", job.id, missing)
        return
    flow_run = client.create_flow_run_from_deployment(
        deployment.id,
        parameters={"site": site.name, **job.params},
        tags=[f"job:{job.id}", f"attempt:{job.attempt}", *rank_tags(site, job)],
        idempotency_key=f"job:{job.id}:{job.attempt}",
    )
    site.ledger.dispatch.bind(job.id, job.attempt, str(flow_run.id))
    log.info("action=dispatch job=%s attempt=%s run=%s deployment=%s", job.id, job.attempt, flow_run.id, job.deployment)


def rank_tags(site: OpenSite, job: Job) -> list[str]:
    tier = site.ledger.tenants.tier(job.tenant)
    return priority_tags(job.tenant, tier, site.ledger.dispatch.rank(job), job.aging_rule)


def skip_gpu_twins(client: SyncPrefectClient, swept: Swept) -> None:
    """A scenario's GPU twin that nobody here can pay for says so, instead of waiting for a worker for ever."""
    reason = token_is_missing()
    if not reason:
        return
    due = FlowRunFilter(
        tags=FlowRunFilterTags(all_=["dailies", "infra:gpu", "expected:success"]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)}),
    )
    for run in client.read_flow_runs(flow_run_filter=due, limit=20):
        if run.work_pool_name and workers_online(client, run.work_pool_name):
            continue  # a worker elsewhere has a token
        client.set_flow_run_state(run.id, Completed(name="Skipped", message=reason), force=True)
        log.info("action=skip run=%s reason=%s", run.id, reason)
        swept.skipped += 1


def workers_online(client: SyncPrefectClient, pool: str) -> bool:
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return bool(client.read_workers_for_work_pool(pool, worker_filter=online))


def deliver(site: OpenSite, swept: Swept) -> None:
    if site.events is not None:
        swept.relayed += relay(site.ledger, site.events)
