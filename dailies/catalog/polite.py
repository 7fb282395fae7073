"""Ask hosts politely: two requests at once, later where they say so, not more often than is of use, not for ever.

    async with Polite(options) as polite:
        document = await polite.door("video.example.org").get("/api/v1/config")

One ``Door`` for each host. What goes wrong there stays there:

    Refusal     the host answered, and not with what was asked for: the same question gets the same answer
    Malformed   a Refusal: what it sent is not JSON
    Unanswered  this request failed, with all its attempts
    GivenUp     an Unanswered: nothing more is asked of this host
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from ssl import SSLContext
from typing import Any, NoReturn

import httpx

from dailies.catalog.crawl_options import Crawl
from dailies.catalog.hosts import check_address
from dailies.catalog.pinned import Lookup, Pinned
from dailies.errors import BadInput, Transient

AT_ONCE = 2
LARGEST_ANSWER = 8 << 20
MOST_REDIRECTS = 3
PASSING = (408, 425, 429)
HEADERS = {"User-Agent": "Dailies/0.1 (catalogue of public videos)", "Accept": "application/json"}


class Refusal(BadInput):
    pass


class Malformed(Refusal):
    pass


class Unanswered(Transient):
    pass


class GivenUp(Unanswered):
    pass


class Again(Exception):
    """One attempt failed; ``after_s`` is how long the host asks to be left alone."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


@dataclass(frozen=True)
class World:
    """What a test replaces."""

    clock: Callable[[], float] = time.monotonic
    date: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random
    lookup: Lookup = check_address
    transport: Callable[[SSLContext], httpx.AsyncBaseTransport] = lambda tls: httpx.AsyncHTTPTransport(
        verify=tls,
        trust_env=False,  # a proxy would make the connection, to whatever address it likes
        limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE),
    )


@lru_cache(maxsize=1)
def certificates() -> SSLContext:
    """Once a process: to read them all takes as long as some hosts."""
    return httpx.create_ssl_context()


class Polite:
    def __init__(self, options: Crawl, world: World | None = None, schemes: dict[str, str] | None = None) -> None:
        """``schemes``: what is known already of the hosts that have no https."""
        self.options = options
        self.world = world or World()
        self.requests = 0
        self.answered = False
        self._schemes = schemes or {}
        self._doors: dict[str, Door] = {}
        self._tls = certificates()

    def door(self, host: str) -> Door:
        if host not in self._doors:
            self._doors[host] = Door(self, host, self._tls, self._schemes.get(host))
        return self._doors[host]

    async def __aenter__(self) -> Polite:
        return self

    async def __aexit__(self, *_: object) -> None:
        for door in self._doors.values():
            await door.close()


