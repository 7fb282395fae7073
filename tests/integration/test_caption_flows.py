"""process-video, crop-and-infer and caption-ocr, whole: what they leave behind, and what becomes of the video."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import ParameterTypeError

from blocks.site import OpenSite, open_site
from dailies.captions.databases import read_captions, read_extents, read_layout, read_raw_ocr
from dailies.captions.sample import make_film, truth
from dailies.ledger.records import JobState, VideoState
from dailies.store.interface import Artifact
from flows.caption_ocr import caption_ocr
from flows.crop_and_infer import crop_and_infer
from flows.process_video import process_video
from tasks._step import REGISTRY

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("fast_api")]

SECONDS = 6
KEY = "acme/client/videos/v1/film.mp4"
VIDEO = "video:acme/v1"
BAND = {"top": 0.6, "bottom": 1.0}


@pytest.fixture(scope="session")
def film_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_film(tmp_path_factory.mktemp("film") / "film.mp4", SECONDS).read_bytes()


@pytest.fixture
def film(site: OpenSite, film_bytes: bytes) -> str:
    site.store.put(KEY, film_bytes)
    return KEY


@pytest.fixture(scope="session")
def homes(tmp_path_factory, fast_api, film_bytes) -> dict[str, Path]:
    """A home after process-video, and one after crop-and-infer: each test gets a copy."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, flow in {"processed": process_video, "captioned": crop_and_infer}.items():
            home = tmp_path_factory.mktemp("homes") / name
            if made:
                shutil.copytree(made["processed"], home)
            patch.setenv("DAILIES_HOME", str(home))
            site = open_site()
            if not made:
                site.store.put(KEY, film_bytes)
            assert ask(flow).is_completed()
            site.ledger.close()
            made[name] = home
    return made


@pytest.fixture
def processed(site, homes, home) -> OpenSite:
    return moved_in(site, homes["processed"], home)


@pytest.fixture
def captioned(site, homes, home) -> OpenSite:
    return moved_in(site, homes["captioned"], home)


def moved_in(site: OpenSite, made: Path, home: Path) -> OpenSite:
    site.ledger.close()
    shutil.copytree(made, home, dirs_exist_ok=True)
    return open_site()


@pytest.fixture
def at_once(monkeypatch):
    """A step that failed is tried again without a rest."""
    for step in REGISTRY.values():
        monkeypatch.setattr(step.task, "retry_delay_seconds", [0])


def ask(flow: Any, **parameters: Any) -> Any:
    return flow(**{"tenant": "acme", "media_key": KEY, **parameters}, return_state=True)


def newest(site: OpenSite) -> Any:
    return site.ledger.jobs.all()[0]


def states(site: OpenSite) -> list[str]:
    """Every state that the video was ever said to be in."""
    events = [event for job in site.ledger.jobs.all() for event in site.ledger.outbox.of(job.id)]
    return [
        event.type.removeprefix("dailies.video.")
        for event in sorted(events, key=lambda event: event.seq)
        if event.type.startswith("dailies.video.")
    ]


def video_of(site: OpenSite) -> Any:
    return site.ledger.videos.get("acme", "v1")


def manifest(site: OpenSite) -> dict[str, Any]:
    return json.loads(site.store.get(site.ledger.generations.current(VIDEO)))


def file(part: dict[str, Any], name: str) -> Artifact:
    return next(Artifact.from_json(each) for each in part["artifacts"] if each["key"].endswith(f"/{name}"))


def rows_of(site: OpenSite) -> list[Any]:
    return read_captions(site.store.get(file(manifest(site)["captions"], "captions.db.gz").key))


def sound(site: OpenSite) -> bool:
    return not any(site.ledger.audit(grace=0).values())


# ── process-video and crop-and-infer ──────────────────────────────────────────────────────────────────────────────────


