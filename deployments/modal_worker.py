"""The worker of the work pool ``gpu``: each flow run in a Modal sandbox of its own.

`prefect worker start --pool gpu --type modal`. Prefect's own Modal pools push from Prefect Cloud; this one works with
any server that the sandbox can reach, for that is where the run reports.

What the sandbox is given: an image, the flow run's command, and of this worker's Prefect settings only those that a run
needs (neither paths of this machine nor the server's own, a database password among them). The flow is imported by its
module's name, so a deployment of this pool says `pull: []`: by default `prefect deploy` has a run change to the folder
that it was deployed from, and no sandbox has that folder.

Who ends a sandbox, since every second of it is paid:

- the run, by ending;
- its timeout, which Modal keeps and which is always set, whatever becomes of this worker;
- this worker, when the run was cancelled or is over and its process has not gone by itself. Prefect's worker base only
  cancels what is not yet submitted, and Prefect's runner in the sandbox only what has started, so a run that waits in
  between for its image would otherwise keep a GPU until the server gives up on it, five minutes later.

When the worker dies its sandboxes work on and report for themselves; if they cannot, the ledger's fence keeps what they
write late from landing. Each sandbox carries its flow run and pool as tags, and the next worker of the pool that starts
takes up what it finds there. Two workers may follow one sandbox: all that either does may be done twice.
"""

from __future__ import annotations

import ipaddress
import random
import shlex
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound, ObjectNotFound
from prefect.workers.base import BaseWorker, BaseWorkerResult

from dailies.errors import DailiesError, NotConfigured, TimedOut, Transient
from deployments.modal_sandbox import (
    LONGEST_S,
    POOL_TAG,
    RUN_TAG,
    ModalJobConfiguration,
    ModalVariables,
    project_image,
    tag,
)

if TYPE_CHECKING:
    from modal import Sandbox

LOST = -1
TIMED_OUT = 124
KILLED = 137
NO_TOKEN = "no valid Modal token: set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or run `modal token new`"


class ModalWorkerResult(BaseWorkerResult):
    """The sandbox's id, and the exit code of its command."""


class Ending(NamedTuple):
    """How a sandbox ended; ``why`` says what its code alone does not."""

    code: int
    why: str = ""


