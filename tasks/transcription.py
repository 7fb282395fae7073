"""The steps of transcribe-media: chunks of sound, the words in each, one transcript."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture, as_completed, wait

from dailies.canonical import canonical_json, digest
from dailies.compute.local import LocalCompute
from dailies.errors import BadInput, DailiesError, Damaged, Transient, Unheard
from dailies.events import schemas
from dailies.failpoints import failpoint
from dailies.ledger.records import RECOVERED
from dailies.media.keys import MediaKey
from dailies.media.upload import unchanged
from dailies.speech.engine import engine
from dailies.speech.isolated import whole_or_damaged
from dailies.speech.stitch import Heard, Whole, stitch
from dailies.speech.transcript import exports, origin, segments, subrip
from dailies.speech.words import words_from_json
from dailies.store.interface import Artifact
from tasks._compute import on_compute
from tasks._job import Working, told_once
from tasks._leftovers import work_folder
from tasks._step import Output, effect, in_child, work
from tasks.published import of_the_same_bytes, publish

HOUR = 3600.0
CHUNK_S = 600.0
PARTIAL = "transcript.srt"
PARTIAL_S = 2.0
LEAVE_S = 1.0
TOLD = 20_000
SHOWN = 200
REMOTE = ("whisper",)
HEARING = "dailies.speech.isolated:hear_file"
Json = dict[str, Any]


def ears(job: Working, name: str, parallel: int) -> Json:
    """The engine as a unit's key has it: another version, or another model, may hear other words.

    Its processes come up beside the planning: after a crash that is a good part of the time to the first chunk.
    """
    made = engine(name, job.site.engines.get(name))
    if not is_elsewhere(job, name):
        job.children.warm(HEARING, parallel)
    return {"name": made.name, "version": made.version}


def is_elsewhere(job: Working, name: str) -> bool:
    return name in REMOTE and not isinstance(job.site.compute, LocalCompute)


# ── chunks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def told_chunks(job: Working, plan: Output, _seconds: float) -> tuple[str, Json]:
    chunks = [
        {
            "file_path": artifact.key,
            "index": chunk["number"],
            "start_time": chunk["start_us"] / 1e6,
            "duration": (chunk["end_us"] - chunk["start_us"]) / 1e6,
            "size_bytes": artifact.size,
        }
        for chunk, artifact in zip(chunks_of(job, plan), plan.artifacts[1:], strict=True)
    ]
    return schemas.CHUNKS_CREATED, {"event": "chunks_created", "chunk_count": len(chunks), "chunks": chunks}


@work(version=1, timeout=4 * HOUR, tells=told_chunks)
def plan_chunks(
    job: Working, media_key: str, version: str, language: str | None, track: int | None, folder: str
) -> Output:
    """Decode the sound once and cut it in its pauses. Every moment is in a chunk or is silence; the same file gives the
    same chunks, so that one which was lost can be cut again."""
    key = MediaKey.parse(job.job.tenant, media_key)
    same = unchanged(job.site.store, key, version)
    with same, job.site.store.local(media_key) as path, job.scratch() as out:
        plan = in_child(
            job,
            plan_chunks,
            "dailies.speech.isolated:plan_file",
            path=str(path),
            out=str(out),
            language=language,
            track=track,
        )
        files = []
        for chunk in plan["chunks"]:
            name = f"{chunk['key']}.f32"
            files.append(job.site.store.put_file(key.server(folder, name), out / name))
            failpoint("chunks.put")
    listed = job.site.store.put(key.server(folder, "chunks.json"), canonical_json(plan["chunks"]))
    facts = {name: plan[name] for name in ("duration_us", "sha256", "sound")}
    return Output(facts={**facts, "chunks": len(files)}, artifacts=(listed, *files))


def chunks_of(job: Working, plan: Output) -> list[Json]:
    found: list[Json] = json.loads(job.site.store.get(plan.artifacts[0].key))
    return found


@effect(timeout=60)
def start_transcription(job: Working, media_key: str, plan: Output, ears: Json, language: str | None) -> Output:
    """Say that it begins and, where an attempt before this one died, how much is left. Each is said once."""
    chunks = chunks_of(job, plan)
    message = f"{len(chunks)} chunks, engine {ears['name']} {ears['version']}"
    job.tell(schemas.TRANSCRIPTION_STARTED, "", {"event": "transcription_started", "message": message})
    if not job.recovered():
        return Output()
    asked = [
        (media_key, chunk["number"], chunk["key"], artifact.sha256, ears, language)
        for chunk, artifact in zip(chunks, plan.artifacts[1:], strict=True)
    ]
    done = sum(job.site.ledger.units.find(transcribe_chunk.key(job, one, {})) is not None for one in asked)
    data = {
        "event": "processing_resumed",
        "message": f"{RECOVERED}: {len(asked) - done} of {len(asked)} chunks are left",
        "recovery": True,
        "remaining_chunks": len(asked) - done,
        "completed_chunks": done,
    }
    job.tell(schemas.PROCESSING_RESUMED, str(job.job.attempt), data)
    return Output()


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def told_words(job: Working, heard: Output, seconds: float) -> tuple[str, Json]:
    text = " ".join(word["text"] for word in heard.facts["words"])
    data = {
        "event": "chunk_transcribed",
        "chunk_index": heard.facts["number"],
        "chunk_text": text[:TOLD],
        "processing_time": round(seconds, 3),
        "retry_count": job.job.attempt - 1,
    }
    return schemas.CHUNK_TRANSCRIBED, data | recovered(job)


def recovered(job: Working) -> Json:
    return {"recovered": True} if job.job.attempt > 1 else {}


@work(version=1, timeout=CHUNK_S, tells=told_words)
def transcribe_chunk(
    job: Working, media_key: str, number: int, chunk: str, sha256: str, ears: Mapping[str, Any], language: str | None
) -> Output:
    """The words of one chunk, counted from its start. They depend on its bytes and on the engine, on nothing else."""
    key = MediaKey.parse(job.job.tenant, media_key).server(work_folder(job.job), f"{chunk}.f32")
    if is_elsewhere(job, ears["name"]):
        payload = {
            "engine": ears["name"],
            "language": language,
            "media_key": media_key,
            "number": number,
            "settings": job.site.engines.get(ears["name"]),
            "sound": {"key": key, "sha256": sha256},
        }
        with engine_trouble():
            return on_compute(job, transcribe_chunk, "transcribe_chunk", payload)
    with whole_or_damaged(job.site.store, key) as path, engine_trouble():
        words = in_child(
            job,
            transcribe_chunk,
            HEARING,
            keep=True,
            path=str(path),
            sha256=sha256,
            engine=ears["name"],
            settings=job.site.engines.get(ears["name"]),
            language=language,
        )
    return Output(facts={"number": number, "sha256": sha256, "words": words})


@contextmanager
def engine_trouble() -> Iterator[None]:
    """What the engine cannot do is a gap in the transcript; what store or ledger cannot do now is none."""
    try:
        yield
    except Transient as error:
        raise Unheard(str(error)) from error


@dataclass
class Hearing:
    """The chunks of one sound on their way: a few at once, each at its place whatever became of the others."""

    job: Working
    media_key: str
    plan: Output
    ears: Json
    language: str | None
    again: Callable[[], Output]
    chunks: list[Json] = field(default_factory=list)
    heard: dict[int, list[Json]] = field(default_factory=dict)
    failures: dict[int, DailiesError] = field(default_factory=dict)
    next_partial: float = 0.0

    def __post_init__(self) -> None:
        self.chunks = chunks_of(self.job, self.plan)
        self.progress = self.job.progress("transcribe-chunks")

    def all(self, parallel: int) -> None:
        waiting = list(range(len(self.chunks)))
        under_way: dict[PrefectFuture[Any], int] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < parallel:
                    number = waiting.pop(0)
                    under_way[transcribe_chunk.submit(self.job, *self.asked(number))] = number
                first = next(as_completed(list(under_way)))
                self.take(under_way.pop(first), first)
        except BaseException:
            with told_once():
                self.job.children.close()
                wait(list(under_way), timeout=LEAVE_S)  # who is told to stop has to say so before it is killed
            raise

    def asked(self, number: int) -> tuple[str, int, str, str, Json, str | None]:
        chunk, artifact = self.chunks[number], self.plan.artifacts[1 + number]
        return self.media_key, number, chunk["key"], artifact.sha256, self.ears, self.language

    def take(self, number: int, future: PrefectFuture[Any]) -> None:
        try:
            self.heard[number] = result_of(future).facts["words"]
        except Damaged as damaged:
            self.mend(number, damaged)
        except (BadInput, Unheard) as error:
            self.give_up(number, error)
        self.progress((len(self.heard) + len(self.failures)) / len(self.chunks))
        self.write_partial()

    def mend(self, number: int, damaged: Damaged) -> None:
        """Cut again what is missing, and hear that one; a second loss of the same is a failure."""
        get_run_logger().warning("action=cut_again chunk=%s reason=%s", number, damaged)
        self.plan = self.again()
        try:
            self.heard[number] = transcribe_chunk(self.job, *self.asked(number)).facts["words"]
        except (BadInput, Damaged, Unheard) as error:
            self.give_up(number, error)

    def give_up(self, number: int, error: DailiesError) -> None:
        self.job.check()  # one that was stopped has not failed
        self.failures[number] = error
        get_run_logger().error("action=gap chunk=%s error=%s", number, error)
        data = {
            "event": "chunk_failed",
            "chunk_index": number,
            "error_message": str(error)[:TOLD],
            "retry_count": self.job.job.attempt - 1,
        }
        occasion = f"{self.job.job.attempt}:{number}"
        self.job.tell(schemas.CHUNK_FAILED, occasion, data | recovered(self.job))

    def write_partial(self) -> None:
        """What there is so far, for whoever cannot wait: whole subtitles of the chunks that are done."""
        if time.monotonic() < self.next_partial or not self.heard:
            return
        done = [chunk for chunk in self.chunks if chunk["number"] in self.heard]
        whole = stitch([heard_of(chunk, self.heard) for chunk in done], self.plan.facts["duration_us"])
        key = MediaKey.parse(self.job.job.tenant, self.media_key)
        self.job.site.store.put(key.client(work_folder(self.job.job), PARTIAL), subrip(whole))
        self.next_partial = time.monotonic() + PARTIAL_S


def result_of(future: PrefectFuture[Any]) -> Output:
    found: Output = future.result()
    return found


def heard_of(chunk: Json, words: Mapping[int, list[Json]], failures: Mapping[int, str] = MappingProxyType({})) -> Heard:
    number = chunk["number"]
    voiced = tuple((first, last) for first, last in chunk["voiced"])
    said = tuple(words_from_json(words.get(number, [])))
    return Heard(chunk["start_us"], chunk["end_us"], said, failures.get(number, ""), voiced)


def hear_chunks(
    job: Working,
    media_key: str,
    plan: Output,
    ears: Json,
    language: str | None,
    parallel: int,
    again: Callable[[], Output],
) -> Json:
    """The words by chunk, and why others have none. Where all failed for one reason that is the job's own."""
    hearing = Hearing(job, media_key, plan, ears, language, again)
    hearing.all(parallel)
    if hearing.failures and not hearing.heard:
        raise next(iter(hearing.failures.values()))
    return {
        "failures": {str(number): str(error) for number, error in sorted(hearing.failures.items())},
        "words": {str(number): words for number, words in sorted(hearing.heard.items())},
    }


