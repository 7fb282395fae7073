"""The parts of the scenario crop-infer-e2e: captions come out whole, once and in order, whatever dies on the way."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from dailies import failpoints
from dailies.ledger.holding import TTL_S
from dailies.ledger.records import RECOVERED, JobRequest, JobState
from dailies.media.keys import MediaKey
from dailies.scenarios.processes import Child
from tasks.caption_parts import (
    BAND,
    CROP_AND_INFER,
    EMPTY_BAND,
    FLOW_S,
    LOOK_S,
    PROCESS_VIDEO,
    TRUTH,
    Shown,
    Starts,
    copy_video,
    damaged,
    files_of,
    handed_on,
    jobs_on,
    kill_at,
    outcome,
    published_bytes,
    resource_of,
    start,
    unnamed,
    upload_film,
    working,
)
from tasks.contention import RESCUE_S, blocked, finish, part
from tasks.scenario import SWEEP_S, TENANT, Scenario

KIND = "crop-and-infer"
FUNCTION = "crop_and_infer"
CRASH_POINTS_OF_A_WORKER = ("infer_captions:committed", "compute.recorded", "publish_captions:committed")
# Worker and supervisor come anew first, which a supervisor that lives does not have to wait for.
START_S = 15.0
DONE, CHANGED = ("DONE", ""), ("FAILED", "changed")
WAITING, READY, ERROR = ("awaiting_layout", ""), ("ready", ""), ("error", "changed")
VIDEO_EVENTS = ["dailies.video.inferring", "dailies.video.ready"]


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run makes. ``laid_out`` is a video whose layout waits for approval, ``approved`` the same
    with captions."""

    laid_out: str
    approved: str
    manifest: bytes = field(repr=False)


# ── undisturbed ───────────────────────────────────────────────────────────────────────────────────────────────────────


@part("undisturbed")
def undisturbed(run: Scenario, starts: Starts) -> Whole:
    """Upload, layout, approval, captions: exact, with the lease held while compute works and free afterwards."""
    laid_out = upload_film(run, "laid-out")
    with run.journal.span("undisturbed", "process-video"):
        finish([start(run, "process", PROCESS_VIDEO, {"media_key": laid_out})], FLOW_S)
    seen = outcome(run, laid_out)
    run.journal.expect(
        "undisturbed: the layout waits for approval", (seen.job, seen.video), (DONE, WAITING), "see its log"
    )
    key = copy_video(run, "approved", laid_out)
    with run.journal.span("undisturbed", "crop-and-infer"):
        child = start(run, "approve", CROP_AND_INFER, {"media_key": key})
        run.until(lambda: starts.of(key, FUNCTION) > 0 or not child.alive, FLOW_S, "nothing was submitted")
        holding = holder_of(run, key)
        finish([child], FLOW_S)
    (job,) = jobs_on(run, key, KIND)
    run.journal.expect("undisturbed: the lease is the job's while compute works", holding, job.id, "see take()")
    run.journal.expect("undisturbed: the lease is given back", holder_of(run, key), "")
    check_captions(run, "undisturbed", key, TRUTH)
    if starts.known:
        run.journal.expect("undisturbed: compute worked once", starts.of(key, FUNCTION), 1)
    said = [event.type for event in run.ledger.outbox.of(job.id) if event.type.startswith("dailies.video.")]
    run.journal.expect("undisturbed: the video says what happens", said, VIDEO_EVENTS)
    return Whole(laid_out, key, published_bytes(run, key))


def holder_of(run: Scenario, key: str) -> str:
    """The job whose run has the lease on the video; empty where nobody has."""
    lease = run.ledger.leases.holder(resource_of(key))
    return next(iter(run.ledger.dispatch.jobs_of(lease.holder)), "a stranger") if lease else ""


