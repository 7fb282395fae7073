"""The app that is deployed on Modal: the functions of dailies.remote, each under its name, with its GPU and limit."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import modal
import pytest

from blocks.compute import ModalCompute
from dailies.canonical import canonical_json, digest, file_digest
from dailies.captions.approval import plain
from dailies.captions.databases import read_captions, read_raw_ocr
from dailies.captions.layout import find_layout
from dailies.captions.sample import make_film, truth
from dailies.errors import BadInput, Damaged
from dailies.media.probe import probe
from dailies.media.sample import make_clip
from dailies.remote import FUNCTIONS, said
from dailies.speech.isolated import plan_file
from dailies.speech.sample import make_talk
from dailies.store.local import LocalFolder
from deployments import modal_app
from tests import compute_work

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
KEY = "acme/client/videos/v1/clip.mp4"
UNIT = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path, monkeypatch) -> LocalFolder:
    store = LocalFolder(tmp_path / "media")
    monkeypatch.setenv("DAILIES_STORE", json.dumps({"folder": str(store.root)}))
    return store


@pytest.fixture
def given(monkeypatch) -> dict[str, dict[str, Any]]:
    """What each function is given to Modal with, in an app of its own: the client's record of it cannot be read."""
    seen: dict[str, dict[str, Any]] = {}
    really = modal.App.function

    def listen(self: modal.App, **options: Any) -> Any:
        def decorate(run: Any) -> Any:
            seen[options["name"]] = {**options, "run": run}
            return really(self, **options)(run)

        return decorate

    monkeypatch.setattr(modal.App, "function", listen)
    monkeypatch.setattr(modal_app, "app", modal.App("of-a-test"))
    return seen


def test_a_function_is_wrapped_with_its_gpu_its_limit_its_secret_and_no_retries_of_modals(given):
    for name, function in {**FUNCTIONS, "on_gpu": compute_work.FUNCTIONS["on_gpu"]}.items():
        modal_app.wrapped(name, function)
    assert {name: (each["gpu"], each["timeout"], each["retries"]) for name, each in given.items()} == {
        "probe_media": (None, 4 * 3600, 0),
        "make_contact_sheet": (None, 3600, 0),
        "extract_frames_and_ocr": ("T4", 1800, 0),
        "crop_and_infer": ("A10G", 3600, 0),
        "caption_ocr": ("T4", 300, 0),
        "transcribe_chunk": ("T4", 600, 0),
        "on_gpu": ("A10G", 30, 0),
    }
    for name, each in given.items():
        assert (each["run"].__qualname__, each["run"].__module__) == (name, "deployments.modal_app")
        (secret,) = each["secrets"]
        assert "dailies-store" in repr(secret)
        assert isinstance(each["image"], modal.Image)
        assert list(each["volumes"]) == (["/models"] if name == "transcribe_chunk" else [])


def test_every_function_of_the_table_is_in_the_module_under_the_name_that_compute_asks_for():
    for name in FUNCTIONS:
        found = getattr(modal_app, name)
        assert isinstance(found, modal.Function)
        assert found.app is modal_app.app


def test_the_name_of_the_app_is_the_one_that_the_block_has_and_can_be_another(monkeypatch):
    assert modal_app.app.name == ModalCompute().app_name
    monkeypatch.setenv("DAILIES_MODAL_APP", "dailies-staging")
    importlib.reload(modal_app)
    assert modal_app.app.name == "dailies-staging"
    monkeypatch.delenv("DAILIES_MODAL_APP")
    importlib.reload(modal_app)


def test_a_wrapped_function_does_what_the_function_does(store):
    make_clip(store.root / KEY, seconds=1)
    payload = {"tenant": "acme", "media_key": KEY, "version": store.stat(KEY).version}
    answer = said(modal_app.probe_media.local(payload, UNIT))
    with store.local(KEY) as path:
        here = canonical_json(probe(path).to_json())
    assert store.get(answer["artifacts"][0]["key"]) == here
    assert answer["artifacts"][0]["sha256"] == digest(here)
    sheet = said(modal_app.make_contact_sheet.local({**payload, "probe": answer["artifacts"][0]}, UNIT[::-1]))
    assert store.get(sheet["artifacts"][0]["key"])[:4] == b"\x89PNG"


