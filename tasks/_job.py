"""What makes a flow a job: registered in the ledger, leased while it runs, and ended there before Prefect hears of it.

However it was started (dispatched by the supervisor, `prefect deployment run`, a schedule, the UI, a Python call), from
then on it is like any other: when its worker dies, somebody else continues it.
"""

from __future__ import annotations

import functools
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, State, flow, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TagsContext
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed, Failed
from pydantic import NonNegativeFloat
from pydantic_core import to_jsonable_python

from blocks.site import OpenSite, open_site
from dailies.compute.child import Children
from dailies.errors import BadInput, Conflict, DailiesError, Fenced, Held, NotConfigured, Stopped, Transient
from dailies.events.schemas import RECOVERY_STARTED, checked
from dailies.failpoints import failpoint
from dailies.ledger.holding import TTL_S, Keeper, acquire, give_back, keeping
from dailies.ledger.records import Job, JobRequest, JobState, Lease
from tasks._hooks import cancel_job
from tasks._leftovers import clear, scratch_of

RETRY_IN_S = 5.0  # after the first failure; four times as long after each further one
PROGRESS_S = 2.0

ARGUMENTS = """
        site: The connections to use: 'local', or the name of a 'Dailies site' block.
        patience_s: Seconds to wait while another run works on the same; 0 fails at once.
    """


@dataclass
class Working:
    """A job in the hands of this run: what the steps are given."""

    site: OpenSite
    job: Job
    lease: Lease
    keeper: Keeper
    claim: Lease  # on what is worked on: a video, or a catalogue
    patience: float = 30.0
    children: Children = field(default_factory=Children)

    @contextmanager
    def holding(self, resource: str) -> Iterator[Lease]:
        """A further lease for a moment, waited for with the run's patience."""
        lease = take(self.site, self.job, self.lease, self.keeper, resource, self.patience)
        try:
            yield lease
        finally:
            give_back(self.site.ledger, self.keeper, lease)

    def check(self) -> None:
        """Raise if nothing new may be begun: canceled, paused, or not ours any more."""
        self.keeper.check()

    def tell(self, kind: str, occasion: str, data: Mapping[str, Any]) -> None:
        """An event that is no change of state. The same occasion is told once, however often it is tried."""
        self.site.ledger.outbox.emit(self.lease, kind, occasion, checked(kind, {"job_id": self.job.id, **data}))

    def recovered(self) -> bool:
        """Whether this attempt goes on with what one left whose worker died."""
        events = self.site.ledger.outbox.of(self.job.id) if self.job.attempt > 1 else ()
        return any(event.type == RECOVERY_STARTED for event in events)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on this machine. What a killed run leaves in it is found by the job's name and removed."""
        with TemporaryDirectory(dir=scratch_of(self.job.id, create=True)) as folder:
            yield Path(folder)

    def progress(self, what: str) -> Callable[[float], None]:
        """Shows itself in the UI only when the work takes long enough for somebody to wonder."""
        return Progress(what)


class Progress:
    def __init__(self, what: str) -> None:
        self._what = what
        self._artifact: Any = None
        self._next = time.monotonic() + PROGRESS_S

    def __call__(self, part: float) -> None:
        if time.monotonic() < self._next and not (part >= 1 and self._artifact):
            return
        self._next = time.monotonic() + PROGRESS_S
        percent = round(100 * part, 1)
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, description=self._what)
        else:
            update_progress_artifact(self._artifact, percent)


def job_flow(
    name: str, subject: Callable[..., str], resource: str = "video", **options: Any
) -> Callable[[Callable[..., Any]], Flow[..., Any]]:
    """Make ``function(job, **parameters)`` a flow of that name whose runs are jobs.

    ``subject`` says from the parameters what is worked on, and ``resource`` what kind of thing that is; one run at a
    time has the lease on it. The flow gets two more parameters: ``site`` and ``patience_s``.
    """

    def decorate(function: Callable[..., Any]) -> Flow[..., Any]:
        @functools.wraps(function)
        def body(**parameters: Any) -> Any:
            return run_job(name, function, subject, resource, parameters)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        extra = [
            inspect.Parameter("site", inspect.Parameter.KEYWORD_ONLY, default="local", annotation=str),
            inspect.Parameter("patience_s", inspect.Parameter.KEYWORD_ONLY, default=30.0, annotation=NonNegativeFloat),
        ]
        shown = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        body.__signature__ = inspect.Signature([*shown, *extra])  # type: ignore[attr-defined]
        body.__doc__ = (function.__doc__ or "").rstrip() + ARGUMENTS
        body.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shown, *extra)}
        return flow(name=name, on_cancellation=[cancel_job], persist_result=False, **options)(body)

    return decorate


def run_job(
    kind: str, function: Callable[..., Any], subject: Callable[..., str], resource: str, parameters: dict[str, Any]
) -> Any:
    own = {name: value for name, value in parameters.items() if name not in ("site", "patience_s")}
    try:
        site = open_site(parameters["site"])
    except DailiesError as error:
        return failed(error)
    named, refusal = subject_of(subject, own)
    try:
        job, lease = begin(kind, site, named, own["tenant"])
    except Conflict as error:
        return Crashed(name="Superseded", message=f"{error}; this run has nothing to do")
    except DailiesError as error:  # a job that is on record waits for the supervisor, which starts another run
        return failed(error)
    with keeping(site.ledger, TTL_S) as keeper:
        keeper.add(lease)
        try:
            if refusal is not None:
                raise refusal
            patience = parameters["patience_s"]
            claim = take(site, job, lease, keeper, f"{resource}:{job.subject}", patience)
            working = Working(site, job, lease, keeper, claim, patience)
            try:
                with untagged():
                    result = function(working, **own)
            finally:
                with told_once():
                    working.children.close()
                    give_back(site.ledger, keeper, working.claim)
            keeper.drop(lease)
            site.ledger.jobs.done(lease, result)
            failpoint("job.done")
            clear(site, job)
            return result
        except BaseException as error:
            with told_once():
                keeper.drop(lease)
                state = end(site, lease, error)
                settle(site, job.id)
            if state is None:
                raise
            return state
        finally:
            site.ledger.close()


