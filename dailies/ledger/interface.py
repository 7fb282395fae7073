"""The ledger's contract: what a second store must keep to stand behind it.

Rules for every implementation:
- The store's clock is the only clock.
- A method is one transaction, and what decides it is one conditional statement. Reading first and writing then is a
  defect: a process can be frozen between the two.
- A write made under a lease carries its fence; the statement itself refuses a fence that is no longer the current one.
- A state change and its event are written together or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from dailies.errors import DailiesError
from dailies.ledger.records import Call, Caps, Event, Job, JobRequest, JobState, Lease, Run, Unit, Video, VideoState


class Leases(Protocol):
    def acquire(self, resource: str, holder: str, ttl: float) -> Lease:
        """Take a free or expired lease under a fence higher than any before; raise ``Held`` otherwise.

        ``Fenced`` for a flow run whose job was taken from it: it may be alive, and gets nothing more.
        """

    def renew(self, lease: Lease, ttl: float) -> Lease:
        """Prolong a lease that is still ours and not expired; raise ``Fenced`` otherwise."""

    def release(self, lease: Lease) -> None:
        """Give it back. ``Fenced`` when it is no longer ours, ``Missing`` when nobody ever leased the resource."""

    def sweep(self) -> Sequence[Lease]:
        """End every expired lease under a new fence, so that nothing names a dead holder; returns what it ended."""

    def holder(self, resource: str) -> Lease | None:
        """Who holds it now. For display alone: by the time it is read it may be over."""


class Jobs(Protocol):
    def submit(self, request: JobRequest, key: str = "", run_id: str = "") -> Job:
        """Accept a request. Same key and request: the first answer; same key, another request: ``IdempotencyConflict``.

        ``run_id`` says that this run is already there to work on it, so that nobody dispatches another one.
        """

    def get(self, job_id: str) -> Job: ...

    def all(self, state: JobState | None = None, limit: int = 1000) -> Sequence[Job]: ...

    def start(self, job_id: str, attempt: int, run_id: str, ttl: float) -> tuple[Job, Lease]:
        """QUEUED → RUNNING by the run this attempt was given to, together with the job's lease."""

    def done(self, lease: Lease, result: Any) -> Job: ...

    def failed(self, lease: Lease, error: DailiesError, retry_in: float | None = None) -> Job:
        """RUNNING → FAILED; or, with ``retry_in`` and attempts left, → QUEUED for the next attempt after that time."""

    def paused(self, lease: Lease) -> Job:
        """RUNNING → PAUSED, once the units in flight have ended."""

    def hand_back(self, lease: Lease, why: str) -> Job:
        """RUNNING → QUEUED for the next attempt, at no cost: its worker was told to stop."""

    def cancel(self, job_id: str) -> Job:
        """Final at once and from any state that is not: whatever the run still writes is refused by its fence."""

    def pause(self, job_id: str) -> Job:
        """QUEUED → PAUSED; a running job is told, and pauses at its next step."""

    def resume(self, job_id: str) -> Job: ...

    def control(self, lease: Lease) -> str:
        """What the holder must do now: ``""``, ``"pause"`` or ``"cancel"``; ``Fenced`` if its lease is over."""

    def recover(self) -> Sequence[Job]:
        """RUNNING jobs whose lease expired → QUEUED as the next attempt, or FAILED when attempts are spent.

        The first tells ``dailies.recovery.started``, the second ``dailies.recovery.failed``. A job that was recovered
        once tells how that went when it ends by itself, whichever way: ``completed`` or ``failed``.
        """


class Dispatch(Protocol):
    def next(self, caps: Caps) -> Job | None:
        """Claim the most urgent QUEUED job that fits a free slot: two dispatchers never get the same attempt."""

    def ranked(self) -> Sequence[tuple[Job, int]]:
        """What waits, most urgent first, with its priority at this moment."""

    def rank(self, job: Job) -> int:
        """This job's priority at this moment."""

    def unbound(self, older_than: float) -> Sequence[Job]:
        """Claimed, but the dispatcher died before it wrote down a run."""

    def bind(self, job_id: str, attempt: int, run_id: str) -> None: ...

    def waiting(self, older_than: float) -> Sequence[Run]:
        """Runs that were created and never started."""

    def give_up(self, job_id: str, attempt: int, error: DailiesError | None = None) -> Job | None:
        """A run that will never start: its job is QUEUED as the next attempt, or FAILED with ``error`` at once.

        None: it did start after all.
        """

    def jobs_of(self, run_id: str) -> Sequence[str]:
        """The jobs that this flow run is the current attempt of: one or none."""

    def unshown(self) -> Sequence[Run]:
        """Attempts that are over in the ledger while Prefect may still show them otherwise."""

    def shown(self, job_id: str, attempt: int) -> None: ...


