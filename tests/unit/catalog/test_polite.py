"""How often, when and where a host is asked, with a clock that only waiting moves."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from dailies.catalog.crawl_options import Crawl
from dailies.catalog.hosts import check_address
from dailies.catalog.polite import LARGEST_ANSWER, GivenUp, Malformed, Polite, Refusal, World, retry_after
from dailies.errors import BadInput, Transient

pytestmark = pytest.mark.unit

HOST = "video.example.org"
PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.7"
NOW = 1_700_000_000.0
Handler = Callable[[httpx.Request], httpx.Response]


class Stream(httpx.AsyncByteStream):
    """As it comes over a connection, so that nobody has unpacked it before us."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for begin in range(0, len(self.data), 1000):
            yield self.data[begin : begin + 1000]


def unread(reply: httpx.Response) -> httpx.Response:
    if not isinstance(reply.stream, Stream):
        reply = httpx.Response(reply.status_code, headers=reply.headers, stream=Stream(reply.content))
    return reply


class Scene:
    """A host that is answered for by ``handler``, and the time that has been waited for it."""

    def __init__(
        self, handler: Handler, lookup: Callable[[str, bool], list[str]] | None = None, **options: Any
    ) -> None:
        self.asked: list[httpx.Request] = []
        self.waits: list[float] = []
        self.now = 0.0

        def answer(request: httpx.Request) -> httpx.Response:
            self.asked.append(request)
            return unread(handler(request))

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            until = self.now + seconds
            await asyncio.sleep(0.01)  # whoever does not wait goes first
            self.now = max(self.now, until)

        world = World(
            clock=lambda: self.now,
            date=lambda: NOW + self.now,
            sleep=sleep,
            chance=lambda: 0.5,
            lookup=lookup or (lambda host, allow: [PUBLIC]),
            transport=lambda tls: httpx.MockTransport(answer),
        )
        self.polite = Polite(Crawl(**options), world)

    def get(self, path: str = "/api/v1/config", host: str = HOST, **query: Any) -> Any:
        return asyncio.run(self.polite.door(host).get(path, **query))

    @property
    def urls(self) -> list[str]:
        return [f"{request.url.scheme}://{request.headers['host']}{request.url.path}" for request in self.asked]


def ok(body: Any = None, **headers: str) -> httpx.Response:
    return httpx.Response(200, content=json.dumps(body).encode(), headers=headers)


def in_turn(*replies: httpx.Response | Exception) -> Handler:
    left = list(replies)

    def handler(request: httpx.Request) -> httpx.Response:
        reply = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    return handler


def test_the_connection_goes_to_the_address_and_the_question_names_the_host() -> None:
    scene = Scene(in_turn(ok({"a": 1})))
    assert scene.get(start=0, sort="-publishedAt") == {"a": 1}
    (request,) = scene.asked
    assert request.url == f"https://{PUBLIC}/api/v1/config?start=0&sort=-publishedAt"
    assert request.headers["host"] == HOST
    assert request.extensions["sni_hostname"] == HOST
    assert request.headers["user-agent"].startswith("Dailies")


def test_a_busy_host_is_asked_again_with_growing_pauses_and_not_more_often_than_said() -> None:
    scene = Scene(in_turn(httpx.Response(503)), attempts=4)
    with pytest.raises(Transient, match="answers 503"):
        scene.get()
    assert len(scene.asked) == 4
    assert scene.waits == [0.5, 0.75, 1.25]


def test_too_many_requests_for_ever_ends_within_the_attempts() -> None:
    scene = Scene(in_turn(httpx.Response(429, headers={"Retry-After": "2"})), attempts=4)
    with pytest.raises(Transient, match="answers 429"):
        scene.get()
    assert len(scene.asked) == 4
    assert scene.now >= 3 * 2


@pytest.mark.parametrize("said", ["7", formatdate(NOW + 7, usegmt=True)])
def test_a_host_is_left_alone_for_as_long_as_it_asks(said: str) -> None:
    scene = Scene(in_turn(httpx.Response(429, headers={"Retry-After": said}), ok([])))
    assert scene.get() == []
    assert 7 <= scene.now <= 7.6


def test_the_pause_of_one_request_holds_for_all_of_the_host() -> None:
    at: dict[str, float] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/first" and "/first" not in at:
            at["/first"] = scene.now
            return httpx.Response(429, headers={"Retry-After": "5"})
        at[request.url.path] = scene.now
        return ok(1)

    scene = Scene(handler)

    async def both() -> None:
        door = scene.polite.door(HOST)
        first = asyncio.create_task(door.get("/first"))
        while not scene.waits:
            await asyncio.sleep(0)
        await asyncio.gather(first, door.get("/second"))

    asyncio.run(both())
    assert at["/second"] >= 5
    assert at["/first"] >= 5


