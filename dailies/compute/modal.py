"""Calls as functions of an app on Modal, which ``deployments/modal_app.py`` deploys.

The client tries for a minute before it says that nobody answers; here every question to it has a limit of its own. It
asks from an event loop that ends with the question, so that giving up leaves no thread behind.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from dailies import remote
from dailies.compute.interface import Canceled, StillRunning, UnknownCall, Unreachable
from dailies.errors import DailiesError, NotConfigured, TimedOut, Transient

ANSWER_S = 4.0
TOKEN = "set token_id and token_secret in the block 'Dailies Modal compute', or run `modal token new`"
DEPLOY = "run `modal deploy -m deployments.modal_app`"


class ModalCompute:
    """Without ``token_id`` the client's own configuration counts. ``client`` stands for the module ``modal``."""

    def __init__(
        self,
        app: str,
        environment: str = "",
        token_id: str = "",
        token_secret: str = "",
        *,
        answer_s: float = ANSWER_S,
        client: Any = None,
    ) -> None:
        self.app = app
        self.environment = environment
        self._token = (token_id, token_secret)
        self._answer_s = answer_s
        self._modal = client
        self._account: Any = None

    def submit(self, function: str, payload: Mapping[str, Any], unit: str) -> str:
        async def spawn(modal: Any, account: Any) -> Any:
            found = modal.Function.from_name(
                self.app, function, environment_name=self.environment or None, client=account
            )
            return await found.spawn.aio(dict(payload), unit)

        try:
            call = self._ask(spawn, self._answer_s)
        except self._errors.NotFoundError as error:
            raise NotConfigured(f"Modal has no {function} in app {self.app}: {DEPLOY} ({line(error)})") from error
        except Exception as error:  # noqa: BLE001 - each becomes one of ours
            self._refuse(error)
        return str(call.object_id)

    def result(self, call_id: str, timeout: float) -> Any:
        check_id(call_id)

        async def get(modal: Any, account: Any) -> Any:
            return await modal.FunctionCall.from_id(call_id, client=account).get.aio(timeout=timeout)

        try:
            answer = self._ask(get, timeout + self._answer_s)
        except BaseException as error:  # noqa: BLE001 - InputCancellation is no Exception
            self._explain(call_id, error)
        return remote.said(answer)

    def cancel(self, call_id: str) -> None:
        check_id(call_id)

        async def cancel(modal: Any, account: Any) -> None:
            # Its process must go as well: a decoder does not hear the exception that cancels an input.
            await modal.FunctionCall.from_id(call_id, client=account).cancel.aio(terminate_containers=True)

        try:
            self._ask(cancel, self._answer_s)
        except self._errors.NotFoundError as error:
            raise UnknownCall(f"Modal knows no call {call_id}: {line(error)}") from error
        except Exception as error:  # noqa: BLE001 - each becomes one of ours
            self._refuse(error)

    def find(self, unit: str) -> str | None:
        """Modal gives a call its id, and cannot be asked for it by what it works on."""
        return None

    def check(self) -> None:
        """Asks for the first function of the table, and does not call it."""
        name = next(iter(remote.FUNCTIONS))

        async def look(modal: Any, account: Any) -> Any:
            return await modal.Function.from_name(
                self.app, name, environment_name=self.environment or None, client=account
            ).hydrate.aio()

        try:
            self._ask(look, self._answer_s)
        except self._errors.NotFoundError as error:
            raise NotConfigured(f"Modal has no {name} in app {self.app}: {DEPLOY} ({line(error)})") from error
        except Exception as error:  # noqa: BLE001 - each becomes one of ours
            try:
                self._refuse(error)
            except Transient as passing:
                raise NotConfigured(f"{passing}: can this machine reach Modal?") from error

    def clean(self, older_than: float) -> int:
        """Modal forgets by itself, after some days."""
        return 0

    def _ask(self, question: Callable[[Any, Any], Awaitable[Any]], limit: float) -> Any:
        modal = self._client
        if any(self._token) and not all(self._token):
            raise NotConfigured(f"a Modal token has two parts: {TOKEN}")

        async def within() -> Any:
            try:
                async with asyncio.timeout(limit) as patience:
                    if self._account is None and any(self._token):
                        self._account = await modal.Client.from_credentials.aio(*self._token)
                    return await question(modal, self._account)
            except TimeoutError:
                if patience.expired():
                    raise Unreachable(f"Modal did not answer within {limit:g} s") from None
                raise

        return asyncio.run(within())

    @property
    def _client(self) -> Any:
        if self._modal is None:  # most of a second, which whoever stays on this machine need not spend
            self._modal = importlib.import_module("modal")
        return self._modal

    @property
    def _errors(self) -> Any:
        return self._client.exception

    def _explain(self, call_id: str, error: BaseException) -> NoReturn:
        """What the end of a call means, or that it has not ended."""
        known = self._errors
        match error:
            case known.FunctionTimeoutError():
                raise TimedOut(f"call {call_id} ran into the limit of its function: {line(error)}") from error
            case known.OutputExpiredError():
                raise UnknownCall(f"Modal does not keep the result of call {call_id} any longer") from error
            case known.NotFoundError():
                raise UnknownCall(f"Modal knows no call {call_id}: {line(error)}") from error
            case known.InputCancellation():
                raise Canceled(f"call {call_id} was cancelled") from error
            case known.RemoteError() if is_cancellation(error):
                raise Canceled(f"call {call_id} was cancelled") from error
            case known.InternalFailure() | known.RemoteError() | known.ExecutionError():
                raise Transient(f"call {call_id} failed on Modal: {line(error)}") from error
            case known.TimeoutError():
                raise StillRunning(f"call {call_id} is not over yet") from error
            case Exception():
                self._refuse(error)
            case _:
                raise error

    def _refuse(self, error: Exception) -> NoReturn:
        """What is wrong between us and Modal: one line that says what to set, or that it is worth another try."""
        known = self._errors
        match error:
            case DailiesError():
                raise error
            case known.AuthError():
                raise NotConfigured(f"Modal does not know us: {TOKEN} ({line(error).partition('. ')[0]})") from error
            case known.PermissionDeniedError():
                raise NotConfigured(f"this Modal token may not use app {self.app}: {TOKEN} ({line(error)})") from error
            case known.ConflictError() | known.ConnectionError() | known.ServiceError() | known.InternalError():
                raise Unreachable(f"Modal cannot be asked right now: {line(error)}") from error
            case known.ResourceExhaustedError() | known.ClientClosed() | known.TimeoutError():
                raise Unreachable(f"Modal has no room right now: {line(error)}") from error
            case known.InvalidError() | known.VersionError() | known.ExecutionError():
                raise NotConfigured(
                    f"Modal refuses app {self.app} in environment {self.environment or 'main'}: {line(error)}; {DEPLOY}"
                ) from error
            case _:
                raise Transient(f"{type(error).__name__}: {line(error)}") from error


def check_id(call_id: str) -> None:
    """The client takes any text for an id, and what it then says depends on what it was asked before."""
    if not call_id.startswith("fc-"):
        raise UnknownCall(f"{call_id!r} is no call of Modal")


def is_cancellation(error: BaseException) -> bool:
    """A call that was cancelled ends without a word: the result of a terminated input carries no message."""
    return not str(error).strip() or "cancel" in str(error).lower()


def line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
