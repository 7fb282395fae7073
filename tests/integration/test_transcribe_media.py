"""transcribe-media, the whole flow: what is heard, what is told, and that nothing finished is done again."""

from __future__ import annotations

import dataclasses
import json
import time
import wave
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State
from prefect.flow_engine import run_flow_sync
from prefect.states import Pending

from blocks.site import OpenSite
from dailies.errors import BadInput, NotConfigured, Transient
from dailies.events.schemas import SCHEMAS, faults_of
from dailies.home import home
from dailies.ledger.records import Caps, Event, Job, JobState
from dailies.ledger.sqlite import SqliteLedger
from dailies.media.keys import MediaKey
from dailies.speech.dtmf import TALLY
from dailies.speech.engine import engine
from dailies.speech.sample import make_talk
from dailies.speech.transcribe import transcribe
from dailies.store.interface import Artifact
from flows.ingest_media import ingest_media
from flows.transcribe_media import transcribe_media
from tasks._step import REGISTRY, in_child
from tasks.published import published
from tasks.supervision import sweep

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

KEY = "acme/client/videos/v1/talk.wav"
PHRASES = 5
TOLD = [
    "job.queued",
    "job.running",
    "chunks.created",
    "transcription.started",
    *["chunk.transcribed"] * PHRASES,
    "transcript.processing",
    "transcription.completed",
    "job.done",
]


@pytest.fixture(scope="session")
def talk(tmp_path_factory) -> tuple[bytes, str]:
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    text = make_talk(path, PHRASES, seed=3)
    return path.read_bytes(), text


@pytest.fixture
def tally(tmp_path, monkeypatch) -> Callable[[], Counter[str]]:
    """How often each chunk was heard, as the engine itself counts."""
    path = tmp_path / "tally.jsonl"
    monkeypatch.setenv(TALLY, str(path))

    def read() -> Counter[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(json.loads(line)["sound"] for line in lines)

    return read


@pytest.fixture
def upload(site, talk) -> str:
    site.store.put(KEY, talk[0])
    return KEY


@pytest.fixture
def run(site, upload) -> Callable[..., tuple[State[Any], Job]]:
    def ask(**more: Any) -> tuple[State[Any], Job]:
        state = transcribe_media(tenant="acme", media_key=KEY, **{"engine": "dtmf", **more}, return_state=True)
        return state, site.ledger.jobs.all()[0]

    return ask


def events(site: OpenSite, job: Job) -> list[Event]:
    return list(site.ledger.outbox.of(job.id))


def names(site: OpenSite, job: Job) -> list[str]:
    return [event.type.removeprefix("dailies.") for event in events(site, job)]


def transcript(site: OpenSite) -> dict[str, Any]:
    part = published(site, MediaKey.parse("acme", KEY))["transcript"]
    files = [Artifact.from_json(artifact) for artifact in part["artifacts"]]
    assert all(site.store.holds(artifact) for artifact in files)
    assert [file.name for file in files] == ["transcript.json", "transcript.srt", "transcript.vtt"]
    return json.loads(site.store.get(files[0].key))


def working_files(site: OpenSite) -> list[str]:
    stored = [found.key for found in site.store.list("acme") if "/work-" in found.key]
    return stored + [str(path) for path in (home() / "work").glob("*")]


def test_a_talk_is_transcribed_told_and_cleared_away(site, run, talk, tally):
    state, job = run()
    assert (state.type.value, job.state, job.error) == ("COMPLETED", JobState.DONE, "")
    found = transcript(site)
    assert found["text"].replace(" ", "") == talk[1].replace(" ", "")
    coverage = found["coverage"]
    assert coverage["speech_us"] + coverage["silence_us"] + coverage["failed_us"] == coverage["duration_us"]
    assert coverage["failed_us"] == 0
    assert names(site, job) == TOLD
    assert set(tally().values()) == {1}
    assert len(tally()) == PHRASES
    assert working_files(site) == []
    assert site.ledger.videos.get("acme", "v1").metadata["transcript"].endswith("transcript.json")
    assert not any(site.ledger.audit(grace=0).values())


def test_ingest_and_transcript_of_the_same_bytes_stand_side_by_side_and_of_others_never(site, run, tmp_path):
    def ingest() -> None:
        assert ingest_media(tenant="acme", media_key=KEY, return_state=True).is_completed()

    def parts() -> list[str]:
        return sorted(published(site, MediaKey.parse("acme", KEY)))

    def known() -> set[str]:
        return {name for name, value in site.ledger.videos.get("acme", "v1").metadata.items() if value is not None}

    run()
    ingest()
    assert parts() == ["contact_sheet", "probe", "transcript"]
    assert {"transcript", "sha256"} <= known()
    make_talk(tmp_path / "other.wav", 2, seed=4)
    site.store.put(KEY, (tmp_path / "other.wav").read_bytes())
    ingest()
    assert parts() == ["contact_sheet", "probe"]
    assert "transcript" not in known()
    run()
    assert parts() == ["contact_sheet", "probe", "transcript"]
    make_talk(tmp_path / "third.wav", 2, seed=5)
    site.store.put(KEY, (tmp_path / "third.wav").read_bytes())
    run()
    assert parts() == ["transcript"]
    assert known() == {"transcript", "transcript_failed_us"}


def test_silence_is_a_transcript_without_words_of_which_every_second_is_accounted_for(site, run, tmp_path):
    make_silence(tmp_path / "silence.wav", seconds=3)
    site.store.put(KEY, (tmp_path / "silence.wav").read_bytes())
    _, job = run()
    assert job.state is JobState.DONE
    found = transcript(site)
    assert (found["text"], found["segments"]) == ("", [])
    coverage = found["coverage"]
    assert (coverage["duration_us"], coverage["silence_us"], coverage["speech_us"], coverage["failed_us"]) == (
        3_000_000, 3_000_000, 0, 0,
    )  # fmt: skip
    assert names(site, job) == [name for name in TOLD if name != "chunk.transcribed"]


def make_silence(path: Path, seconds: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 16_000 * seconds))