def check_captions(run: Scenario, name: str, key: str, truth: Shown) -> None:
    seen = outcome(run, key)
    run.journal.expect(f"{name}: job and video say that it is done", (seen.job, seen.video), (DONE, READY))
    run.journal.expect(f"{name}: text and times are the ground truth", seen.captions, truth, "see dailies/captions")
    run.journal.expect(f"{name}: every published file has its bytes", seen.damaged, [])
    exported = [run.store.get(each.key).decode() for each in files_of(seen.manifest) if each.name == "captions.srt"]
    run.journal.expect(f"{name}: captions.srt says the same", exported, [srt(truth)])


def srt(shown: Shown) -> str:
    return "\n".join(
        f"{number}\n{clock(begin)} --> {clock(end)}\n{text}\n" for number, (begin, end, text) in enumerate(shown, 1)
    )


def clock(us: int) -> str:
    seconds, ms = divmod(round(us / 1000), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{ms:03}"


# ── killed everywhere ─────────────────────────────────────────────────────────────────────────────────────────────────


@part("crash-everywhere")
def crash_everywhere(run: Scenario, whole: Whole, starts: Starts, points: Sequence[str], lanes: int) -> None:
    """Killed at each of these points, the job is finished by its next attempt, which does nothing twice."""
    with run.journal.span("crashes", f"{len(points)} points"), ThreadPoolExecutor(lanes) as pool:
        delays = list(pool.map(lambda point: crash_at(run, whole, starts, point), points))
    run.journal.metric("kills", len(delays))
    run.journal.metric("takeover_s", {"n": len(delays), "worst": max(delays), "each": delays})


def crash_at(run: Scenario, whole: Whole, starts: Starts, point: str) -> float:
    name = point.replace(":", "-").replace("_", "-").replace(".", "-")
    key = copy_video(run, name, whole.laid_out)
    parameters = {"media_key": key}
    old, new = published_bytes(run, key), unnamed(whole.manifest, whole.approved)
    killed = kill_at(run, f"{name}-1", point, CROP_AND_INFER, parameters, KIND)
    job, delay = handed_on(run, killed, resource_of(key))
    readable = published_bytes(run, key)
    finish([start(run, f"{name}-2", CROP_AND_INFER, parameters, job=job)], FLOW_S)

    def expect(what: str, actual: object, wanted: object, fix: str) -> None:
        run.journal.expect(f"{point}: {what}", actual, wanted, fix)

    run.journal.expect_at_most(
        f"{point}: the lease is free within ttl + sweep (s)", round(delay, 2), TTL_S + SWEEP_S, "is the sweep running?"
    )
    seen, after = outcome(run, key), run.ledger.jobs.get(job.id)
    one_of_both = readable == old or unnamed(readable, key) == new
    expect("readers meanwhile see what was or what will be, whole", (one_of_both, damaged(run, readable)), (True, []),
           "publish with one write, after all files")  # fmt: skip
    expect("the next attempt ends the job", (after.state.value, after.attempt, seen.video), ("DONE", 2, READY),
           "see the log of the second child")  # fmt: skip
    expect("no finished unit is redone", killed.redone(run.ledger.units.of(job.id)), [], "look a unit up before it")
    if starts.known:
        expect("compute worked once for both attempts", starts.of(key, FUNCTION), 1, "attach to the call that is known")
    expect("manifest and files are the undisturbed run's", unnamed(seen.manifest, key) == new, True,
           "compare the two manifests: the files are in them by digest")  # fmt: skip
    expect("every published file has its bytes", seen.damaged, [], "a call must end before it is published")
    expect("text and times are the ground truth", seen.captions, TRUTH, "see dailies/captions")
    run.ledger.close()  # this thread's connection
    return round(delay, 2)


def chosen(points: Sequence[str], count: int, seed: int) -> list[str]:
    """So many of the points, or all there are; the same for the same seed."""
    return sorted(random.Random(seed).sample(list(points), min(count, len(points))))


# ── two approvals ─────────────────────────────────────────────────────────────────────────────────────────────────────


@part("two-approvals")
def two_approvals(run: Scenario, whole: Whole, crowd: int) -> None:
    """Two rectangles for one video: a generation each, one after the other; who will not wait is told so at once.

    ``crowd``: so many more afterwards, which all come at the same moment.
    """
    upper, key = copy_video(run, "upper", whole.laid_out), copy_video(run, "shared", whole.laid_out)
    old = published_bytes(run, key)
    alone = approve(run, "upper", upper, 0.0, EMPTY_BAND)
    with run.journal.span("two approvals", "one video"), Reader(run, key) as reader:
        with working(run, MediaKey.parse(TENANT, key), "hold-video"):
            # Both wait at the same door when it opens; without somebody inside, one could be through before the other.
            two = [approve(run, f"approval-{n}", key, FLOW_S, crop) for n, crop in enumerate((None, EMPTY_BAND))]
            finish([approve(run, "impatient", key, 0.0, EMPTY_BAND)], FLOW_S)
            run.until(lambda: blocked(run, key) == 3, FLOW_S, "the two approvals did not come to wait")
        finish([alone, *two], 2 * FLOW_S)
        finish([approve(run, f"crowd-{n}", key, 300.0, (None, EMPTY_BAND)[n % 2]) for n in range(crowd)], 300)
    jobs = sorted(jobs_on(run, key, KIND), key=lambda job: job.updated_at)
    ended = sorted((job.params["patience_s"], job.state.value, job.error_code) for job in jobs)
    wanted = [(0.0, "FAILED", "held"), *[(FLOW_S, *DONE)] * 2, *[(300.0, *DONE)] * crowd]
    run.journal.expect("two approvals: each followed its policy", ended, wanted, "see take in tasks/_job.py")
    known = {
        unnamed(old, key): "laid out",
        unnamed(whole.manifest, whole.approved): "all of it",
        unnamed(published_bytes(run, upper), upper): "the upper part",
    }
    run.journal.expect("two approvals: three outcomes to tell apart", len(known), 3)
    history = run.ledger.generations.history(resource_of(key))
    run.journal.expect(
        "two approvals: a generation each, in the order of their turns, and no mixture",
        [known.get(unnamed(run.store.get(each), key), "a mixture") for _, each in history],
        ["laid out", *("the upper part" if job.params["crop"] else "all of it" for job in jobs if not job.error_code)],
        "publish under the lease on the video, all parts with one write",
    )
    strange = [each for each in reader.seen if unnamed(each, key) not in known]
    saw = (len(reader.seen), strange, reader.damaged)
    run.journal.expect("two approvals: a reader saw three whole generations", saw, (3, [], []), "it looks all the time")
    run.journal.metric("generations_seen_by_a_reader", {"looks": reader.looks, "different": len(reader.seen)})


def approve(run: Scenario, name: str, key: str, patience: float, crop: Mapping[str, float] | None) -> Child:
    return start(run, name, CROP_AND_INFER, {"media_key": key, "patience_s": patience, "crop": crop})


class Reader:
    """Looks at what is published again and again, as a player would, and follows it to its files."""

    def __init__(self, run: Scenario, key: str) -> None:
        self.seen: list[bytes] = []
        self.damaged: list[str] = []
        self.looks = 0
        self._run, self._key = run, key
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S / 4):
            self.looks += 1
            manifest = published_bytes(self._run, self._key)
            if manifest not in self.seen:
                self.seen.append(manifest)
                self.damaged += damaged(self._run, manifest)
        self._run.ledger.close()


