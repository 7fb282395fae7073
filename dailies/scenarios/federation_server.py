"""The fake federation's sockets: one process, one event loop, a port for each host and one for the index of hosts.

HTTP is spoken by hand, because a crawl asks for thousands of small pages. An answer is held back for ``latency_s``:
a server that answers within the same breath never has two requests at once, and could not count them.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, cast

from dailies.errors import BadInput
from dailies.scenarios.federation_documents import encoded
from dailies.scenarios.federation_plan import Setup, behaviour_from_json
from dailies.scenarios.federation_site import NOT_FOUND, Refusal, Reply, Site, listed, paging, problem

WHITELIST = "/api/v1/instances/hosts"
COUNTERS, CONTROL = "/__counters", "/__control"
MOST_HOSTS = 5000
LARGEST = 1 << 20
TLS_HANDSHAKE = b"\x16\x03"
FLUSH_S = 0.2
BACKLOG = 512


@dataclass
class Tally:
    """What a host has really seen: ``now`` are the requests that came whole and are not answered yet."""

    requests: int = 0
    now: int = 0
    most_at_once: int = 0
    connections: int = 0
    open: int = 0
    most_open: int = 0
    tls: int = 0
    abandoned: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def arrived(self) -> None:
        self.requests += 1
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)

    def opened(self) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    def to_json(self) -> dict[str, Any]:
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        told = asdict(self) | {"statuses": statuses, "limited": self.statuses[429]}
        del told["now"], told["open"]
        return told


class Log:
    """One line for each request. Written in bundles, and at once when the counters are asked for."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if path else None
        self._lines: list[str] = []

    def add(self, host: str, asked: str, status: int, size: int, began: float) -> None:
        if self._file is None:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_S, self.flush)
        took = (time.monotonic() - began) * 1000
        self._lines.append(f'{time.time():.3f} {host} "{asked}" {status} {size} {took:.1f}ms\n')

    def flush(self) -> None:
        if self._file is not None:
            os.write(self._file, "".join(self._lines).encode())
        self._lines.clear()


Answering = Callable[[str, str, bytes], Reply]


