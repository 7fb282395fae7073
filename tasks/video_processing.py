"""The parts of the scenario video-processing-e2e: an upload's way to its layout, and each thing that breaks it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from dailies import failpoints
from dailies.canonical import digest
from dailies.captions.databases import read_layout, read_raw_ocr
from dailies.ledger.records import RECOVERED, Caps, Event, Job, JobRequest, JobState, Video
from dailies.media.keys import MediaKey
from dailies.scenarios import unreliable
from dailies.scenarios.journal import expect_at_least
from dailies.store.interface import Artifact
from tasks.bad_day import AFTER_AN_ERROR, DONE, FAULTS, NO_VIDEO, UNBROKEN, Fault, Seen, over
from tasks.caption_parts import (
    PROCESS_VIDEO,
    TRUTH,
    Outcome,
    files_of,
    film,
    jobs_on,
    outcome,
    resource_of,
    start,
    upload_film,
)
from tasks.contention import finish, part, shown
from tasks.scenario import MANY, TENANT, Scenario
from tasks.verdict import show_png

KIND = "process-video"
ON_A_BAD_DAY = "flows.scenarios.video_processing_e2e.process_video_on_a_bad_day"
AGAIN_IN_S = 5.0
PATIENCE_S = 240.0
FILES = {
    "probe": {"probe"},
    "contact_sheet": {"contact-sheet"},
    "frames": {"raw-ocr.db.gz", "full_frames"},
    "layout": {"layout.db.gz", "layout.png"},
}

# ── from upload to status ─────────────────────────────────────────────────────────────────────────────────────────────


@part("undisturbed")
def undisturbed(run: Scenario) -> dict[str, Any]:
    """Upload, trigger, compute, files, status; then the same again, which changes nothing. Gives what it made."""
    key = upload(run, "undisturbed")
    uploaded = time.time()
    run.journal.expect("upload: the video is known, and waits", state_of(run, key), ("uploaded", ""))
    job = submit(run, key, ON_A_BAD_DAY)
    with run.journal.span("undisturbed", "first run"):
        work(run, "undisturbed", job, ON_A_BAD_DAY)
    check_result(run, "undisturbed", key)
    run.journal.expect("undisturbed: compute worked once", worked(run, key), 1, "see submit in tasks/_compute.py")
    run.journal.metric("upload_to_status_s", took(run, key, uploaded))
    if picture := named_files(published(run, key)).get("layout.png"):
        show_png(run.store.get(picture), "layout", "Where the film's captions sit")
    before = objects(run, key)
    with run.journal.span("undisturbed", "second run"):
        again = submit(run, key, ON_A_BAD_DAY)
        work(run, "undisturbed again", again, ON_A_BAD_DAY)
    fix = "what goes into the key of the unit that was redone? see key in tasks/_step.py"
    units = {unit.step: unit.state for unit in run.ledger.units.of(again.id)}
    run.journal.expect("twice: every unit was reused", units, dict.fromkeys(units_of(run, job), "REUSED"), fix)
    run.journal.expect("twice: compute did not work again", worked(run, key), 1, fix)
    run.journal.expect("twice: the store holds the same bytes", objects(run, key), before, fix)
    run.journal.expect("twice: the status is what it was", seen(run, key), DONE)
    return content(run, key)


def check_result(run: Scenario, name: str, key: str) -> None:
    """What must be true of a video that has come to its layout, whatever happened on the way."""
    found, manifest = outcome(run, key), published(run, key)
    run.journal.expect(f"{name}: the job is done and the video awaits its layout", (found.job, found.video), DONE)
    run.journal.expect(f"{name}: the manifest names every part", kinds(manifest), FILES, "see publish_layout")
    fix = "a manifest must be published after its files, and name them by digest"
    run.journal.expect(f"{name}: every file is in the store, byte by byte", found.damaged, [], fix)
    lost = frames_lost(run, manifest)
    run.journal.expect(f"{name}: there is a picture of every frame that was read", lost, [], "see kept in calls.py")
    fix = "see find_layout in dailies/captions/layout.py"
    run.journal.expect(f"{name}: the layout holds the film's captions", outside(run, manifest), [], fix)
    held = run.ledger.leases.holder(resource_of(key))
    run.journal.check(f"{name}: the lease on the video is free", held is None, None, str(held))


def kinds(manifest: Mapping[str, Any]) -> dict[str, set[str]]:
    return {name: {unreliable.kind_of(each["key"]) for each in one["artifacts"]} for name, one in manifest.items()}


def frames_lost(run: Scenario, manifest: Mapping[str, Any]) -> list[int]:
    """The frames that were read and whose pictures were not kept."""
    files = named_files(manifest)
    raw = read_raw_ocr(run.store.get(files["raw-ocr.db.gz"])) if "raw-ocr.db.gz" in files else None
    read = [frame.index for frame in raw.frames] if raw else []
    return [index for index in read if f"frame_{index:010d}.jpg" not in files] if read else [-1]


def outside(run: Scenario, manifest: Mapping[str, Any]) -> list[str]:
    """The film's lines that were not read, or that lie outside every region of the layout."""
    files = named_files(manifest)
    if not {"raw-ocr.db.gz", "layout.db.gz"} <= files.keys():
        return ["nothing was published"]
    raw = read_raw_ocr(run.store.get(files["raw-ocr.db.gz"]))
    crops = [region.crop for region in read_layout(run.store.get(files["layout.db.gz"])).regions]
    held = {
        line.text
        for frame in raw.frames
        for line in frame.lines
        for crop in crops
        if crop.left <= line.box.middle[0] < crop.right and crop.top <= line.box.middle[1] < crop.bottom
    }
    return sorted({line for *_, text in TRUTH for line in text.splitlines()} - held)


