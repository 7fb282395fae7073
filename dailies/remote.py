"""The functions that may run on another machine, and how one is run there.

    FUNCTIONS["probe_media"]       name → the function, its GPU, its limit in seconds

They take plain JSON and a store, and leave files in it; what they return is JSON: facts, and files by key, digest and
size. ``execute`` is the same on a GPU machine (deployments/modal_app.py) and in a process here (compute/local.py).

A machine may be taken away at any moment and start again on the same input, or get the same unit twice. Both are
harmless: the result of a unit is kept under the tenant's server side, whoever comes second finds it there as long as
its files are whole, and who must work again makes the same bytes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, digest, file_digest
from dailies.captions.calls import caption_ocr, crop_and_infer, extract_frames_and_ocr
from dailies.compute.child import by_code, rebuilt
from dailies.compute.claim import claimed
from dailies.compute.interface import Busy
from dailies.errors import BadInput, DailiesError, Missing, NotConfigured, Transient
from dailies.media.isolated import contact_sheet_file, probe_file
from dailies.media.keys import MediaKey
from dailies.media.upload import changed, unchanged, version_of
from dailies.speech.isolated import hear_file, whole_or_damaged
from dailies.store.interface import Artifact, Store
from dailies.store.local import LocalFolder
from dailies.store.s3 import S3Store

STORE = "DAILIES_STORE"
TABLE = "dailies.remote:FUNCTIONS"
HOUR_S = 3600.0
TELL_S = 2.0
DEVICES = Path("/dev")

log = logging.getLogger("dailies.remote")

Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One unit as the function sees it. ``tell`` is for whoever waits: how much of the work is done, 0.0 to 1.0."""

    store: Store
    key: MediaKey
    payload: Mapping[str, Any]
    device: str
    unit: str = ""
    tell: Callable[[float], None] = lambda part: None

    def made(self, *artifacts: Artifact, **facts: Any) -> Json:
        return {"artifacts": [artifact.to_json() for artifact in artifacts], "facts": facts}

    @property
    def folder(self) -> str:
        """Nobody else writes there: a call that was cut short and the one after it put the same bytes in it."""
        return f"gen-{digest(self.unit)[:16]}"

    def within(self, begin: float, end: float) -> Callable[[float], None]:
        """``tell`` for a part of the work."""
        return lambda part: self.tell(begin + (end - begin) * part)


@dataclass(frozen=True)
class Function:
    """``retries`` is for the machine's own: whoever submits tries again already, and one layer is enough."""

    run: Callable[[Task], Json]
    timeout: float
    gpu: str | None = None
    retries: int = 0
    needs: tuple[str, ...] = ()
    """Packages that the others do without."""


# ── the functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def probe_media(task: Task) -> Json:
    """Digest the upload and decode all of it. ``payload``: version, accept_damaged."""
    same = unchanged(task.store, task.key, task.payload["version"])
    with same, task.store.local(str(task.key)) as path:
        probe = probe_file(str(path), bool(task.payload.get("accept_damaged")), lambda part: None)
    data = canonical_json(probe)
    artifact = task.store.put(task.key.server("probe", f"{digest(data)}.json"), data)
    return task.made(artifact, sha256=probe["sha256"], size=probe["size"])


def make_contact_sheet(task: Task) -> Json:
    """Draw evenly spaced frames. ``payload``: probe, the file that ``probe_media`` made."""
    described = task.store.get(Artifact.from_json(task.payload["probe"]).key).decode()
    same = unchanged(task.store, task.key, version_of(task.store, task.key))
    with same, task.store.local(str(task.key)) as path, tempfile.TemporaryDirectory() as folder:
        if file_digest(path) != json.loads(described)["sha256"]:
            raise changed(task.key)
        png = Path(folder) / "sheet.png"
        contact_sheet_file(str(path), described, str(png))
        data = png.read_bytes()
    return task.made(task.store.put(task.key.client("contact-sheet", f"{digest(data)}.png"), data))


def transcribe_chunk(task: Task) -> Json:
    """The words of one chunk. ``payload``: sound (the chunk's key and digest), number, engine, settings, language."""
    sound, asked = task.payload["sound"], task.payload
    if not str(sound["key"]).startswith(f"{task.key.tenant}/server/videos/{task.key.video}/work-"):
        raise BadInput(f"{sound['key']!r} is no working file of {task.key}")
    with whole_or_damaged(task.store, sound["key"]) as path:
        words = hear_file(str(path), sound["sha256"], asked["engine"], asked["settings"], asked["language"])
    return task.made(number=asked["number"], sha256=sound["sha256"], words=words)


FUNCTIONS: Mapping[str, Function] = {
    "probe_media": Function(probe_media, timeout=4 * HOUR_S),
    "make_contact_sheet": Function(make_contact_sheet, timeout=HOUR_S),
    "extract_frames_and_ocr": Function(extract_frames_and_ocr, timeout=HOUR_S / 2, gpu="T4"),
    "crop_and_infer": Function(crop_and_infer, timeout=HOUR_S, gpu="A10G"),
    "caption_ocr": Function(caption_ocr, timeout=HOUR_S / 12, gpu="T4"),
    "transcribe_chunk": Function(transcribe_chunk, timeout=HOUR_S / 6, gpu="T4", needs=("faster-whisper",)),
}


