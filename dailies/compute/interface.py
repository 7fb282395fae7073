"""The contract of compute: work handed over in one step, its result fetched in another.

Whoever submits may die in between, and somebody else asks for the result by the call's id. What a call says is either
the word of the function (its result, or its own typed error) or one of these, which no function ever says:

    StillRunning    not ended yet; it goes on, ask again
    Unreachable     nobody could be asked; it goes on for all that is known, ask again
    Busy            another call works on this unit right now; this one did nothing, submit again later
    Canceled        somebody cancelled it
    UnknownCall     no such call, or its result is not kept any longer; submit the unit again
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dailies.errors import Conflict, Missing, TimedOut, Transient


class StillRunning(TimedOut):
    """Our patience is over, not the call's."""


class Unreachable(Transient):
    """A submission that ends so may have arrived: submit the same unit again, it is not worked on twice."""


class Busy(Transient):
    """This unit is in the hands of another call, which is alive."""


class Canceled(Conflict):
    """The call was cancelled: its processes are gone, and it has no result."""


class UnknownCall(Missing):
    """Distinct from a function's own ``Missing``, which speaks of its input."""


class Compute(Protocol):
    def submit(self, function: str, payload: Mapping[str, Any], unit: str) -> str:
        """Start ``function`` (a name of ``dailies.remote``) and return the call's id at once.

        ``unit`` names the function and all that goes into it: who submits a unit that is being worked on, or that is
        finished and whose files are whole, does not cause a second execution. He gets the id of the first call, or that
        of a call which finds the first one's result, or which is ``Busy``. A unit whose call failed starts again.
        ``NotConfigured`` in one line when the function or the account is not there; ``Unreachable`` within seconds.
        """

    def result(self, call_id: str, timeout: float) -> Any:
        """What the function returned, waiting at most ``timeout`` seconds; its typed error; or one of the five.

        ``TimedOut`` (and not ``StillRunning``) when the function ran into its own limit. ``Transient`` when it ended
        without a word: killed, out of memory, a mistake of ours. May be asked by anybody, any number of times.
        """

    def cancel(self, call_id: str) -> None:
        """End it and all that it started within two seconds; no harm when it has ended. ``UnknownCall`` if there is
        no such call."""

    def check(self) -> None:
        """``NotConfigured`` unless work could be submitted now: for whoever sets a site up, not for a run."""

    def find(self, unit: str) -> str | None:
        """The id of this unit's call where it can be known without having seen the reply to ``submit``."""

    def clean(self, older_than: float) -> int:
        """Forget calls that ended so many seconds ago, where they take up room here; returns how many."""
