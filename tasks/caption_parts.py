"""What the scenarios on captions share: a film, flows in processes that can be killed, and what came of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefect import Flow, tags
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from dailies import failpoints
from dailies.captions.databases import read_captions
from dailies.captions.sample import make_film, truth
from dailies.compute.local import LocalCompute as Processes
from dailies.compute.shim import REQUEST
from dailies.errors import DailiesError
from dailies.home import home
from dailies.ledger.holding import TTL_S, give_back, keeping
from dailies.ledger.records import Caps, Job, JobRequest, Lease, Unit, VideoState, video_resource
from dailies.media.keys import MediaKey
from dailies.scenarios.processes import Child
from dailies.store.interface import Artifact
from tasks.published import publish
from tasks.scenario import MANY, TENANT, Scenario
from tasks.supervision import Swept, recover

PROCESS_VIDEO = "flows.process_video.process_video"
CROP_AND_INFER = "flows.crop_and_infer.crop_and_infer"
CAPTION_OCR = "flows.caption_ocr.caption_ocr"

# Between writing down that a unit will be submitted and waiting for it: where work can be paid for twice.
COMPUTE_POINTS = ("compute.intended", "compute.submitted", "compute.recorded")

SECONDS = 4
BAND = {"top": 0.6, "bottom": 1.0}
EMPTY_BAND = {"top": 0.0, "bottom": 0.4}
TRUTH = truth(SECONDS)
FLOW_S = 180.0
LOOK_S = 0.2

Shown = list[tuple[int, int, str]]


# ── films and flows ───────────────────────────────────────────────────────────────────────────────────────────────────

_making = threading.Lock()


def film(run: Scenario, seconds: int = SECONDS) -> Path:
    """One film for all uploads of that length, so that whatever is made of two of them must be alike."""
    path = run.place / f"film-{seconds}.mp4"
    with _making:
        return path if path.exists() else make_film(path, seconds)


def upload_film(run: Scenario, video: str, seconds: int = SECONDS) -> str:
    """The key of an upload of its own, always of the same bytes."""
    key = f"{TENANT}/client/videos/{run.named(video)}/film.mp4"
    run.store.put_file(key, film(run, seconds))
    return key


def start(
    run: Scenario,
    name: str,
    entrypoint: str,
    parameters: Mapping[str, Any],
    faults: str = "",
    log: Path | None = None,
    job: Job | None = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """A production flow in a child of its own, with these failpoints armed there and nowhere else.

    ``job``: the attempt to go on with, as a worker gets it from the supervisor. Without it the run makes a job of its
    own. ``log`` is where the failpoints leave their evidence.
    """
    return run.nursery.spawn(
        run_flow,
        entrypoint,
        {"tenant": TENANT, "site": run.site.name, **parameters},
        run.environment["PREFECT_API_URL"],
        [run.pool, *(attempt_tags(job) if job else [])],
        faults,
        log or run.place / "faults" / f"{name}.jsonl",
        name=name,
        env={**run.environment, **(environment or {})},
        log=run.log(name),
    )


def attempt_tags(job: Job) -> list[str]:
    return [f"job:{job.id}", f"attempt:{job.attempt}"]


def run_flow(
    entrypoint: str, parameters: dict[str, Any], api_url: str, tagged: list[str], faults: str, log: Path
) -> None:
    """In a child that was forked with Prefect and the flows loaded: the settings are those of now."""
    failpoints.arm(faults, log)
    flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), tags(*tagged):
        flow(**parameters, return_state=True)


# ── what came of it ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """What a user can see of one video, and of the job that worked on it last."""

    job: tuple[str, str]
    """State and error code of the newest job; both empty where there is none."""
    video: tuple[str, str]
    """State and error code of the video."""
    manifest: bytes
    captions: Shown | None
    damaged: list[str]
    """Files that the manifest names and the store does not hold byte by byte."""


def outcome(run: Scenario, key: str) -> Outcome:
    manifest = published_bytes(run, key)
    newest = max(jobs_on(run, key), key=lambda job: job.created_at, default=None)
    return Outcome(
        job=(newest.state.value, newest.error_code) if newest else ("", ""),
        video=video_state(run, key),
        manifest=manifest,
        captions=shown_in(run, manifest),
        damaged=damaged(run, manifest),
    )


def jobs_on(run: Scenario, key: str, kind: str = "") -> list[Job]:
    """This scenario's jobs on an upload, of every kind or of one."""
    return [job for _, job in run.jobs() if job.params.get("media_key") == key and kind in ("", job.kind)]