# ── the whole of it ───────────────────────────────────────────────────────────────────────────────────────────────────


@effect(timeout=60)
def start_stitching(job: Working) -> Output:
    """Say that every chunk has been tried. Said again it is not heard again."""
    job.tell(schemas.TRANSCRIPT_PROCESSING, "", {"event": "transcript_processing_started"})
    return Output()


@work(version=1, timeout=HOUR)
def make_transcript(
    job: Working, media_key: str, plan: Output, ears: Json, language: str | None, heard: Json
) -> Output:
    """One row of words on the timeline of the player, as files; what is missing is marked, with its reason."""
    key = MediaKey.parse(job.job.tenant, media_key)
    words = {int(number): found for number, found in heard["words"].items()}
    failures = {int(number): reason for number, reason in heard["failures"].items()}
    whole = stitch([heard_of(chunk, words, failures) for chunk in chunks_of(job, plan)], plan.facts["duration_us"])
    about = origin(ears["name"], ears["version"], language, plan.facts["sha256"], plan.facts["sound"])
    files = exports(whole, about)
    place = f"gen-{digest(files['transcript.json'])[:16]}"
    artifacts = tuple(job.site.store.put(key.client(place, name), data) for name, data in sorted(files.items()))
    return Output(facts=facts_of(whole, about), artifacts=artifacts)


