"""What the ledger keeps, as values. A record is a photograph: to change anything, ask the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from dailies.canonical import digest
from dailies.ledger.priority import Aging


class JobState(StrEnum):
    QUEUED = "QUEUED"
    PAUSED = "PAUSED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


# The state machine. What is not an arrow here raises IllegalTransition and changes nothing.
ARROWS: Mapping[JobState, frozenset[JobState]] = MappingProxyType(
    {
        JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELED}),
        JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELED}),
        JobState.RUNNING: frozenset(
            {JobState.DONE, JobState.FAILED, JobState.CANCELED, JobState.PAUSED, JobState.QUEUED}
        ),
        JobState.DONE: frozenset(),
        JobState.FAILED: frozenset(),
        JobState.CANCELED: frozenset(),
    }
)
FINAL = frozenset(state for state, onward in ARROWS.items() if not onward)
RECOVERED = "Recovered after restart"


class VideoState(StrEnum):
    UPLOADED = "uploaded"
    PROCESSING = "processing"
    AWAITING_LAYOUT = "awaiting_layout"
    INFERRING = "inferring"
    READY = "ready"
    ERROR = "error"


# Any state may end in error, and from error or ready the work may begin again.
VIDEO_ARROWS: Mapping[VideoState, frozenset[VideoState]] = MappingProxyType(
    {
        VideoState.UPLOADED: frozenset({VideoState.PROCESSING, VideoState.ERROR}),
        VideoState.PROCESSING: frozenset({VideoState.AWAITING_LAYOUT, VideoState.READY, VideoState.ERROR}),
        VideoState.AWAITING_LAYOUT: frozenset({VideoState.PROCESSING, VideoState.INFERRING, VideoState.ERROR}),
        VideoState.INFERRING: frozenset({VideoState.READY, VideoState.ERROR}),
        VideoState.READY: frozenset({VideoState.PROCESSING, VideoState.INFERRING, VideoState.ERROR}),
        VideoState.ERROR: frozenset({VideoState.PROCESSING, VideoState.INFERRING}),
    }
)


@dataclass(frozen=True)
class JobRequest:
    """What a tenant asks for. ``deployment`` is the Prefect deployment that runs it: ``flow/name``."""

    tenant: str
    kind: str
    subject: str
    params: Mapping[str, Any] = field(default_factory=dict)
    deployment: str = ""
    max_attempts: int = 3
    base: float | None = None
    boost: float = 0.0
    aging: bool = True

    @property
    def digest(self) -> str:
        """Two requests are the same when a client could not tell their results apart."""
        return digest([self.tenant, self.kind, self.subject, dict(self.params)])


@dataclass(frozen=True)
class Job:
    id: str
    tenant: str
    kind: str
    subject: str
    params: dict[str, Any]
    deployment: str
    state: JobState
    attempt: int
    crashes: int
    max_attempts: int
    fence: int
    control: str
    message: str
    error_code: str
    error: str
    result: Any
    base: float | None
    boost: float
    aging: bool
    created_at: float
    updated_at: float
    available_at: float

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def aging_rule(self) -> Aging:
        return Aging(enabled=self.aging)


@dataclass(frozen=True)
class Lease:
    """The right to work on ``resource``. Whatever is written under it carries ``fence``."""

    resource: str
    holder: str
    fence: int
    expires_at: float


@dataclass(frozen=True)
class Unit:
    job: str
    key: str
    step: str
    state: str
    fence: int
    attempts: int
    reuses: int
    digest: str
    result: Any


@dataclass(frozen=True)
class Call:
    unit: str
    job: str
    call_id: str
    state: str


@dataclass(frozen=True)
class Video:
    """What is known of an upload. ``version`` counts its changes of state."""

    tenant: str
    video: str
    media_key: str
    state: VideoState
    version: int
    error_code: str
    error: str
    metadata: dict[str, Any]
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class Run:
    """One attempt's flow run. ``ending`` is how the ledger saw it end; ``shown`` when Prefect was told."""

    job: str
    attempt: int
    run_id: str
    created_at: float
    ending: str


@dataclass(frozen=True)
class Caps:
    total: int = 2
    per_tenant: int = 2


@dataclass(frozen=True)
class Event:
    """A CloudEvents 1.0 event; ``job`` is the order it is kept in."""

    seq: int
    id: str
    source: str
    type: str
    subject: str
    time: float
    data: dict[str, Any]
    job: str


def job_resource(job_id: str) -> str:
    return f"job:{job_id}"


def video_resource(tenant: str, video: str) -> str:
    return f"video:{tenant}/{video}"


def video_of(resource: str) -> tuple[str, str]:
    """The tenant and the video that a lease is on; of any other lease, something that no video has."""
    tenant, _, video = resource.removeprefix("video:").partition("/")
    return tenant, video


def event_id(source: str, subject: str, kind: str, occasion: str) -> str:
    """The same transition gives the same id, however often it is attempted: consumers drop the copies."""
    return digest([source, subject, kind, occasion])[:32]