class Door:
    def __init__(self, polite: Polite, host: str, tls: SSLContext, scheme: str | None) -> None:
        self.host = host
        self.scheme = scheme
        """Once it has answered: there is no way back from https."""
        self.answered = False
        self.unreachable = False
        """Not a byte has come from there: it may be the host's fault, or our own network's."""
        self.given_up: str | None = None
        self._polite, self._options, self._world = polite, polite.options, polite.world
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._until: float | None = None
        self._not_before = 0.0
        self._failures = 0
        transport = Pinned(
            host,
            self._world.transport(tls),
            allow_private=self._options.allow_private,
            patience_s=self._options.timeout_s,
            lookup=self._world.lookup,
        )
        self._client = httpx.AsyncClient(
            transport=transport, headers=HEADERS, timeout=self._options.timeout_s, trust_env=False
        )

    @property
    def base(self) -> str:
        return f"{self.scheme or self._options.schemes[0]}://{self.host}"

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str, **query: str | int) -> Any:
        """The JSON document there; only while it is being fetched is one of the host's two slots taken."""
        said = ""
        for attempt in range(1, self._options.attempts + 1):
            try:
                async with self._slots:
                    await self._my_turn()
                    found = await self._once(path, query)
            except Again as again:
                said = str(again)
                await self._wait(again, attempt)
            except Refusal:
                self._failures = 0
                raise
            except BadInput as error:  # where the name leads to
                self._give_up(str(error))
            else:
                self._failures = 0
                return found
        self._failures += 1
        if self._failures >= self._options.give_up_after:
            self._give_up(f"{said}; {self._failures} requests in a row have failed")
        raise Unanswered(said)

    async def _my_turn(self) -> None:
        if self._until is None:
            self._until = self._world.clock() + self._options.host_budget_s
        while not self.given_up and (wait := self._not_before - self._world.clock()) > 0:
            await self._world.sleep(wait)
        if self.given_up:
            raise GivenUp(self.given_up)
        if self._left() <= 0:
            self._give_up(f"its {self._options.host_budget_s:g} s are over")

    def _left(self) -> float:
        return (self._until or 0.0) - self._world.clock()

    async def _wait(self, again: Again, attempt: int) -> None:
        """Twice as long each time, or what the host asks for. By chance a little more or less: what failed together
        must not come back together."""
        last = attempt == self._options.attempts
        jitter = self._world.chance() * self._options.first_wait_s
        backoff = self._options.first_wait_s * 2 ** (attempt - 1) / 2 + jitter
        wait = min(self._options.longest_wait_s, backoff) if again.after_s is None else again.after_s + jitter
        if again.after_s is not None:
            if again.after_s > self._options.longest_wait_s:
                self._give_up(f"{again}, and asks to be left alone for {again.after_s:.0f} s")
            self._not_before = max(self._not_before, self._world.clock() + wait)
        if not last and wait >= self._left():
            self._give_up(f"{again}; its {self._options.host_budget_s:g} s are over")
        if not last and again.after_s is None:
            await self._world.sleep(wait)

    def _give_up(self, reason: str) -> NoReturn:
        self.given_up = reason
        raise GivenUp(reason)

    async def _once(self, path: str, query: dict[str, str | int]) -> Any:
        schemes = (self.scheme,) if self.scheme else self._options.schemes
        said = ""
        for scheme in schemes:
            try:
                async with asyncio.timeout(min(4 * self._options.timeout_s, max(0.01, self._left()))):
                    return await self._fetch(httpx.URL(f"{scheme}://{self.host}{path}", params=query))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                said = said or f"cannot be reached ({_told(error)})"
                if self.scheme:  # it has answered, and does not just now
                    break
                self.unreachable = "[SSL" not in said  # where a certificate is wrong, somebody is there
            except (httpx.TimeoutException, TimeoutError):
                raise Again(f"did not answer within {self._options.timeout_s:g} s") from None
            except httpx.TransportError as error:
                raise Again(f"broke off ({_told(error)})") from None
            except httpx.HTTPError as error:
                raise Malformed(f"answers what cannot be read ({type(error).__name__})") from None
        raise Again(said)

    async def _fetch(self, url: httpx.URL) -> Any:
        for _ in range(MOST_REDIRECTS + 1):
            self._polite.requests += 1
            async with self._client.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer:
                self.scheme, self.answered, self.unreachable = url.scheme, True, False
                self._polite.answered = True
                if answer.status_code == 200:
                    return _document(await _body(answer))
                if answer.status_code in PASSING or answer.status_code >= 500:
                    said = f"answers {answer.status_code}"
                    raise Again(said, retry_after(answer.headers.get("retry-after", ""), self._world.date()))
                if not answer.has_redirect_location:
                    raise Refusal(f"answers {answer.status_code} to {url.path}")
                url = self._redirected(url, answer.headers["location"])
        raise Refusal("redirects again and again")

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        """Within the host, and else not at all: who is asked is what the whitelist says, and nobody else."""
        try:
            to = url.join(location)
        except (httpx.InvalidURL, ValueError, TypeError):
            raise Refusal("redirects to what is no address") from None
        if to.host != url.host or not self._same_port(to) or to.scheme not in self._options.schemes or to.userinfo:
            raise Refusal(f"redirects to {to.scheme}://{to.netloc.decode(errors='replace')[:100]}, another host")
        if url.scheme == "https" and to.scheme != "https":
            raise Refusal("redirects from https to http")
        return to

    def _same_port(self, to: httpx.URL) -> bool:
        _, _, port = self.host.rpartition(":")
        ours = int(port) if port.isdigit() and not self.host.endswith("]") else None
        return to.port == ours  # httpx leaves out the port that a scheme has anyway


async def _body(answer: httpx.Response) -> bytes:
    """Unpacked by hand, because what is packed a thousandfold must not be unpacked at once."""
    packed = answer.headers.get("content-encoding", "").strip().lower()
    if packed not in ("", "identity", "gzip"):
        raise Refusal(f"answers packed as {packed[:40]!r}, which was not asked for")
    unzip = zlib.decompressobj(wbits=31) if packed == "gzip" else None
    body = bytearray()
    async for piece in answer.aiter_raw():
        try:
            body += unzip.decompress(piece, LARGEST_ANSWER + 1 - len(body)) if unzip else piece
        except zlib.error:
            raise Malformed("answers what is not gzip") from None
        if len(body) > LARGEST_ANSWER:
            raise Refusal(f"answers more than {LARGEST_ANSWER >> 20} MB")
    if unzip and not unzip.eof:
        raise Malformed("answers half a gzip file")
    return bytes(body)


def _document(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Malformed("answers what is not JSON") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def retry_after(said: str, now: float) -> float | None:
    """In seconds, or as a date; None where it cannot be read."""
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
