"""A bucket keeps the store's contract on two real servers, and what is S3's own.

rclone checks signatures and keeps ordinary files; moto refuses a conditional write and makes ETags as AWS does. Between
them and the store stands, where a test needs it, a proxy that counts requests and loses some.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from blocks.s3 import S3Bucket
from dailies.canonical import digest
from dailies.errors import BadInput, Conflict, Missing, NotConfigured, TimedOut, Transient
from dailies.store import s3, s3_client
from dailies.store.s3 import S3Store
from tests.servers.faulty import Asked, Proxy, once, proxying
from tests.servers.s3 import BUCKET, MIB, WAIT_S, Server, moto_serving, rclone_serving
from tests.unit.test_store import KEY, StoreContract, keys

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rclone(tmp_path_factory) -> Iterator[Server]:
    with rclone_serving(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def moto(tmp_path_factory) -> Iterator[Server]:
    with moto_serving(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid4().hex[:8]}"


@pytest.fixture
def store(request, prefix) -> S3Store:
    """On the server that the class names; rclone elsewhere."""
    return request.getfixturevalue(getattr(request.cls, "server", "rclone")).store(prefix)


class TestOnRclone(StoreContract):
    server = "rclone"


class TestOnMoto(StoreContract):
    server = "moto"
    writes = 60  # in memory, and slower with each


@pytest.fixture
def proxy(rclone) -> Iterator[Proxy]:
    with proxying(rclone.url) as proxy:
        yield proxy


@pytest.fixture
def distant(rclone, proxy, prefix) -> S3Store:
    """A store behind the proxy."""
    return replace(rclone, url=proxy.url).store(prefix)


# ── files in parts ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def film(tmp_path) -> Path:
    path = tmp_path / "film.bin"
    path.write_bytes(os.urandom(6 * MIB + 5))
    return path


UPLOADER = """
import sys
from pathlib import Path
from dailies.store.s3 import S3Store
url, access_key, secret_key, bucket, prefix, key, path = sys.argv[1:]
S3Store(bucket, endpoint_url=url, region="us-east-1", access_key=access_key, secret_key=secret_key, prefix=prefix,
        part_size=1 << 20).put_file(key, Path(path))