class ModalWorker(BaseWorker[ModalJobConfiguration, ModalVariables, ModalWorkerResult]):
    type = "modal"
    job_configuration = ModalJobConfiguration
    job_configuration_variables = ModalVariables
    _display_name = "Modal"
    _description = "Execute flow runs in Modal sandboxes: a GPU by the second, no machine to keep."
    _documentation_url = "https://modal.com/docs/guide/sandbox"

    reach_s: ClassVar[float] = 4.5  # the client alone waits a minute for a network that is not there
    answer_s: ClassVar[float] = 20.0
    poll_s: ClassVar[float] = 2.0
    pause_s: ClassVar[float] = 30.0  # the longest between two questions to a Modal that does not answer
    look_s: ClassVar[float] = 3.0
    grace_s: ClassVar[float] = 30.0  # for a run that is over to end its process; its cancellation hooks run then

    def modal(self) -> Any:
        """Modal's client, imported by the first run that needs it: every `prefect` command loads this file."""
        import modal

        return modal

    async def setup(self) -> None:
        await super().setup()
        self._in_background(self._take_up)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ModalJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> ModalWorkerResult:
        refuse_unreachable(configuration.env.get("PREFECT_API_URL"))
        status = task_status or anyio.TASK_STATUS_IGNORED
        sandbox = await self._create(flow_run, configuration)
        if sandbox is None:
            # An exception as the answer is how the base is told that nothing was started, without raising it.
            status.started(Transient("the flow run ended before its sandbox began"))
            await self._close(flow_run.id, Ending(0), "")
            return ModalWorkerResult(identifier="", status_code=0)
        status.started(sandbox.object_id)
        return await self._follow(sandbox, flow_run.id, configuration)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ModalJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Terminate, and wait until it is: what is cancelled must not go on writing."""
        modal = self.modal()
        try:
            with anyio.fail_after(max(grace_seconds, self.reach_s)), in_our_words():
                sandbox = await modal.Sandbox.from_id.aio(infrastructure_pid)
                await sandbox.terminate.aio(wait=True)
        except modal.exception.NotFoundError as error:
            raise InfrastructureNotFound(f"Modal knows no sandbox {infrastructure_pid}") from error
        except (DailiesError, TimeoutError) as error:
            why = str(error) or f"Modal did not end it within {grace_seconds} s"
            raise InfrastructureNotAvailable(f"sandbox {infrastructure_pid} may still be running: {why}") from error

    async def _create(self, flow_run: FlowRun, configuration: ModalJobConfiguration) -> Sandbox | None:
        """The sandbox, or none where the run ended while Modal was still looking for a free GPU.

        That can take 20 minutes, in which nobody else could call it off. Modal's client ends what it has begun when it
        is cancelled here.
        """
        modal = self.modal()
        sandbox: Sandbox | None = None
        with in_our_words(not_found=f"Modal cannot find what the run asks for ({asked_of(configuration)})"):
            app = await self._app(configuration.app, configuration.environment, create=True)
            options = self._options(flow_run, configuration)
            async with self._while_wanted(flow_run.id):
                sandbox = await modal.Sandbox.create.aio(*shlex.split(configuration.command or ""), app=app, **options)
        return sandbox

    async def _app(self, name: str, environment: str | None, create: bool = False) -> Any:
        try:
            with anyio.fail_after(self.reach_s):
                return await self.modal().App.lookup.aio(
                    name, environment_name=environment or None, create_if_missing=create
                )
        except TimeoutError:
            raise TimedOut(
                f"Modal did not answer within {self.reach_s:g} s: is api.modal.com reachable from here?"
            ) from None

    def _options(self, flow_run: FlowRun, configuration: ModalJobConfiguration) -> dict[str, Any]:
        modal, environment = self.modal(), configuration.environment or None
        return {
            "image": modal.Image.from_registry(configuration.image)
            if configuration.image
            else project_image(gpu=bool(configuration.gpu)),
            "gpu": configuration.gpu or None,
            "cpu": configuration.cpu,
            "memory": configuration.memory,
            "timeout": configuration.timeout,
            "region": configuration.region or None,
            "env": dict(configuration.env),
            "secrets": [modal.Secret.from_name(name, environment_name=environment) for name in configuration.secrets],
            "volumes": {
                path: modal.Volume.from_name(name, environment_name=environment, create_if_missing=True)
                for path, name in configuration.volumes.items()
            },
            "tags": configuration.tags(flow_run, self._work_pool_name),
        }

    @asynccontextmanager
    async def _while_wanted(self, flow_run_id: UUID) -> AsyncIterator[None]:
        """Call off what is inside as soon as the run is cancelled or over."""

        async def watch() -> None:
            while not (run := await self._read(flow_run_id)) or wanted(run.state):
                await anyio.sleep(self.look_s)
            group.cancel_scope.cancel()

        error: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                yield
            except Exception as inside:  # noqa: BLE001 - raised again below; the group would wrap it
                error = inside
            group.cancel_scope.cancel()
        if error:
            raise error

    async def _follow(
        self, sandbox: Sandbox, flow_run_id: UUID, configuration: ModalJobConfiguration
    ) -> ModalWorkerResult:
        moved = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(self._end_with_run, sandbox, flow_run_id, moved)
            ending = await self._ended(sandbox, configuration)
            group.cancel_scope.cancel()
        if moved.is_set():  # the base would call the run crashed, which is well in its other sandbox
            return ModalWorkerResult(identifier=sandbox.object_id, status_code=0)
        await self._close(flow_run_id, ending, sandbox.object_id)
        return ModalWorkerResult(identifier=sandbox.object_id, status_code=ending.code)

    async def _ended(self, sandbox: Sandbox, configuration: ModalJobConfiguration) -> Ending:
        """How the sandbox ended.

        While Modal does not answer it is asked again, for as long as the sandbox could live: to give up earlier would
        leave one unwatched that is still paid for.
        """
        modal = self.modal()
        end = time.monotonic() + configuration.timeout + self.grace_s
        pause = self.poll_s
        while True:
            try:
                with anyio.fail_after(self.answer_s):
                    if (code := await sandbox.poll.aio()) is not None:
                        return Ending(code, await self._why(sandbox, code, configuration))
                pause = self.poll_s
            except modal.exception.NotFoundError:
                return Ending(LOST, "Modal no longer knows the sandbox: it was lost with what it had not yet recorded")
            except (modal.exception.Error, OSError) as error:  # a TimeoutError is an OSError
                if time.monotonic() > end:
                    return Ending(LOST, "Modal did not answer until the sandbox's own timeout had passed")
                said = first_line(error)
                self._logger.warning("Modal does not say how sandbox %s is: %s", sandbox.object_id, said)
                pause = min(pause * 2, self.pause_s)
            await anyio.sleep(pause * random.uniform(0.7, 1.3))

    async def _why(self, sandbox: Sandbox, code: int, configuration: ModalJobConfiguration) -> str:
        """What two of Modal's codes leave open: 137 is out of memory or terminated, 124 timeout or a command's own."""
        if code not in (KILLED, TIMED_OUT):
            return ""
        exceptions = self.modal().exception
        try:
            with anyio.fail_after(self.answer_s):
                await sandbox.wait.aio()
        except exceptions.SandboxTimeoutError:
            return f"the sandbox reached its timeout of {configuration.timeout} s: raise the job variable `timeout`"
        except exceptions.SandboxTerminatedError:
            return "the sandbox was terminated from outside: in Modal's dashboard, by its command line, or by Modal"
        except (exceptions.Error, OSError):
            return ""
        if code == TIMED_OUT:
            return "the command ended with 124 by itself"
        return (
            "the sandbox's command was killed (SIGKILL), most often because memory ran out: raise the job variable "
            f"`memory` (now {configuration.memory} MiB)"
        )

    async def _end_with_run(self, sandbox: Sandbox, flow_run_id: UUID, moved: anyio.Event) -> None:
        """Terminate the sandbox of a run that nobody wants any more; one that has begun may end by itself first.

        A run that was retried by hand has moved: its new sandbox is on record where this one once was.
        """
        over_since, on_record = 0.0, False
        while True:
            await anyio.sleep(self.look_s)
            run = await self._read(flow_run_id)
            if not run or not run.state:
                continue
            if on_record and run.infrastructure_pid != sandbox.object_id:
                moved.set()
            on_record = on_record or run.infrastructure_pid == sandbox.object_id
            over_since = 0.0 if wanted(run.state) else over_since or time.monotonic()
            overdue = over_since and (run.start_time is None or time.monotonic() - over_since >= self.grace_s)
            if overdue or moved.is_set():
                self._logger.info("action=terminate sandbox=%s run_state=%s", sandbox.object_id, run.state.name)
                await self._terminate(sandbox)

    async def _terminate(self, sandbox: Sandbox) -> None:
        exceptions = self.modal().exception
        try:
            with anyio.fail_after(self.answer_s):
                await sandbox.terminate.aio()
        except exceptions.NotFoundError:
            return
        except (exceptions.Error, OSError) as error:
            self._logger.warning("Modal does not terminate sandbox %s: %s", sandbox.object_id, first_line(error))

    async def _close(self, flow_run_id: UUID, ending: Ending, sandbox_id: str) -> None:
        """Bring the run to its end where it could not say so itself; the server keeps an end that it already has."""
        run = await self._read(flow_run_id)
        if not run or not run.state or run.state.is_final():
            return
        if run.state.is_cancelling():
            await self._mark_flow_run_as_cancelled(run, {"message": "Cancelled: its sandbox has ended."})
        elif ending.why:
            await self._propose_crashed_state(run, f"Modal sandbox {sandbox_id}: {ending.why}.")
        elif ending.code == 0 and is_left_open(run, sandbox_id):
            why = f"its command ended with 0 and left the run {run.state.name}; is the job variable `command` right?"
            await self._propose_crashed_state(run, f"Modal sandbox {sandbox_id}: {why}")

    async def _read(self, flow_run_id: UUID) -> FlowRun | None:
        """The run as Prefect has it, or nothing while Prefect does not answer; a deleted run is a cancelled one."""
        try:
            return await self.client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return FlowRun(id=flow_run_id, flow_id=flow_run_id, state=State(type=StateType.CANCELLED))
        except httpx.HTTPError as error:
            self._logger.warning("Prefect does not say how flow run %s is: %s", flow_run_id, first_line(error))
            return None

    async def _take_up(self) -> None:
        """Follow the sandboxes of this pool that a worker before this one left running."""
        modal = self.modal()
        try:
            with in_our_words(), anyio.fail_after(self.answer_s):
                pool: ModalJobConfiguration = await self.job_configuration.from_template_and_values(
                    self.work_pool.base_job_template, {}, client=self.client
                )
                app = await self._app(pool.app, pool.environment)
                ours = {POOL_TAG: tag(self._work_pool_name)}
                async for sandbox in modal.Sandbox.list.aio(app_id=app.app_id, tags=ours):
                    run_id = UUID((await sandbox.get_tags.aio())[RUN_TAG])
                    self._logger.info("action=take-up sandbox=%s flow_run=%s", sandbox.object_id, run_id)
                    self._in_background(self._follow_again, sandbox, run_id)
        except modal.exception.NotFoundError:
            return  # no app yet, so no sandboxes either
        except (DailiesError, httpx.HTTPError, OSError, RuntimeError, LookupError, ValueError) as error:
            said = first_line(error)
            self._logger.warning("Sandboxes that an earlier worker may have left were not looked for: %s", said)

    async def _follow_again(self, sandbox: Sandbox, flow_run_id: UUID) -> None:
        """As the base does with a run of its own, which never lets one run's trouble end the worker."""
        configuration = ModalJobConfiguration(timeout=LONGEST_S)
        try:
            configuration = await self.job_configuration.resolve_for_flow_run(
                await self.client.read_flow_run(flow_run_id),
                client=self.client,
                work_pool=self.work_pool.model_copy(deep=True),
                worker_name=self.name,
                worker_id=self.backend_id,
            )
        except (ObjectNotFound, httpx.HTTPError, ValueError) as error:
            self._logger.warning(
                "What sandbox %s was asked to do is not known: %s", sandbox.object_id, first_line(error)
            )
        try:
            code = (await self._follow(sandbox, flow_run_id, configuration)).status_code
            if code and (run := await self._read(flow_run_id)):
                why = f"its command exited with non-zero status code {code}"
                await self._propose_crashed_state(run, f"Modal sandbox {sandbox.object_id}: {why}.")
        except httpx.HTTPError as error:
            self._logger.warning(
                "The end of sandbox %s could not be reported: %s", sandbox.object_id, first_line(error)
            )

    def _in_background(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        assert self._runs_task_group is not None
        self._runs_task_group.start_soon(function, *args)


def base_job_template() -> dict[str, Any]:
    """What the pool ``gpu`` is created with: every job variable of a sandbox, with its default and its description."""
    return ModalWorker.get_default_base_job_template()


def refuse_unreachable(url: str | None) -> None:
    """A sandbox that cannot reach the API would be paid for, run nothing and say nothing."""
    host = httpx.URL(url or "").host
    try:
        address = ipaddress.ip_address(host)
        here = address.is_loopback or address.is_unspecified or address.is_link_local
    except ValueError:
        here = host in ("", "localhost") or host.endswith(".localhost")
    if here:
        raise NotConfigured(
            f"a Modal sandbox cannot reach the Prefect API at {url or 'no address'}: set PREFECT_API_URL to an address "
            "that the internet can reach, for this worker or in the job variable `env`"
        )


@contextmanager
def in_our_words(not_found: str = "") -> Iterator[None]:
    """Modal's exceptions as ours, each in one line that says what to do."""
    from modal import exception as modal

    try:
        yield
    except modal.AuthError:
        raise NotConfigured(NO_TOKEN) from None
    except modal.NotFoundError as error:
        if not not_found:
            raise
        raise NotConfigured(f"{not_found}: {first_line(error)}") from None
    except modal.ConflictError as error:
        raise Transient(f"the sandbox ended before it began: {first_line(error)}") from error
    except (modal.InvalidError, modal.PermissionDeniedError, modal.ImageBuildError) as error:
        raise NotConfigured(f"Modal refuses what the job variables ask for: {first_line(error)}") from error
    except (modal.Error, ConnectionError) as error:
        raise Transient(f"Modal: {first_line(error)}") from error


def wanted(state: State[Any] | None) -> bool:
    return state is None or not (state.is_cancelling() or state.is_final())


def is_left_open(run: FlowRun, sandbox_id: str) -> bool:
    """A run that was suspended and resumed may be on its way in another sandbox by now."""
    open_still = run.state is not None and (run.state.is_running() or run.state.is_pending())
    return open_still and run.infrastructure_pid in (None, "", sandbox_id)


def asked_of(configuration: ModalJobConfiguration) -> str:
    names = {
        "app": configuration.app,
        "environment": configuration.environment,
        "image": configuration.image,
        "secrets": ", ".join(configuration.secrets),
    }
    return "; ".join(f"{what} {name}" for what, name in names.items() if name)


def first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__