def test_a_video_goes_from_the_upload_to_captions_that_are_exact_to_the_frame(site, film):
    first = ask(process_video)
    assert first.is_completed(), first
    assert (video_of(site).state, states(site)) == ("awaiting_layout", ["processing", "awaiting_layout"])

    parts = manifest(site)
    frames = parts["frames"]["facts"]
    assert (frames["frame_width"], frames["frame_height"], frames["failed_ocr_count"]) == (640, 360, 0)
    assert frames["frame_count"] == 24, "a short film is looked at more often than every ten seconds"
    raw = read_raw_ocr(site.store.get(file(parts["frames"], "raw-ocr.db.gz").key))
    assert {line.text for frame in raw.frames for line in frame.lines} >= {text for *_, text in truth(SECONDS)}
    picture = Image.open(io.BytesIO(site.store.get(file(parts["frames"], "frame_0000000000.jpg").key)))
    assert (picture.format, picture.size) == ("JPEG", (640, 360))
    (region,) = read_layout(site.store.get(file(parts["layout"], "layout.db.gz").key)).regions
    assert region.anchor == "center"
    assert region.crop.top < 300 < region.crop.bottom
    assert Image.open(io.BytesIO(site.store.get(file(parts["layout"], "layout.png").key))).format == "PNG"

    second = ask(crop_and_infer)
    assert second.is_completed(), second
    video = video_of(site)
    assert (video.state, video.metadata["captions"]) == ("ready", len(truth(SECONDS)))
    facts = {name: video.metadata[name] for name in ("width", "height", "duration_us")}
    assert facts == {"width": 640, "height": 360, "duration_us": SECONDS * 1_000_000}
    assert states(site) == ["processing", "awaiting_layout", "inferring", "ready"]
    parts = manifest(site)
    assert {"probe", "contact_sheet", "frames", "layout", "captions"} == set(parts)
    assert [(row.start_us, row.end_us, row.text) for row in rows_of(site)] == truth(SECONDS)
    assert video.metadata["captions_db"] == file(parts["captions"], "captions.db.gz").key
    srt = site.store.get(file(parts["captions"], "captions.srt").key).decode()
    assert srt.startswith("1\n00:00:00,600 --> 00:00:02,400\nGood evening, everyone\n")
    extents = read_extents(site.store.get(file(parts["captions"], "caption_frame_extents.db").key))
    assert len(extents.pairs) == parts["captions"]["facts"]["frame_count"] - 1
    assert all(site.store.holds(Artifact.from_json(each)) for part in parts.values() for each in part["artifacts"])
    assert sound(site)


def test_a_second_run_reuses_every_unit_and_publishes_the_same_bytes(captioned):
    before = manifest(captioned)
    assert ask(process_video).is_completed()
    assert ask(crop_and_infer).is_completed()
    again = [unit for job in captioned.ledger.jobs.all()[:2] for unit in captioned.ledger.units.of(job.id)]
    # The upload is another file here than where the home was made, so it is digested again.
    assert {unit.step for unit in again if unit.state != "REUSED"} == {"probe_media"}
    assert manifest(captioned) == before


def test_a_rectangle_that_a_person_drew_is_read_and_nothing_else(processed):
    upper = {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 0.4}
    assert ask(crop_and_infer, crop=upper).is_completed()
    assert rows_of(processed) == []
    assert (video_of(processed).state, video_of(processed).metadata["captions"]) == ("ready", 0)
    assert ask(crop_and_infer, crop=BAND).is_completed()
    assert [(row.start_us, row.end_us, row.text) for row in rows_of(processed)] == truth(SECONDS)
    keys = [key for _, key in processed.ledger.generations.history(VIDEO)]
    assert len(keys) == len(set(keys)) == 3, "process-video's, and one for each approval"


def test_a_video_without_captions_is_a_result(site, tmp_path, client):
    site.store.put(KEY, quiet(tmp_path).read_bytes())
    state = ask(process_video)
    assert state.is_completed(), state
    assert (video_of(site).state, manifest(site)["layout"]["facts"]["regions"]) == ("ready", [])
    shown = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
        )
    )  # fmt: skip
    assert any("No captions found" in str(artifact.data) for artifact in shown)
    refused = ask(crop_and_infer)
    assert (refused.name, newest(site).error_code) == ("BadInput", "bad_input")
    assert "draw the rectangle" in refused.message
    assert video_of(site).state == "ready"


def quiet(folder: Path) -> Path:
    """A film on which nothing is written."""
    from tests.captions.clips import clip, moving

    return clip(folder / "quiet.mp4", [], frames=75, background=moving).path


def test_the_layout_is_shown_as_a_picture_and_as_the_form_takes_it(site, film, client):
    state = ask(process_video)
    ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    shown = client.read_artifacts(artifact_filter=ours)
    images = [artifact for artifact in shown if artifact.type == "image"]
    assert any("Where captions sit" in (image.description or "") for image in images)
    (region,) = manifest(site)["layout"]["facts"]["regions"]
    table = next(artifact.data for artifact in shown if "| region |" in str(artifact.data))
    assert f"| 0 | {region['left']} | {region['top']} | {region['right']} | {region['bottom']} | center |" in str(table)
    assert 0 <= region["top"] < 0.85 < region["bottom"] <= 1


