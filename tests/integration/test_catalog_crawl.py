"""A crawl over real connections: politeness as the server counts it, lists that shift, hosts that fail, and SIGKILL."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dailies import failpoints
from dailies.catalog import schema
from dailies.catalog.crawl import count_videos, crawl_channels, crawl_instances, crawl_videos
from dailies.errors import BadInput, Transient

pytestmark = pytest.mark.integration

AS_OF = 1_790_000_000_000
OPTIONS = {
    "allow_private": True,
    "schemes": ["http"],
    "page": 10,
    "stop_after_pages": 0,
    "first_wait_s": 0.01,
    "timeout_s": 2,
}
PATIENCE_S = 30.0
Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    path: str
    start: int
    at: float


@dataclass
class Host:
    """A small PeerTube: ``channels`` by name, each with its videos, newest first. ``before`` may answer instead."""

    channels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    delay_s: float = 0.0
    before: Callable[[Host, str, int], Reply | None] = lambda host, path, start: None
    after: Callable[[Host, str, int], None] = lambda host, path, start: None
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most: int = 0
    name: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, target: str) -> Reply:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        start, count = int(query.get("start", 0)), int(query.get("count", 15))
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.asked.append(Asked(parts.path, start, time.monotonic()))
        try:
            time.sleep(self.delay_s)
            with self.lock:
                reply = self.before(self, parts.path, start) or self.usual(parts.path, start, count)
                self.after(self, parts.path, start)
                return reply
        finally:
            with self.lock:
                self.at_once -= 1

    def usual(self, path: str, start: int, count: int) -> Reply:
        if path == "/api/v1/config":
            return said({"instance": {"name": f"Tube {self.name}"}, "serverVersion": "7.0.0"})
        if path == "/api/v1/video-channels":
            return self.page([self.channel(name) for name in self.channels], start, count)
        found = re.fullmatch("/api/v1/video-channels/([^/]+)/videos", path)
        if found and found[1] in self.channels:
            return self.page([{**video, **self.owner(found[1])} for video in self.channels[found[1]]], start, count)
        return 404, {}, b"{}"

    def page(self, items: list[Any], start: int, count: int) -> Reply:
        return said({"total": len(items), "data": items[start : start + count]})

    def channel(self, name: str) -> dict[str, Any]:
        return {"id": number_of(name), "name": name, "displayName": name.title(), "host": self.name, "isLocal": True}

    def owner(self, channel: str) -> dict[str, Any]:
        return {"channel": {"id": number_of(channel), "name": channel, "host": self.name}}

    def pages(self) -> list[tuple[str, int]]:
        return [(one.path.split("/")[-2], one.start) for one in self.asked if one.path.endswith("/videos")]


def number_of(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 1)


def said(document: Any, status: int = 200, **headers: str) -> Reply:
    return status, headers, json.dumps(document).encode()


def video(number: int, **more: Any) -> dict[str, Any]:
    uuid = f"00000000-0000-4000-8000-{number:012d}"
    return {"id": number, "uuid": uuid, "name": f"Video {number}", "views": number, "tags": ["a"], **more}


def videos(first: int, count: int) -> list[dict[str, Any]]:
    """Newest first."""
    return [video(number) for number in range(first + count - 1, first - 1, -1)]


@pytest.fixture
def serve() -> Iterator[Callable[[Host], str]]:
    with ExitStack() as stack:

        def start(host: Host) -> str:
            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"
                disable_nagle_algorithm = True

                def do_GET(self) -> None:
                    status, headers, body = host.answer(self.path)
                    with suppress(ConnectionError):
                        self.send_response(status)
                        for name, value in {"Content-Length": str(len(body)), **headers}.items():
                            self.send_header(name.replace("_", "-"), value)
                        self.end_headers()
                        self.wfile.write(body)

                def log_message(self, *_: Any) -> None:
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            host.name = f"127.0.0.1:{server.server_port}"
            return host.name

        yield start


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return begun(tmp_path / "staging.db")


def begun(path: Path) -> Path:
    schema.create(path, "staging")
    with closing(schema.connect(path, "staging", write=True)) as database:
        database.execute("INSERT INTO crawl_state VALUES ('as_of', ?)", (str(AS_OF),))
    return path


def rows(path: Path, question: str) -> list[tuple[Any, ...]]:
    with closing(schema.connect(path, "staging")) as database:
        return database.execute(question).fetchall()


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("crawl_state", "instances", "channels", "videos", "crawl_progress", "refused")
    return {table: rows(path, f"SELECT * FROM {table}") for table in tables}


def titles(path: Path) -> set[str]:
    return {title for (title,) in rows(path, "SELECT title FROM videos")}


def crawl(staging: Path, hosts: list[str], production: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    chosen = {**OPTIONS, **options}
    return [
        crawl_instances(staging, hosts, chosen),
        crawl_channels(staging, chosen),
        crawl_videos(staging, production, chosen),
        count_videos(staging, chosen),
    ]


def test_everything_that_the_hosts_have_is_gathered(serve: Any, staging: Path) -> None:
    first = Host({"wood1": videos(1, 25), "metal2": videos(100, 3), "empty3": []})
    second = Host({"cats1": videos(200, 10)})
    names = [serve(first), serve(second)]
    told: list[float] = []
    crawl_instances(staging, names, OPTIONS, told.append)
    assert told == [0.5, 1.0]
    _, _, found, counted = crawl(staging, names)
    assert titles(staging) == {f"Video {n}" for n in [*range(1, 26), *range(100, 103), *range(200, 210)]}
    assert (found["seen"], found["new"], found["updated"]) == (38, 38, 0)
    assert found["channels"] == {"done": 4, "failed": 0, "skipped": 0}
    assert found["hosts"] == {"ok": 2, "failed": {}}
    assert rows(staging, "SELECT channel_name, videos_count, seen, health_status FROM channels ORDER BY 1") == [
        ("cats1", 10, 1, "ok"),
        ("empty3", 0, 1, "ok"),
        ("metal2", 3, 1, "ok"),
        ("wood1", 25, 1, "ok"),
    ]
    assert counted["requests"] == 0  # the lists have said it already
    assert rows(staging, "SELECT DISTINCT health_status, health_checked_at, version FROM instances") == [
        ("ok", AS_OF, "7.0.0")
    ]
    assert rows(staging, "SELECT DISTINCT last_checked_at FROM videos") == [(AS_OF,)]
    assert rows(staging, "SELECT count(*) FROM crawl_progress WHERE what IN ('channels', 'videos') AND whole = 0") == [
        (0,)
    ]


def test_never_more_than_two_at_once_for_one_host_and_several_hosts_at_once(serve: Any, staging: Path) -> None:
    hosts = [Host({f"c{n}": videos(n * 100, 15) for n in range(1, 7)}, delay_s=0.02) for _ in range(4)]
    crawl(staging, [serve(host) for host in hosts])
    assert [host.most for host in hosts] == [2, 2, 2, 2]
    spans = sorted((host.asked[0].at, host.asked[-1].at) for host in hosts)
    assert spans[1][0] < spans[0][1]


def test_a_host_says_when_it_wants_to_be_asked_again(serve: Any, staging: Path) -> None:
    refused_at: list[float] = []

    def limit(host: Host, path: str, start: int) -> Reply | None:
        if path.endswith("c1/videos") and not refused_at:
            refused_at.append(time.monotonic())
            return said({}, 429, Retry_After="1")
        return None

    host = Host({"c1": videos(1, 12), "c2": videos(50, 40)}, before=limit, delay_s=0.02)
    *_, found, _ = crawl(staging, [serve(host)])
    later = [one.at - refused_at[0] for one in host.asked if one.at > refused_at[0]]
    # The one that was on its way already may have come; all else waits, the host's other lists as well.
    assert sorted(later)[1] >= 0.98
    assert found["seen"] == 52


def test_too_many_requests_for_ever_ends_and_stops_nobody_else(serve: Any, staging: Path) -> None:
    busy = Host(before=lambda host, path, start: said({}, 429, Retry_After="0"))
    good = Host({"c1": videos(1, 5)})
    names = [serve(busy), serve(good)]
    first, *_ = crawl(staging, names, attempts=3)
    assert len(busy.asked) == 3
    assert first["hosts"] == {"ok": 1, "failed": {names[0]: "answers 429"}}
    assert len(titles(staging)) == 5
    health = (
        "SELECT health_status, health_error, last_error_at, last_error_source FROM instances ORDER BY health_status"
    )
    assert rows(staging, health) == [("error", "answers 429", AS_OF, "instance"), ("ok", None, None, None)]


def test_a_slow_host_costs_its_own_time(serve: Any, staging: Path) -> None:
    slow, good = Host({"c1": videos(1, 5)}, delay_s=3), Host({"c1": videos(1, 5)})
    names = [serve(slow), serve(good)]
    began = time.monotonic()
    first, *_ = crawl(staging, names, timeout_s=0.2, attempts=2)
    assert first["hosts"]["failed"] == {names[0]: "did not answer within 0.2 s"}
    assert len(titles(staging)) == 5
    assert time.monotonic() - began < 3


def test_what_fails_is_tried_again_by_the_next_call_and_nothing_else(serve: Any, staging: Path) -> None:
    broken = {"c2"}

    def fail(host: Host, path: str, start: int) -> Reply | None:
        return said({}, 500) if any(f"/{name}/" in path for name in broken) else None

    host = Host({"c1": videos(1, 15), "c2": videos(50, 15)}, before=fail)
    name = serve(host)
    *_, found, _ = crawl(staging, [name], attempts=2)
    assert found["channels"] == {"done": 1, "failed": 1, "skipped": 0}
    assert rows(staging, "SELECT channel_id, status, error FROM crawl_progress WHERE what = 'videos'") == [
        ("1", "done", None),
        ("2", "error", "answers 500"),
    ]
    assert rows(staging, "SELECT health_status, health_error FROM channels") == [("ok", None), ("error", "answers 500")]
    broken.clear()
    host.asked.clear()
    *_, found, _ = crawl(staging, [name])
    assert {channel for channel, _ in host.pages()} == {"c2"}
    assert len(host.asked) == len(host.pages())
    assert found["channels"] == {"done": 1, "failed": 0, "skipped": 0}
    assert rows(staging, "SELECT health_status, last_error FROM channels") == [("ok", None), ("ok", "answers 500")]
    assert len(titles(staging)) == 30


def test_a_host_that_fails_in_the_midst_is_given_up_and_says_why(serve: Any, staging: Path) -> None:
    def fail(host: Host, path: str, start: int) -> Reply | None:
        return said({}, 500) if path.endswith("/videos") else None

    host = Host({f"c{n}": videos(n * 100, 5) for n in range(1, 30)}, before=fail)
    name = serve(host)
    *_, found, _ = crawl(staging, [name], attempts=2, give_up_after=3)
    assert "requests in a row have failed" in found["hosts"]["failed"][name]
    assert len(host.pages()) <= 2 * (3 + 1)
    assert found["channels"]["skipped"] >= 25
    assert rows(staging, "SELECT health_status FROM instances") == [("error",)]


def test_broken_documents_cost_themselves_and_a_broken_page_itself(serve: Any, staging: Path) -> None:
    listed = videos(1, 40)
    listed[3]["views"], listed[7] = -1, {"name": "no id"}

    def garbage(host: Host, path: str, start: int) -> Reply | None:
        return (200, {}, b'{"total": 40, "data": [{"id"') if path.endswith("/videos") and 15 <= start < 25 else None

    host = Host({"c1": listed}, before=garbage)
    name = serve(host)
    *_, found, _ = crawl(staging, [name], page=10)
    assert found["refused"] == 3
    assert set(rows(staging, "SELECT what, reason FROM refused")) == {
        ("videos", "views is negative"),
        ("videos", "has no id"),
        ("videos", "answers what is not JSON"),
    }
    assert len(titles(staging)) >= 40 - 2 - 10
    assert {"Video 40", "Video 1"} <= titles(staging)
    # What is absent here is no proof that it is gone.
    assert rows(staging, "SELECT status, whole FROM crawl_progress WHERE what = 'videos'") == [("done", 0)]


def test_one_broken_document_is_enough_for_a_list_not_to_be_whole(serve: Any, staging: Path) -> None:
    sound, broken = videos(1, 5), videos(50, 5)
    broken[2]["duration"] = "long"
    crawl(staging, [serve(Host({"c1": sound, "c2": broken}))])
    assert rows(staging, "SELECT channel_id, whole FROM crawl_progress WHERE what = 'videos'") == [("1", 1), ("2", 0)]


def test_videos_of_other_hosts_are_counted_and_not_stored(serve: Any, staging: Path) -> None:
    host = Host({"c1": videos(1, 5)})
    host.owner = lambda channel: {"account": {"name": "x", "host": "elsewhere.example.org"}}  # type: ignore[method-assign]
    *_, found, _ = crawl(staging, [serve(host)])
    assert (found["remote"], found["seen"], titles(staging)) == (5, 0, set())


@pytest.mark.parametrize("page", [6, 10, 25])
def test_items_that_shift_between_pages_are_neither_lost_nor_doubled(serve: Any, staging: Path, page: int) -> None:
    """After each of the first pages one goes from the top that was read, or one is put on top."""
    turn = Counter[str]()

    def shift(host: Host, path: str, start: int) -> None:
        channel = path.split("/")[-2]
        if not path.endswith("/videos") or turn[channel] >= 6:
            return
        turn[channel] += 1
        listed = host.channels[channel]
        if turn[channel] % 2:
            gone.add(listed.pop(0)["name"])
            gone.add(listed.pop(0)["name"])
        else:
            listed.insert(0, video(number_of(channel) * 1000 + 900 + turn[channel]))

    gone: set[str] = set()
    host = Host({f"c{n}": videos(n * 1000, 80) for n in (1, 2)}, after=shift)
    crawl(staging, [serve(host)], page=page)
    there = {one["name"] for listed in host.channels.values() for one in listed}
    found = titles(staging)
    assert there <= found
    assert found <= there | gone
    assert rows(staging, "SELECT DISTINCT whole FROM crawl_progress WHERE what = 'videos'") == [(1,)]


def test_a_list_from_which_much_is_taken_is_read_again_from_further_up(serve: Any, staging: Path) -> None:
    def shrink(host: Host, path: str, start: int) -> None:
        if path.endswith("/videos") and start > 40 and len(host.channels["c1"]) == 120:
            del host.channels["c1"][:30]

    host = Host({"c1": videos(1, 120)}, after=shrink)
    crawl(staging, [serve(host)])
    assert titles(staging) == {f"Video {n}" for n in range(1, 121)}
    assert rows(staging, "SELECT whole FROM crawl_progress WHERE what = 'videos'") == [(1,)]


def production_with(path: Path, host: str, numbers: range) -> Path:
    schema.create(path, "production")
    with closing(schema.connect(path, "production", write=True)) as database, schema.transaction(database):
        database.execute("INSERT INTO instances (host) VALUES (?)", (host,))
        database.executemany(
            "INSERT INTO videos (video_id, instance_domain, last_checked_at) VALUES (?, ?, 0)",
            [(video(number)["uuid"], host) for number in numbers],
        )
    return path


def test_it_stops_after_pages_without_news_and_takes_what_it_has_read(
    serve: Any, staging: Path, tmp_path: Path
) -> None:
    host = Host({"c1": videos(1, 200)})
    name = serve(host)
    production = production_with(tmp_path / "catalog.db", name, range(1, 198))
    *_, found, _ = crawl(staging, [name], production, page=10, stop_after_pages=2)
    assert len(host.pages()) == 3
    assert (found["new"], found["updated"], found["seen"]) == (3, 17, 20)
    assert rows(staging, "SELECT max(views), whole FROM videos, crawl_progress WHERE what = 'videos'") == [(200, 0)]


def test_endless_lists_end(serve: Any, staging: Path) -> None:
    def endless(host: Host, path: str, start: int) -> Reply | None:
        if not path.endswith("/videos"):
            return None
        first = 10_000 - start if "/c1/" in path else 10_000
        listed = [{**video(first - number), **host.owner("c1" if "/c1/" in path else "c2")} for number in range(10)]
        return said({"total": 10**9, "data": listed})

    host = Host({"c1": [], "c2": []}, before=endless)
    crawl(staging, [serve(host)], longest_list=20)
    asked = Counter(channel for channel, _ in host.pages())
    assert asked["c1"] == 20
    assert asked["c2"] <= 6
    assert rows(staging, "SELECT status, whole FROM crawl_progress WHERE what = 'videos'") == [("done", 0)] * 2


def test_limits_for_a_short_run(serve: Any, staging: Path) -> None:
    host = Host({f"c{n}": videos(n * 100, 50) for n in range(1, 16)})
    crawl(staging, [serve(host)], max_channels=3, max_videos_pages=2)
    assert rows(staging, "SELECT channel_name FROM channels WHERE seen = 1 ORDER BY 1") == [("c1",), ("c2",), ("c3",)]
    assert Counter(channel for channel, _ in host.pages()) == {"c1": 2, "c2": 2, "c3": 2}
    assert rows(staging, "SELECT sum(whole) FROM crawl_progress WHERE what IN ('channels', 'videos')") == [(0,)]


def test_a_redirect_to_another_host_is_not_followed(serve: Any, staging: Path) -> None:
    inner = Host()
    secret = serve(inner)
    outer = Host(before=lambda host, path, start: said({}, 302, Location=f"http://{secret}{path}"))
    good = Host({"c1": videos(1, 3)})
    names = [serve(outer), serve(good)]
    first, *_ = crawl(staging, names)
    assert "another host" in first["hosts"]["failed"][names[0]]
    assert inner.asked == []


def test_hosts_of_our_own_network_are_refused_before_anything_is_written(serve: Any, staging: Path) -> None:
    host = Host()
    before = contents(staging)
    with pytest.raises(BadInput, match="is a loopback address: only public hosts"):
        crawl(staging, ["video.example.org", serve(host)], allow_private=False)
    assert host.asked == []
    assert contents(staging) == before


def test_a_name_that_leads_to_this_machine_costs_that_host(
    serve: Any, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the outside sees it a public host; its DNS says 127.0.0.1."""
    host = Host()
    port = serve(host).rpartition(":")[2]
    asked = {"inner.example.org": "127.0.0.1"}
    monkeypatch.setattr("socket.getaddrinfo", lambda name, *_, **__: [(2, 1, 6, "", (asked[name], 0))])
    found = crawl_instances(staging, [f"inner.example.org:{port}"], {**OPTIONS, "allow_private": False})
    (reason,) = found["hosts"]["failed"].values()
    assert "leads to 127.0.0.1, which is a loopback address" in reason
    assert host.asked == []


