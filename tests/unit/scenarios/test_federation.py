"""The fake federation as a process: counters that are right, days that turn, and an end that is certain."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import Barrier
from urllib.parse import urlsplit

import psutil
import pytest

from dailies.catalog import documents as crawler
from dailies.errors import BadInput, Missing
from dailies.scenarios import federation_content as content
from dailies.scenarios.federation import Federation
from dailies.scenarios.federation_content import Scale
from dailies.scenarios.federation_plan import Behaviour, Setup
from dailies.scenarios.federation_truth import truth

pytestmark = pytest.mark.unit
SCALE = Scale(seed=7, hosts=3, videos=600)
NAMES = ["127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"]
API = "/api/v1"


def by_id(rows: object) -> dict[str, dict]:
    return {row["video_id"]: {k: v for k, v in row.items() if k != "last_checked_at"} for row in rows}  # type: ignore[attr-defined]


PLAN = {1: Behaviour("slow", delay_s=0.3), 2: Behaviour("dead"), 3: Behaviour("rate_limiting", every=2)}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    log = tmp_path_factory.mktemp("federation") / "whitelist-http.log"
    with Federation(7, 4, 800, PLAN, latency_s=0.02, log=log) as federation:
        yield federation


@pytest.fixture
def federation(served: Federation) -> Federation:
    served.show(0)
    served.forget()
    return served


def get(host: str, target: str, method: str = "GET", body: str | None = None) -> tuple[int, dict[str, str], bytes]:
    with closing(HTTPConnection(host, timeout=10)) as connection:
        connection.request(method, target, body=body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_the_whitelist_names_every_host_the_dead_one_too(federation):
    split = urlsplit(federation.whitelist_url)
    said = json.loads(get(split.netloc, f"{split.path}?{split.query}")[2])
    assert said == {"total": 4, "data": [{"host": host} for host in federation.hosts]}
    assert len(set(federation.hosts)) == 4
    assert json.loads(get(split.netloc, f"{split.path}?start=1&count=2")[2])["data"] == said["data"][1:3]
    assert get(split.netloc, f"{split.path}?count=9999")[0] == 400


def test_what_is_served_is_the_truth(federation):
    host, known = federation.hosts[0], federation.truth().hosts[federation.hosts[0]]
    for channel in known.channels:
        target = f"{API}/video-channels/{channel['channel_name']}/videos?count=100&sort=-publishedAt&isLocal=true"
        items = [item for start in (0, 100) for item in json.loads(get(host, f"{target}&start={start}")[2])["data"]]
        rows = [crawler.video(host, f"http://{host}", channel, item, 1) for item in items]
        assert by_id(rows) == by_id(row for row in known.videos if row["channel_id"] == channel["channel_id"])


def at_once(host: str, many: int) -> None:
    gate = Barrier(many)

    def ask() -> None:
        gate.wait(10)
        assert get(host, f"{API}/config")[0] == 200

    with ThreadPoolExecutor(many) as pool:
        for each in [pool.submit(ask) for _ in range(many)]:
            each.result(10)


def test_three_requests_at_once_are_counted_as_three_and_three_in_turn_as_one(federation):
    at_once(federation.hosts[1], 3)
    for _ in range(3):
        get(federation.hosts[0], f"{API}/config")
    counted = federation.counters()["hosts"]
    assert counted[federation.hosts[1]]["most_at_once"] == 3
    assert counted[federation.hosts[1]]["requests"] == 3
    assert counted[federation.hosts[0]]["most_at_once"] == 1
    assert counted[federation.hosts[0]]["requests"] == 3
    federation.forget()
    assert federation.counters()["hosts"][federation.hosts[1]]["most_at_once"] == 0


def test_one_connection_serves_many_requests_also_such_as_come_before_the_answer(federation):
    host = federation.hosts[0]
    with closing(HTTPConnection(host, timeout=10)) as connection:
        for _ in range(3):
            connection.request("GET", f"{API}/config")
            assert connection.getresponse().read()
    address, _, port = host.partition(":")
    with socket.create_connection((address, int(port)), timeout=10) as pipe:
        pipe.sendall(f"GET {API}/config HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 2)
        said = b""
        while said.count(b"HTTP/1.1 200 OK") < 2:
            said += pipe.recv(65536)
    counted = federation.counters()["hosts"][host]
    assert (counted["requests"], counted["connections"], counted["most_at_once"]) == (5, 2, 1)


def test_pages_limits_and_statuses_are_counted(federation):
    host = federation.hosts[3]
    name = federation.truth().hosts[host].channels[0]["channel_name"]
    for start in (0, 50, 0):
        get(host, f"{API}/video-channels/{name}/videos?start={start}&count=50")
    status, headers, body = get(host, f"{API}/config")
    assert (status, headers["Retry-After"], json.loads(body)["status"]) == (429, "1", 429)
    counted = federation.counters()["hosts"][host]
    assert counted["pages"] == {name: {"0+50": 2, "50+50": 1}}
    assert (counted["limited"], counted["statuses"], counted["requests"]) == (2, {"200": 2, "429": 2}, 4)
    federation.forget()
    counted = federation.counters()["hosts"][host]
    assert (counted["pages"], counted["limited"], counted["statuses"], counted["requests"]) == ({}, 0, {}, 0)


def test_a_slow_host_takes_its_time_and_a_dead_one_takes_no_call(federation):
    began = time.monotonic()
    get(federation.hosts[1], f"{API}/config")
    assert time.monotonic() - began >= 0.3
    with pytest.raises(ConnectionRefusedError):
        get(federation.hosts[2], f"{API}/config")


def test_who_tries_https_first_is_turned_away_at_once_and_is_not_counted(federation):
    address, _, port = federation.hosts[0].partition(":")
    with socket.create_connection((address, int(port)), timeout=10) as plain, pytest.raises((ssl.SSLError, OSError)):
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
    counted = federation.counters()["hosts"][federation.hosts[0]]
    assert (counted["tls"], counted["requests"]) == (1, 0)


def test_each_request_has_its_line_in_the_log(federation):
    log = Path(federation.setup.log)
    federation.counters()
    before = len(log.read_text().splitlines())
    get(federation.hosts[0], f"{API}/config?line=1")
    get(federation.hosts[0], f"{API}/nowhere")
    federation.counters()
    lines = log.read_text().splitlines()[before:]
    assert [re.sub(r"^[\d.]+ | \S+$", "", line) for line in lines if federation.hosts[0] in line] == [
        f'{federation.hosts[0]} "GET {API}/config?line=1" 200 174',
        f'{federation.hosts[0]} "GET {API}/nowhere" 404 96',
    ]


def test_only_the_scenario_turns_the_day(federation):
    index = urlsplit(federation.whitelist_url).netloc
    order = json.dumps({"action": "show", "day": 1, "secret": "a guess"})
    assert get(index, "/__control", "POST", order)[0] == 403
    assert get(index, "/__control", "POST", "no JSON")[0] == 400
    assert federation.counters()["day"] == 0
    before = federation.truth()
    federation.evolve()
    assert federation.counters()["day"] == federation.day == 1
    test_what_is_served_is_the_truth(federation)
    assert by_id(federation.truth().videos) != by_id(before.videos)


def test_a_host_can_change_its_ways_but_not_die_while_it_runs(federation):
    federation.behave(0, Behaviour("failing", first=1))
    try:
        assert [get(federation.hosts[0], f"{API}/config")[0] for _ in range(2)] == [500, 200]
        with pytest.raises(BadInput, match="stop it"):
            federation.behave(0, Behaviour("dead"))
    finally:
        federation.behave(0, Behaviour())
    assert get(federation.hosts[0], f"{API}/config")[0] == 200


def test_started_again_it_has_the_same_addresses_and_the_same_bytes():
    federation = Federation(5, 2, 100, day=2)
    seen = []
    for _ in range(2):
        with federation:
            name = federation.truth().hosts[federation.hosts[0]].channels[0]["channel_name"]
            target = f"{API}/video-channels/{name}/videos?count=100"
            seen.append((federation.whitelist_url, federation.hosts, get(federation.hosts[0], target)[2]))
    assert seen[0] == seen[1]
    assert json.loads(seen[0][2])["total"] > 20
    with pytest.raises(Missing, match="not started"):
        federation.counters()


def test_a_host_dies_between_two_starts():
    federation = Federation(5, 2, 100)
    with federation:
        assert get(federation.hosts[1], f"{API}/config")[0] == 200
    federation.behave(1, Behaviour("dead"))
    with federation, pytest.raises(ConnectionRefusedError):
        get(federation.hosts[1], f"{API}/config")


def test_a_port_that_is_taken_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        federation = Federation(hosts=1, videos=10)
        with federation:
            pass
        ports = (taken.getsockname()[1], federation.setup.ports[1])
        federation.setup = Setup(federation.setup.scale, ports=ports)
        with pytest.raises(BadInput, match=f"port {ports[0]} is taken"):
            federation.start()


PARENT = """
import sys, time
from dailies.scenarios.federation import Federation
federation = Federation(hosts=1, videos=10)
federation.start()
print(federation.pid, flush=True)
time.sleep(60)
"""


def ended(process: psutil.Process, within_s: float) -> bool:
    """Nobody may be there to reap an orphan."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_it_dies_with_its_parent_however_that_dies():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        assert server.is_running()
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
        parent.stdout.close()
    try:
        assert ended(server, within_s=5)
    finally:
        with suppress(psutil.NoSuchProcess):
            server.kill()