# ── approval ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sure_layout_is_approved_once_and_without_a_person(processed):
    for _ in range(2):
        assert ask(process_video, auto_approve=0.9).is_completed()
    asked = [job for job in processed.ledger.jobs.all() if job.kind == "crop-and-infer"]
    assert [(job.state, job.subject, job.params["media_key"]) for job in asked] == [
        (JobState.QUEUED, "acme/v1", KEY)
    ] * 2
    assert {job.deployment for job in asked} == {"crop-and-infer/cpu"}


def test_an_unsure_layout_waits_for_a_person(processed):
    assert ask(process_video, auto_approve=1.0).is_completed()
    assert [job.kind for job in processed.ledger.jobs.all()] == ["process-video"] * 2
    assert video_of(processed).state == "awaiting_layout"


def test_the_form_of_the_approval_describes_every_field():
    schema = crop_and_infer.parameters.model_dump()
    fields = schema["definitions"]["CropRegion"]["properties"]
    assert set(fields) == {"left", "top", "right", "bottom"}
    assert all(field["description"] and field["minimum"] == 0 and field["maximum"] == 1 for field in fields.values())
    for flow in (process_video, crop_and_infer, caption_ocr):
        assert all(field.get("description") for field in flow.parameters.properties.values()), flow.name


@pytest.mark.expects_errors
@pytest.mark.parametrize(
    "crop", [{"top": 0.5}, {"top": -0.1, "bottom": 1}, {"top": 0.5, "bottom": 1.5}, {"top": 0, "bottom": 1, "up": 1}]
)
def test_a_rectangle_that_is_none_is_refused_before_anything_begins(processed, crop):
    before = len(processed.ledger.jobs.all())
    with pytest.raises(ParameterTypeError, match="crop"):
        crop_and_infer(tenant="acme", media_key=KEY, crop=crop)
    assert len(processed.ledger.jobs.all()) == before


@pytest.mark.parametrize("crop", [{"top": 0.9, "bottom": 0.2}, {"top": 0.5, "bottom": 0.51}])
def test_a_rectangle_that_holds_no_line_is_one_clear_error_and_changes_nothing(processed, crop):
    before = video_of(processed)
    state = ask(crop_and_infer, crop=crop)
    assert (state.name, newest(processed).error_code) == ("BadInput", "bad_input")
    assert "must hold a line of text" in state.message
    assert video_of(processed) == before


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_nothing_to_approve_before_process_video(site, film):
    state = ask(crop_and_infer)
    assert (state.name, "run process-video" in state.message) == ("BadInput", True)


@pytest.mark.expects_errors
def test_a_video_that_cannot_be_read_says_error_and_why(site):
    site.store.put(KEY, b"Meet me at noon.\n" * 100)
    state = ask(process_video)
    video = video_of(site)
    assert state.name == "Unreadable"
    assert (video.state, video.error_code) == (VideoState.ERROR, "unreadable")
    assert video.error == newest(site).error
    assert states(site) == ["processing", "error"]


@pytest.mark.parametrize("flow", [process_video, crop_and_infer, caption_ocr], ids=lambda flow: flow.name)
def test_an_upload_of_another_tenant_is_refused_and_stays_as_it_was(captioned, flow):
    before = manifest(captioned), video_of(captioned)
    state = flow(tenant="apex", media_key=KEY, return_state=True)
    assert (state.name, "does not belong to tenant 'apex'" in state.message) == ("BadInput", True)
    assert (newest(captioned).tenant, newest(captioned).error_code) == ("apex", "bad_input")
    assert (manifest(captioned), video_of(captioned)) == before


@pytest.mark.expects_errors
def test_sound_alone_is_no_video_to_read_captions_from(site, tmp_path):
    from tests.media_files import audio

    site.store.put(KEY, audio(tmp_path / "song.m4a").read_bytes())
    assert ask(process_video).name == "NoVideo"
    assert (video_of(site).state, video_of(site).error_code) == (VideoState.ERROR, "no_video")


@pytest.mark.expects_errors
def test_when_compute_fails_the_old_captions_stay_and_the_next_run_mends_it(captioned, monkeypatch, at_once):
    before = manifest(captioned)
    refuse = "dailies.compute.local.LocalCompute.submit"
    from dailies.errors import NotConfigured

    def broken(*_: Any) -> str:
        raise NotConfigured("there is no GPU account: set the token")

    with monkeypatch.context() as patch:
        patch.setattr(refuse, broken)
        state = ask(crop_and_infer, crop=BAND)
    assert (state.name, newest(captioned).state) == ("NotConfigured", JobState.FAILED)
    video = video_of(captioned)
    assert (video.state, video.error_code, video.error) == (
        VideoState.ERROR, "not_configured", "there is no GPU account: set the token",
    )  # fmt: skip
    assert manifest(captioned) == before
    assert [row.text for row in rows_of(captioned)] == [text for *_, text in truth(SECONDS)]
    assert ask(crop_and_infer, crop=BAND).is_completed()
    assert (video_of(captioned).state, video_of(captioned).error) == (VideoState.READY, "")
    assert sound(captioned)