"""


def killed_midway(server: Server, proxy: Proxy, prefix: str, film: Path) -> None:
    """Another process sends three parts of the film, and is killed while the fourth is on its way."""
    reached, dead = threading.Event(), threading.Event()

    def rule(asked: Asked) -> str:
        if asked.part != 4:
            return "forward"
        reached.set()
        dead.wait(WAIT_S)
        return "drop"

    proxy.rule = rule
    words = [proxy.url, server.access_key, server.secret_key, server.bucket, prefix, KEY, film]
    with subprocess.Popen([sys.executable, "-c", UPLOADER, *map(str, words)]) as uploader:
        assert reached.wait(WAIT_S)
        uploader.kill()
    assert proxy.parts == [1, 2, 3, 4]
    proxy.rule = lambda asked: "forward"
    dead.set()
    proxy.asked.clear()


def unfinished(server: Server, prefix: str) -> list[str]:
    answer = server.store()._client.list_multipart_uploads(Bucket=server.bucket, Prefix=prefix)
    return [upload["UploadId"] for upload in answer.get("Uploads", ())]


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_an_upload_whose_process_was_killed_goes_on_where_it_was(request, kind, prefix, film):
    server = request.getfixturevalue(kind)
    with proxying(server.url) as proxy:
        killed_midway(server, proxy, prefix, film)
        store = replace(server, url=proxy.url).store(prefix)
        assert store.stat(KEY) is None, "there is no half object"
        artifact = store.put_file(KEY, film)
        assert proxy.parts == [4, 5, 6, 7], "the three that were there are not sent again"
        assert artifact.sha256 == digest(film.read_bytes())
        assert store.holds(artifact)
        assert store.get(KEY) == film.read_bytes()
    assert unfinished(server, prefix) == []
    assert keys(server.store(), prefix) == [f"{prefix}/{KEY}"]
    notes = server.store()._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/.uploads/")
    assert notes.get("Contents", []) == []


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_an_upload_that_nobody_went_on_with_is_aborted_once_it_is_old(request, kind, prefix, film):
    server = request.getfixturevalue(kind)
    with proxying(server.url) as proxy:
        killed_midway(server, proxy, prefix, film)
    store = server.store(prefix)
    other = store.put("acme/client/videos/v2/other.bin", b"whole")
    assert store.clean(3600) == 0
    assert len(unfinished(server, prefix)) == 1, "its writer may come back"
    assert store.clean(-5) == 1
    assert unfinished(server, prefix) == []
    assert store.clean(-5) == 0
    assert store.holds(other)


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_the_upload_of_another_file_does_not_go_on_but_aborts_it(request, kind, prefix, film):
    server = request.getfixturevalue(kind)
    with proxying(server.url) as proxy:
        killed_midway(server, proxy, prefix, film)
        left = unfinished(server, prefix)
        film.write_bytes(film.read_bytes()[: 3 * MIB] + os.urandom(MIB))
        store = replace(server, url=proxy.url).store(prefix)
        artifact = store.put_file(KEY, film)
        assert proxy.parts == [1, 2, 3, 4], "even though the first three are the same"
        assert [
            asked.query["uploadId"] for asked in proxy.asked if asked.method == "DELETE" and asked.query.get("uploadId")
        ] == [[each] for each in left]
        assert store.get(KEY) == film.read_bytes()
        assert store.holds(artifact)
    assert unfinished(server, prefix) == []


def test_an_upload_that_the_server_has_forgotten_starts_anew(rclone, proxy, distant, prefix, film):
    killed_midway(rclone, proxy, prefix, film)
    [left] = unfinished(rclone, prefix)
    distant._client.abort_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/{KEY}", UploadId=left)
    assert distant.holds(distant.put_file(KEY, film))
    assert proxy.parts == [1, 2, 3, 4, 5, 6, 7]


def test_an_upload_that_the_server_broke_off_goes_on_at_the_next_try(proxy, distant, film):
    proxy.rule = lambda asked: 503 if asked.part == 4 else "forward"
    with pytest.raises(Transient):
        distant.put_file(KEY, film)
    proxy.rule = lambda asked: "forward"
    proxy.asked.clear()
    assert distant.holds(distant.put_file(KEY, film))
    assert proxy.parts == [4, 5, 6, 7]


def test_a_part_that_arrived_damaged_is_sent_again(rclone, proxy, distant, prefix, film):
    killed_midway(rclone, proxy, prefix, film)
    [left] = unfinished(rclone, prefix)
    distant._client.upload_part(Bucket=BUCKET, Key=f"{prefix}/{KEY}", UploadId=left, PartNumber=2, Body=os.urandom(MIB))
    proxy.asked.clear()
    assert distant.holds(distant.put_file(KEY, film))
    assert proxy.parts == [2, 4, 5, 6, 7]


def test_a_file_up_to_the_size_of_a_part_is_one_request(proxy, distant, tmp_path):
    path = tmp_path / "small.bin"
    path.write_bytes(os.urandom(MIB))
    assert distant.holds(distant.put_file(KEY, path))
    assert proxy.parts == []


def test_a_file_of_too_many_parts_is_sent_in_larger_ones(proxy, distant, film, monkeypatch):
    monkeypatch.setattr(s3, "MOST_PARTS", 3)
    assert distant.holds(distant.put_file(KEY, film))
    assert proxy.parts == [1, 2, 3]


def test_a_file_that_changes_while_it_is_sent_makes_no_object(rclone, proxy, distant, prefix, film):
    def rule(asked: Asked) -> str:
        if asked.part == 1:
            with film.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"!" if film.read_bytes()[-1:] != b"!" else b"?")
        return "forward"

    proxy.rule = rule
    with pytest.raises(Transient, match="changed while it was sent"):
        distant.put_file(KEY, film)
    assert distant.stat(KEY) is None
    assert unfinished(rclone, prefix) == []


def is_last_word(asked: Asked) -> bool:
    return asked.method == "POST" and "uploadId" in asked.query


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_lost_answer_to_the_last_word_is_no_failure(request, kind, prefix, film):
    server = request.getfixturevalue(kind)
    with proxying(server.url) as proxy:
        store = replace(server, url=proxy.url).store(prefix)
        proxy.rule = once(is_last_word, "lose")
        assert store.holds(store.put_file(KEY, film))


def test_an_upload_that_somebody_else_ended_is_no_object_and_can_be_tried_again(rclone, proxy, distant, prefix, film):
    def rule(asked: Asked) -> str:
        if is_last_word(asked):
            upload = asked.query["uploadId"][0]
            rclone.store()._client.abort_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/{KEY}", UploadId=upload)
        return "forward"

    proxy.rule = rule
    with pytest.raises(Transient, match="NoSuchUpload"):
        distant.put_file(KEY, film)
    assert distant.stat(KEY) is None
    proxy.rule = lambda asked: "forward"
    assert distant.holds(distant.put_file(KEY, film))


def test_parts_that_the_server_will_not_join_are_not_left_there(moto, prefix, film):
    store = moto.store(prefix, part_size=MIB // 2)
    with pytest.raises(BadInput, match="EntityTooSmall"):
        store.put_file(KEY, film)
    assert unfinished(moto, prefix) == []


# ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, data, headers, method="GET" if data is None else "PUT")
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_a_link_reads_its_object_and_no_other(store):
    store.put(KEY, b"the bytes")
    store.put(f"{KEY}.other", b"other bytes")
    link = store.presigned_get(KEY, 60)
    assert ask(link) == (200, b"the bytes")
    assert ask(link.replace("sheet.png", "sheet.png.other"))[0] == 403
    assert ask(link.replace("X-Amz-Expires=60", "X-Amz-Expires=600"))[0] == 403
    assert ask(link[:-1] + ("0" if link[-1] != "0" else "1"))[0] == 403
    assert ask(link.split("?")[0])[0] in (400, 403)
    assert ask(link, b"written")[0] == 403, "a link to read is none to write"
    assert store.get(KEY) == b"the bytes"


def test_a_link_writes_its_object_and_no_other(store):
    link = store.presigned_put(KEY, 60)
    assert ask(link, b"from a browser")[0] == 200
    assert ask(link.replace("sheet.png", "other.png"), b"x")[0] == 403
    assert store.get(KEY) == b"from a browser"
    assert keys(store, "acme") == [KEY]


def test_a_link_expires(store):
    store.put(KEY, b"the bytes")
    link = store.presigned_get(KEY, 1)
    assert ask(link)[0] == 200
    time.sleep(2.1)
    assert ask(link)[0] in (400, 403)


@pytest.mark.parametrize("seconds", [0, -1, 7 * 24 * 3600 + 1])
def test_a_link_lasts_a_second_at_least_and_a_week_at_most(store, seconds):
    for link in (store.presigned_get, store.presigned_put):
        with pytest.raises(BadInput):
            link(KEY, seconds)
        with pytest.raises(BadInput):
            link("../other", 60)


# ── writes that must be the first ─────────────────────────────────────────────────────────────────────────────────────


def test_of_many_writers_one_is_first(moto, prefix):
    stores = [moto.store(prefix) for _ in range(8)]

    def write(number: int) -> int | None:
        try:
            stores[number].put_new(KEY, b"%d" % number)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        [first] = [number for number in pool.map(write, range(8)) if number is not None]
    assert stores[0].get(KEY) == b"%d" % first


def test_a_first_write_whose_answer_is_lost_is_still_the_first(moto, prefix):
    with proxying(moto.url) as proxy:
        store = replace(moto, url=proxy.url).store(prefix)
        proxy.rule = once(lambda asked: asked.method == "PUT" and asked.path.endswith(KEY), "lose")
        assert store.holds(store.put_new(KEY, b"mine"))
        with pytest.raises(Conflict):
            store.put_new(KEY, b"mine")


def test_a_server_that_ignores_the_condition_is_not_written_to(rclone, store):
    store.put(KEY, b"theirs")
    with pytest.raises(NotConfigured, match="If-None-Match"):
        store.put_new(KEY, b"mine")
    assert store.get(KEY) == b"theirs"


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_object_that_was_damaged_on_the_server_is_not_held(rclone, store, prefix):
    artifact = store.put(KEY, b"the very bytes")
    (rclone.folder / prefix / KEY).write_bytes(b"the vary bytes")
    assert not store.holds(artifact)


def test_bytes_that_are_not_those_that_were_put_are_not_given(proxy, distant, tmp_path):
    artifact = distant.put(KEY, b"the very bytes")
    proxy.rule = lambda asked: "garble" if asked.method == "GET" else "forward"
    assert not distant.holds(artifact)
    with pytest.raises(Transient, match="other bytes"):
        distant.get(KEY)
    with pytest.raises(Transient, match="other bytes"):
        distant.fetch(KEY, tmp_path / "out" / "sheet.png")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_download_that_breaks_off_is_transient_and_leaves_nothing(proxy, distant, tmp_path):
    distant.put(KEY, os.urandom(3 * MIB))
    proxy.rule = lambda asked: "cut" if asked.method == "GET" else "forward"
    with pytest.raises(Transient):
        distant.fetch(KEY, tmp_path / "out" / "sheet.png")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_object_is_fetched_with_the_folders_above_it(store, tmp_path):
    store.put(KEY, b"data")
    store.fetch(KEY, tmp_path / "not" / "there" / "yet.png")
    assert (tmp_path / "not" / "there" / "yet.png").read_bytes() == b"data"
    with pytest.raises(Missing):
        store.fetch("acme/none", tmp_path / "none.png")


def test_a_local_file_is_gone_afterwards(store):
    store.put(KEY, b"data")
    with store.local(KEY) as path:
        assert path.suffix == ".png"
    assert not path.parent.exists()


def test_a_thousand_and_more_objects_are_listed_and_deleted(moto, prefix):
    store = moto.store(prefix)
    names = [f"acme/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b"x"), names))
    assert keys(store, "acme") == names
    assert store.delete("acme") == 1005
    assert keys(store, "acme") == []


@pytest.mark.parametrize(("code", "error"), [("AccessDenied", NotConfigured), ("InternalError", Transient)])
def test_an_object_that_could_not_be_deleted_is_told(proxy, distant, code, error):
    distant.put(KEY, b"data")
    refusal = f"<DeleteResult><Error><Key>{KEY}</Key><Code>{code}</Code><Message>no</Message></Error></DeleteResult>"
    proxy.rule = once(lambda asked: "delete" in asked.query, refusal.encode())
    with pytest.raises(error, match=code):
        distant.delete("acme")
    assert distant.get(KEY) == b"data"


def test_a_prefix_keeps_two_sites_in_one_bucket_apart(rclone, prefix):
    one, other = rclone.store(f"{prefix}/a"), rclone.store(f"{prefix}/ab")
    one.put(KEY, b"one")
    other.put(KEY, b"other")
    assert one.delete("acme") == 1
    assert keys(one, "acme") == []
    assert other.get(KEY) == b"other"
    with pytest.raises(BadInput):
        rclone.store("../b")


def test_what_passes_is_tried_again(proxy, distant):
    distant.put(KEY, b"data")
    proxy.rule = once(lambda asked: asked.method == "GET", 503, times=2)
    assert distant.get(KEY) == b"data"
    assert [asked.method for asked in proxy.asked] == ["PUT", "GET", "GET", "GET"]


@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [
        (503, Transient, s3_client.ATTEMPTS),
        (403, NotConfigured, 1),
        (412, Conflict, 1),
        (405, BadInput, 1),
        (404, Missing, 1),
    ],
)
def test_only_what_passes_is_tried_again(proxy, distant, status, error, tries):
    proxy.rule = lambda asked: status
    with pytest.raises(error):
        distant.get(KEY)
    assert len(proxy.asked) == tries


def test_a_server_that_was_stopped_is_transient_and_soon(tmp_path):
    with rclone_serving(tmp_path) as server:
        store = server.store()
        artifact = store.put(KEY, b"data")
    start = time.monotonic()
    for use in (
        lambda: store.get(KEY),
        lambda: store.put(KEY, b"data"),
        lambda: store.stat(KEY),
        lambda: list(store.list("acme")),
        lambda: store.holds(artifact),
    ):
        with pytest.raises(Transient) as raised:
            use()
        assert "\n" not in str(raised.value)
    assert time.monotonic() - start < 60
    with pytest.raises(NotConfigured, match="does the server run") as raised:
        store.check()
    assert "\n" not in str(raised.value)


def test_a_server_that_does_not_answer_has_timed_out(proxy, rclone, prefix, monkeypatch):
    monkeypatch.setattr(s3_client, "ANSWER_S", 0.2)
    monkeypatch.setattr(s3_client, "ATTEMPTS", 2)
    store = replace(rclone, url=proxy.url).store(prefix)
    over = threading.Event()

    def rule(asked: Asked) -> str:
        over.wait(WAIT_S)
        return "drop"

    proxy.rule = rule
    start = time.monotonic()
    with pytest.raises(TimedOut):
        store.get(KEY)
    assert time.monotonic() - start < 5
    over.set()


@pytest.mark.parametrize(
    "wrong",
    [{"secret_key": "another-secret-key"}, {"access_key": "another-access-key"}, {"bucket": "no-such-bucket"}],
    ids=["secret", "access key", "bucket"],
)
def test_what_is_set_up_wrong_says_so_in_one_line(rclone, wrong, tmp_path):
    store = replace(rclone, **wrong).store()
    (tmp_path / "big").write_bytes(os.urandom(2 * MIB))
    for use in (
        store.check,
        lambda: store.get(KEY),
        lambda: store.put(KEY, b"x"),
        lambda: store.put_file(KEY, tmp_path / "big"),
        lambda: store.stat(KEY),
        lambda: list(store.list("acme")),
        lambda: store.delete("acme"),
    ):
        with pytest.raises(NotConfigured) as raised:
            use()
        said = str(raised.value)
        assert store.bucket in said
        assert "\n" not in said
        assert len(said) <= 300
        assert store._client._request_signer._credentials.secret_key not in said


def test_an_address_or_a_key_that_is_none_is_refused_at_once():
    with pytest.raises(NotConfigured, match="not a url"):
        Server("not a url").store()
    for nothing in ({"access_key": ""}, {"secret_key": ""}):
        with pytest.raises(NotConfigured, match="access key"):
            replace(Server("http://127.0.0.1:1"), **nothing).store()


# ── the block ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_block_opens_its_bucket_and_shows_no_secret(rclone, prefix):
    block = S3Bucket(
        bucket=BUCKET,
        endpoint_url=rclone.url,
        access_key=rclone.access_key,
        secret_key=rclone.secret_key,
        prefix=f"{prefix}/",
    )
    block.open().put(KEY, b"data")
    assert (rclone.folder / prefix / KEY).read_bytes() == b"data"
    assert rclone.secret_key not in repr(block)
    assert rclone.secret_key not in str(block.model_dump(mode="json"))
    described = S3Bucket.model_json_schema()["properties"]
    assert all(described[name].get("description") for name in described)