def named_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The keys of a manifest's files, by the name that each has in its folder."""
    return {artifact.name: artifact.key for artifact in files_of(json.dumps(manifest).encode())}


# ── what breaks ───────────────────────────────────────────────────────────────────────────────────────────────────────


@part("break-it")
def break_it(run: Scenario, name: str) -> dict[str, Any]:
    """One fault in one run: what its user sees right after, and that the next run mends it. Gives what that made."""
    fault = FAULTS[name]
    run.journal.fault(name)
    key = upload(run, slug(name))
    job = submit(run, key, ON_A_BAD_DAY, fault.attempts)
    with run.journal.span(name, "broken"):
        work(run, name, job, ON_A_BAD_DAY, fault.arm)
    fix = "see end and settle in tasks/_job.py"
    run.journal.expect(f"{name}: the user sees it on the job and on the video", seen(run, key), fault.seen, fix)
    fix = "whoever sees an error's code must find its reason beside it"
    run.journal.expect(f"{name}: where there is a code there is a reason", unexplained(run, key), [], fix)
    note_fired(run, name)
    with run.journal.span(name, "mended"):
        mend(run, name, key, fault)
    check_result(run, f"{name}, mended", key)
    fix = "a finished call's result must be found again, and one that goes on must be waited for"
    run.journal.expect(f"{name}: compute began no more often than it had to", worked(run, key), fault.worked, fix)
    run.journal.expect(f"{name}: the video went from state to state", states(run, key), list(fault.states))
    return content(run, key)


def mend(run: Scenario, name: str, key: str, fault: Fault) -> None:
    """The run that follows: the job's next attempt, or where it is over, a job that asks for the same again."""
    job = newest(run, key)
    if job.state is JobState.RUNNING:  # its run is gone, and nobody could write that down
        job = recovered(run, job)
    if job.state is JobState.QUEUED:
        work(run, f"{name}, next attempt", job, ON_A_BAD_DAY)
        if job.message != RECOVERED:
            check = f"{name}: the next attempt had its rest (s)"
            rested = next(iter(rests(run, job)), None)
            run.journal.add(expect_at_least(check, rested, AGAIN_IN_S, "see available_at in the dispatch"))
    elif job.state is JobState.FAILED:
        work(run, f"{name}, next job", submit(run, key, ON_A_BAD_DAY), ON_A_BAD_DAY)


def recovered(run: Scenario, job: Job) -> Job:
    """As a supervisor does it, as soon as the lease of the attempt that is gone has run out."""

    def is_free() -> bool:
        run.ledger.jobs.recover()
        run.ledger.leases.sweep()
        return run.ledger.jobs.get(job.id).state is not JobState.RUNNING

    run.until(is_free, 30, "a job whose run is gone was not recovered")
    return run.ledger.jobs.get(job.id)


def note_fired(run: Scenario, name: str) -> None:
    for entry in failpoints.fired(faults_log(run, name)):
        said = f"{entry['name']} did {entry['action']} in pid {entry['pid']}"
        run.journal.fault(name, fired=1, evidence=said)


@part("refuse-what-is-no-video")
def refuse_what_is_no_video(run: Scenario, name: str = NO_VIDEO) -> dict[str, Any]:
    """An upload that is no video is refused once, with its code on the record; a better one is welcome."""
    fix = "BadInput must end its job: see end in tasks/_job.py"
    key = upload(run, "no-video", b"Meet me at noon.\n" * 100)
    job = submit(run, key, PROCESS_VIDEO)
    work(run, name, job, PROCESS_VIDEO)
    run.journal.expect(f"{name}: the user sees it on the job and on the video", seen(run, key), over("unreadable"), fix)
    run.journal.expect(f"{name}: where there is a code there is a reason", unexplained(run, key), [])
    tries = {unit.step: unit.attempts for unit in run.ledger.units.of(job.id)}
    run.journal.expect(f"{name}: it was looked at once", tries, {"probe_media": 1}, "bad input is never retried")
    run.journal.expect(f"{name}: it was one attempt", run.ledger.jobs.get(job.id).attempt, 1, fix)
    run.journal.expect(f"{name}: Prefect shows one run of it", shown(job.id), ["FAILED"], fix)
    run.journal.expect(f"{name}: compute was not asked", worked(run, key), 0)
    run.store.put_file(key, film(run))
    work(run, f"{name}, a better upload", submit(run, key, ON_A_BAD_DAY), ON_A_BAD_DAY)
    check_result(run, f"{name}, a better upload", key)
    run.journal.expect(f"{name}: the video went from state to state", states(run, key), list(AFTER_AN_ERROR))
    return content(run, key)