def test_another_film_under_the_same_key_takes_nothing_over_from_the_one_before(captioned, tmp_path):
    before = video_of(captioned).metadata
    captioned.store.put(KEY, quiet(tmp_path).read_bytes())
    assert ask(process_video).is_completed()
    after = video_of(captioned).metadata
    assert before["captions"] == len(truth(SECONDS))
    assert {name: after[name] for name in ("captions", "captions_db", "captions_confidence")} == {
        "captions": None, "captions_db": None, "captions_confidence": None,
    }  # fmt: skip
    assert after["sha256"] != before["sha256"]
    assert "captions" not in manifest(captioned)


# ── caption-ocr ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_caption_is_read_again_and_the_others_stay_as_they_were(captioned):
    before = rows_of(captioned)
    state = ask(caption_ocr, caption=2)
    assert state.is_completed(), state
    after = rows_of(captioned)
    assert (after[1].caption_ocr, after[1].caption_ocr_status) == (truth(SECONDS)[1][2], "completed")
    assert after[1].caption_ocr_confidence > 0.9
    assert [row for row in after if row.id != 2] == [row for row in before if row.id != 2]
    assert video_of(captioned).metadata["captions_db"] == file(manifest(captioned)["captions"], "captions.db.gz").key
    assert (video_of(captioned).state, sound(captioned)) == ("ready", True)


def test_ten_at_once_lose_nothing_and_end_as_one_by_one(captioned, beside):
    numbers = [row.id for row in rows_of(captioned)] * 4
    random.Random(0).shuffle(numbers)
    runs = [beside(ask, caption_ocr, caption=number) for number in numbers[:10]]
    assert all(run.result(120).is_completed() for run in runs)
    assert {row.caption_ocr_status for row in rows_of(captioned) if row.id in numbers[:10]} == {"completed"}
    assert [row.caption_ocr for row in rows_of(captioned)] == [text for *_, text in truth(SECONDS)]
    together = captioned.store.get(video_of(captioned).metadata["captions_db"])
    assert ask(caption_ocr).is_completed()
    assert captioned.store.get(video_of(captioned).metadata["captions_db"]) == together
    assert sound(captioned)


def test_a_caption_whose_frames_are_damaged_costs_a_note_and_not_the_job(captioned):
    captions = manifest(captioned)["captions"]
    (chunk,) = captions["facts"]["regions"][0]["chunks"]
    captioned.store.put(chunk["key"], b"no WebM at all")
    state = ask(caption_ocr, caption=1)
    assert state.is_completed(), state
    (first, second, *_) = rows_of(captioned)
    assert first.caption_ocr_status == "error"
    assert "damaged" in first.caption_ocr_error
    assert (first.text, second.caption_ocr_status) == (truth(SECONDS)[0][2], "queued")


@pytest.mark.parametrize("caption", [0, 99])
@pytest.mark.expects_errors
def test_a_caption_that_is_not_there_is_one_clear_line(captioned, caption):
    if caption == 0:
        with pytest.raises(ParameterTypeError, match="caption"):
            caption_ocr(tenant="acme", media_key=KEY, caption=caption)
        return
    state = ask(caption_ocr, caption=caption)
    assert (state.name, "has no caption 99: it has 3" in state.message) == ("BadInput", True)


@pytest.mark.expects_errors
def test_a_reading_of_captions_that_were_made_anew_meanwhile_is_not_written(captioned, arm, beside, eventually):
    from dailies.failpoints import fired

    log = arm("record_readings:before=sleep(6)")
    reading = beside(ask, caption_ocr, caption=1)
    eventually(lambda: fired(log), 60)
    upper = {"top": 0.0, "bottom": 0.4}
    assert ask(crop_and_infer, crop=upper).is_completed()
    assert reading.result(60).name == "Changed"
    assert rows_of(captioned) == []


def test_captions_without_crop_and_infer_are_one_clear_line(processed):
    state = ask(caption_ocr)
    assert (state.name, "has no captions yet" in state.message) == ("BadInput", True)
