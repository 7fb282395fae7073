"""Connections that break where they are told to, and nowhere else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dailies import failpoints, remote
from dailies.compute.local import LocalCompute
from dailies.errors import Injected, TimedOut, Transient, Undecodable
from dailies.ledger.records import JobRequest
from dailies.ledger.sqlite import SqliteLedger
from dailies.media.keys import MediaKey
from dailies.remote import Function, Task
from dailies.scenarios import unreliable
from dailies.scenarios.unreliable import UnreliableCompute, UnreliableLedger, UnreliableStore, Watched, kind_of
from dailies.store.local import LocalFolder

pytestmark = pytest.mark.unit
KEY = "acme/server/videos/v1/published/0123.json"
MEDIA = "acme/client/videos/v1/film.mp4"


@pytest.fixture
def arm(tmp_path: Path, monkeypatch) -> Iterator[Callable[[str], Path]]:
    monkeypatch.setenv("DAILIES_HOME", str(tmp_path))
    log = tmp_path / "faults.jsonl"

    def arming(spec: str) -> Path:
        failpoints.arm(spec, log)
        for name, value in failpoints.environment(spec, log).items():
            monkeypatch.setenv(name, value)
        return log

    yield arming
    failpoints.arm("", Path())


@pytest.fixture
def store(tmp_path: Path) -> UnreliableStore:
    return UnreliableStore(LocalFolder(tmp_path / "media"), "store")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[UnreliableLedger]:
    made = UnreliableLedger(SqliteLedger(tmp_path / "ledger.db"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (KEY, "published"),
        ("acme/client/videos/v1/gen-01/layout.png", "layout.png"),
        ("acme/client/videos/v1/gen-01/full_frames/frame_0000000001.jpg", "full_frames"),
        (MEDIA, "film.mp4"),
    ],
)
def test_a_write_is_known_by_what_it_writes_whichever_video_it_is_of(key, kind):
    assert kind_of(key) == kind


def test_a_refused_write_has_not_happened_and_the_next_one_does(store, arm):
    log = arm("store.put:published=raise")
    with pytest.raises(Injected):
        store.put(KEY, b"one")
    assert store.stat(KEY) is None
    store.put(KEY, b"two")
    assert store.get(KEY) == b"two"
    assert [entry["name"] for entry in failpoints.fired(log)] == ["store.put:published"]


def test_a_write_whose_reply_is_lost_has_happened(store, arm, tmp_path):
    arm("store.put:published:reply=lose_reply; store.put:layout.png:reply=lose_reply")
    with pytest.raises(TimedOut):
        store.put_stream(KEY, io.BytesIO(b"one"))
    assert store.get(KEY) == b"one"
    (tmp_path / "picture").write_bytes(b"png")
    picture = "acme/client/videos/v1/gen-01/layout.png"
    with pytest.raises(TimedOut):
        store.put_file(picture, tmp_path / "picture")
    assert store.get(picture) == b"png"


def test_a_place_can_fail_twice(store, arm):
    log = arm("store.put:published=raise; store.put:published:again=raise")
    for _ in range(2):
        with pytest.raises(Injected):
            store.put(KEY, b"one")
    store.put(KEY, b"one")
    assert len(failpoints.fired(log)) == 2


def test_a_ledger_breaks_in_its_writes_and_answers_what_it_is_asked(ledger, arm):
    arm("ledger.jobs.submit=raise; ledger.videos.register:reply=lose_reply")
    with pytest.raises(Injected):
        ledger.jobs.submit(JobRequest("acme", "test", "acme/v1"))
    assert ledger.jobs.all() == []
    with pytest.raises(TimedOut):
        ledger.videos.register("acme", "v1", MEDIA)
    assert ledger.videos.get("acme", "v1").state == "uploaded"
    assert ledger.audit() == {rule: [] for rule in ledger.audit()}


def test_a_ledger_that_went_away_answers_nobody_any_more(ledger, arm):
    arm("ledger.jobs.submit:away=raise")
    for ask in (lambda: ledger.jobs.submit(JobRequest("acme", "test", "acme/v1")), ledger.jobs.all, ledger.jobs.all):
        with pytest.raises(Transient, match="does not answer"):
            ask()
    assert ledger._ledger.jobs.all() == []


def ask(function: str, folder: Path) -> dict:
    task = Task(LocalFolder(folder / "media"), MediaKey.parse("acme", MEDIA), {}, "cpu", "unit")
    return Watched({"write": Function(write, timeout=30)})[function].run(task)


def write(task: Task) -> dict:
    return task.made(task.store.put(task.key.server(task.folder, "raw-ocr.db.gz"), b"read"))


def test_what_begins_is_counted_however_it_ends(arm, tmp_path):
    arm("work.refused=raise; work.put:raw-ocr.db.gz=raise")
    with pytest.raises(Undecodable):
        ask("write", tmp_path)
    with pytest.raises(Injected):
        ask("write", tmp_path)
    assert ask("write", tmp_path)["artifacts"][0]["size"] == 4
    assert unreliable.media_keys(tmp_path) == [MEDIA] * 3
    assert unreliable.media_keys(tmp_path / "elsewhere") == []


def test_only_a_function_that_is_to_hang_has_little_time(arm):
    name = "extract_frames_and_ocr"
    usual = remote.FUNCTIONS[name].timeout
    assert unreliable.FUNCTIONS[name].timeout == usual
    arm("work.begun=hang")
    assert unreliable.FUNCTIONS[name].timeout == unreliable.HUNG_S
    log = arm("work.begun=kill")
    assert unreliable.FUNCTIONS[name].timeout == usual
    log.write_text('{"acted": true}\n')
    arm("work.begun=hang")
    assert unreliable.FUNCTIONS[name].timeout == usual, "it has hung already"
    assert (set(unreliable.FUNCTIONS), len(unreliable.FUNCTIONS)) == (set(remote.FUNCTIONS), len(remote.FUNCTIONS))


def test_work_that_nobody_takes_was_not_begun_and_the_rest_of_compute_is_as_it_is(arm, tmp_path):
    arm("compute.submit=raise")
    compute = UnreliableCompute(LocalCompute(tmp_path / "calls", {"folder": str(tmp_path / "media")}))
    with pytest.raises(Injected):
        compute.submit("extract_frames_and_ocr", {}, "unit")
    assert compute.find("unit") is None
