"""The parts of the scenario caption-ocr-e2e: captions read again lose nothing, ten at once or killed half way."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from dailies.captions.databases import CaptionRow, read_captions
from dailies.captions.sample import truth
from dailies.errors import Missing
from dailies.ledger.holding import TTL_S
from dailies.media.keys import MediaKey
from tasks.caption_parts import (
    CAPTION_OCR,
    CROP_AND_INFER,
    FLOW_S,
    PROCESS_VIDEO,
    Killed,
    Starts,
    captions_db,
    copy_video,
    files_of,
    handed_on,
    jobs_on,
    kill_at,
    outcome,
    published_bytes,
    remains,
    resource_of,
    shown_in,
    start,
    upload_film,
)
from tasks.contention import blocked, finish, part
from tasks.scenario import SWEEP_S, TENANT, Scenario

KIND = "caption-ocr"
FUNCTION = "caption_ocr"
# Ten captions: one each for ten that ask at once.
SECONDS = 24
TRUTH = truth(SECONDS)
EVERY = list(range(1, len(TRUTH) + 1))
ASKED, RIVALS = 3, 2
TRIES = 5
DONE = ("DONE", "")


@dataclass(frozen=True)
class Read:
    """A video whose captions nobody has read again yet, and the database once somebody has read all of them."""

    captioned: str
    database: bytes = field(repr=False)


# ── undisturbed ───────────────────────────────────────────────────────────────────────────────────────────────────────


@part("undisturbed")
def undisturbed(run: Scenario, starts: Starts) -> Read:
    """One caption is asked for, then all of them: the text is right, and what nobody asked for stays as it was."""
    captioned = upload_film(run, "captioned", SECONDS)
    with run.journal.span("undisturbed", "process-video, crop-and-infer"):
        finish([start(run, "process", PROCESS_VIDEO, {"media_key": captioned})], FLOW_S)
        finish([start(run, "crop", CROP_AND_INFER, {"media_key": captioned})], FLOW_S)
    seen = outcome(run, captioned)
    run.journal.expect("undisturbed: captions to read again", (seen.job, seen.captions), (DONE, TRUTH))
    key = copy_video(run, "asked", captioned)
    before = rows(run, key)
    with run.journal.span("undisturbed", "caption-ocr"):
        finish([ask(run, "one", key, ASKED)], FLOW_S)
        after = rows(run, key)
        finish([ask(run, "all", key)], FLOW_S)
    read = after[ASKED - 1]
    said = (read.caption_ocr, read.caption_ocr_status, (read.caption_ocr_confidence or 0) > 0.8)
    run.journal.expect("undisturbed: the text is the ground truth", said, (TRUTH[ASKED - 1][2], "completed", True))
    others = [row for row in after if row.id != ASKED] == [row for row in before if row.id != ASKED]
    run.journal.expect("undisturbed: no other caption was touched", others, True)
    check_all_read(run, "undisturbed", key, [DONE, DONE])
    if starts.known:
        run.journal.expect("undisturbed: one call for each request", starts.of(key, FUNCTION), 2)
    return Read(captioned, captions_db(run, published_bytes(run, key)))


def ask(run: Scenario, name: str, key: str, caption: int | None = None, faults: str = "") -> Any:
    return start(run, name, CAPTION_OCR, parameters(key, caption), faults)


def parameters(key: str, caption: int | None = None) -> dict[str, Any]:
    return {"media_key": key, "caption": caption, "patience_s": FLOW_S}


def rows(run: Scenario, key: str) -> list[CaptionRow]:
    return read_captions(captions_db(run, published_bytes(run, key)))


def completed(run: Scenario, key: str) -> list[int]:
    """The captions that have been read again."""
    return [row.id for row in rows(run, key) if row.caption_ocr_status == "completed"]


def check_all_read(run: Scenario, name: str, key: str, jobs: Sequence[tuple[str, str]]) -> None:
    seen = outcome(run, key)
    ended = [(job.state.value, job.error_code) for job in jobs_on(run, key, KIND)]
    run.journal.expect(f"{name}: every request is done", ended, list(jobs), "see the children's logs")
    run.journal.expect(f"{name}: every caption was read again", completed(run, key), EVERY)
    read = [row.caption_ocr for row in rows(run, key)]
    run.journal.expect(f"{name}: every reading is the ground truth", read, [text for *_, text in TRUTH])
    run.journal.expect(f"{name}: text and times are the ground truth", (seen.captions, seen.damaged), (TRUTH, []))
    database = next(each.key for each in files_of(seen.manifest, "captions") if each.name == "captions.db.gz")
    video = run.ledger.videos.get(TENANT, MediaKey.parse(TENANT, key).video)
    wanted = ("ready", database)
    run.journal.expect(f"{name}: the video names it", (video.state.value, video.metadata["captions_db"]), wanted)


# ── ten at once ───────────────────────────────────────────────────────────────────────────────────────────────────────


@part("ten-at-once")
def ten_at_once(run: Scenario, read: Read, starts: Starts) -> None:
    """A process for each caption, all at the same moment: no reading is lost, and nobody fails for another."""
    key = copy_video(run, "ten", read.captioned)
    numbers = random.Random(run.journal.seed).sample(EVERY, len(EVERY))
    with run.journal.span("ten at once", "one caption each"):
        finish([ask(run, f"reader-{number}", key, number) for number in numbers], 2 * FLOW_S)
    check_all_read(run, "ten at once", key, [DONE] * len(EVERY))
    same = captions_db(run, published_bytes(run, key)) == read.database
    run.journal.expect("ten at once: no lost update: the bytes are those of one by one", same, True,
                       "read the newest captions.db under the lease on the video, and publish under it")  # fmt: skip
    history = run.ledger.generations.history(resource_of(key))
    counts = [len([row for row in database_of(run, each) if row.caption_ocr is not None]) for _, each in history]
    run.journal.expect("ten at once: each put one more reading on top", counts, list(range(len(EVERY) + 1)))
    if starts.known:
        run.journal.expect("ten at once: one call for each", starts.of(key, FUNCTION), len(EVERY))
    run.journal.metric("ten_at_once", {"requests": len(EVERY), "waited_for_another": blocked(run, key)})


def database_of(run: Scenario, manifest: str) -> list[CaptionRow]:
    return read_captions(captions_db(run, run.store.get(manifest)))


# ── a damaged frame ───────────────────────────────────────────────────────────────────────────────────────────────────


@part("one-damaged-frame")
def one_damaged_frame(run: Scenario, read: Read) -> None:
    """The frames of the last caption are cut off in the store: it gets a note, and every other one is read."""
    key, fault = copy_video(run, "damaged", read.captioned), "chunk cut off in the store"
    last = rows(run, key)[-1]
    chunk, rate = chunk_of(published_bytes(run, key))
    whole = run.store.get(chunk)
    place = cut_before(run, whole, (last.start_frame_index + last.end_frame_index) // 2, rate)
    run.journal.fault(fault)
    run.store.put(chunk, whole[:place])
    finish([ask(run, "damaged", key)], FLOW_S)
    (job,) = jobs_on(run, key, KIND)
    after = rows(run, key)
    note = after[-1].caption_ocr_error or ""
    run.journal.fault(fault, fired="damaged" in note, evidence=f"{place} of {len(whole)} bytes left: {note}")
    ended, told = (job.state.value, job.error_code), (job.result or {}).get("unreadable")
    run.journal.expect("damaged: the job is done, and names the caption", (ended, told), (DONE, [last.id]))
    run.journal.expect("damaged: all others are read", completed(run, key), EVERY[:-1], "catch it for each caption")
    run.journal.expect("damaged: the caption says so", after[-1].caption_ocr_status, "error")
    run.journal.expect("damaged: no caption lost its text", shown_in(run, published_bytes(run, key)), TRUTH)
    run.store.put(chunk, whole)
    finish([ask(run, "whole-again", key)], FLOW_S)
    same = captions_db(run, published_bytes(run, key)) == read.database
    run.journal.expect("damaged: once its frames are whole again, it is read like any other", same, True,
                       "a note is not a result: do not reuse it")  # fmt: skip


def chunk_of(manifest: bytes) -> tuple[str, Fraction]:
    facts: Mapping[str, Any] = json.loads(manifest)["captions"]["facts"]
    return facts["regions"][-1]["chunks"][-1]["key"], Fraction(str(facts["frame_rate"]))


def cut_before(run: Scenario, chunk: bytes, index: int, rate: Fraction) -> int:
    """Where the file has to end so that this sample, and what follows, is not in it any more."""
    path = run.place / "chunk.webm"
    path.write_bytes(chunk)
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.pts is None or packet.time_base is None or packet.pos is None:
                continue
            if round(packet.pts * packet.time_base * rate) >= index:
                return packet.pos
    raise RuntimeError(f"no sample {index} in {path.name}")


# ── killed while recording ────────────────────────────────────────────────────────────────────────────────────────────


@part("killed-while-recording")
def killed_while_recording(run: Scenario, read: Read, starts: Starts, points: Sequence[str], lanes: int) -> None:
    """Another reads a caption before the dead one's job is taken up again: neither loses what the other has written."""
    trials: list[Callable[[], float]] = [lambda point=point: crash(run, read, starts, point) for point in points]  # type: ignore[misc]
    trials.append(lambda: crash_inside(run, read, starts))
    with run.journal.span("crashes", f"{len(trials)} points"), ThreadPoolExecutor(lanes) as pool:
        delays = [trial.result() for trial in [pool.submit(trial) for trial in trials]]
    run.journal.metric("kills", len(delays))
    run.journal.metric("takeover_s", {"n": len(delays), "worst": max(delays), "each": delays})