def facts_of(whole: Whole, about: Json) -> Json:
    coverage = asdict(whole.coverage)
    gaps = [asdict(gap) for gap in whole.gaps]
    return {
        "coverage": coverage,
        "gaps": gaps,
        "segments": len(segments(whole.words, whole.gaps)),
        "words": len(whole.words),
        **about,
    }


@effect(timeout=60)
def publish_transcript(job: Working, media_key: str, transcript: Output) -> Output:
    """Make it the video's transcript, with one write. An older attempt can never point it back: it is fenced.

    What was made of the same bytes stays published beside it; what was made of others goes.
    """
    key = MediaKey.parse(job.job.tenant, media_key)
    job.site.ledger.videos.register(key.tenant, key.video, media_key)
    kept, gone = of_the_same_bytes(job.site, key, transcript.facts["sha256"])
    artifact = publish(job.site, job.claim, key, {**kept, "transcript": transcript.to_json()})
    said = {
        "transcript": transcript.file("transcript.json").key,
        "transcript_failed_us": transcript.facts["coverage"]["failed_us"],
    }
    job.site.ledger.videos.update(job.claim, metadata=gone | said)
    job.tell(schemas.TRANSCRIPTION_COMPLETED, "", completed(job, transcript, artifact))
    return Output(artifacts=(artifact,))