# ── a run that fails ──────────────────────────────────────────────────────────────────────────────────────────────────


@part("keep-the-old")
def keep_the_old(run: Scenario, whole: Whole) -> None:
    """A run that fails leaves the old captions as they were, says why, and costs the next run nothing."""
    key, fault = copy_video(run, "replaced", whole.approved), "upload replaced by half of it"
    before, upload = published_bytes(run, key), run.store.get(key)
    run.journal.fault(fault)
    run.store.put(key, upload[: len(upload) // 2])
    finish([approve(run, "fails", key, 0.0, BAND)], FLOW_S)
    seen = outcome(run, key)
    run.journal.fault(fault, fired=seen.job[0] == JobState.FAILED, evidence=f"the job ended {' '.join(seen.job)}")
    run.journal.expect("failed run: job and video say why", (seen.job, seen.video), (CHANGED, ERROR))
    old = (seen.manifest == before, seen.captions, seen.damaged)
    run.journal.expect("failed run: the old captions are readable, byte by byte", old, (True, TRUTH, []),
                       "write into a folder of the run's own, and publish at the end")  # fmt: skip
    run.store.put(key, upload)
    finish([approve(run, "mended", key, 0.0, None)], FLOW_S)
    again = unnamed(published_bytes(run, key), key) == unnamed(whole.manifest, whole.approved)
    run.journal.expect("failed run: the next one makes what an undisturbed run makes", again, True)
    check_captions(run, "failed run, then a good one", key, TRUTH)


# ── worker and supervisor killed ──────────────────────────────────────────────────────────────────────────────────────


@part("recover-approval")
def recover_approval(run: Scenario, whole: Whole, starts: Starts) -> None:
    """Worker and supervisor killed together: those that follow them finish the job, and pay for nothing again."""
    point = random.Random(run.journal.seed).choice(CRASH_POINTS_OF_A_WORKER)
    fault, log = f"worker and supervisor killed at {point}", run.place / "faults" / "worker.jsonl"
    run.journal.fault(fault)
    key = copy_video(run, "recovered", whole.laid_out)
    deployment = run.deploy(KIND, CROP_AND_INFER, failpoints.environment(f"{point}=kill", log))
    params, subject = {"tenant": TENANT, "media_key": key}, f"{TENANT}/{MediaKey.parse(TENANT, key).video}"
    job = run.ledger.jobs.submit(JobRequest(TENANT, KIND, subject, params, deployment))
    supervisor, worker = run.supervisor("supervisor-1"), run.worker("worker-1")
    with run.journal.span("recovery", "attempt 1"):
        run.until(lambda: bool(failpoints.fired(log)), FLOW_S, "the first attempt did not reach its crash point")
        supervisor.kill()
        worker.kill()
    killed = time.time()
    entry = failpoints.fired(log)[0]
    pids = f"pid {entry['pid']}, worker {worker.pid} and supervisor {supervisor.pid}"
    run.journal.fault(fault, fired=1, evidence=f"{entry['name']} killed {pids}")
    with run.journal.span("recovery", "attempt 2"):
        heirs = [run.worker("worker-2"), run.supervisor("supervisor-2")]
        run.until(lambda: run.ledger.jobs.get(job.id).final, FLOW_S, "the job did not come to an end")
    check_recovery(run, job.id, killed)
    check_captions(run, "recovered", key, TRUTH)
    same = unnamed(published_bytes(run, key), key) == unnamed(whole.manifest, whole.approved)
    run.journal.expect("recovered: manifest and files are the undisturbed run's", same, True)
    if starts.known:
        run.journal.expect("recovered: compute worked once for both attempts", starts.of(key, FUNCTION), 1)
    for child in heirs:
        child.terminate(10)


def check_recovery(run: Scenario, job_id: str, killed: float) -> None:
    job, events = run.ledger.jobs.get(job_id), run.ledger.outbox.of(job_id)
    ended = (job.state.value, job.attempt, job.crashes)
    run.journal.expect("recovered: the job is done, in its second attempt", ended, ("DONE", 2, 1))
    said = [event.data["message"] for event in events if event.type == "dailies.job.queued"]
    run.journal.expect("recovered: it says why", said, ["", RECOVERED])
    again = [event.time for event in events if event.type == "dailies.job.running"]
    delay = round(again[1] - killed, 2) if len(again) > 1 else None
    run.journal.expect_at_most("recovered: running elsewhere within 20 s and a start", delay, RESCUE_S + START_S)
    run.journal.metric("worker_and_supervisor_death_to_running_s", delay)