def crash(run: Scenario, read: Read, starts: Starts, point: str) -> float:
    name = point.replace(":", "-").replace("_", "-").replace(".", "-")
    key = copy_video(run, name, read.captioned)
    return taken_up(run, read, starts, point, key, kill_at(run, name, point, CAPTION_OCR, parameters(key), KIND))


def crash_inside(run: Scenario, read: Read, starts: Starts) -> float:
    """Killed from outside while it holds the lease on the video, where no crash point is: it has to be caught there."""
    fault = "killed with the lease on the video in its hands"
    run.journal.fault(fault)
    for number in range(TRIES):
        key = copy_video(run, f"inside-{number}", read.captioned)
        resource = resource_of(key)
        child = ask(run, f"inside-{number}", key)
        deadline = time.monotonic() + FLOW_S
        while run.ledger.leases.holder(resource) is None and child.alive and time.monotonic() < deadline:
            time.sleep(0.001)
        with suppress(Missing):  # it was over already
            child.kill()
        code, died = child.wait(10), time.time()
        (job,) = jobs_on(run, key, KIND)
        if run.ledger.leases.holder(resource) is not None and not job.final:
            run.journal.fault(fault, fired=1, evidence=f"pid {child.pid} exit {code}, job {job.id}, try {number + 1}")
            return taken_up(run, read, starts, "inside", key, remains(run, job, died))
    raise RuntimeError(f"in {TRIES} tries no run was caught with the lease on its video")


