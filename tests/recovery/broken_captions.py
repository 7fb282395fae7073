"""Caption flows as they must not be, for the scenarios to find out: each breaks the product in its own process."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow

from flows import caption_ocr, crop_and_infer
from tasks import caption_ocr as reading
from tasks import captions
from tasks._step import Step
from tasks.captions import CropRegion

GAP_S = 0.5


def is_srt(file: dict[str, Any]) -> bool:
    return str(file["key"]).endswith("/captions.srt")


@flow(name="crop-and-infer-in-pieces", persist_result=False)
def in_pieces(
    tenant: str, media_key: str, crop: CropRegion | None = None, site: str = "local", patience_s: float = 30.0
) -> Any:
    """It publishes before all is there, keeps a file of the old captions, and asks for other work in each attempt."""
    publish, on_compute = captions.publish, captions.on_compute

    def twice(site: Any, lease: Any, key: Any, manifest: dict[str, Any]) -> Any:
        files, old = manifest["captions"]["artifacts"], captions.published(site, key).get("captions")
        if old:
            files = [each for each in files if not is_srt(each)] + [each for each in old["artifacts"] if is_srt(each)]
        publish(site, lease, key, {**manifest, "captions": {**manifest["captions"], "artifacts": []}})
        time.sleep(GAP_S)
        return publish(site, lease, key, {**manifest, "captions": {**manifest["captions"], "artifacts": files}})

    def anew(job: Any, step: Any, function: str, payload: dict[str, Any]) -> Any:
        return on_compute(job, step, function, {**payload, "asked": uuid4().hex})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "publish", twice)
        patch.setattr(captions, "on_compute", anew)
        patch.setattr(Step, "key", lambda *_: uuid4().hex)
        return crop_and_infer.crop_and_infer.fn(
            tenant=tenant, media_key=media_key, crop=crop, site=site, patience_s=patience_s
        )


@flow(name="crop-and-infer-without-a-door", persist_result=False)
def without_a_door(
    tenant: str, media_key: str, crop: CropRegion | None = None, site: str = "local", patience_s: float = 30.0
) -> Any:
    """It does not wait, however patient it was told to be, and takes back the old captions before it makes new ones."""

    def emptied(job: Any, media_key: str, sha256: str, regions: Any, rate: float) -> Any:
        site, key = job.site, captions.MediaKey.parse(job.job.tenant, media_key)
        left = {name: part for name, part in captions.published(site, key).items() if name != "captions"}
        captions.publish(site, job.claim, key, left)
        return infer(job, media_key, sha256, regions, rate)

    infer = crop_and_infer.infer_captions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop_and_infer, "infer_captions", emptied)
        return crop_and_infer.crop_and_infer.fn(
            tenant=tenant, media_key=media_key, crop=crop, site=site, patience_s=0.0
        )


@flow(name="caption-ocr-that-forgets", persist_result=False)
def forgetful(
    tenant: str, media_key: str, caption: int | None = None, site: str = "local", patience_s: float = 30.0
) -> Any:
    """It writes on top of what it saw when it began, gives up a batch for one caption, and asks anew each time."""
    published, on_compute, known = reading.published, reading.on_compute, []

    def seen_once(site: Any, key: Any) -> Any:
        known.append(published(site, key))
        return known[0]

    def all_or_nothing(job: Any, step: Any, function: str, payload: dict[str, Any]) -> Any:
        output = on_compute(job, step, function, {**payload, "asked": uuid4().hex})
        bad = [one for one in output.facts["readings"] if "error" in one]
        if bad:
            output.facts["readings"][:] = [{**bad[0], "id": one["id"]} for one in output.facts["readings"]]
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "published", seen_once)
        patch.setattr(reading, "on_compute", all_or_nothing)
        patch.setattr(Step, "key", lambda *_: uuid4().hex)
        return caption_ocr.caption_ocr.fn(
            tenant=tenant, media_key=media_key, caption=caption, site=site, patience_s=patience_s
        )