# ── running one ───────────────────────────────────────────────────────────────────────────────────────────────────────


def execute(name: str, payload: Mapping[str, Any], unit: str, call: str = "", table: str = TABLE) -> Json:
    """``{"result": …}``, ``{"busy": …}``, or a typed error as ``{"error": code, "message": …}``: see ``said``.

    ``call`` is this call's id: what it claimed before it was interrupted, it may take up again.
    """
    try:
        return {"result": outcome(lookup(name, table), name, payload, unit, call)}
    except Busy as busy:
        return {"busy": str(busy)}
    except DailiesError as error:
        return {"error": error.code, "message": str(error)}
    except Exception as error:
        log.exception("action=stumble function=%s unit=%s", name, unit)
        return {"error": Transient.code, "message": f"{name} stumbled: {type(error).__name__}: {error}"}


def said(answer: Json) -> Any:
    """The result that an answer holds, or its error."""
    if "busy" in answer:
        raise Busy(answer["busy"])
    if "error" in answer:
        raise rebuilt(by_code(answer["error"]), answer["message"])
    return answer["result"]


def outcome(function: Function, name: str, payload: Mapping[str, Any], unit: str, call: str) -> Json:
    store = store_of(settings())
    key = asked_for(payload)
    if (found := finished(store, key, unit)) is not None:
        return found
    with claimed(store, key.server("calls", f"{unit}.claim"), call or unit):
        if (found := finished(store, key, unit)) is not None:
            return found
        device = device_for(function)
        told = Told(store, progress_key(key, unit))
        try:
            result = function.run(Task(store, key, payload, device, unit, told))
        finally:
            told.no_more()
        result["facts"]["device"] = device
        record = {"digest": digest(result), "function": name, "result": result, "unit": unit}
        store.put(record_key(key, unit), canonical_json(record))
        return result


class Told:
    """What a call says of its progress, in the store: the one place that both sides can reach."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._next = time.monotonic() + TELL_S
        self._there = False

    def __call__(self, part: float) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TELL_S
        self._store.put(self._key, canonical_json(round(part, 3)))
        self._there = True

    def no_more(self) -> None:
        if self._there:
            self._store.delete(self._key)


def told(store: Store, payload: Mapping[str, Any], unit: str) -> float | None:
    """How much of a call's work is done, as far as it has said."""
    try:
        return float(json.loads(store.get(progress_key(asked_for(payload), unit))))
    except (DailiesError, ValueError):
        return None


def finished(store: Store, key: MediaKey, unit: str) -> Json | None:
    """The recorded result of this unit, if the record is undamaged and every file that it names has its bytes."""
    try:
        record = json.loads(store.get(record_key(key, unit)))
        result: Json = record["result"]
        sound = record["unit"] == unit and record["digest"] == digest(result)
    except (Missing, ValueError, KeyError, TypeError):
        return None
    return result if sound and whole(store, result) else None


def whole(store: Store, result: Json) -> bool:
    return all(store.holds(Artifact.from_json(artifact)) for artifact in result.get("artifacts", ()))


def asked_for(payload: Mapping[str, Any]) -> MediaKey:
    return MediaKey.parse(payload.get("tenant", ""), payload.get("media_key", ""))


def record_key(key: MediaKey, unit: str) -> str:
    return key.server("calls", f"{unit}.json")


def progress_key(key: MediaKey, unit: str) -> str:
    return key.server("calls", f"{unit}.progress")


def lookup(name: str, table: str = TABLE) -> Function:
    module, attribute = table.split(":")
    functions: Mapping[str, Function] = getattr(importlib.import_module(module), attribute)
    if name not in functions:
        raise NotConfigured(f"there is no function {name!r} to run elsewhere: the table has {', '.join(functions)}")
    return functions[name]


def device_for(function: Function) -> str:
    """Where no GPU is, the work is done all the same, and its facts say on what."""
    return "gpu" if function.gpu and gpu_is_here() else "cpu"


def gpu_is_here() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not hidden and any(DEVICES.glob("nvidia[0-9]*"))


# ── the store ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def settings() -> Json:
    text = os.environ.get(STORE, "")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NotConfigured(f'set {STORE} to JSON: {{"folder": "…"}}, or {{"bucket": "…", "endpoint_url": "…", …}}')
    return found


def store_of(settings: Mapping[str, Any]) -> Store:
    """A folder, or a bucket. Keys that are not among the settings come from the environment, as AWS names them."""
    if folder := settings.get("folder"):
        return LocalFolder(Path(folder))
    if not settings.get("bucket"):
        raise NotConfigured(f"{STORE} names neither a folder nor a bucket")
    access_key = settings.get("access_key") or os.environ.get("AWS_ACCESS_KEY_ID", "")
    secret_key = settings.get("secret_key") or os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    if not (access_key and secret_key):
        raise NotConfigured(f"{STORE} has no access_key and secret_key, nor has the environment AWS_ACCESS_KEY_ID")
    return S3Store(
        settings["bucket"],
        endpoint_url=settings.get("endpoint_url") or None,
        region=settings.get("region") or "us-east-1",
        access_key=access_key,
        secret_key=secret_key,
        prefix=str(settings.get("prefix", "")).strip("/"),
    )
