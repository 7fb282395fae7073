"""Connections of one host to the addresses that were looked at, and to no others.

Looking at a name and connecting by name would be two questions to the DNS, and a hostile one answers them differently.
Here the name is asked for once, its addresses are checked, and the connection is made to the number; the certificate
is still checked against the name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx

from dailies.catalog.hosts import check_address, split_host
from dailies.errors import BadInput, Transient

Lookup = Callable[[str, bool], list[str]]
MOST_ADDRESSES = 4


class Pinned(httpx.AsyncBaseTransport):
    def __init__(
        self,
        host: str,
        inner: httpx.AsyncBaseTransport,
        *,
        allow_private: bool,
        patience_s: float,
        lookup: Lookup = check_address,
    ) -> None:
        self.host = host
        self._name, _ = split_host(host)
        self._inner, self._allow_private = inner, allow_private
        self._patience_s, self._lookup = patience_s, lookup
        self._addresses: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host != self._name:
            raise BadInput(f"{self.host} was to be asked, and not {request.url.host}")
        failed: httpx.TransportError | None = None
        for address in list(await self._pinned(request)):
            try:
                answer = await self._inner.handle_async_request(self._to(address, request))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error  # a dead IPv6 address beside a live IPv4 one is common
            else:
                # Replaced, not changed in place: somebody else may be going through the old list.
                self._addresses = [address, *(other for other in self._addresses if other != address)]
                return answer
        self._addresses = []
        raise failed or httpx.ConnectError(f"{self.host} has no address", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _pinned(self, request: httpx.Request) -> list[str]:
        if not self._addresses:
            looking = asyncio.to_thread(self._lookup, self.host, self._allow_private)
            try:
                found = await asyncio.wait_for(looking, self._patience_s)
            except TimeoutError:
                raise httpx.ConnectTimeout("the name takes too long to resolve", request=request) from None
            except Transient as error:
                raise httpx.ConnectError(str(error), request=request) from None
            self._addresses = found[:MOST_ADDRESSES]
        return self._addresses

    def _to(self, address: str, request: httpx.Request) -> httpx.Request:
        named = {} if address == self._name else {"sni_hostname": self._name}
        return httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, **named},
        )
