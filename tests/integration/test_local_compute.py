"""LocalCompute keeps the contract, and what is its own: locks, folders, processes."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from blocks.compute import LocalCompute as LocalComputeBlock
from blocks.compute import store_settings
from blocks.s3 import S3Bucket
from blocks.site import LocalFolder as LocalFolderBlock
from dailies.canonical import canonical_json
from dailies.compute.interface import Canceled, StillRunning, UnknownCall
from dailies.compute.local import LocalCompute, id_of, is_alive
from dailies.errors import NotConfigured, Transient
from dailies.media.contact_sheet import contact_sheet
from dailies.media.probe import probe
from dailies.media.sample import make_clip
from dailies.remote import store_of
from dailies.store.local import LocalFolder
from tests import compute_work
from tests.compute_contract import PATIENCE_S, UNIT, ComputeContract, World, eventually, gone, settled, world
from tests.compute_work import ROOT, TABLE
from tests.servers.s3 import rclone_serving

pytestmark = pytest.mark.integration
__all__ = ["world"]

KEY = "acme/client/videos/v1/clip.mp4"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def store(tmp_path):
    return LocalFolder(tmp_path / "media")


@pytest.fixture
def again(tmp_path, store):
    made = lambda: LocalCompute(tmp_path / "calls", {"folder": str(store.root)}, TABLE)  # noqa: E731
    yield made
    for place in (tmp_path / "calls").glob("*/"):
        made().cancel(place.name)


@pytest.fixture
def compute(again):
    return again()


@pytest.fixture
def calls(tmp_path):
    return tmp_path / "calls"


def shim_of(calls: Path, call: str) -> int:
    note = calls / call / "pid"
    eventually(lambda: note.exists() and note.read_text())
    return int(note.read_text())


@pytest.fixture
def struck(calls):
    return lambda call: os.kill(shim_of(calls, call), signal.SIGKILL)


class TestLocalCompute(ComputeContract):
    """Processes of this machine keep the contract."""


SUBMIT = """
import json, sys
from pathlib import Path
from dailies.compute.local import LocalCompute
calls, store, table, function, payload, unit = sys.argv[1:]
compute = LocalCompute(Path(calls), {"folder": store}, table)
sys.stdout.write(compute.submit(function, json.loads(payload), unit))
sys.stdout.flush()
sys.stdin.read()
"""


def submitter(calls: Path, store: LocalFolder, function: str, world: World, unit: str = UNIT) -> subprocess.Popen[str]:
    """Another process that submits, and lives until its input ends."""
    arguments = [str(calls), str(store.root), TABLE, function, json.dumps(world.payload()), unit]
    command = [sys.executable, "-c", SUBMIT, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def said_by(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate()
    return out


def test_a_call_outlives_the_death_of_its_submitter_and_another_process_gets_its_result(compute, calls, store, world):
    first = submitter(calls, store, "wait", world)
    world.begun()
    os.killpg(first.pid, signal.SIGKILL)
    call = said_by(first)
    assert compute.find(UNIT) == call
    with pytest.raises(StillRunning):
        compute.result(call, 0.2)
    world.gate.touch()
    assert compute.result(call, PATIENCE_S)["facts"]["waited"] is True
    assert world.executions == 1


def test_many_who_submit_a_unit_at_once_get_one_process(compute, calls, store, world):
    others = [submitter(calls, store, "wait", world) for _ in range(3)]
    together = threading.Barrier(8)

    def submit(_: int) -> str:
        together.wait(PATIENCE_S)
        return compute.submit("wait", world.payload(), UNIT)

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(8), timeout=PATIENCE_S))
    ids |= {said_by(other) for other in others}
    world.begun()
    world.gate.touch()
    (call,) = ids
    compute.result(call, PATIENCE_S)
    assert world.executions == 1


def test_while_one_decides_what_is_started_and_removed_others_wait(compute, calls, world):
    calls.mkdir()
    with ThreadPoolExecutor(2) as pool, (calls / ".door").open("a") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        submitted = pool.submit(compute.submit, "count", world.payload(), UNIT)
        (calls / "of-old").mkdir()
        cleaned = pool.submit(compute.clean, 3600)
        time.sleep(0.3)
        assert not any(each.done() for each in (submitted, cleaned))
        assert {place.name for place in calls.glob("*/")} == {"of-old"}
        fcntl.flock(door, fcntl.LOCK_UN)
        assert cleaned.result(PATIENCE_S) == 1
        assert compute.result(submitted.result(PATIENCE_S), PATIENCE_S)["facts"]["words"] == 0


def test_a_frozen_process_is_alive_and_can_be_cancelled(compute, calls, world):
    call = compute.submit("linger", world.payload(), UNIT)
    eventually(world.note.exists)
    os.kill(shim_of(calls, call), signal.SIGSTOP)
    with pytest.raises(StillRunning):
        compute.result(call, 0.2)
    start = time.monotonic()
    compute.cancel(call)
    eventually(lambda: all(map(gone, world.family)))
    assert time.monotonic() - start < 2.5
    with pytest.raises(Canceled):
        compute.result(call, 0)


def test_a_dead_call_is_not_mistaken_for_one_whose_number_was_given_to_another_process(compute, calls, world):
    call = compute.submit("wait", world.payload(), UNIT)
    world.begun()
    os.kill(shim_of(calls, call), signal.SIGKILL)
    with pytest.raises(Transient):
        compute.result(call, PATIENCE_S)
    stranger = subprocess.Popen([sys.executable, "-c", compute_work.SLEEP], start_new_session=True)
    try:
        (calls / call / "pid").write_text(str(stranger.pid))
        with pytest.raises(Transient):
            compute.result(call, 0.2)
        compute.cancel(call)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_killed_process_takes_its_child_and_grandchildren_along(compute, calls, world):
    call = compute.submit("linger", world.payload(), UNIT)
    eventually(world.note.exists)
    os.kill(shim_of(calls, call), signal.SIGKILL)
    eventually(lambda: all(map(gone, world.family)))


def test_looking_never_makes_a_call_seem_alive(tmp_path):
    """A look holds the lock for a moment: who looks at that moment must not take it for a process."""
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert not is_alive(tmp_path)
    with (tmp_path / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert is_alive(tmp_path)


def test_an_ended_call_leaves_no_process_not_even_a_zombie(compute, calls, world):
    call = compute.submit("count", world.payload(), UNIT)
    shim = shim_of(calls, call)
    compute.result(call, PATIENCE_S)
    eventually(lambda: not is_alive(calls / call))
    eventually(lambda: compute.result(call, 0) and not psutil.pid_exists(shim))


def test_only_folders_of_calls_that_ended_long_ago_are_removed(compute, calls, world):
    units = {name: UNIT[:-1] + digit for name, digit in (("old", "a"), ("new", "b"), ("running", "c"))}
    old = compute.submit("count", world.payload(), units["old"])
    new = compute.submit("count", world.payload(), units["new"])
    running = compute.submit("wait", world.payload(), units["running"])
    for call in (old, new):
        compute.result(call, PATIENCE_S)
    eventually(lambda: not is_alive(calls / old))
    for call in (old, running):
        for name in ("request.json", "result.json"):
            if (calls / call / name).exists():
                os.utime(calls / call / name, (0, 0))
    assert compute.clean(3600) == 1
    assert {place.name for place in calls.glob("*/")} == {new, running}
    with pytest.raises(UnknownCall):
        compute.result(old, 0)
    assert settled(compute, "count", world.payload(), units["old"])["facts"]["words"] == 0


def test_the_id_of_a_call_is_known_without_the_reply(compute, world):
    assert compute.find(UNIT) is None
    assert compute.submit("count", world.payload(), UNIT) == compute.find(UNIT) == id_of(UNIT)


def test_no_secret_of_the_store_is_written_into_the_folder_of_a_call(calls, store, world):
    compute = LocalCompute(calls, {"folder": str(store.root), "secret_key": "hush-hush"}, TABLE)
    compute.result(compute.submit("count", world.payload(), UNIT), PATIENCE_S)
    assert [path for path in calls.rglob("*") if path.is_file() and b"hush-hush" in path.read_bytes()] == []


# ── the block, and the functions that are really there ────────────────────────────────────────────────────────────────


@pytest.fixture(params=["a folder", "a bucket"])
def kept_in(request, tmp_path) -> Iterator[LocalFolderBlock | S3Bucket]:
    if request.param == "a folder":
        yield LocalFolderBlock(path=str(tmp_path / "media"))
        return
    with rclone_serving(tmp_path) as server:
        keys = {"access_key": server.access_key, "secret_key": server.secret_key}
        yield S3Bucket(bucket=server.bucket, endpoint_url=server.url, prefix="site", **keys)


def test_an_upload_in_any_store_is_probed_and_drawn_elsewhere_as_it_is_here(kept_in, calls, tmp_path):
    store = kept_in.open()
    clip = make_clip(tmp_path / "clip.mp4", seconds=1)
    store.put(KEY, clip.read_bytes())
    compute = LocalComputeBlock(path=str(calls)).open(kept_in)
    payload = {"tenant": "acme", "media_key": KEY, "version": store.stat(KEY).version}
    probed = compute.result(compute.submit("probe_media", payload, UNIT), PATIENCE_S)
    found = probe(clip)
    (file,) = probed["artifacts"]
    assert store.get(file["key"]) == canonical_json(found.to_json())
    drawn = compute.result(compute.submit("make_contact_sheet", {**payload, "probe": file}, UNIT[::-1]), PATIENCE_S)
    assert store.get(drawn["artifacts"][0]["key"]) == contact_sheet(clip, found)
    kept = sorted(stored.key.split("/")[4] for stored in store.list("acme/server"))
    assert kept == ["calls", "calls", "probe"], "two records, no claim"


def test_the_block_needs_no_settings_and_uses_the_folders_of_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DAILIES_HOME", str(tmp_path))
    for store in (None, LocalFolderBlock()):
        compute = LocalComputeBlock().open(store)
        assert compute.folder == tmp_path / "calls"
        assert store_settings(store) == {"folder": str(tmp_path / "media")}


def test_what_a_bucket_is_opened_with_elsewhere_is_what_it_is_opened_with_here():
    block = S3Bucket(bucket="films", endpoint_url="http://127.0.0.1:9", access_key="a", secret_key="s", prefix="/x/")
    here, elsewhere = block.open(), store_of(store_settings(block))
    assert (here.bucket, here.prefix) == (elsewhere.bucket, elsewhere.prefix)
    for store in (here, elsewhere):
        link = store.presigned_get("acme/x", 60)
        assert link.startswith("http://127.0.0.1:9/films/x/acme/x?")
        assert "X-Amz-Credential=a%2F" in link


def test_a_folder_that_cannot_be_used_is_named_before_anything_is_submitted(tmp_path):
    LocalCompute(tmp_path / "new" / "calls").check()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotConfigured, match=r"the folder of the calls, .*/file/calls, cannot be used"):
        LocalCompute(tmp_path / "file" / "calls").check()


def test_a_function_that_is_killed_leaves_no_temporary_files(compute, store, tmp_path):
    """Neither where its call is, nor in the folder that all processes of the machine share."""
    note = tmp_path / "note"
    payload = {"tenant": "acme", "media_key": KEY, "marks": str(tmp_path / "marks"), "note": str(note)}
    call = compute.submit("litter", payload, UNIT)
    with pytest.raises(Transient):
        compute.result(call, PATIENCE_S)
    place = tmp_path / "calls" / call
    assert Path(note.read_text()).is_relative_to(place)
    eventually(lambda: not is_alive(place))
    assert not (place / "tmp").exists()
