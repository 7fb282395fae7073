"""transcribe-media as it must not be, for job-recovery to find out: a trial's name says how its product is broken."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from blocks.site import OpenSite, open_site
from dailies.canonical import file_digest
from dailies.errors import BadInput, Unreadable
from dailies.events import schemas
from dailies.failpoints import failpoint
from dailies.ledger.holding import Keeper
from dailies.ledger.records import RECOVERED, Job
from dailies.ledger.sqlite import jobs, leases, messages, units, videos
from dailies.ledger.sqlite.jobs import SqliteJobs, announce, as_job, end_run, tell_recovery
from dailies.ledger.sqlite.messages import SqliteOutbox
from dailies.ledger.sqlite.units import SqliteGenerations, SqliteUnits
from dailies.speech.dtmf import TALLY
from dailies.speech.stitch import Whole
from flows import transcribe_media
from tasks import _job, recovery_attempt, recovery_crowds, supervision, transcription
from tasks._job import Working
from tasks._step import Output, Step
from tasks.caption_parts import FLOW_S
from tasks.supervision import Swept

HEARING = "dailies.speech.isolated:hear_file"
LATE_S = 3.2
SLOW_S, MORE_BYTES = 5.5, 128 << 20
# As long as the slowest of five may take to be at the gate.
GAP_S = 1.5

Asked = tuple[Any, ...]
Patch = pytest.MonkeyPatch


def attempt(*asked: Any) -> None:
    """In place of the scenario's own: the same attempt, on the product that the name of its trial stands for."""
    on(BROKEN, asked)


def attempt_in_vain(*asked: Any) -> None:
    on({"undisturbed": everything_wrong, "alone": slow_and_greedy}, asked)


def attempt_fenced(*asked: Any) -> None:
    on({"frozen": wrong_zombie}, asked)


def attempt_with_room(*asked: Any) -> None:
    """In place of one on a full disk: it has all the room that it wants."""
    recovery_attempt.attempt(*asked[:-1], "")


def attempt_after_an_outage(*asked: Any) -> None:
    on({"ledger-away": makes_a_gap_of_an_outage}, asked)


def on(broken: Mapping[str, Callable[[Patch, int], None]], asked: Asked) -> None:
    log = Path(asked[4])
    name, _, number = log.stem.rpartition("-")
    with pytest.MonkeyPatch.context() as patch:
        broken.get(name, as_it_is)(patch, int(number))
        recovery_attempt.attempt(*asked)


def as_it_is(patch: Patch, number: int) -> None:
    """Broken nowhere: what is seen of the others is not the doing of the trial itself."""


# ── units and what is heard ───────────────────────────────────────────────────────────────────────────────────────────


def ignores_the_ledger(patch: Patch, number: int) -> None:
    patch.setattr(SqliteUnits, "find", lambda *_: None)


def hears_twice(patch: Patch, number: int) -> None:
    in_child = transcription.in_child

    def twice(job: Working, step: Step[...], function: str, **arguments: Any) -> Any:
        if function == HEARING:
            in_child(job, step, function, **arguments)
        return in_child(job, step, function, **arguments)

    patch.setattr(transcription, "in_child", twice)


def trusts_its_files(patch: Patch, number: int) -> None:
    """Neither what is reused nor what is heard is held against its digest."""
    in_child = transcription.in_child

    def unchecked(job: Working, step: Step[...], function: str, **arguments: Any) -> Any:
        if function == HEARING:
            arguments["sha256"] = file_digest(Path(arguments["path"]))
        return in_child(job, step, function, **arguments)

    patch.setattr(transcription, "in_child", unchecked)
    patch.setattr(Step, "_whole", lambda self, job, unit: Output.from_json(unit.result))


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tells_later(patch: Patch, number: int) -> None:
    """The unit in one transaction, its event in the next, and between the two there is time to die."""
    complete = SqliteUnits.complete

    def silent(self: Any, lease: Any, key: str, *args: Any, reused: bool = False, event: Any = None) -> Any:
        unit = complete(self, lease, key, *args, reused=reused)
        if event is not None and not reused:
            failpoint("units.told")
            SqliteOutbox(self._database).emit(lease, event[0], key, event[1])
        return unit

    patch.setattr(SqliteUnits, "complete", silent)


def tells_anew(patch: Patch, number: int) -> None:
    """Each telling is another event, also of what was told before."""
    patch.setattr(messages, "event_id", lambda *_: uuid4().hex)


