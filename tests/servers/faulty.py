"""A proxy in front of an S3 server: it counts what is asked, and spoils what it is told to.

It speaks HTTP rather than bytes, so that a rule can pick its victim by what is asked for, and so that a lost answer is
lost only after the server behind it has really done what was asked.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

WAIT_S = 20.0

# forward · drop: not done, no answer · lose: done, no answer · late: done, the answer comes LATE_S later
# cut, garble, stall: the answer breaks off, has a bit flipped, or stops half-way and keeps its connection
# away: from now on nobody listens · a number: answered with this status, not done · bytes: answered so, not done
Fate = str | int | bytes


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]

    @property
    def part(self) -> int | None:
        return int(self.query["partNumber"][0]) if self.method == "PUT" and "partNumber" in self.query else None


@dataclass
class Proxy:
    """``rule`` says what becomes of a request. ``fired`` is what was really done to whom, in this order."""

    target: str
    late_s: float = 1.0
    asked: list[Asked] = field(default_factory=list)
    fired: list[tuple[Fate, Asked]] = field(default_factory=list)
    rule: Callable[[Asked], Fate] = lambda asked: "forward"
    over: threading.Event = field(default_factory=threading.Event)
    _listener: _Listener | None = None

    def __post_init__(self) -> None:
        # Bound and never listening: it keeps the port ours while nobody listens there.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._place.getsockname()[1]}"

    @property
    def parts(self) -> list[int]:
        return [asked.part for asked in self.asked if asked.part]

    @property
    def count(self) -> Counter[Fate]:
        return Counter(fate for fate, _ in self.fired)

    @property
    def listens(self) -> bool:
        return self._listener is not None

    def come(self) -> None:
        """Listen, again at the same address."""
        self._listener = _Listener(self)
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def leave(self) -> None:
        """Refuse connections, and cut those that are kept open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()

    def close(self) -> None:
        self.over.set()
        self.leave()
        self._place.close()


@contextmanager
def proxying(target: str) -> Iterator[Proxy]:
    proxy = Proxy(target)
    try:
        proxy.come()
        yield proxy
    finally:
        proxy.close()


def once(wanted: Callable[[Asked], object], fate: Fate, times: int = 1) -> Callable[[Asked], Fate]:
    left = [fate] * times
    return lambda asked: left.pop() if left and wanted(asked) else "forward"


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # one of them may be the thread that told us to leave

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", int(proxy.url.rpartition(":")[2])), _Handler)

    def handle_error(self, request: object, address: object) -> None:
        """A client that was killed is meant."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def pass_on(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if proxy._listener is not self.server:
            self.close_connection = True
            return
        url = urlsplit(self.path)
        asked = Asked(self.command, url.path, parse_qs(url.query, keep_blank_values=True))
        proxy.asked.append(asked)
        fate = proxy.rule(asked)
        if fate != "forward":
            proxy.fired.append((fate, asked))
        self.suffer(fate, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    def suffer(self, fate: Fate, body: bytes) -> None:
        if isinstance(fate, int):
            self.answer(fate, {}, b"")
        elif isinstance(fate, bytes):
            self.answer(200, {}, fate)
        elif fate in ("drop", "away"):
            self.close_connection = True
            if fate == "away":
                self.server.proxy.leave()
        else:
            self.answer_of_the_server(fate, body)

    def answer_of_the_server(self, fate: str, body: bytes) -> None:
        status, headers, answer = self.forwarded(body)
        match fate:
            case "lose":
                self.close_connection = True
                return
            case "late":
                time.sleep(self.server.proxy.late_s)
            case "garble":
                answer = bytes([answer[0] ^ 1]) + answer[1:] if answer else answer
            case "cut" | "stall":
                answer = answer[: len(answer) // 2]
                self.close_connection = True
        self.answer(status, headers, answer)
        if fate == "stall":
            self.server.proxy.over.wait(WAIT_S)

    def forwarded(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection(urlsplit(self.server.proxy.target).netloc, timeout=WAIT_S)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                connection.putheader(name, value)
        connection.endheaders(body)
        with connection.getresponse() as answer:
            return answer.status, dict(answer.getheaders()), answer.read()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """With the length that the server promised, whatever has become of the body."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers.items()}.get("content-length", str(len(body)))
        self.send_header("Content-Length", length)
        self.end_headers()
        with suppress(OSError):  # the client did not want to wait
            self.wfile.write(body)
            self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """The tests say what they want to know."""
