"""What makes a function a step: a Prefect task that can be killed anywhere and continued by somebody else.

``@work`` computes. Its outcome is a unit of the ledger, keyed by what went in: who asks for the same again, in this
attempt or another, gets what is recorded, as long as its files are still whole.
``@effect`` changes something outside the job. Never reused, always fenced, safe to repeat.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, cast

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed

from dailies.canonical import digest
from dailies.compute.child import run_in_child
from dailies.errors import Transient
from dailies.events.schemas import checked
from dailies.failpoints import failpoint
from dailies.ledger.records import Unit
from dailies.store.interface import Artifact
from tasks._job import Working

P = ParamSpec("P")
# What a finished unit says of itself, by its job, what came out and how long it took: type and data of an event.
Tells = Callable[[Working, "Output", float], tuple[str, Mapping[str, Any]]]
POINTS = ("before", "after", "committed")
REGISTRY: dict[str, Step[...]] = {}
# A child process is stopped at its own limit; Prefect's comes a little later, for what is stuck around it.
GRACE_S = 10.0


@dataclass(frozen=True)
class Output:
    """What a step made: facts, and files of the store by key, digest and size. Never arrays."""

    facts: dict[str, Any] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"facts": self.facts, "artifacts": [artifact.to_json() for artifact in self.artifacts]}

    def file(self, name: str) -> Artifact:
        return next(artifact for artifact in self.artifacts if artifact.name == name)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Output:
        return cls(value["facts"], tuple(Artifact.from_json(artifact) for artifact in value["artifacts"]))


class Step(Generic[P]):
    """Call it like the function; it runs as a Prefect task and passes its crash points."""

    def __init__(
        self,
        function: Callable[Concatenate[Working, P], Output],
        kind: str,
        version: int,
        timeout: float,
        retries: int,
        tells: Tells | None = None,
    ) -> None:
        self.function = function
        self.name = function.__name__
        self.kind = kind
        self.version = version
        self.timeout = timeout
        self.tells = tells
        self.points = tuple(f"{self.name}:{point}" for point in POINTS)
        run = self._work if kind == "work" else self._effect

        @functools.wraps(function)
        def body(job: Working, *args: P.args, **kwargs: P.kwargs) -> Output | State[Any]:
            return run(job, *args, **kwargs)

        self.task: Task[..., Any] = task(
            name=self.name.replace("_", "-"),
            description=function.__doc__,
            cache_policy=NO_CACHE,
            persist_result=False,
            timeout_seconds=timeout + GRACE_S,
            retries=retries,
            retry_delay_seconds=[min(2.0**n, 30.0) for n in range(retries)] or None,
            retry_jitter_factor=1.0,
            retry_condition_fn=is_transient,
            log_prints=False,
        )(body)
        functools.update_wrapper(self, function)
        REGISTRY[self.name] = self

    def __call__(self, job: Working, *args: P.args, **kwargs: P.kwargs) -> Output:
        answer = self.task(job, *args, **kwargs)
        # A step that was reused returns a state with a name of its own, and Prefect hands that state through.
        return cast(Output, answer.result() if isinstance(answer, State) else answer)

    def submit(self, job: Working, *args: P.args, **kwargs: P.kwargs) -> PrefectFuture[Any]:
        """Run it beside others. Its result is the same ``Output``, also where it was reused.

        Prefect's own limit could not interrupt a thread: what takes long runs in a child, which has the step's.
        """
        return self.task.with_options(timeout_seconds=0).submit(job, *args, **kwargs)

    def key(self, job: Working, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """The same work has the same key: same tenant and subject, same version of the step, same inputs."""
        asked = [job.site.name, job.job.tenant, job.job.subject, self.name, self.version, list(args), kwargs]
        return digest(json.dumps(asked, sort_keys=True, default=lambda value: value.to_json()).encode())

    def _work(self, job: Working, /, *args: Any, **kwargs: Any) -> Output | State[Any]:
        job.check()
        key = self.key(job, args, kwargs)
        found = job.site.ledger.units.find(key)
        if found is not None and (output := self._whole(job, found)) is not None:
            event = self._event(job, output, 0.0)
            job.site.ledger.units.complete(
                job.lease, key, self.name, found.digest, found.result, reused=True, event=event
            )
            return Completed(name="Reused", message=f"made by job {found.job}", data=output)
        job.site.ledger.units.begin(job.lease, key, self.name)
        failpoint(f"{self.name}:before")
        begun = time.monotonic()
        output = self.function(job, *args, **kwargs)
        failpoint(f"{self.name}:after")
        record = output.to_json()
        event = self._event(job, output, time.monotonic() - begun)
        job.site.ledger.units.complete(job.lease, key, self.name, digest(record), record, event=event)
        failpoint(f"{self.name}:committed")
        return output

    def _event(self, job: Working, output: Output, seconds: float) -> tuple[str, Mapping[str, Any]] | None:
        if self.tells is None:
            return None
        kind, data = self.tells(job, output, seconds)
        return kind, checked(kind, {"job_id": job.job.id, **data})

    def _effect(self, job: Working, /, *args: Any, **kwargs: Any) -> Output:
        failpoint(f"{self.name}:before")
        job.check()  # as late as can be: what follows cannot be taken back
        output = self.function(job, *args, **kwargs)
        failpoint(f"{self.name}:after")
        failpoint(f"{self.name}:committed")
        return output

    def _whole(self, job: Working, unit: Unit) -> Output | None:
        """The recorded output if every file of it still has its bytes: only then is the work not redone."""
        output = Output.from_json(unit.result)
        damaged = [artifact.key for artifact in output.artifacts if not job.site.store.holds(artifact)]
        if not damaged:
            return output
        get_run_logger().warning("action=redo step=%s reason=damaged keys=%s", self.name, damaged)
        return None


def work(
    *, version: int, timeout: float, retries: int = 2, tells: Tells | None = None
) -> Callable[[Callable[Concatenate[Working, P], Output]], Step[P]]:
    """Raise ``version`` when the same inputs would now give another output. What it ``tells`` is committed with it."""
    return lambda function: Step(function, "work", version, timeout, retries, tells)


def effect(*, timeout: float, retries: int = 2) -> Callable[[Callable[Concatenate[Working, P], Output]], Step[P]]:
    return lambda function: Step(function, "effect", 1, timeout, retries)


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, Transient)


def in_child(job: Working, step: Step[...], function: str, *, keep: bool = False, **arguments: Any) -> Any:
    """Run the heavy part of a step where a cancel, a lost lease or the timeout can stop it.

    ``keep`` is for what takes long to load: the process waits for the next call until the job ends.
    """
    progress = job.progress(step.name)
    stopped: threading.Event = job.keeper.stopped
    run = job.children.call if keep else run_in_child
    try:
        return run(function, timeout=step.timeout, stopped=stopped, progress=progress, **arguments)
    finally:
        if job.keeper.stopped.is_set():  # told to pause, it may finish the unit it is in
            job.check()