def counts_wrong(patch: Patch, number: int) -> None:
    altered(patch, schemas.PROCESSING_RESUMED, lambda data: {**data, "completed_chunks": 0})


def altered(patch: Patch, kind: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    tell = Working.tell

    def other(self: Working, told: str, occasion: str, data: Any) -> None:
        found = change(dict(data)) if told == kind else dict(data)
        if found is not None:
            tell(self, told, occasion, found)

    patch.setattr(Working, "tell", other)


# ── transcript and files ──────────────────────────────────────────────────────────────────────────────────────────────


def loses_a_chunk(patch: Patch, number: int) -> None:
    """An attempt that goes on has no words for what another one heard."""
    heard_of = transcription.heard_of

    def forgotten(chunk: dict[str, Any], *args: Any) -> Any:
        heard = heard_of(chunk, *args)
        return heard if chunk["number"] else replace(heard, words=())

    if number > 1:
        patch.setattr(transcription, "heard_of", forgotten)


def shifts_a_chunk(patch: Patch, number: int) -> None:
    if number > 1:
        patch.setattr(transcription, "heard_of", shifted(transcription.heard_of))


def shifted(heard_of: Callable[..., Any]) -> Callable[..., Any]:
    def later(chunk: dict[str, Any], *args: Any) -> Any:
        heard = heard_of(chunk, *args)
        words = tuple(replace(word, end_us=word.end_us + 1000) for word in heard.words)
        return replace(heard, words=words) if chunk["number"] == 1 else heard

    return later


def publishes_too_early(patch: Patch, number: int) -> None:
    """What is published names a file that is not there."""
    publish = transcription.publish

    def pointed(site: Any, lease: Any, key: Any, manifest: dict[str, Any]) -> Any:
        artifact = publish(site, lease, key, manifest)
        site.store.delete(next(one["key"] for one in manifest["transcript"]["artifacts"] if one["key"].endswith("vtt")))
        return artifact

    patch.setattr(transcription, "publish", pointed)


def leaves_files(patch: Patch, number: int) -> None:
    patch.setattr(_job, "clear", lambda *_: None)


def gives_up_on_resume(patch: Patch, number: int) -> None:
    def refused(*_: Any) -> Any:
        raise Unreadable("what another attempt left cannot be read")

    if number > 1:
        patch.setattr(transcription, "heard_of", refused)


def makes_a_gap_of_an_outage(patch: Patch, number: int) -> None:
    """What could not be written down while the ledger was away is given up, as if nobody could hear it."""
    in_child, asked = transcription.in_child, count(1)

    def deaf(job: Working, step: Step[...], function: str, **arguments: Any) -> Any:
        if function == HEARING and number > 1:
            raise Unreadable("the ledger did not answer")
        if function == HEARING and next(asked) > 3:  # so that something is left when the lease is lost
            job.keeper.stopped.wait(FLOW_S)
        return in_child(job, step, function, **arguments)

    patch.setattr(transcription, "in_child", deaf)


def needs_no_source(patch: Patch, number: int) -> None:
    """Goes on with the chunks that it has, whatever became of the upload; and clears nothing away."""
    upload, kept = transcribe_media.upload, Path(os.environ[TALLY]).with_suffix(".version")

    def known(job: Working, media_key: str) -> str:
        with suppress(BadInput):
            kept.write_text(upload(job, media_key))
        return kept.read_text()

    patch.setattr(transcribe_media, "upload", known)
    leaves_files(patch, number)


def clears_too_early(patch: Patch, number: int) -> None:
    """Before the job is done in the ledger: should it die in between, the next attempt has nothing to go on with."""
    done = SqliteJobs.done

    def cleared(self: Any, lease: Any, result: Any) -> Any:
        _job.clear(open_site("local"), self.get(lease.resource.removeprefix("job:")))
        return done(self, lease, result)

    patch.setattr(SqliteJobs, "done", cleared)


# ── fences ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def wrong_zombie(patch: Patch, number: int) -> None:
    """The first attempt makes something else of what it hears, and looks nothing up that others have done."""
    if number == 1:
        ignores_the_ledger(patch, number)
        patch.setattr(transcription, "heard_of", shifted(transcription.heard_of))


def unfenced_zombie(patch: Patch, number: int) -> None:
    """And no write of it is asked whether it is still the one to make it."""
    wrong_zombie(patch, number)
    if number == 1:
        for module in (jobs, leases, messages, units, videos):
            patch.setattr(module, "HELD", "TRUE", raising=False)
        patch.setattr(Keeper, "_stop", lambda *_: None)
        patch.setattr(SqliteGenerations, "publish", last_write_wins)


def last_write_wins(self: Any, lease: Any, key: str) -> None:
    with self._database.transaction() as tx:
        tx.run(
            """INSERT INTO generations (resource, fence, key)
               SELECT :resource, 1 + coalesce(max(fence), 0), :key FROM generations WHERE resource = :resource""",
            resource=lease.resource,
            key=key,
        )


# ── the undisturbed run ───────────────────────────────────────────────────────────────────────────────────────────────


def everything_wrong(patch: Patch, number: int) -> None:
    """A transcript without its last chunk, a coverage that does not add up, chunks heard twice, a silence about it."""
    stitch = transcription.stitch

    def careless(heard: list[Any], duration_us: int) -> Whole:
        whole = stitch(heard[:-1], duration_us)
        return replace(whole, coverage=replace(whole.coverage, speech_us=whole.coverage.speech_us + 1))

    patch.setattr(transcription, "stitch", careless)
    hears_twice(patch, number)
    altered(patch, schemas.TRANSCRIPT_PROCESSING, lambda _: None)


def slow_and_greedy(patch: Patch, number: int) -> None:
    """An attempt that goes on takes its time before its first unit, and more memory than the one that it follows."""
    ears, taken = transcribe_media.ears, []

    def late(*args: Any) -> Any:
        taken.append(b"x" * MORE_BYTES)
        time.sleep(SLOW_S)
        return ears(*args)

    if number > 1:
        patch.setattr(transcribe_media, "ears", late)


# ── supervisors ───────────────────────────────────────────────────────────────────────────────────────────────────────

whole_recover, whole_sweep = supervision.recover, SqliteJobs.recover


def recover_late(site: OpenSite, swept: Swept) -> None:
    """A supervisor that looks every few seconds."""
    time.sleep(LATE_S)
    whole_recover(site, swept)


def recover_carelessly(name: str, gate: Path, job_id: str) -> None:
    """In place of each of five recoverers: it looks, and writes what it has seen before, whatever is there by now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteJobs, "recover", look_then_write)
        recovery_crowds.recover_at_once(name, gate, job_id)


def look_then_write(self: Any) -> list[Job]:
    seen = self._database.all(f"SELECT id FROM jobs WHERE state = 'RUNNING' AND {jobs.EXPIRED}")
    time.sleep(GAP_S)
    return [requeue(self._database, row["id"]) for row in seen]


def requeue(database: Any, job_id: str) -> Job:
    with database.transaction() as tx:
        job = as_job(
            tx.one(
                """UPDATE jobs SET state = 'QUEUED', attempt = attempt + 1, crashes = crashes + 1, message = :why,
                   updated_at = clock(), available_at = clock() WHERE id = :id RETURNING *""",
                id=job_id,
                why=RECOVERED,
            )
        )
        end_run(tx, job.id, job.attempt - 1, "crashed")
        announce(tx, job, recovery=True)
        tell_recovery(tx, job, "started", RECOVERED, recovery_type="lease_expired")
        return job


def give_up_in_silence(self: Any) -> Any:
    """The job fails without a reason."""
    recovered = whole_sweep(self)
    with self._database.transaction() as tx:
        tx.run("UPDATE jobs SET error = '' WHERE state = 'FAILED'")
    return recovered


def clear_nothing(name: str) -> None:
    """The sweep of a machine that keeps everything."""


BROKEN: Mapping[str, Callable[[Patch, int], None]] = {
    "ignores-the-ledger": ignores_the_ledger,
    "hears-twice": hears_twice,
    "trusts-its-files": trusts_its_files,
    "tells-later": tells_later,
    "tells-anew": tells_anew,
    "counts-wrong": counts_wrong,
    "loses-a-chunk": loses_a_chunk,
    "shifts-a-chunk": shifts_a_chunk,
    "publishes-too-early": publishes_too_early,
    "leaves-files": leaves_files,
    "gives-up-on-resume": gives_up_on_resume,
    # Trials of the scenario itself:
    "source-gone": needs_no_source,
    "after-the-end": clears_too_early,
    "frozen": unfenced_zombie,
}