class Connection(asyncio.Protocol):
    """Requests one after another; what comes before the last one is answered waits in the buffer."""

    def __init__(self, name: str, tally: Tally, answering: Answering, latency_s: float, log: Log) -> None:
        self._name, self._tally, self._answering, self._latency_s, self._log = name, tally, answering, latency_s, log
        self._buffer = b""
        self._answer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._tally.opened()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tally.open -= 1
        if self._answer is not None:
            self._answer.cancel()
            self._tally.now -= 1
            self._tally.abandoned += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._answer is None:
            self._take()

    def _take(self) -> None:
        if self._buffer.startswith(TLS_HANDSHAKE):
            self._tally.tls += 1
            self._transport.close()
            return
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            if len(self._buffer) > LARGEST:
                self._transport.close()
            return
        lines = head.decode("latin-1").split("\r\n")
        pairs = (each.partition(":") for each in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", "0")) if headers.get("content-length", "0").isdigit() else LARGEST
        words = lines[0].split(" ")
        if len(words) != 3 or length >= LARGEST:
            self._transport.close()
            return
        if len(rest) >= length:
            self._buffer = rest[length:]
            self._begin(words[0], words[1], rest[:length], headers)

    def _begin(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> None:
        began = time.monotonic()
        self._tally.arrived()
        reply = self._answering(method, target, body)
        last = headers.get("connection", "").lower() == "close"
        self._answer = asyncio.get_running_loop().call_later(
            self._latency_s + reply.delay_s, self._finish, f"{method} {target}", reply, last, began
        )

    def _finish(self, asked: str, reply: Reply, last: bool, began: float) -> None:
        self._answer = None
        self._tally.now -= 1
        self._tally.statuses[reply.status] += 1
        self._transport.write(written(reply, last, without_body=asked.startswith("HEAD ")))
        self._log.add(self._name, asked, reply.status, len(reply.body), began)
        if last:
            self._transport.close()
        elif self._buffer:
            self._take()


def written(reply: Reply, last: bool, without_body: bool = False) -> bytes:
    lines = [
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        f"Content-Type: {reply.kind}",
        f"Content-Length: {len(reply.body)}",
        *(f"{name}: {value}" for name, value in reply.headers),
        *(["Connection: close"] if last else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if without_body else reply.body)


class Server:
    """All hosts, and the index in front of them. ``secret`` keeps a crawler that has lost its way from the controls."""

    def __init__(self, setup: Setup, sockets: list[socket.socket], secret: str) -> None:
        self._setup, self._secret, self._sockets = setup, secret, sockets
        self.names = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets[1:]]
        self.day = setup.day
        self._log = Log(setup.log)
        self._sites = [Site(setup, self.names, host, setup.day) for host in range(setup.scale.hosts)]
        self._tallies = [Tally() for _ in self._sites]
        self._index_tally = Tally()
        self._listening: dict[int, asyncio.Server] = {}

    async def open(self) -> None:
        await self._listen(self._sockets[0], "index", self._index_tally, self._answer_index)
        for host in range(len(self._sites)):
            if self._sites[host].behaviour.kind != "dead":
                await self._open_host(host)

    async def _open_host(self, host: int) -> None:
        site, name = self._sites[host], self.names[host]

        def answer(method: str, target: str, body: bytes) -> Reply:
            reply = site.reply(target) if method in ("GET", "HEAD") else problem(405, "Method Not Allowed", "Read only")
            slow = site.behaviour.delay_s if site.behaviour.kind == "slow" else 0.0
            return Reply(reply.status, reply.body, reply.kind, reply.headers, slow) if slow else reply

        self._listening[host] = await self._listen(self._sockets[host + 1], name, self._tallies[host], answer)

    async def _listen(self, on: socket.socket, name: str, tally: Tally, answer: Answering) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        latency = self._setup.latency_s
        return await loop.create_server(
            lambda: Connection(name, tally, answer, latency, self._log), sock=on, backlog=BACKLOG
        )

    def _answer_index(self, method: str, target: str, body: bytes) -> Reply:
        path, _, query = target.partition("?")
        try:
            if path == WHITELIST:
                asked = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
                start, count = paging({"count": "100", **asked}, MOST_HOSTS)
                hosts = [encoded({"host": name}) for name in self.names]
                return listed(len(hosts), hosts[start : start + count])
            if path == COUNTERS:
                self._log.flush()
                return Reply(200, encoded(self.counters()))
            if path == CONTROL and method == "POST":
                return self._control(json.loads(body))
        except Refusal as refusal:
            return refusal.reply
        except (BadInput, ValueError, KeyError, TypeError) as error:
            return problem(400, "Bad Request", str(error))
        return NOT_FOUND

    def counters(self) -> dict[str, Any]:
        hosts = {
            name: {**tally.to_json(), "behaviour": site.behaviour.kind, "pages": site.pages}
            for name, tally, site in zip(self.names, self._tallies, self._sites, strict=True)
        }
        return {"day": self.day, "index": self._index_tally.to_json(), "hosts": hosts}

    def _control(self, order: dict[str, Any]) -> Reply:
        if order.get("secret") != self._secret:
            return problem(403, "Forbidden", "Only the scenario may do that")
        match order:
            case {"action": "show", "day": int(day)}:
                self._show(day)
            case {"action": "forget"}:
                self._forget()
            case {"action": "behave", "host": int(host), "behaviour": dict(how)} if 0 <= host < len(self._sites):
                self._behave(host, how)
            case _:
                raise BadInput("orders are: show a day, forget what was counted, behave")
        return Reply(200, encoded({"day": self.day}))

    def _show(self, day: int) -> None:
        Setup(self._setup.scale, day=day)  # refuses a day that there is not, before anything has changed
        for site in self._sites:
            site.show(day)
        self.day = day

    def _forget(self) -> None:
        """In place: whoever is connected counts on in the same tally."""
        for tally in (self._index_tally, *self._tallies):
            tally.requests = tally.tls = tally.abandoned = 0
            tally.most_at_once, tally.connections, tally.most_open = tally.now, tally.open, tally.open
            tally.statuses.clear()
        for site in self._sites:
            site.pages.clear()

    def _behave(self, host: int, how: dict[str, Any]) -> None:
        behaviour = behaviour_from_json(how)
        if "dead" in (behaviour.kind, self._sites[host].behaviour.kind):
            raise BadInput("no host dies or rises while the federation runs: stop it, change the host, start it")
        self._sites[host].behaviour = behaviour
        self._sites[host].show(self.day)

    def close(self) -> None:
        self._log.flush()


def reserve(setup: Setup) -> list[socket.socket]:
    """Bound from the start, so that nobody takes a dead host's port: until it listens, it refuses."""
    sockets = []
    for port in setup.ports or (0,) * (setup.scale.hosts + 1):
        each = socket.socket()
        if port:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for any port it would let two share one
        try:
            each.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(f"port {port} is taken: leave ports out, or stop who has it ({error.strerror})") from None
        sockets.append(each)
    return sockets


async def serve(setup: Setup, secret: str) -> None:
    """Says on stdout where it listens, and ends when stdin does: whoever started it is then gone, or wants it so."""
    sockets = reserve(setup)
    server = Server(setup, sockets, secret)
    await server.open()
    told = {"index": f"127.0.0.1:{sockets[0].getsockname()[1]}", "hosts": server.names}
    sys.stdout.buffer.write(encoded(told) + b"\n")
    sys.stdout.buffer.flush()
    try:
        await _end_of_stdin()
    finally:
        server.close()


async def _end_of_stdin() -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def readable() -> None:
        with suppress(BlockingIOError):
            if not os.read(sys.stdin.fileno(), 1024):
                ended.set()

    loop.add_reader(sys.stdin.fileno(), readable)
    await ended.wait()