def test_who_asks_for_too_long_a_pause_is_left_alone_for_good() -> None:
    scene = Scene(in_turn(httpx.Response(429, headers={"Retry-After": "3600"})), longest_wait_s=30)
    with pytest.raises(GivenUp, match="3600 s"):
        scene.get()
    with pytest.raises(GivenUp):
        scene.get("/other")
    assert (len(scene.asked), scene.now) == (1, 0)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("3", 3), ("1.5", 1.5), ("-4", 0), ("nan", None), ("soon", None), ("", None), ("inf", float("inf")),
     (formatdate(NOW - 60, usegmt=True), 0), ("Mon, 99 Foo 2020", None)],
)  # fmt: skip
def test_what_retry_after_says(said: str, seconds: float | None) -> None:
    assert retry_after(said, NOW) == seconds


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_clear_no_is_not_asked_again(status: int) -> None:
    scene = Scene(in_turn(httpx.Response(status)))
    with pytest.raises(Refusal, match=f"answers {status} to /api"):
        scene.get()
    assert (len(scene.asked), scene.waits) == (1, [])


def test_a_connection_that_breaks_off_is_tried_again() -> None:
    scene = Scene(in_turn(httpx.ReadError("gone"), httpx.ReadTimeout("late"), ok("here")))
    assert scene.get() == "here"
    assert len(scene.asked) == 3


def test_http_is_the_fallback_and_is_remembered() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "https":
            raise httpx.ConnectError("no TLS here")
        return ok(1)

    scene = Scene(handler)
    scene.get()
    scene.get()
    assert [url.partition(":")[0] for url in scene.urls] == ["https", "http", "http"]
    assert scene.polite.door(HOST).base == f"http://{HOST}"


def test_a_host_that_has_answered_over_https_is_never_asked_over_http() -> None:
    scene = Scene(in_turn(ok(1), httpx.ConnectError("refused")))
    scene.get()
    with pytest.raises(Transient, match="cannot be reached"):
        scene.get()
    assert {url.partition(":")[0] for url in scene.urls} == {"https"}


def test_after_requests_that_failed_in_a_row_the_host_is_given_up_and_others_are_not() -> None:
    scene = Scene(
        lambda request: httpx.Response(500) if request.headers["host"] == HOST else ok(1), attempts=2, give_up_after=3
    )
    for _ in range(2):
        with pytest.raises(Transient):
            scene.get()
    with pytest.raises(GivenUp, match="3 requests in a row"):
        scene.get()
    with pytest.raises(GivenUp):
        scene.get()
    assert len(scene.asked) == 6
    assert scene.get(host="other.example.org") == 1


def test_an_answer_in_between_begins_the_count_anew() -> None:
    bad, good = httpx.Response(500), ok(1)
    scene = Scene(in_turn(bad, good, bad, httpx.Response(404), bad), attempts=1, give_up_after=2)
    for error in (Transient, None, Transient, Refusal, Transient):
        if error is None:
            scene.get()
        else:
            with pytest.raises(error) as told:
                scene.get()
            assert not isinstance(told.value, GivenUp)


def test_a_host_may_take_only_so_long_in_all() -> None:
    scene = Scene(in_turn(httpx.Response(429, headers={"Retry-After": "20"})), host_budget_s=50)
    with pytest.raises(GivenUp, match="50 s are over"):
        scene.get()
    assert scene.now <= 50
    assert len(scene.asked) == 3


def test_a_host_that_answers_slowly_may_take_only_so_long_as_well() -> None:
    def slowly(request: httpx.Request) -> httpx.Response:
        scene.now += 30
        return ok(1)

    scene = Scene(slowly, host_budget_s=50)
    assert [scene.get(), scene.get()] == [1, 1]
    with pytest.raises(GivenUp, match="50 s are over"):
        scene.get()
    assert len(scene.asked) == 2


def test_redirects_within_the_host_are_followed() -> None:
    scene = Scene(in_turn(httpx.Response(301, headers={"Location": "/api/v2/config?x=1"}), ok("moved")))
    assert scene.get() == "moved"
    assert scene.asked[1].url == f"https://{PUBLIC}/api/v2/config?x=1"


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/admin", "https://other.example.org/", "//169.254.169.254/latest", f"https://{HOST}:8443/",
     f"http://{HOST}/", f"https://me:pw@{HOST}/", "ftp://video.example.org/", "https://[::1]/", "http://[", f"https://{PUBLIC}/"],
)  # fmt: skip
def test_no_redirect_leads_anywhere_else(location: str) -> None:
    scene = Scene(in_turn(httpx.Response(302, headers={"Location": location}), ok("stolen")))
    with pytest.raises(Refusal, match="redirects"):
        scene.get()
    assert len(scene.asked) == 1