def test_what_is_told_has_its_fields_and_each_chunk_its_text(site, run, talk):
    _, job = run()
    told = events(site, job)
    assert [fault for event in told for fault in faults_of(event.type, event.data)] == []
    assert len({event.id for event in told}) == len(told)
    assert sum(event.type in SCHEMAS for event in told) == len(TOLD) - 3
    heard = [event.data for event in told if event.type == "dailies.chunk.transcribed"]
    in_order = sorted(heard, key=lambda data: data["chunk_index"])
    assert " ".join(data["chunk_text"] for data in in_order).split() == talk[1].split()
    (done,) = [event.data for event in told if event.type == "dailies.transcription.completed"]
    assert done["transcript"].split() == talk[1].split()
    assert site.store.stat(done["result_key"])
    assert site.store.stat(done["transcript_file"])


def test_the_same_again_hears_nothing_again_and_is_the_same_bytes(site, run, tally):
    run()
    first = published(site, MediaKey.parse("acme", KEY))["transcript"]["artifacts"]
    _, job = run()
    assert published(site, MediaKey.parse("acme", KEY))["transcript"]["artifacts"] == first
    assert set(tally().values()) == {1}
    assert Counter(names(site, job)) == Counter(TOLD)


@pytest.fixture
def untried(monkeypatch):
    """A step that failed is not tried again in the same attempt."""
    for step in REGISTRY.values():
        monkeypatch.setattr(step.task, "retries", 0)


@pytest.mark.expects_errors
@pytest.mark.usefixtures("untried")
def test_a_chunk_that_fails_is_a_gap_moves_nothing_and_is_retried_alone(site, run, tally, monkeypatch):
    deaf = Deaf(to=3)
    monkeypatch.setattr("tasks.transcription.in_child", deaf)
    state, job = run(parallel=1)
    assert (state.type.value, job.state) == ("COMPLETED", JobState.DONE)
    broken = transcript(site)
    (gap,) = broken["gaps"]
    assert broken["coverage"]["failed_us"] == gap["end_us"] - gap["start_us"] > 0
    assert (
        sum(broken["coverage"][f"{part}_us"] for part in ("speech", "silence", "failed"))
        == (broken["coverage"]["duration_us"])
    )
    assert gap["reason"] == "the engine died"
    assert names(site, job).count("chunk.failed") == 1
    assert len(tally()) == PHRASES - 1
    run()
    whole = transcript(site)
    assert whole["gaps"] == []
    assert all(place in places(whole) for place in places(broken)), "what was heard beside the gap has not moved"
    assert set(tally().values()) == {1}, "only what failed is heard again"


class Deaf:
    """An engine that dies of one chunk, the first time it gets it."""

    def __init__(self, to: int) -> None:
        self.to = to

    def __call__(self, job, step, function, **arguments):
        if step.name == "transcribe_chunk":
            self.to -= 1
            if self.to == 0:
                raise Transient("the engine died")
        return in_child(job, step, function, **arguments)


@pytest.mark.expects_errors
@pytest.mark.usefixtures("untried")
def test_a_ledger_that_is_away_for_a_moment_is_no_gap_but_another_attempt(site, run, arm):
    arm("transcribe_chunk:after#3=raise")
    _, job = run(parallel=1)
    assert (job.state, job.attempt, job.error_code) == (JobState.QUEUED, 2, "injected")
    assert "chunk.failed" not in names(site, job)


def places(found: dict[str, Any]) -> list[tuple[int, int, str]]:
    return [(word["start_us"], word["end_us"], word["text"]) for part in found["segments"] for word in part["words"]]


@pytest.mark.expects_errors
@pytest.mark.usefixtures("untried")
def test_where_every_chunk_fails_the_job_does_and_nothing_is_published(site, run, monkeypatch):
    monkeypatch.setattr("tasks.transcription.in_child", refuse)
    state, job = run()
    assert (state.name, job.state, job.error_code) == ("BadInput", JobState.FAILED, "bad_input")
    assert "transcript" not in published(site, MediaKey.parse("acme", KEY))
    assert names(site, job)[-1] == "job.failed"
    assert working_files(site) == []