def video_state(run: Scenario, key: str) -> tuple[str, str]:
    media = MediaKey.parse(TENANT, key)
    try:
        video = run.ledger.videos.get(media.tenant, media.video)
    except DailiesError:
        return "", ""
    return video.state.value, video.error_code


def published_bytes(run: Scenario, key: str) -> bytes:
    """The manifest, byte by byte; empty where nothing is published."""
    current = run.ledger.generations.current(resource_of(key))
    return run.store.get(current) if current else b""


def resource_of(key: str) -> str:
    media = MediaKey.parse(TENANT, key)
    return video_resource(media.tenant, media.video)


def files_of(manifest: bytes, part: str = "") -> list[Artifact]:
    """The files that a manifest names, of all its parts or of one."""
    parts: dict[str, Any] = json.loads(manifest or b"{}")
    chosen = parts.values() if not part else [parts[part]] if part in parts else []
    return [Artifact.from_json(each) for one in chosen for each in one["artifacts"]]


def damaged(run: Scenario, manifest: bytes) -> list[str]:
    return [artifact.key for artifact in files_of(manifest) if not run.store.holds(artifact)]


def captions_db(run: Scenario, manifest: bytes) -> bytes:
    found = [artifact for artifact in files_of(manifest, "captions") if artifact.name == "captions.db.gz"]
    return run.store.get(found[0].key) if found else b""


def shown_in(run: Scenario, manifest: bytes) -> Shown | None:
    """(start_us, end_us, text) of each caption; None where no captions are published."""
    database = captions_db(run, manifest)
    return [(row.start_us, row.end_us, row.text) for row in read_captions(database)] if database else None


def fired(run: Scenario, name: str) -> list[dict[str, Any]]:
    """The evidence of a child's failpoints, by the child's name."""
    return failpoints.fired(run.place / "faults" / f"{name}.jsonl")


# ── more videos of the same kind ──────────────────────────────────────────────────────────────────────────────────────


def copy_video(run: Scenario, video: str, model: str) -> str:
    """Another video as far as ``model`` is, with copies of its files: every trial has one of its own, in no time.

    Written through the ledger as the flows do it, so that nothing about it is less true than about the model.
    """
    known, key = MediaKey.parse(TENANT, model), MediaKey(TENANT, run.named(video), MediaKey.parse(TENANT, model).name)
    ours = f"/videos/{known.video}/", f"/videos/{key.video}/"
    before = published_bytes(run, model)
    for each in (model, *(artifact.key for artifact in files_of(before))):
        run.store.put(each.replace(*ours), run.store.get(each))
    what = run.ledger.videos.get(TENANT, known.video)
    with working(run, key) as lease:
        publish(run.site, lease, key, json.loads(before.decode().replace(*ours)))
        for state in PATHS[what.state]:
            run.ledger.videos.update(lease, state=state)
        run.ledger.videos.update(lease, metadata=json.loads(json.dumps(what.metadata).replace(*ours)))
    return str(key)


PATHS = {
    VideoState.AWAITING_LAYOUT: (VideoState.PROCESSING, VideoState.AWAITING_LAYOUT),
    VideoState.READY: (VideoState.PROCESSING, VideoState.AWAITING_LAYOUT, VideoState.INFERRING, VideoState.READY),
}


@contextmanager
def working(run: Scenario, key: MediaKey, kind: str = "copy-video") -> Iterator[Lease]:
    """A job of the scenario's own for as long as the block, with the lease on the video."""
    holder = f"{run.journal.run_id}-{kind}-{key.video}"
    request = JobRequest(TENANT, kind, f"{TENANT}/{key.video}", {"media_key": str(key)})
    job = run.ledger.jobs.submit(request, key=holder, run_id=holder)
    job, own = run.ledger.jobs.start(job.id, job.attempt, holder, TTL_S)
    with keeping(run.ledger) as keeper:
        keeper.add(own)
        lease = run.ledger.leases.acquire(video_resource(TENANT, key.video), holder, TTL_S)
        keeper.add(lease)
        run.ledger.videos.register(TENANT, key.video, str(key))
        yield lease
        give_back(run.ledger, keeper, lease)
        keeper.drop(own)
        run.ledger.jobs.done(own, None)