# ── production ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mini_production_holds_the_newest_of_some_hosts_as_the_truth_has_it(tmp_path):
    federation = Federation(7, 3, 600, {0: Behaviour("malformed"), 1: Behaviour("dead")})
    federation.hosts = NAMES
    made = federation.mini_production(tmp_path / "catalog.db", hosts_limit=2, channels_limit=5, videos_limit=120)
    assert made == {"instances": 2, "channels": 5, "videos": 120}
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM videos ORDER BY id")]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        counts = [tuple(row) for row in database.execute("SELECT channel_id, videos_count FROM channels")]
        assert database.execute("SELECT count(*) FROM video_embeddings").fetchone()[0] == 0
    healthy = truth(Setup(federation.setup.scale, {0: Behaviour("malformed")}), NAMES)
    known = by_id(healthy.videos)
    assert len(rows) == 120
    for row in rows:
        wanted = known[row["video_id"]]
        assert {name: row[name] for name in wanted} == wanted
    assert [row["published_at"] for row in rows] == sorted(row["published_at"] for row in rows)
    assert {row["instance_domain"] for row in rows} == set(NAMES[:2])
    assert {row["last_checked_at"] for row in rows} == {federation.as_of}
    assert {row["removed_at"] for row in rows} == {None}
    assert all(count == content.sizes(SCALE, 0)[int(channel) - 1] for channel, count in counts)