def test_a_chunk_is_heard_on_the_machine_as_it_is_here_and_no_other_file_is(store, tmp_path):
    text = make_talk(tmp_path / "talk.wav", 2)
    (tmp_path / "out").mkdir()
    plan = plan_file(str(tmp_path / "talk.wav"), str(tmp_path / "out"), None, None, lambda part: None)
    folder = "acme/server/videos/v1/work-0123"
    heard = []
    for number, chunk in enumerate(plan["chunks"]):
        file = store.put_file(f"{folder}/{chunk['key']}.f32", tmp_path / "out" / f"{chunk['key']}.f32")
        asked = {"tenant": "acme", "media_key": KEY, "number": number, "engine": "dtmf", "settings": None}
        payload = {**asked, "language": None, "sound": {"key": file.key, "sha256": file.sha256}}
        answer = said(modal_app.transcribe_chunk.local(payload, digest(number)))
        assert (answer["facts"]["number"], answer["facts"]["sha256"]) == (number, file.sha256)
        heard += [word["text"] for word in answer["facts"]["words"]]
        for key in (KEY, "acme/server/videos/v2/work-0123/x.f32", "apex/server/videos/v1/work-0123/x.f32"):
            with pytest.raises(BadInput, match="no working file"):
                said(modal_app.transcribe_chunk.local({**payload, "sound": {**payload["sound"], "key": key}}, UNIT))
    assert " ".join(heard) == text
    store.put(file.key, b"damaged")
    with pytest.raises(Damaged, match="not what was written"):
        said(modal_app.transcribe_chunk.local(payload, UNIT))
    store.delete(file.key)
    with pytest.raises(Damaged, match="is gone"):
        said(modal_app.transcribe_chunk.local(payload, UNIT))


def test_a_wrapped_function_answers_with_the_code_of_a_typed_error(store):
    payload = {"tenant": "acme", "media_key": KEY, "version": "1"}
    answer = modal_app.probe_media.local(payload, UNIT)
    assert answer["error"] == "missing"
    assert KEY in answer["message"]


def test_the_image_has_the_versions_that_the_tests_ran_with():
    pinned = modal_app.pinned()
    assert sorted(line.partition("==")[0] for line in pinned) == sorted(modal_app.NEEDED)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line in constraints for line in pinned)


def test_the_runtime_for_gpus_is_only_in_the_images_of_functions_that_have_one(monkeypatch):
    asked: list[tuple[str, ...]] = []
    really = modal.Image.pip_install
    monkeypatch.setattr(modal.Image, "pip_install", lambda self, *names: asked.append(names) or really(self, *names))
    function = FUNCTIONS["probe_media"]
    modal_app.image_for(function)
    modal_app.image_for(dataclasses.replace(function, gpu="A10G"))
    runtimes = [[name.rstrip("=.0123456789>") for name in names if "onnx" in name] for names in asked]
    assert runtimes == [["onnxruntime"], ["onnxruntime-gpu"]]


MACHINE = """
import json, os, sys
import modal
import deployments.modal_app as module
for name in json.loads(sys.argv[1]):
    function = getattr(module, name)
    assert isinstance(function, modal.Function), name
unwanted = [name for name in ("prefect", "supabase", "redis", "httpx") if name in sys.modules]
sys.exit(f"imported on a machine that has not got it: {unwanted}" if unwanted else 0)
"""


def test_on_the_machine_the_module_loads_without_the_rest_of_the_repository(tmp_path):
    """As Modal does it: this package and dailies beside it, and no file of the repository."""
    for package in ("deployments", "dailies"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "MODAL_IS_REMOTE": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MACHINE, json.dumps(sorted(FUNCTIONS))],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wrapped_caption_functions_go_from_an_upload_to_captions_read_again(store):
    """One after the other, as the flows submit them, on the very objects that Modal would call."""
    make_film(store.root / KEY, seconds=4)
    sha256 = file_digest(store.root / KEY)
    asked = {"tenant": "acme", "media_key": KEY, "sha256": sha256}
    seen = said(modal_app.extract_frames_and_ocr.local({**asked, "frame_rate": 0.1}, "a" * 64))
    assert seen["facts"]["frame_count"] == 24
    raw = read_raw_ocr(store.get(next(each["key"] for each in seen["artifacts"] if each["key"].endswith(".db.gz"))))
    regions = [plain(region) for region in find_layout(raw.seen, raw.width, raw.height).regions]
    made = said(modal_app.crop_and_infer.local({**asked, "regions": regions, "frame_rate": 10.0}, "b" * 64))
    database = next(each["key"] for each in made["artifacts"] if each["key"].endswith("captions.db.gz"))
    rows = read_captions(store.get(database))
    assert [(row.start_us, row.end_us, row.text) for row in rows] == truth(4)
    assert made["facts"]["device"] == made["facts"]["ocr_device"] == "cpu"
    again = {
        "captions": [
            {
                "id": row.id, "region": row.region, "box": vars(row.box),
                "first": row.start_frame_index, "after": row.end_frame_index,
            }
            for row in rows
        ],
        "frame_rate": 10.0,
        "regions": made["facts"]["regions"],
    }  # fmt: skip
    readings = said(modal_app.caption_ocr.local({**asked, **again}, "c" * 64))["facts"]["readings"]
    assert [reading["text"] for reading in readings] == [text for *_, text in truth(4)]