def test_redirects_without_end_end() -> None:
    scene = Scene(in_turn(httpx.Response(302, headers={"Location": "/again"})))
    with pytest.raises(Refusal, match="again and again"):
        scene.get()
    assert len(scene.asked) == 4


def test_a_name_that_leads_into_our_network_is_refused_at_the_connection() -> None:
    scene = Scene(in_turn(ok(1)), lookup=lambda host, allow: leading_to(PRIVATE, host, allow))
    with pytest.raises(GivenUp, match=r"leads to 10\.0\.0\.7, which is a private address"):
        scene.get()
    assert scene.asked == []


def test_a_name_that_changes_its_mind_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public for the look, private for the connection."""
    answers = [PUBLIC, PRIVATE, PRIVATE]
    questions: list[str] = []

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        questions.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    scene = Scene(in_turn(ok(1)), lookup=check_address)
    scene.get()
    scene.get()
    assert {request.url.host for request in scene.asked} == {PUBLIC}
    assert questions == [HOST]


def test_when_the_pinned_address_fails_the_new_one_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [PUBLIC, PRIVATE]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), 0))]
    )
    scene = Scene(in_turn(httpx.ConnectError("refused")), lookup=check_address, schemes=("https",))
    with pytest.raises(GivenUp, match="private"):
        scene.get()
    assert {request.url.host for request in scene.asked} == {PUBLIC}


def leading_to(address: str, host: str, allow: bool) -> list[str]:
    if not allow:
        raise BadInput(f"{host} leads to {address}, which is a private address: only public hosts are crawled")
    return [address]


def test_a_dead_address_beside_a_live_one_costs_nothing_but_a_try() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "2001:db8::1":
            raise httpx.ConnectTimeout("no route")
        return ok(1)

    scene = Scene(handler, lookup=lambda host, allow: ["2001:db8::1", PUBLIC])
    scene.get()
    scene.get()
    assert [request.url.host for request in scene.asked] == ["2001:db8::1", PUBLIC, PUBLIC]
    assert scene.waits == []


@pytest.mark.parametrize("body", [b"<html>", b'{"a": 1', b"", b"\xff\xfe", b'{"a": NaN}', b"[" * 200_000, b"1" * 5000])
def test_what_is_not_json_is_malformed_and_not_asked_again(body: bytes) -> None:
    scene = Scene(in_turn(httpx.Response(200, content=body)))
    with pytest.raises(Malformed):
        scene.get()
    assert len(scene.asked) == 1


def packed(data: bytes, encoding: str = "gzip") -> Handler:
    return lambda request: httpx.Response(200, headers={"Content-Encoding": encoding}, stream=Stream(data))


def test_packed_answers_are_unpacked() -> None:
    scene = Scene(packed(gzip.compress(json.dumps(["a"] * 10_000).encode())))
    assert scene.get() == ["a"] * 10_000


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "zstd"])
def test_a_packing_that_was_not_asked_for_is_refused(encoding: str) -> None:
    with pytest.raises(Refusal, match="not asked for"):
        Scene(packed(b"whatever", encoding)).get()


@pytest.mark.parametrize("data", [b"no gzip at all", gzip.compress(b"[1, 2]", mtime=0)[:-4]])
def test_a_damaged_package_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="gzip"):
        Scene(packed(data)).get()


def test_what_is_packed_a_thousandfold_is_unpacked_no_further_than_the_limit() -> None:
    bomb = gzip.compress(b" " * (4 * LARGEST_ANSWER), mtime=0)
    assert len(bomb) < LARGEST_ANSWER // 100
    with pytest.raises(Refusal, match="more than 8 MB"):
        Scene(packed(bomb)).get()


def test_options_come_from_json_and_are_looked_at() -> None:
    options = Crawl(page=20, schemes=("http",))
    assert Crawl.from_json(json.loads(json.dumps(options.to_json()))) == options
    for wrong in (
        {"page": 101},
        {"page": 1},
        {"attempts": 0},
        {"schemes": ["ftp"]},
        {"nonsense": 1},
        {"timeout_s": "x"},
    ):
        with pytest.raises(BadInput):
            Crawl.from_json(wrong)