class Units(Protocol):
    def find(self, key: str) -> Unit | None:
        """A finished unit of this content, whichever job made it."""

    def begin(self, lease: Lease, key: str, step: str) -> Unit:
        """The work begins. Beginning it again under the same fence, before it ended, is the same attempt at it."""

    def complete(
        self,
        lease: Lease,
        key: str,
        step: str,
        digest: str,
        result: Any,
        *,
        reused: bool = False,
        event: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Unit:
        """Finished, or found finished. ``event``, a type and its data, is told with it or not at all.

        The unit is the event's occasion: one job tells it once, however often it completes or reuses that unit.
        """

    def of(self, job_id: str) -> Sequence[Unit]: ...


class Calls(Protocol):
    def intend(self, lease: Lease, unit: str) -> Call:
        """Write down that this unit is about to be submitted, before it is; returns a submission already known.

        One that failed or was cancelled is none: it is intended anew.
        """

    def submitted(self, lease: Lease, unit: str, call_id: str) -> Call: ...

    def ended(self, lease: Lease, unit: str, state: str) -> Call: ...

    def orphans(self) -> Sequence[Call]:
        """Calls not ended although their job is final: to be cancelled."""

    def reap(self, call: Call) -> None:
        """An orphan was cancelled. It needs no lease, for nobody holds a final job's; it changes no other call."""


class Generations(Protocol):
    def publish(self, lease: Lease, key: str) -> None:
        """Make ``key`` the current one of the leased resource. An older fence can never come back on top."""

    def current(self, resource: str) -> str | None: ...

    def history(self, resource: str) -> Sequence[tuple[int, str]]: ...


class Outbox(Protocol):
    def emit(self, lease: Lease, kind: str, occasion: str, data: Mapping[str, Any]) -> None:
        """An event of a running job that is no state change, fenced like one."""

    def pending(self, limit: int = 100) -> Sequence[Event]: ...

    def delivered(self, ids: Iterable[str]) -> None: ...

    def mark(self) -> int:
        """A mark for this thread to wait from: take it before looking, so that nothing committed by others
        meanwhile is slept through."""

    def wait(self, mark: int, timeout: float) -> bool:
        """Sleep until somebody else commits something after the mark, at most ``timeout`` seconds."""

    def of(self, job_id: str) -> Sequence[Event]: ...


class Inbox(Protocol):
    def accept(self, source: str, event_id: str) -> bool:
        """True the first time only: the rule that makes effects happen once on top of at-least-once delivery."""


class Tenants(Protocol):
    def set_tier(self, tenant: str, tier: str) -> None: ...

    def tier(self, tenant: str) -> str:
        """``free``, ``premium`` or ``enterprise``; a tenant nobody described is ``free``."""


class Videos(Protocol):
    def register(self, tenant: str, video: str, media_key: str) -> Video:
        """Know a video by its upload. One that is known already is returned as it is."""

    def get(self, tenant: str, video: str) -> Video: ...

    def all(self, tenant: str, state: VideoState | None = None, limit: int = 1000) -> Sequence[Video]:
        """One tenant's videos, newest first."""

    def update(
        self,
        lease: Lease,
        *,
        state: VideoState | None = None,
        error: DailiesError | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Video:
        """Change one field or several at once, under the lease of a job's run on ``video_resource(tenant, video)``.

        ``error`` goes with the state of that name, and any other state clears it. ``metadata`` is merged name by name.
        Being told the state it has already is no change and no event.
        """

    def settle(self) -> Sequence[Video]:
        """Videos that say processing or inferring while no job of theirs is under way → error; returns them.

        The error is what the job that ended last ended with. It needs no lease, for nobody holds a final job's; a
        video whose lease has not expired is left for the next time.
        """


class Ledger(Protocol):
    @property
    def leases(self) -> Leases: ...

    @property
    def jobs(self) -> Jobs: ...

    @property
    def dispatch(self) -> Dispatch: ...

    @property
    def units(self) -> Units: ...

    @property
    def calls(self) -> Calls: ...

    @property
    def generations(self) -> Generations: ...

    @property
    def outbox(self) -> Outbox: ...

    @property
    def inbox(self) -> Inbox: ...

    @property
    def tenants(self) -> Tenants: ...

    @property
    def videos(self) -> Videos: ...

    def check(self) -> None:
        """``NotConfigured`` unless it answers now: for whoever sets a site up, not for a run."""

    def audit(self, grace: float = 0.0) -> dict[str, list[str]]:
        """What must not be, by name of the rule, each with its offenders. All empty: the ledger is sound."""

    def close(self) -> None: ...
