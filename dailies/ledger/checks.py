"""What every ledger refuses before it asks its database, and how it writes values and reasons down."""

from __future__ import annotations

import math
from typing import Any

from dailies.canonical import canonical_json
from dailies.errors import BadInput, DailiesError
from dailies.ledger.records import JobRequest, VideoState

MAX_ERROR = 2000


def check_request(request: JobRequest) -> None:
    for name in ("tenant", "kind", "subject"):
        if not getattr(request, name):
            raise BadInput(f"a job needs a {name}")
    if request.max_attempts < 1:
        raise BadInput(f"a job needs at least one attempt, not {request.max_attempts}")
    if not (math.isfinite(request.boost) and math.isfinite(request.base or 0)):
        raise BadInput(f"a job's rank is made of numbers, not of base {request.base} and boost {request.boost}")


def check_lease(resource: str, holder: str, ttl: float) -> None:
    if not resource or not holder:
        raise BadInput("a lease needs a resource and a holder")
    positive(ttl)


def positive(ttl: float) -> float:
    if not (math.isfinite(ttl) and ttl > 0):
        raise BadInput(f"a lease needs a ttl above 0 s, not {ttl}")
    return ttl


def check_video(tenant: str, video: str, media_key: str) -> None:
    if not (tenant and video and media_key):
        raise BadInput("a video needs a tenant, an id and the key of its upload")


def check_update(state: VideoState | None, error: DailiesError | None) -> None:
    if (error is not None) != (state is VideoState.ERROR):
        raise BadInput("a video's error and its state 'error' go together")


def as_text(value: Any) -> str:
    return canonical_json(value).decode()


def as_reason(error: DailiesError) -> str:
    """Of bounded length, and without the one character that PostgreSQL has not."""
    return str(error)[:MAX_ERROR].replace("\0", "\N{REPLACEMENT CHARACTER}")