def completed(job: Working, transcript: Output, manifest: Artifact) -> Json:
    """The text itself only as far as an event is the place for it: the file has all of it."""
    file = transcript.file("transcript.json")
    text = json.loads(job.site.store.get(file.key))["text"]
    return {
        "event": "transcription_completed",
        "transcript": text[:TOLD],
        "normalized_transcript": " ".join(text.casefold().split())[:TOLD],
        "metadata": {**transcript.facts, "characters": len(text)},
        "result_key": manifest.key,
        "transcript_file": file.key,
    }


@effect(timeout=60)
def show_transcript(job: Working, media_key: str, transcript: Output) -> Output:
    """Show in the UI what was heard. Showing it twice shows the newest."""
    name = digest(media_key)[:12]
    found = json.loads(job.site.store.get(transcript.file("transcript.json").key))["segments"]
    create_table_artifact(
        [
            {"start": f"{one['start_us'] / 1e6:.3f}", "end": f"{one['end_us'] / 1e6:.3f}", "text": one["text"]}
            for one in found[:SHOWN]
        ],
        key=f"transcript-{name}",
        description=f"The first {SHOWN} of {len(found)} segments" if len(found) > SHOWN else f"{len(found)} segments",
    )
    create_markdown_artifact(summary(media_key, transcript.facts), key=f"transcript-facts-{name}")
    return Output(artifacts=transcript.artifacts)


def summary(media_key: str, facts: Json) -> str:
    coverage = {name.removesuffix("_us"): us / 1e6 for name, us in facts["coverage"].items()}
    lines = [
        f"### `{media_key}`",
        f"{facts['words']} words in {facts['segments']} segments, heard by {facts['engine']['name']} "
        f"{facts['engine']['version']}",
        f"{coverage['duration']:.3f} s: {coverage['speech']:.3f} s heard, {coverage['silence']:.3f} s silence, "
        f"{coverage['failed']:.3f} s failed",
    ]
    lines += [
        f"**not transcribed {gap['start_us'] / 1e6:.3f} to {gap['end_us'] / 1e6:.3f} s:** {gap['reason']}"
        for gap in facts["gaps"]
    ]
    if facts["sound"]["short_us"]:
        lines.append(f"**the sound ends {facts['sound']['short_us'] / 1e6:.2f} s earlier than the file promises**")
    return "\n\n".join(lines) + "\n"