def refuse(job, step, function, **arguments):
    if step.name == "plan_chunks":
        return in_child(job, step, function, **arguments)
    raise BadInput("the engine cannot read this")


@pytest.fixture
def resume(site, client, deploy) -> Callable[[], State[Any]]:
    """The next attempt, as a worker runs it, in this process."""
    deploy(transcribe_media)

    def run() -> State[Any]:
        ahead = dataclasses.replace(site, ledger=SqliteLedger(site.ledger.path, clock=lambda: time.time() + 600))
        sweep(ahead, Caps())
        (waiting,) = ahead.ledger.dispatch.waiting(0)
        flow_run = client.read_flow_run(UUID(waiting.run_id))
        client.set_flow_run_state(flow_run.id, Pending())
        flow_run = client.read_flow_run(flow_run.id)
        return run_flow_sync(transcribe_media, flow_run, parameters=flow_run.parameters, return_type="state")

    return run


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.expects_errors
@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("damage", [Path.unlink, flipped, cut_short])
def test_chunks_damaged_between_two_attempts_are_cut_again_and_none_is_heard_twice(
    site, run, resume, tally, monkeypatch, talk, damage
):
    stumble = Stumble(after=2)
    monkeypatch.setattr("tasks.transcription.in_child", stumble)
    _, job = run(parallel=1)
    assert (job.state, job.attempt, len(tally())) == (JobState.QUEUED, 2, 2)
    partial = next(key for key in working_files(site) if key.endswith("transcript.srt"))
    assert talk[1].replace(" ", "")[:12] in site.store.get(partial).decode().replace(" ", "").replace("\n", "")
    stumble.after = 1000
    with site.store.local(f"acme/server/videos/v1/work-{job.id}/chunks.json") as path:
        for chunk in path.parent.glob("*.f32"):
            damage(chunk)
    state = resume()
    assert state.is_completed(), state
    assert (set(tally().values()), len(tally())) == ({1}, PHRASES)
    assert transcript(site)["text"].replace(" ", "") == talk[1].replace(" ", "")
    assert Counter(names(site, job))["chunk.transcribed"] == PHRASES
    assert working_files(site) == []


class Stumble:
    """Hears so many chunks; then the run itself breaks, which is no fault of the next chunk's."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, job, step, function, **arguments):
        if step.name == "transcribe_chunk":
            self.after -= 1
            if self.after < 0:
                raise RuntimeError("the run broke")
        return in_child(job, step, function, **arguments)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("damage", [Path.unlink, flipped, cut_short])
@pytest.mark.expects_errors
def test_a_chunk_damaged_while_it_waits_is_cut_again_and_heard_once(site, run, tally, monkeypatch, talk, damage):
    def damaging(job, step, function, **arguments):
        if step.name == "transcribe_chunk" and not damaged:
            damaged.append(arguments["path"])
            damage(Path(arguments["path"]))
        return in_child(job, step, function, **arguments)

    damaged: list[str] = []
    monkeypatch.setattr("tasks.transcription.in_child", damaging)
    state, job = run()
    assert (len(damaged), state.type.value) == (1, "COMPLETED")
    assert (set(tally().values()), len(tally())) == ({1}, PHRASES)
    assert transcript(site)["text"].replace(" ", "") == talk[1].replace(" ", "")
    assert "chunk.failed" not in names(site, job)


def test_a_source_that_is_gone_is_the_reason(site):
    state = transcribe_media(tenant="acme", media_key=KEY, engine="dtmf", return_state=True)
    (job,) = site.ledger.jobs.all()
    assert (state.name, job.state, job.error_code) == ("Missing", JobState.FAILED, "missing")
    assert job.error == f"there is no upload {KEY}: put the file there first"


def test_an_engine_that_is_not_there_is_one_line_and_nothing_is_begun(site, run, monkeypatch):
    monkeypatch.setattr("tasks.transcription.engine", unconfigured)
    state, job = run(engine="openai")
    assert (state.name, job.state, job.error_code) == ("NotConfigured", JobState.FAILED, "not_configured")
    assert names(site, job) == ["job.queued", "job.running", "job.failed"]


def unconfigured(name, settings):
    raise NotConfigured(f"set up {name} first")


def test_the_command_writes_the_same_bytes_as_the_flow(site, run, talk, tmp_path):
    run()
    found = [Artifact.from_json(one) for one in published(site, MediaKey.parse("acme", KEY))["transcript"]["artifacts"]]
    (tmp_path / "talk.wav").write_bytes(talk[0])
    transcribe(tmp_path / "talk.wav", tmp_path / "out", engine("dtmf"), None, None, lambda stage, share: None)
    assert {file.name: site.store.get(file.key) for file in found} == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()
    }