# ── through a worker ──────────────────────────────────────────────────────────────────────────────────────────────────

NO_GPU = "no GPU free, twice"
JOB_EVENTS = tuple(f"dailies.job.{state.lower()}" for state in JobState)


@part("through-a-worker")
def through_a_worker(run: Scenario) -> dict[str, dict[str, Any]]:
    """Two uploads through supervisor and worker: nothing breaks for one, no GPU is free for the other until its third
    attempt. Gives what both made."""
    run.journal.fault(NO_GPU)
    plain = run.deploy(KIND, PROCESS_VIDEO, places(run))
    armed = failpoints.environment("compute.submit=raise; compute.submit:again=raise", faults_log(run, NO_GPU))
    broken = run.deploy(f"{KIND}-on-a-bad-day", ON_A_BAD_DAY, {**places(run), **armed})
    keys = {"worker": upload(run, "worker"), NO_GPU: upload(run, "no-gpu-twice")}
    uploaded = time.time()
    jobs = {
        name: run.ledger.jobs.submit(request(key, deployment))
        for (name, key), deployment in zip(keys.items(), (plain, broken), strict=True)
    }
    children = (run.supervisor(), run.worker("worker"))
    with run.journal.span("worker", "until both are done"):
        run.until(lambda: all(run.ledger.jobs.get(job.id).final for job in jobs.values()), PATIENCE_S, "a job hangs")
    run.until(lambda: not run.ledger.outbox.pending(), 15, "events were not delivered")
    for child in children:
        child.terminate(15)
    note_fired(run, NO_GPU)
    for name, key in keys.items():
        check_result(run, name, key)
        run.journal.expect(f"{name}: the video went from state to state", states(run, key), list(UNBROKEN))
    check_queue(run, jobs[NO_GPU])
    run.journal.expect(f"{NO_GPU}: compute began once", worked(run, keys[NO_GPU]), 1)
    run.journal.expect("worker: Prefect shows it", shown(jobs["worker"].id), ["COMPLETED"])
    run.journal.metric("upload_to_status_through_a_worker_s", took(run, keys["worker"], uploaded))
    return {name: content(run, key) for name, key in keys.items()}


def check_queue(run: Scenario, job: Job) -> None:
    """Queued again each time and not lost; and no attempt before its time, which is longer the second time."""
    told = [event.type.rpartition(".")[2] for event in run.ledger.outbox.of(job.id) if event.type in JOB_EVENTS]
    wanted = ["queued", "running", "queued", "running", "queued", "running", "done"]
    run.journal.expect(f"{NO_GPU}: it was queued again each time", told, wanted, "see failed in the ledger's jobs")
    found = rests(run, job)
    early = [rest for rest, least in zip(found, (AGAIN_IN_S, 4 * AGAIN_IN_S), strict=False) if rest < least]
    run.journal.expect(f"{NO_GPU}: no attempt came before its time", early, [], "see available_at in the dispatch")
    run.journal.metric("rests_s", found)


# ── the pieces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def upload(run: Scenario, video: str, data: bytes = b"") -> str:
    """The key of an upload that the ledger knows, as whoever takes uploads leaves it."""
    key = upload_film(run, video)
    if data:
        run.store.put(key, data)
    run.ledger.videos.register(TENANT, MediaKey.parse(TENANT, key).video, key)
    return key


def request(key: str, deployment: str, attempts: int = 3) -> JobRequest:
    subject = f"{TENANT}/{MediaKey.parse(TENANT, key).video}"
    return JobRequest(TENANT, KIND, subject, {"tenant": TENANT, "media_key": key}, deployment, attempts)


def submit(run: Scenario, key: str, entrypoint: str, attempts: int = 3) -> Job:
    """The deployment says who it is for: nobody else's worker has such a pool."""
    return run.ledger.jobs.submit(request(key, f"{entrypoint.rpartition('.')[2]}/{run.pool}", attempts))


