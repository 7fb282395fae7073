"""What runs on another machine: the same bytes as here, a result found instead of made, and one worker for a unit."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dailies import remote
from dailies.canonical import canonical_json, digest
from dailies.compute import claim
from dailies.compute.claim import claimed
from dailies.compute.interface import Busy
from dailies.errors import BadInput, Changed, Missing, NotConfigured, Transient, Truncated, Unreadable
from dailies.media.contact_sheet import contact_sheet
from dailies.media.probe import probe
from dailies.media.sample import make_clip
from dailies.remote import FUNCTIONS, Function, execute, said, store_of
from dailies.store.interface import Artifact
from dailies.store.local import LocalFolder
from dailies.store.s3 import S3Store
from tests import compute_work
from tests.media_files import Track, video

pytestmark = pytest.mark.unit

KEY = "acme/client/videos/v1/clip.mp4"
UNIT = "0123456789abcdef" * 4
RECORD = f"acme/server/videos/v1/calls/{UNIT}.json"
CLAIM = f"acme/server/videos/v1/calls/{UNIT}.claim"


@pytest.fixture(scope="module")
def clip_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2).read_bytes()


@pytest.fixture
def store(tmp_path, monkeypatch, clip_bytes) -> LocalFolder:
    store = LocalFolder(tmp_path / "media")
    store.put(KEY, clip_bytes)
    monkeypatch.setenv("DAILIES_STORE", json.dumps({"folder": str(store.root)}))
    return store


@pytest.fixture
def marks(tmp_path) -> Path:
    return tmp_path / "marks"


def asked(store: LocalFolder, **more: Any) -> dict[str, Any]:
    return {"tenant": "acme", "media_key": KEY, "version": store.stat(KEY).version, **more}


def probed(store: LocalFolder) -> dict[str, Any]:
    return said(execute("probe_media", asked(store), UNIT))


def counted(marks: Path, unit: str = UNIT, **more: Any) -> dict[str, Any]:
    payload = {"tenant": "acme", "media_key": KEY, "marks": str(marks), "text": "to be", **more}
    return execute("count", payload, unit, table=compute_work.TABLE)


def executions(marks: Path) -> int:
    return len(marks.read_text().splitlines()) if marks.exists() else 0


# ── the functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_is_probed_to_the_very_bytes_that_it_is_probed_to_here(store):
    answer = probed(store)
    (artifact,) = answer["artifacts"]
    with store.local(KEY) as path:
        here = canonical_json(probe(path).to_json())
    assert store.get(artifact["key"]) == here
    assert artifact == {
        "key": f"acme/server/videos/v1/probe/{digest(here)}.json", "sha256": digest(here), "size": len(here),
    }  # fmt: skip
    described = json.loads(here)
    assert answer["facts"] == {"device": "cpu", "sha256": described["sha256"], "size": described["size"]}
    assert [stream["kind"] for stream in described["streams"]] == ["video", "audio"]


def test_a_contact_sheet_is_drawn_to_the_very_bytes_that_it_is_drawn_to_here(store):
    payload = asked(store, probe=probed(store)["artifacts"][0])
    answer = said(execute("make_contact_sheet", payload, UNIT[::-1]))
    data = store.get(answer["artifacts"][0]["key"])
    with store.local(KEY) as path:
        assert data == contact_sheet(path, probe(path))
    assert Image.open(io.BytesIO(data)).format == "PNG"
    assert answer["artifacts"][0]["key"] == f"acme/client/videos/v1/contact-sheet/{digest(data)}.png"


@pytest.mark.parametrize(
    ("data", "error"), [(b"Meet me at noon.\n" * 100, Unreadable), (None, Missing), ("half", Truncated)]
)
def test_a_bad_upload_is_a_typed_error_with_a_code(store, clip_bytes, data, error, tmp_path):
    if data is None:
        payload = asked(store)
        store.delete(KEY)
    else:
        store.put(KEY, truncated(tmp_path) if data == "half" else data)
        payload = asked(store)
    answer = execute("probe_media", payload, UNIT)
    assert answer["error"] == error.code
    with pytest.raises(error):
        said(json.loads(json.dumps(answer)))
    assert [stored.key for stored in store.list("acme/server")] == [], "neither a record nor a claim is left"


def truncated(folder: Path) -> bytes:
    whole = video(folder / "film.mp4", seconds=2, tracks=[Track()], faststart=True).read_bytes()
    return whole[: len(whole) // 2]


def test_an_upload_that_changed_is_not_worked_on(store, clip_bytes):
    payload = asked(store)
    store.put(KEY, clip_bytes + b"x")
    with pytest.raises(Changed, match="changed while it was read"):
        said(execute("probe_media", payload, UNIT))
    sheet = {**payload, "probe": said(execute("probe_media", asked(store), UNIT))["artifacts"][0]}
    store.put(KEY, clip_bytes)
    with pytest.raises(Changed):
        said(execute("make_contact_sheet", sheet, UNIT[::-1]))


@pytest.mark.parametrize(
    ("tenant", "key"),
    [("acme", "apex/client/videos/v1/clip.mp4"), ("acme", "acme/client/videos/../clip.mp4"), ("", KEY), (None, None)],
)
def test_work_never_leaves_its_tenants_keys(store, tenant, key):
    before = sorted(stored.key for stored in store.list("acme"))
    with pytest.raises(BadInput):
        said(execute("probe_media", {**asked(store), "tenant": tenant, "media_key": key}, UNIT))
    assert sorted(stored.key for stored in store.list("acme")) == before


@pytest.mark.parametrize("unit", ["../escape", "a/b", "", ".hidden"])
def test_a_unit_that_could_escape_is_refused(store, marks, unit):
    assert counted(marks, unit=unit)["error"] == BadInput.code
    assert executions(marks) == 0


def test_the_table_has_a_limit_a_docstring_and_at_most_one_layer_of_retries():
    assert set(FUNCTIONS) == {
        "probe_media", "make_contact_sheet", "extract_frames_and_ocr", "crop_and_infer", "caption_ocr",
        "transcribe_chunk",
    }  # fmt: skip
    for name, function in FUNCTIONS.items():
        assert function.run.__name__ == name
        assert function.run.__doc__
        assert 0 < function.timeout <= 24 * 3600
        assert function.retries == 0


# ── found instead of made ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_second_of_two_calls_finds_the_result_of_the_first(store, marks):
    first = counted(marks)
    assert counted(marks) == first
    assert executions(marks) == 1
    assert json.loads(store.get(RECORD))["result"] == first["result"]
    assert store.stat(CLAIM) is None


@pytest.mark.parametrize(
    "harm",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b"to bE"), lambda path: path.write_bytes(b"")],
    ids=["missing", "changed", "emptied"],
)
def test_a_result_whose_file_is_harmed_is_made_again_to_the_same_bytes(store, marks, harm):
    first = counted(marks)["result"]
    record = store.get(RECORD)
    harm(store.root / first["artifacts"][0]["key"])
    assert counted(marks)["result"] == first
    assert executions(marks) == 2
    assert store.holds(Artifact.from_json(first["artifacts"][0]))
    assert store.get(RECORD) == record


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"unit": "another", "digest": "", "result": {}}',
        canonical_json({"unit": UNIT, "digest": "0" * 64, "result": {"artifacts": [], "facts": {"words": 9}}}),
    ],
)
def test_a_damaged_record_is_no_result(store, marks, record):
    first = counted(marks)
    store.put(RECORD, record)
    assert counted(marks) == first
    assert executions(marks) == 2


def test_a_failure_is_never_found(store, marks):
    payload = {"tenant": "acme", "media_key": KEY, "marks": str(marks)}
    with pytest.raises(Transient):
        said(execute("refuse_once", payload, UNIT, table=compute_work.TABLE))
    assert store.stat(RECORD) is None
    assert said(execute("refuse_once", payload, UNIT, table=compute_work.TABLE))["facts"]["tries"] == 2


@pytest.mark.expects_errors
def test_a_mistake_is_named_and_logged_and_leaves_no_claim(store, marks, caplog):
    answer = execute("stumble", {"tenant": "acme", "media_key": KEY, "marks": str(marks)}, UNIT, "", compute_work.TABLE)
    assert answer == {"error": "transient", "message": "stumble stumbled: ZeroDivisionError: a mistake of our own"}
    assert "action=stumble function=stumble" in caplog.text
    assert "Traceback" in caplog.text
    assert store.stat(CLAIM) is None


def test_a_function_that_is_not_in_the_table_is_refused_in_one_line(store):
    with pytest.raises(NotConfigured, match=r"there is no function 'os\.system' to run elsewhere"):
        said(execute("os.system", asked(store), UNIT))


# ── one worker for a unit ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(claim, "BEAT_S", 0.05)
    monkeypatch.setattr(claim, "PATIENCE_S", 0.6)
    monkeypatch.setattr(claim, "LOOK_S", 0.01)


def test_while_another_call_works_on_the_unit_one_is_told_so_and_does_nothing(store, marks, fast):
    with claimed(store, CLAIM, "call-1"):
        answer = counted(marks)
    assert list(answer) == ["busy"]
    with pytest.raises(Busy, match="another call works on this unit"):
        said(answer)
    assert executions(marks) == 0
    assert "result" in counted(marks)


def test_the_claim_of_the_dead_is_watched_for_a_while_and_then_counts_for_nothing(store, marks, fast):
    store.put(CLAIM, canonical_json({"beat": 7, "holder": "call-1"}))
    start = time.monotonic()
    assert "result" in counted(marks)
    assert time.monotonic() - start >= 0.6
    assert store.stat(CLAIM) is None


def test_a_machine_that_was_interrupted_takes_up_its_own_claim_at_once(store, marks):
    store.put(CLAIM, canonical_json({"beat": 7, "holder": "fc-1"}))
    payload = {"tenant": "acme", "media_key": KEY, "marks": str(marks), "text": "to be"}
    start = time.monotonic()
    assert "result" in execute("count", payload, UNIT, "fc-1", compute_work.TABLE)
    assert time.monotonic() - start < 2


def test_what_the_other_finished_while_it_was_watched_is_found(store, marks, fast):
    first = counted(marks)
    store.put(CLAIM, canonical_json({"beat": 0, "holder": "call-1"}))
    record, kept = RECORD, store.get(RECORD)
    store.delete(record)

    def finish() -> None:
        store.put(record, kept)
        store.delete(CLAIM)

    threading.Timer(0.2, finish).start()
    assert counted(marks) == first
    assert executions(marks) == 1


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff"])
def test_a_claim_that_cannot_be_read_is_no_claim(store, marks, text):
    store.put(CLAIM, text)
    start = time.monotonic()
    assert "result" in counted(marks)
    assert time.monotonic() - start < 2


def test_a_claim_beats_as_long_as_it_is_held_and_not_longer(store, fast):
    with claimed(store, CLAIM, "call-1"):
        versions = {store.stat(CLAIM).version for _ in range(30) if not time.sleep(0.02)}
    assert len(versions) > 3
    time.sleep(0.2)
    assert store.stat(CLAIM) is None


# ── where, and on what ────────────────────────────────────────────────────────────────────────────────────────────────

BUCKET = {"bucket": "films", "endpoint_url": "http://127.0.0.1:1", "region": "eu-central-1", "prefix": "/site/"}


def test_a_store_is_a_folder_or_a_bucket(tmp_path, monkeypatch):
    assert store_of({"folder": str(tmp_path)}).root == tmp_path
    bucket = store_of({**BUCKET, "access_key": "a", "secret_key": "s"})
    assert isinstance(bucket, S3Store)
    assert (bucket.bucket, bucket.prefix) == ("films", "site/")


def test_the_keys_of_a_bucket_may_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(NotConfigured, match="AWS_ACCESS_KEY_ID"):
        store_of(BUCKET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    link = store_of(BUCKET).presigned_get("acme/x", 60)
    assert "from-the-environment" in link
    assert "hush" not in link


@pytest.mark.parametrize("text", [None, "", "media", "[]", "{}", '{"bucket": ""}'])
def test_a_machine_without_a_store_says_what_to_set_in_one_line(store, monkeypatch, text):
    payload = asked(store)
    monkeypatch.delenv("DAILIES_STORE")
    if text is not None:
        monkeypatch.setenv("DAILIES_STORE", text)
    answer = execute("probe_media", payload, UNIT)
    assert answer["error"] == NotConfigured.code
    assert "DAILIES_STORE" in answer["message"]
    assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("gpu", "here", "hidden", "device"),
    [
        (None, True, None, "cpu"),
        ("A10G", False, None, "cpu"),
        ("A10G", True, None, "gpu"),
        ("A10G", True, "", "cpu"),
        ("A10G", True, "-1", "cpu"),
        ("A10G", True, "0", "gpu"),
    ],
)
def test_a_gpu_is_used_where_it_is_asked_for_and_there(tmp_path, monkeypatch, gpu, here, hidden, device):
    devices = tmp_path / "dev"
    devices.mkdir()
    (devices / "nvidiactl").touch()
    if here:
        (devices / "nvidia0").touch()
    monkeypatch.setattr(remote, "DEVICES", devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert remote.device_for(Function(compute_work.count, timeout=1, gpu=gpu)) == device


def test_nothing_of_this_machine_is_in_what_comes_back(store):
    assert str(store.root) not in json.dumps(probed(store))
    assert os.uname().nodename not in store.get(RECORD).decode()


# ── progress ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fail", [False, True])
def test_a_call_says_in_the_store_how_far_it_is_until_it_ends(store, marks, tmp_path, monkeypatch, fail):
    monkeypatch.setattr(remote, "TELL_S", 0.05)
    gate = tmp_path / "gate"
    payload = {"tenant": "acme", "media_key": KEY, "marks": str(marks), "gate": str(gate), "fail": fail}
    answers: list[dict[str, Any]] = []
    call = threading.Thread(target=lambda: answers.append(execute("report", payload, UNIT, table=compute_work.TABLE)))
    call.start()
    end = time.monotonic() + 10
    while (part := remote.told(store, payload, UNIT)) is None and time.monotonic() < end:
        time.sleep(0.02)
    assert part == 0.5
    gate.touch()
    call.join(10)
    assert answers[0].get("error", "") == ("undecodable" if fail else "")
    assert remote.told(store, payload, UNIT) is None
    assert not [found.key for found in store.list("acme") if found.key.endswith(".progress")]


def test_a_short_call_writes_no_progress(store):
    told = remote.Told(store, "acme/server/videos/v1/calls/short.progress")
    told(0.5)
    assert [found.key for found in store.list("acme/server")] == []


def test_each_unit_has_a_folder_of_its_own(store):
    folders = {remote.Task(store, remote.MediaKey.parse("acme", KEY), {}, "cpu", unit).folder for unit in ("a", "b")}
    assert len(folders) == 2
