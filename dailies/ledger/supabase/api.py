"""How the functions in the database are called: asked again while the way is blocked, and their refusals as our errors.

A call that changes something carries an id of its own, and the database keeps the answer under it: asking again after a
lost reply gets that answer and does nothing twice.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from postgrest.exceptions import APIError
from supabase import Client, create_client
from supabase.lib.client_options import SyncClientOptions
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from dailies.errors import (
    BadInput,
    DailiesError,
    Fenced,
    Held,
    IdempotencyConflict,
    IllegalTransition,
    Missing,
    NotConfigured,
    Transient,
)

SCHEMA = "dailies"
SCHEMA_VERSION = 3
PATIENCE_S = 10.0
REPLY_S = 5.0  # for one try: a database that answers later is as good as gone, and asking again costs nothing
CHECK_S = 4.0
PASSING_STATUS = {408, 425, 429, *range(500, 600)}
REFUSALS: dict[str, type[DailiesError]] = {
    kind.code: kind for kind in (BadInput, Missing, Fenced, IllegalTransition, IdempotencyConflict, Transient)
}
MIGRATE = "apply them (supabase db push --workdir deployments)"
EXPOSE = f"add {SCHEMA!r} to the exposed schemas of its API"
# By the API's error code: what is not there, and what to do about it.
NOT_THERE = {
    "PGRST106": f"does not serve the schema {SCHEMA!r}: {EXPOSE}",
    "PGRST202": f"lacks migrations of the ledger: {MIGRATE}",
    "PGRST205": f"lacks migrations of the ledger: {MIGRATE}",
    "42883": f"lacks migrations of the ledger: {MIGRATE}",
    "42P01": f"lacks migrations of the ledger: {MIGRATE}",
    "3F000": f"lacks migrations of the ledger: {MIGRATE}",
    "42501": "does not let this key use the ledger: set the service key, not the publishable one",
}


class Unavailable(Exception):
    """The server, or something on the way to it, says that it cannot answer now."""


class Api:
    """A client for each thread and process: a connection must cross neither."""

    def __init__(self, url: str, key: str, patience: float) -> None:
        self.url = address(url)
        self.key = key.strip()
        if not (self.key.isascii() and self.key.isprintable() and self.key):
            raise NotConfigured(f"that is no key for the ledger at {url}: set service_key to the project's secret key")
        self.patience = patience
        self._local = threading.local()

    def ask(self, function: str, **arguments: Any) -> Any:
        """Call a function that may be called any number of times."""
        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_delay(self.patience),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            reraise=True,
        )
        return retrying(self._once, function, arguments)

    def tell(self, function: str, **arguments: Any) -> Any:
        """Call a function that changes something, once, however often it has to be asked."""
        return self.ask(function, request=str(uuid4()), **arguments)

    def check(self) -> None:
        try:
            version = int(self._once("version", {}, CHECK_S))
        except Transient as error:
            raise NotConfigured(
                f"no ledger answers at {self.url} ({error.__cause__}): set url to the project's address, "
                "and see that the project is not paused"
            ) from error
        if version != SCHEMA_VERSION:
            raise NotConfigured(
                f"the database at {self.url} has ledger schema {version}, this version of dailies needs "
                f"{SCHEMA_VERSION}: {MIGRATE if version < SCHEMA_VERSION else 'use the dailies that brought it there'}"
            )

    def close(self) -> None:
        """Closes this thread's connection; the other threads' go when they end."""
        client = getattr(self._local, "client", None)
        self._local.client = None
        if client is not None:
            client.options.httpx_client.close()

    def _once(self, function: str, arguments: dict[str, Any], reply_s: float | None = None) -> Any:
        with typed_errors(self.url):
            client = self._client()
            client.postgrest.session.timeout = reply_s or REPLY_S
            reply = client.rpc(function, {f"_{name}": value for name, value in arguments.items()}).execute()
        try:
            return json.loads(str(reply.data))
        except ValueError as error:
            raise NotConfigured(
                f"{self.url} does not answer like Supabase: set url to the project's address"
            ) from error

    def _client(self) -> Client:
        if getattr(self._local, "pid", None) != os.getpid() or self._local.client is None:
            self._local.client = self._connect()
            self._local.pid = os.getpid()
        client: Client = self._local.client
        return client

    def _connect(self) -> Client:
        options = SyncClientOptions(
            schema=SCHEMA,
            auto_refresh_token=False,
            persist_session=False,
            postgrest_client_retry=False,  # one layer tries again, and it is ours
            httpx_client=httpx.Client(
                verify=certificates(), follow_redirects=True, event_hooks={"response": [passing]}
            ),
        )
        return create_client(self.url, self.key, options)


@cache
def certificates() -> ssl.SSLContext:
    """Read once a process: it takes longer than several calls."""
    return httpx.create_ssl_context()


def address(url: str) -> str:
    """Refused before anything is asked, for each layer below has an error of its own for it."""
    url = url.strip()
    wrong = f"{url!r} is no Supabase address: set url to https://PROJECT.supabase.co"
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise NotConfigured(wrong) from error
    if not named or parts.query or parts.fragment or re.search(r"\s", url):
        raise NotConfigured(wrong)
    return url.rstrip("/")


def passing(response: httpx.Response) -> None:
    """By the status, before anybody reads the body: what a gateway answers with is not JSON."""
    if response.status_code in PASSING_STATUS:
        response.read()
        raise Unavailable(f"{response.status_code} {said(response)}")


def said(response: httpx.Response) -> str:
    """The message if there is one, else the beginning of whatever came."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200].strip()


@contextmanager
def typed_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, Unavailable) as error:
        if names_nobody(error):
            raise NotConfigured(
                f"there is no host of the name in {url}: set url to https://PROJECT.supabase.co"
            ) from error
        raise Transient(f"the ledger at {url} does not answer now: {error or type(error).__name__}") from error
    except APIError as error:
        raise translated(url, error) from error


def names_nobody(error: BaseException | None) -> bool:
    """The name server knows for certain that there is no such name; all else that it says may pass."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno == socket.EAI_NONAME
        error = error.__cause__ or error.__context__
    return False


def translated(url: str, error: APIError) -> Exception:
    code = str(error.code or "")
    if code.startswith("PT"):
        return refusal(error)
    if code in NOT_THERE:
        return NotConfigured(f"the database at {url} {NOT_THERE[code]}")
    if code.startswith("PGRST3") or code in ("401", "403") or "api key" in str(error.message).lower():
        return NotConfigured(f"{url} does not know this key: set service_key to the project's secret key")
    if code.startswith("PGRST") or code == "404":
        return NotConfigured(
            f"{url} does not answer as the ledger's API does ({error.message}): {EXPOSE}, and {MIGRATE}"
        )
    if code.startswith("22"):
        return BadInput(f"the ledger cannot keep this: {error.message}")
    if code == "23503":
        return Missing(f"the ledger at {url} has no such job to write under")
    return error


def refusal(error: APIError) -> DailiesError:
    detail = json.loads(str(error.details))
    if detail["code"] == Held.code:
        return Held(**detail["more"])
    return REFUSALS[detail["code"]](str(error.message))