def work(run: Scenario, name: str, job: Job, entrypoint: str, faults: str = "") -> None:
    """One attempt in a child, from the moment on at which a dispatcher would have begun it."""
    run.until(lambda: claimed(run, job.id), 60, f"{name}: its attempt was never to be had")
    environment = {**places(run), **(failpoints.environment(faults, faults_log(run, name)) if faults else {})}
    parameters = {"media_key": str(job.params["media_key"])}
    current, log = run.ledger.jobs.get(job.id), faults_log(run, name)
    finish([start(run, slug(name), entrypoint, parameters, faults, log, current, environment)], PATIENCE_S)


_claims: set[str] = set()
_claiming = threading.Lock()


def claimed(run: Scenario, job_id: str) -> bool:
    """What the dispatcher hands out next may be for another of the parts that wait here."""
    with _claiming:
        if (job := run.ledger.dispatch.next(Caps(MANY, MANY))) is not None:
            _claims.add(job.id)
        if job_id not in _claims:
            return False
        _claims.discard(job_id)
        return True


def places(run: Scenario) -> dict[str, str]:
    """A killed process tidies nothing up: what it has left elsewhere goes with the scenario's folder."""
    folder = run.place / "tmp"
    folder.mkdir(exist_ok=True)
    return {"TMPDIR": str(folder)}


def faults_log(run: Scenario, name: str) -> Path:
    return run.place / "faults" / f"{slug(name)}.jsonl"


def slug(name: str) -> str:
    return "-".join(name.replace(",", "").replace("'", "").split()).lower()


# ── what is to be seen ────────────────────────────────────────────────────────────────────────────────────────────────


def seen(run: Scenario, key: str) -> Seen:
    found: Outcome = outcome(run, key)
    return found.job, found.video


def state_of(run: Scenario, key: str) -> tuple[str, str]:
    return outcome(run, key).video


def newest(run: Scenario, key: str) -> Job:
    return max(jobs_on(run, key), key=lambda job: job.created_at)


def video_of(run: Scenario, key: str) -> Video:
    return run.ledger.videos.get(TENANT, MediaKey.parse(TENANT, key).video)


def unexplained(run: Scenario, key: str) -> list[str]:
    """Where a code is without its reason, or the video names another one than its job."""
    job, video = newest(run, key), video_of(run, key)
    found = {"job": (job.error_code, job.error), "video": (video.error_code, video.error)}
    bare = [what for what, (code, why) in found.items() if bool(code) != bool(why)]
    return bare + [f"{video.error} is not {job.error}"] * (bool(video.error) and video.error != job.error)


def events_of(run: Scenario, key: str) -> list[Event]:
    """What was told of the video itself, in order."""
    told = [event for job in jobs_on(run, key) for event in run.ledger.outbox.of(job.id)]
    return sorted((event for event in told if event.type.startswith("dailies.video.")), key=lambda event: event.seq)


def states(run: Scenario, key: str) -> list[str]:
    return [event.type.rpartition(".")[2] for event in events_of(run, key)]


def rests(run: Scenario, job: Job) -> list[float]:
    """Seconds from each time that it was queued again to the moment it ran."""
    told = [event for event in run.ledger.outbox.of(job.id) if event.type in JOB_EVENTS]
    return [
        round(later.time - earlier.time, 3)
        for earlier, later in pairwise(told[1:])
        if (earlier.type, later.type) == ("dailies.job.queued", "dailies.job.running")
    ]


def took(run: Scenario, key: str, since: float) -> float | None:
    """Seconds until the layout was there to be approved; None where it never was."""
    told = [event.time for event in events_of(run, key) if event.type == "dailies.video.awaiting_layout"]
    return round(told[0] - since, 3) if told else None


def worked(run: Scenario, key: str) -> int:
    return unreliable.media_keys(run.place).count(key)


def executions(run: Scenario) -> dict[str, int]:
    """How often compute began, by video."""
    prefix = run.named("")
    begun = (MediaKey.parse(TENANT, key).video for key in unreliable.media_keys(run.place))
    return dict(Counter(video.removeprefix(prefix) for video in begun))


def units_of(run: Scenario, job: Job) -> list[str]:
    return [unit.step for unit in run.ledger.units.of(job.id)]


def published(run: Scenario, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome(run, key).manifest or b"{}")
    return found


def content(run: Scenario, key: str) -> dict[str, Any]:
    """All that is published, without the names that differ from video to video."""
    return {
        name: {
            "facts": one["facts"],
            "files": [(artifact.name, artifact.sha256) for artifact in map(Artifact.from_json, one["artifacts"])],
        }
        for name, one in published(run, key).items()
    }


def objects(run: Scenario, key: str) -> dict[str, str]:
    """Every object of the video, and what is in it."""
    video = MediaKey.parse(TENANT, key).video
    folders = [f"{TENANT}/{side}/videos/{video}" for side in ("client", "server")]
    return {each.key: digest(run.store.get(each.key)) for folder in folders for each in run.store.list(folder)}
