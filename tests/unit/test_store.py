"""What every store must keep: another one joins by a module with a fixture ``store`` and a subclass of the contract.

store    a ``Store`` with nothing in it
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dailies.canonical import CHUNK, digest
from dailies.errors import BadInput, Missing, Transient
from dailies.store.interface import Artifact, Store
from dailies.store.keys import is_key
from dailies.store.local import LocalFolder

pytestmark = pytest.mark.unit

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]  # a store for all examples is meant
NUMBERS = itertools.count()
KEY = "acme/client/videos/v-1/sheet.png"
ESCAPES = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../other",
    "acme/../globex/secret",
    "acme/..",
    "acme/./x",
    "acme//x",
    "acme/x/",
    "acme/\0",
    "acme\\..\\globex",
    "acme/two\nlines",
    "acme/.hidden",
    ".git/config",
]


@pytest.fixture
def store(tmp_path):
    return LocalFolder(tmp_path / "store")


def keys(store: Store, prefix: str) -> list[str]:
    return [stored.key for stored in store.list(prefix)]


class StoreContract:
    writes = 300

    @pytest.mark.parametrize("size", [0, 5, 3 * CHUNK + 7], ids=["empty", "small", "in chunks"])
    def test_a_file_object_that_is_read_once_comes_back_byte_for_byte(self, store, size):
        data = os.urandom(size)
        reading, writing = os.pipe()
        sender = threading.Thread(target=lambda: [os.fdopen(writing, "wb").write(data)])
        sender.start()
        with os.fdopen(reading, "rb") as pipe:
            artifact = store.put_stream(KEY, pipe)
        sender.join()
        assert artifact == Artifact(KEY, digest(data), size)
        assert store.get(KEY) == data

    def test_a_file_object_that_breaks_off_leaves_what_was_there(self, store):
        class Broken:
            def read(self, size: int = -1) -> bytes:
                raise OSError("the sender went away")

        before = store.put(KEY, b"before")
        with pytest.raises(OSError, match="went away"):
            store.put_stream(KEY, Broken())
        assert store.holds(before)

    def test_a_store_that_is_there_passes_its_check(self, store):
        store.check()

    @pytest.mark.parametrize("data", [b"", b"text", bytes(range(256)) * 9000], ids=["empty", "text", "over two chunks"])
    def test_an_object_comes_back_byte_for_byte(self, store, data):
        artifact = store.put(KEY, data)
        assert artifact == Artifact(KEY, digest(data), len(data))
        assert store.get(KEY) == data
        with store.local(KEY) as path:
            assert path.read_bytes() == data
        assert (store.stat(KEY).key, store.stat(KEY).size) == (KEY, len(data))
        assert store.holds(artifact)

    def test_a_file_is_put_as_its_bytes(self, store, tmp_path):
        data = os.urandom(2 * CHUNK + 5)
        (tmp_path / "upload.bin").write_bytes(data)
        artifact = store.put_file(KEY, tmp_path / "upload.bin")
        assert artifact == Artifact(KEY, digest(data), len(data))
        assert store.get(KEY) == data
        assert (tmp_path / "upload.bin").read_bytes() == data

    def test_putting_again_replaces_the_object(self, store):
        old = store.put(KEY, b"old")
        new = store.put(KEY, b"new and longer")
        assert store.get(KEY) == b"new and longer"
        assert store.holds(new)
        assert not store.holds(old)
        assert keys(store, "acme") == [KEY]

    def test_an_object_that_is_not_there_is_missing(self, store):
        store.put(KEY, b"data")
        for absent in ("acme/client/videos/v-1/other.png", "acme/client/videos/v-1", "globex"):
            with pytest.raises(Missing):
                store.get(absent)
            with pytest.raises(Missing), store.local(absent):
                pytest.fail("there is nothing to read")
            assert store.stat(absent) is None
            assert not store.holds(Artifact(absent, digest(b"data"), 4))

    def test_a_version_changes_whenever_the_bytes_do_even_at_the_same_size(self, store):
        versions = []
        for number in range(self.writes):
            store.put(KEY, b"%06d" % number)
            versions.append(store.stat(KEY).version)
            assert store.stat(KEY).version == versions[-1], "looking changes nothing"
        assert len(set(versions)) == len(versions)
        assert [stored.version for stored in store.list("acme")] == [versions[-1]]

    @pytest.mark.parametrize(
        "damage",
        [lambda data: data[:-1], lambda data: data + b"!", lambda data: b"X" + data[1:], lambda data: b""],
        ids=["cut off", "longer", "one byte changed", "emptied"],
    )
    def test_a_damaged_object_is_not_held(self, store, damage):
        artifact = store.put(KEY, b"the very bytes")
        store.put(KEY, damage(b"the very bytes"))
        assert not store.holds(artifact)

    def test_a_listing_is_what_lies_beneath_the_prefix_in_the_order_of_keys(self, store):
        names = ["acme/b/2", "acme/a/1", "acme/b/10/x", "acme-2/b/1", "globex/b/1", "acme/b2/1", "acme/b-2/1"]
        for name in names:
            store.put(name, name.encode())
        assert keys(store, "acme") == ["acme/a/1", "acme/b-2/1", "acme/b/10/x", "acme/b/2", "acme/b2/1"]
        assert keys(store, "acme/b") == ["acme/b/10/x", "acme/b/2"], "not acme/b2: a prefix ends at a slash"
        assert keys(store, "acme/a/1") == ["acme/a/1"]
        assert keys(store, "nobody") == []
        assert [stored.size for stored in store.list("acme/b")] == [len("acme/b/10/x"), len("acme/b/2")]

    def test_deleting_a_prefix_takes_what_lies_beneath_it_and_nothing_else(self, store):
        for name in ("acme/b/1", "acme/b/deep/2", "acme/b2/3", "globex/b/4"):
            store.put(name, b"data")
        assert store.delete("acme/b") == 2
        assert keys(store, "acme") == ["acme/b2/3"]
        assert keys(store, "globex") == ["globex/b/4"]
        assert store.delete("acme/b") == 0
        assert store.delete("acme/b2/3") == 1
        assert store.stat("acme/b2/3") is None
        store.put("acme/b/1", b"again")
        assert store.get("acme/b/1") == b"again"

    @pytest.mark.parametrize("key", ESCAPES)
    def test_a_key_that_could_escape_is_refused_by_every_method(self, store, key, tmp_path):
        (tmp_path / "upload").write_bytes(b"x")
        for use in (
            lambda: store.put(key, b"x"),
            lambda: store.put_file(key, tmp_path / "upload"),
            lambda: store.get(key),
            lambda: store.local(key).__enter__(),
            lambda: store.stat(key),
            lambda: list(store.list(key)),
            lambda: store.delete(key),
            lambda: store.holds(Artifact(key, digest(b"x"), 1)),
        ):
            with pytest.raises(BadInput):
                use()
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["upload"]

    @settings(suppress_health_check=CHECKS, deadline=None, max_examples=80)
    @given(key=st.text(st.sampled_from("ab./\\\0~ü "), min_size=1, max_size=12))
    def test_whatever_the_key_an_object_lies_beneath_it_or_is_refused(self, store, tmp_path, key):
        tenant = (
            f"tenant-{next(NUMBERS)}"  # its own: to a folder, a/b is in the way of a for as long as it has been there
        )
        try:
            store.put(f"{tenant}/{key}", b"x")
        except BadInput:
            return
        assert keys(store, tenant) == [f"{tenant}/{key}"]
        assert {path.name for path in tmp_path.iterdir()} <= {"store"}
        assert store.delete(f"{tenant}/{key}") == 1
        assert keys(store, tenant) == []

    def test_a_reader_sees_the_old_object_or_the_new_one_or_is_told_to_try_again(self, store):
        store.put(KEY, b"0" * 200_000)
        ended = threading.Event()

        def read() -> set[tuple[int, int]]:
            seen = set()
            while not ended.is_set():
                with suppress(Transient):
                    seen.add((len(data := store.get(KEY)), len(set(data))))
            return seen

        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read)
            try:
                for number in range(40):
                    store.put(KEY, str(number % 10).encode() * 200_000)
            finally:
                ended.set()
        assert reader.result() == {(200_000, 1)}


class TestLocalFolder(StoreContract):
    """The embedded store keeps the contract."""


def test_an_artifact_survives_being_written_down():
    artifact = Artifact(KEY, digest(b"x"), 1)
    assert Artifact.from_json(artifact.to_json()) == artifact
    assert artifact.to_json() == {"key": KEY, "sha256": digest(b"x"), "size": 1}


def test_a_key_is_printable_and_no_longer_than_any_store_takes():
    assert is_key("acme/client/videos/v-1/Müller & Söhne.mp4")
    assert is_key("a" * 1024)
    for key in ("a" * 1025, "ü" * 513, "a\nb", "a\x7f", "a\ud800", "a\u2028b"):
        assert not is_key(key), ascii(key)


# ── the local folder alone ────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_killed_writer_left_is_not_listed_and_not_in_the_way(tmp_path):
    store = LocalFolder(tmp_path)
    store.put("acme/a", b"x")
    (tmp_path / "acme" / ".a.0123456789ab.tmp").write_bytes(b"half")
    assert keys(store, "acme") == ["acme/a"]
    assert store.delete("acme") == 1
    assert store.put("acme/a", b"y").size == 1


def test_deleting_leaves_no_empty_folders_beneath_the_prefix(tmp_path):
    store = LocalFolder(tmp_path)
    store.put("acme/a/deep/down/x", b"x")
    store.delete("acme")
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["acme"])


def test_an_object_that_was_changed_in_place_has_another_version_and_is_not_held(tmp_path):
    store = LocalFolder(tmp_path)
    artifact = store.put("acme/a", b"abc")
    before = store.stat("acme/a").version
    with (tmp_path / "acme" / "a").open("r+b") as file:
        file.write(b"X")
    os.utime(tmp_path / "acme" / "a", (math.pi, math.pi))
    assert store.stat("acme/a").version != before
    assert not store.holds(artifact)


def test_what_a_killed_writer_left_is_removed_once_it_is_old(store):
    artifact = store.put(KEY, b"whole")
    left = (store.root / KEY).with_name(".sheet.png.0123456789ab.tmp")
    left.write_bytes(b"ha")
    assert store.clean(60) == 0
    assert left.exists(), "its writer may still be at work"
    os.utime(left, (0, 0))
    assert store.clean(60) == 1
    assert not left.exists()
    assert store.holds(artifact)