def untagged() -> TagsContext:
    """The run's tags are not for its steps: for every tag of a task Prefect asks its server for a concurrency slot, one
    more request before each step, and a server that answers 503 ends the step, and with it the attempt."""
    return TagsContext(current_tags=set())


def subject_of(subject: Callable[..., str], parameters: dict[str, Any]) -> tuple[str, BadInput | None]:
    """A request too wrong to have a subject is still a job, so that its refusal is on record."""
    try:
        return subject(**parameters), None
    except BadInput as error:
        return "invalid", error


def begin(kind: str, site: OpenSite, subject: str, tenant: str) -> tuple[Job, Lease]:
    """The job this run was dispatched for, or a new one; leased and RUNNING."""
    run_id = str(flow_run.id)
    tags = dict(tag.split(":", 1) for tag in flow_run.tags if ":" in tag)
    if "job" in tags and "attempt" in tags:
        return site.ledger.jobs.start(tags["job"], int(tags["attempt"]), run_id, TTL_S)
    context = FlowRunContext.get()
    params = to_jsonable_python(context.parameters) if context and context.parameters else {}
    target = f"{kind}/{deployment.name}" if deployment.name else ""
    job = site.ledger.jobs.submit(JobRequest(tenant, kind, subject, params, target), key=run_id, run_id=run_id)
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(run_id), tags=[*flow_run.tags, f"job:{job.id}", f"attempt:{job.attempt}"])
    return site.ledger.jobs.start(job.id, job.attempt, run_id, TTL_S)


def take(site: OpenSite, job: Job, lease: Lease, keeper: Keeper, resource: str, patience: float) -> Lease:
    """One run at a time for a resource. Whoever is in the way is on record: it is counted, not guessed."""

    def blocked(held: Held) -> None:
        get_run_logger().info("action=wait resource=%s held_by=%s patience_s=%s", held.resource, held.by, patience)
        data = {"resource": held.resource, "held_by": held.by, "patience_s": patience}
        site.ledger.outbox.emit(lease, "dailies.lease.blocked", str(job.attempt), data)

    try:
        taken = acquire(site.ledger, resource, lease.holder, TTL_S, patience, blocked, stopped=keeper.stopped)
    except Held:
        keeper.check()  # told to stop while waiting is not the same as having waited in vain
        raise
    keeper.add(taken)
    return taken


def end(site: OpenSite, lease: Lease, error: BaseException) -> State[Any] | None:
    """Write down how this attempt ended; the state to show for it, or None where the error speaks for itself."""
    jobs = site.ledger.jobs
    try:
        match error:
            case Stopped(word="cancel"):
                return Cancelled(message=str(error))
            case Stopped():
                jobs.paused(lease)
                return Cancelled(name="Paused", message=str(error))
            case Fenced() if jobs.get(job_of(lease)).state is JobState.CANCELED:
                return Cancelled(message=f"job {job_of(lease)} was told to cancel")  # the fence told us first
            case Fenced():
                return Crashed(name="Superseded", message=f"{error}; another attempt goes on")
            case BadInput() | NotConfigured() | Held():
                jobs.failed(lease, error)
                return failed(error)
            case KeyboardInterrupt():
                jobs.cancel(job_of(lease))
                return None
            case TerminationSignal() | SystemExit():
                # Prefect ends a canceled run by the same signal as a worker that is shut down.
                if canceling(lease.holder):
                    jobs.cancel(job_of(lease))
                else:
                    jobs.hand_back(lease, "Its worker was told to stop")
                return None
            case _:
                reason = error if isinstance(error, DailiesError) else Transient(f"{type(error).__name__}: {error}")
                rest = RETRY_IN_S * 4 ** jobs.get(job_of(lease)).crashes
                job = jobs.failed(lease, reason, retry_in=rest)
                return requeued(job, reason) if job.state is JobState.QUEUED and isinstance(error, Exception) else None
    except Conflict as late:
        return Crashed(name="Superseded", message=str(late))


@contextmanager
def told_once() -> Iterator[None]:
    """Who shuts a machine down may say so twice, and the second time must not cut short what the first has begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def settle(site: OpenSite, job_id: str) -> None:
    """So that what the job's video says is right at once, and nothing is left. The sweep sees to it anyway."""
    try:
        job = site.ledger.jobs.get(job_id)
        if job.final:
            site.ledger.videos.settle()
            clear(site, job)
    except Exception as error:  # noqa: BLE001 - nothing that fails here may hide how the job ended
        get_run_logger().warning("action=later job=%s error=%s", job_id, error)


def canceling(run_id: str) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run_id)).state
    except httpx.HTTPError:
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def job_of(lease: Lease) -> str:
    return lease.resource.removeprefix("job:")


def failed(error: DailiesError) -> State[Any]:
    return Failed(name=type(error).__name__, message=str(error), data=error)


def requeued(job: Job, error: DailiesError) -> State[Any]:
    get_run_logger().error("action=requeue job=%s attempt=%s error=%s", job.id, job.attempt, error)
    return Failed(name="Requeued", message=f"{error}; attempt {job.attempt} follows", data=error)
