"""Every error that Dailies raises on purpose, in one tree.

    DailiesError
    ├── BadInput              the request is wrong; never retried
    │   ├── Missing             no such object, job or lease
    │   ├── EmptyFile           zero bytes
    │   ├── Unreadable          not media, or its header is damaged
    │   ├── NoStreams           a container with neither video nor audio
    │   ├── NoVideo / NoAudio   the stream that the work needs is absent
    │   ├── Unsupported         a codec that cannot be decoded here
    │   ├── Undecodable         streams are there, but not one frame decodes
    │   ├── Truncated           decodes to less than it promises
    │   ├── Changed             not the same bytes any more as when the work on it began
    │   └── TooLarge            over a stated limit
    ├── Transient             worth another try, later
    │   ├── TimedOut            no answer in time; the work may or may not have happened
    │   ├── Unheard             the engine failed on a chunk of sound
    │   └── Injected            raised by an armed failpoint
    ├── Conflict              somebody else's claim stands
    │   ├── Held                the lease is somebody else's, for now
    │   ├── Fenced              this claim is over: expired, released or taken over
    │   ├── Stopped             the job was canceled or paused while it ran
    │   ├── IllegalTransition   the state machine has no such arrow
    │   └── IdempotencyConflict same key, another request
    ├── Damaged               a working file of ours is not what was written: it is made again
    └── NotConfigured         says what to configure, and how

The ``code`` of each is stable: it is what the ledger, the events and the user see.
"""

from __future__ import annotations

from typing import ClassVar


class DailiesError(Exception):
    code: ClassVar[str] = "error"


class BadInput(DailiesError):
    code = "bad_input"


class Missing(BadInput):
    code = "missing"


class EmptyFile(BadInput):
    code = "empty_file"


class Unreadable(BadInput):
    code = "unreadable"


class NoStreams(BadInput):
    code = "no_streams"


class NoVideo(BadInput):
    code = "no_video"


class NoAudio(BadInput):
    code = "no_audio"


class Unsupported(BadInput):
    code = "unsupported"


class Undecodable(BadInput):
    code = "undecodable"


class Truncated(BadInput):
    code = "truncated"


class Changed(BadInput):
    code = "changed"


class TooLarge(BadInput):
    code = "too_large"


class Transient(DailiesError):
    code = "transient"


class TimedOut(Transient):
    code = "timed_out"


class Unheard(Transient):
    code = "unheard"


class Injected(Transient):
    code = "injected"


class Conflict(DailiesError):
    code = "conflict"


class Held(Conflict):
    code = "held"

    def __init__(self, resource: str, by: str, expires_in: float) -> None:
        super().__init__(f"{resource} is held by {by} for another {expires_in:.1f} s")
        self.resource = resource
        self.by = by
        self.expires_in = expires_in


class Fenced(Conflict):
    code = "fenced"


class Stopped(Conflict):
    """``word`` is what the job was told: ``cancel`` or ``pause``."""

    code = "stopped"

    def __init__(self, job: str, word: str) -> None:
        super().__init__(f"job {job} was told to {word}")
        self.word = word


class IllegalTransition(Conflict):
    code = "illegal_transition"


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class Damaged(DailiesError):
    code = "damaged"


class NotConfigured(DailiesError):
    code = "not_configured"
