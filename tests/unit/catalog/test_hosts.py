"""Which whitelists and which hosts are taken, and what is said of the others."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies.catalog.hosts import check_address, host_name, not_public, read_whitelist, refuse_private, split_host
from dailies.errors import BadInput, DailiesError, Missing, Transient

pytestmark = pytest.mark.unit


@contextmanager
def serving(status: int, body: bytes, **headers: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hosts"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def whitelist(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "whitelist.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return str(path)


@pytest.mark.parametrize(
    "value",
    [
        {"total": 2, "data": [{"host": "One.Example.org"}, {"host": "two.example.org:8080", "name": "Two"}]},
        [{"host": "one.example.org"}, {"host": "two.example.org:8080"}],
        ["one.example.org", "TWO.example.org:8080", "one.example.org.", "one.example.org:443"],
    ],
)
def test_a_whitelist_in_each_of_its_shapes(tmp_path: Path, value: Any) -> None:
    assert read_whitelist(whitelist(tmp_path, value)) == ["one.example.org", "two.example.org:8080"]


def test_a_whitelist_from_an_address() -> None:
    with serving(200, b'["b.example.org", "a.example.org"]') as url:
        assert read_whitelist(url) == ["b.example.org", "a.example.org"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"<html>not json</html>", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ([], "is empty"),
        ({"total": 0, "data": []}, "is empty"),
        ({"hosts": ["one.example.org"]}, "neither"),
        ("one.example.org", "neither"),
        (7, "neither"),
        ([{"name": "one"}], "entry 1 .* names no host"),
        (["one.example.org", None], "entry 2 .* names no host"),
        ([""], "entry 1 .* names no host"),
        (["https://one.example.org"], "'https://one.example.org' is a URL"),
        (["one.example.org/path"], "'one.example.org/path' has a path"),
        (["me:secret@one.example.org"], "holds a name or a password"),
        (["one example.org"], "'one example.org' is no name of a host"),
        (["one.example.org:99999"], "no port"),
    ],
)
def test_a_wrong_whitelist_is_one_clear_line(tmp_path: Path, value: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says) as told:
        read_whitelist(whitelist(tmp_path, value))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 400


def test_a_whitelist_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no whitelist at"):
        read_whitelist(str(tmp_path / "none.json"))
    with pytest.raises(BadInput, match="cannot be read"):
        read_whitelist(str(tmp_path))
    with pytest.raises(BadInput, match="neither a file nor"):
        read_whitelist("ftp://example.org/hosts")
    with serving(404, b"") as url, pytest.raises(BadInput, match="answers 404"):
        read_whitelist(url)
    with serving(503, b"") as url, pytest.raises(Transient, match="answers 503"):
        read_whitelist(url)
    with serving(302, b"", Location="http://127.0.0.1/other") as url, pytest.raises(BadInput, match="has moved"):
        read_whitelist(url)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Transient, match="cannot be fetched") as told:
        read_whitelist(f"http://me:secret@127.0.0.1:{port}/")
    assert "secret" not in str(told.value)


def test_a_whitelist_of_endless_size_is_not_read_to_its_end() -> None:
    with serving(200, b" " * (9 << 20)) as url, pytest.raises(BadInput, match="larger than 8 MB"):
        read_whitelist(url)


@pytest.mark.parametrize(
    ("given", "one"),
    [
        (" Video.Example.ORG ", "video.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example:8080", "xn--bcher-kva.example:8080"),
        ("203.0.113.9:80", "203.0.113.9:80"),
        ("2001:DB8::1", "[2001:db8::1]"),
        ("[2001:db8:0::1]:9000", "[2001:db8::1]:9000"),
        ("example.org:0443", "example.org"),
    ],
)
def test_a_host_has_one_spelling(given: str, one: str) -> None:
    assert host_name(given) == one
    assert host_name(one) == one


@pytest.mark.parametrize(
    "wrong",
    ["", ".", "a..b", "-a.example", "a-.example", "a_b.example", "a\0b", "a\nb", "a%2e", "1.2.3", "0x7f.1",
     "2130706433", "0177.0.0.1", "127.0.0.1.", "example.1", "[::1", "::1]", "[fe80::1%eth0]", "a:b", "a:", "a:0",
     "a:-1", "x" * 64, "a." * 130, "a?b", "a#b", "a\\b", "．example", "a:８０"],
)  # fmt: skip
def test_what_is_no_host_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput):
        host_name(wrong)


@given(st.text(max_size=40))
def test_any_text_is_a_host_with_one_spelling_or_refused(text: str) -> None:
    try:
        name = host_name(text)
    except BadInput:
        return
    assert host_name(name) == name
    assert name.isascii()
    assert not set(name) & set("/@?#\\ \t\n\0%")
    split_host(name)


PRIVATE = [
    "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1",
    "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::",
    "2002:a00:1::1", "2001:db8::1", "::127.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_the_public_internet(address: str) -> None:
    assert not_public(ipaddress.ip_address(address))
    with pytest.raises(BadInput, match="only public hosts"):
        check_address(host_name(address), allow_private=False)
    assert check_address(host_name(address), allow_private=True) == [str(ipaddress.ip_address(address))]


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_public_internet(address: str) -> None:
    assert not_public(ipaddress.ip_address(address)) is None
    assert check_address(host_name(address), allow_private=False)


def test_one_private_address_among_public_ones_condemns_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", ("93.184.216.34", 0)), (10, 1, 6, "", ("fe80::1%lo", 0, 0, 1))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(BadInput, match="link-local"):
        check_address("two-faced.example.org:8080", allow_private=False)


def test_a_name_that_leads_nowhere_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Transient, match=r"nowhere\.example cannot be resolved"):
        check_address("nowhere.example", allow_private=False)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "a.localhost", "127.0.0.1:80", "[::1]:9000", "10.0.0.1"]
)
def test_hosts_that_are_by_name_ours_are_bad_input_unless_allowed(host: str) -> None:
    with pytest.raises(DailiesError, match=r"only public hosts") as told:
        refuse_private(["video.example.org", host], allow_private=False)
    assert host in str(told.value)
    refuse_private(["video.example.org", host], allow_private=True)
    refuse_private(["video.example.org", "93.184.216.34"], allow_private=False)