def taken_up(run: Scenario, read: Read, starts: Starts, point: str, key: str, killed: Killed) -> float:
    name = Path(key).parent.name.removeprefix(run.named(""))
    written = completed(run, key)
    rival = ask(run, f"{name}-rival", key, RIVALS)
    job, delay = handed_on(run, killed, resource_of(key))
    finish([rival], FLOW_S)
    meanwhile, damaged = completed(run, key), outcome(run, key).damaged
    finish([start(run, f"{name}-2", CAPTION_OCR, parameters(key), job=job)], FLOW_S)
    after = run.ledger.jobs.get(job.id)

    def expect(what: str, actual: object, wanted: object, fix: str = "") -> None:
        run.journal.expect(f"{point}: {what}", actual, wanted, fix)

    run.journal.expect_at_most(
        f"{point}: the lease is free within ttl + sweep (s)", round(delay, 2), TTL_S + SWEEP_S, "is the sweep running?"
    )
    expect("all of its readings were written, or none", written in ([], EVERY), True, "publish with one write")
    expect("the rival's reading is on top of what was written", (meanwhile, damaged),
           (sorted({*written, RIVALS}), []), "read the newest captions.db under the lease")  # fmt: skip
    expect("the next attempt ends the job", (after.state.value, after.attempt), ("DONE", 2))
    if starts.known:
        expect("one call for both attempts, and one for the rival", starts.of(key, FUNCTION), 2)
    same = captions_db(run, published_bytes(run, key)) == read.database
    expect("no reading is lost: the bytes are an undisturbed run's", same, True)
    run.ledger.close()  # this thread's connection
    return round(delay, 2)