def unnamed(manifest: bytes, key: str) -> bytes:
    """A manifest as it is for whichever video: without its name, and the folder that only the name decides."""
    text = manifest.decode().replace(f"/videos/{MediaKey.parse(TENANT, key).video}/", "/videos/VIDEO/")
    extents = [each.key for each in files_of(manifest, "captions") if each.name == "caption_frame_extents.db"]
    for folder in (each.split("/")[-2] for each in extents):
        text = text.replace(f"/{folder}/", "/GENERATION/")
    return text.encode()


# ── killed, and handed on ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Killed:
    """A job whose run was killed, with what it had finished by then."""

    job: Job
    holder: str
    time: float
    units: list[Unit]

    def redone(self, after: Sequence[Unit]) -> list[str]:
        """Finished units that were begun again, or that nobody reused."""
        now = {unit.key: unit for unit in after}
        return [
            unit.step
            for unit in self.units
            if unit.state == "DONE" and (now[unit.key].attempts, now[unit.key].reuses) != (unit.attempts, 1)
        ]


def kill_at(
    run: Scenario, name: str, point: str, entrypoint: str, parameters: Mapping[str, Any], kind: str, **options: Any
) -> Killed:
    """Start a flow, and let it die at that point of it. The evidence goes into the journal."""
    fault = f"killed at {point}"
    run.journal.fault(fault)
    known = {job.id for job in jobs_on(run, parameters["media_key"], kind)}
    child = start(run, name, entrypoint, parameters, f"{point}=kill", **options)
    code, evidence = child.wait(FLOW_S), fired(run, name)
    if not evidence:
        raise RuntimeError(f"{name} ended with {code} and never came to {point}: see its log")
    (job,) = [job for job in jobs_on(run, parameters["media_key"], kind) if job.id not in known]
    run.journal.fault(fault, fired=1, evidence=f"pid {child.pid} exit {code}, job {job.id}")
    return remains(run, job, float(evidence[0]["time"]))


def remains(run: Scenario, job: Job, died: float) -> Killed:
    """Ask at once: its lease says whose it was only as long as it has not expired."""
    lease = run.ledger.leases.holder(f"job:{job.id}")
    if lease is None:
        raise RuntimeError(f"nobody had the lease of job {job.id} when its run was killed")
    return Killed(job, lease.holder, died, list(run.ledger.units.of(job.id)))


def handed_on(run: Scenario, killed: Killed, *resources: str) -> tuple[Job, float]:
    """The job's next attempt, claimed as the supervisor does it; and how long its leases outlived the dead."""

    def free() -> bool:
        time.sleep(LOOK_S)
        recover(run.site, Swept())
        leases = [run.ledger.leases.holder(resource) for resource in resources]
        held = any(lease is not None and lease.holder == killed.holder for lease in leases)
        return not held and run.ledger.jobs.get(killed.job.id).attempt > killed.job.attempt

    run.until(free, TTL_S + 60, f"job {killed.job.id} was not recovered")
    took = time.time() - killed.time
    while run.ledger.dispatch.next(Caps(MANY, MANY)) is not None:
        pass  # claims what waits, this job among it
    return run.ledger.jobs.get(killed.job.id), took


class Starts:
    """Counts how often compute began to work, by what compute itself writes at every start of a process.

    Our own log says what was meant; a second start of the same call would not show there, nor in the call's folder
    once it is over.
    """

    def __init__(self, run: Scenario) -> None:
        compute = run.site.compute
        self.known = isinstance(compute, Processes)
        self.folder = run.place / "calls"
        if isinstance(compute, Processes) and compute.folder != home() / "calls":  # the site's own, not a home's
            self.folder = compute.folder
        self._seen: dict[tuple[str, int, int], tuple[str, str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="starts", daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of(self, key: str, function: str) -> int:
        """How many processes were started for that function on that upload."""
        self._look()
        return sum(asked == (function, key) for asked in list(self._seen.values()))

    @property
    def all(self) -> int:
        return len(self._seen)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S / 4):
            self._look()

    def _look(self) -> None:
        for path in self.folder.glob(f"*/{REQUEST}"):
            with suppress(FileNotFoundError):
                stat = path.stat()  # written anew, and so another file, at each start
                stamp = (path.parent.name, stat.st_ino, stat.st_mtime_ns)
                if stamp not in self._seen:
                    asked = json.loads(path.read_bytes())["arguments"]
                    self._seen[stamp] = (asked["name"], asked["payload"]["media_key"])