def closed_ports(count: int) -> list[str]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) for _ in range(count)]
    names = [f"127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.server_close()
    return names


def test_no_network_at_all_is_one_error(staging: Path) -> None:
    with pytest.raises(Transient, match=r"none of 3 hosts can be reached .*is there a network"):
        crawl(staging, closed_ports(3), attempts=2)
    names = closed_ports(30)
    with pytest.raises(Transient, match="none of 5 hosts can be reached"):
        crawl(begun(staging.with_name("other.db")), names, attempts=1, no_network_after=5, concurrency=1)


def test_one_host_that_answers_is_a_network(serve: Any, staging: Path) -> None:
    names = [*closed_ports(3), serve(Host({"c1": videos(1, 2)}))]
    first, *_ = crawl(staging, names, attempts=1)
    assert first["hosts"]["ok"] == 1
    assert len(first["hosts"]["failed"]) == 3


def test_https_first_and_http_where_there_is_none_is_remembered(serve: Any, staging: Path) -> None:
    host = Host({"c1": videos(1, 2)})
    name = serve(host)
    crawl(staging, [name], schemes=["https", "http"], timeout_s=0.5)
    assert titles(staging) == {"Video 1", "Video 2"}
    assert rows(staging, "SELECT value FROM crawl_state WHERE key LIKE 'scheme:%'") == [("http",)]


def test_a_staging_that_was_not_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no staging database"):
        crawl_channels(tmp_path / "none.db", OPTIONS)
    schema.create(tmp_path / "bare.db", "staging")
    with pytest.raises(BadInput, match="as of when"):
        crawl_channels(tmp_path / "bare.db", OPTIONS)
    with pytest.raises(BadInput, match="no hosts"):
        crawl_instances(begun(tmp_path / "good.db"), [], OPTIONS)


CHILD = """
import json, sys
from dailies.catalog import crawl
staging, hosts, options = json.loads(sys.argv[1])
crawl.crawl_instances(staging, hosts, options)
crawl.crawl_channels(staging, options)
crawl.crawl_videos(staging, None, options)
crawl.count_videos(staging, options)
"""


@pytest.mark.parametrize("hit", [1, 4, 7, 12, 19])
def test_killed_in_the_midst_it_ends_as_if_it_had_not_been(serve: Any, tmp_path: Path, hit: int) -> None:
    hosts = [Host({f"c{n}": videos(n * 100, 33) for n in range(1, 4)}) for _ in range(2)]
    names = [serve(host) for host in hosts]
    undisturbed = begun(tmp_path / "undisturbed.db")
    crawl(undisturbed, names)
    for host in hosts:
        host.asked.clear()
    killed, log = begun(tmp_path / "killed.db"), tmp_path / "failpoints.jsonl"
    argument = json.dumps([str(killed), names, OPTIONS])
    environment = {**os.environ, **failpoints.environment(f"catalog.page#{hit}=kill", log)}
    child = subprocess.run([sys.executable, "-c", CHILD, argument], env=environment, timeout=PATIENCE_S, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(failpoints.fired(log)) == 1
    with closing(schema.connect(killed, "staging", write=True)) as database:
        done = set(
            database.execute(
                "SELECT host, channel_name FROM crawl_progress p JOIN channels c "
                "ON (c.channel_id, c.instance_domain) = (p.channel_id, p.host) "
                "WHERE what = 'videos' AND status = 'done'"
            )
        )
        finished = set(database.execute("SELECT host, what FROM crawl_progress WHERE status = 'done'"))
    for host in hosts:
        host.asked.clear()
    crawl(killed, names)
    assert contents(killed) == contents(undisturbed)
    for host in hosts:
        assert not {channel for channel, _ in host.pages()} & {channel for name, channel in done if name == host.name}
        asked = Counter(one.path for one in host.asked)
        assert not asked["/api/v1/config"] or (host.name, "instance") not in finished
        assert not asked["/api/v1/video-channels"] or (host.name, "channels") not in finished


def test_pages_that_were_read_before_the_kill_are_not_asked_for_again(serve: Any, tmp_path: Path) -> None:
    host = Host({"c1": videos(1, 60)})
    name = serve(host)
    staging, log = begun(tmp_path / "staging.db"), tmp_path / "failpoints.jsonl"
    environment = {**os.environ, **failpoints.environment("catalog.page#6=kill", log)}
    argument = json.dumps([str(staging), [name], OPTIONS])
    subprocess.run([sys.executable, "-c", CHILD, argument], env=environment, timeout=PATIENCE_S, check=False)
    before = host.pages()
    assert before == [("c1", 0), ("c1", 5), ("c1", 10), ("c1", 15)]
    crawl(staging, [name])
    assert host.pages()[len(before)] == ("c1", 20)
    assert len(set(host.pages())) == len(host.pages())
    assert len(titles(staging)) == 60


def test_a_page_is_written_with_its_cursor_or_not_at_all(
    serve: Any, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dailies.catalog.gathering import Gathering

    host = Host({"c1": videos(1, 30)})
    name = serve(host)
    crawl_instances(staging, [name], OPTIONS)
    crawl_channels(staging, OPTIONS)
    real, marked = Gathering.mark, Counter[str]()

    def full(self: Gathering, place: Any, *rest: Any, **more: Any) -> None:
        marked[place.what] += 1
        if marked["videos"] == 2:
            raise sqlite3.OperationalError("database or disk is full")
        real(self, place, *rest, **more)

    monkeypatch.setattr(Gathering, "mark", full)
    with pytest.raises(BadInput, match="no space left"):
        crawl_videos(staging, None, OPTIONS)
    assert len(titles(staging)) == 10
    assert rows(staging, "SELECT next_start FROM crawl_progress WHERE what = 'videos'") == [(10,)]
