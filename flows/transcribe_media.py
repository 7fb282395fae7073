"""transcribe-media: from the sound of an upload to a transcript of which every second is accounted for."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.ingest_media import video_of
from tasks._job import Working, job_flow
from tasks._leftovers import work_folder
from tasks.ingest import upload
from tasks.transcription import (
    ears,
    hear_chunks,
    make_transcript,
    plan_chunks,
    publish_transcript,
    show_transcript,
    start_stitching,
    start_transcription,
)

MOST_AT_ONCE = 16
AtOnce = Annotated[int, Field(ge=1, le=MOST_AT_ONCE)]
Track = Annotated[int, Field(ge=0)]


@job_flow(
    "transcribe-media",
    subject=video_of,
    flow_run_name="transcribe-{media_key}",
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_AT_ONCE),
    timeout_seconds=24 * 3600,
)
def transcribe_media(
    job: Working,
    tenant: str,
    media_key: str,
    engine: Literal["dtmf", "openai", "whisper"] = "whisper",
    language: str | None = None,
    track: Track | None = None,
    parallel: AtOnce = 2,
) -> dict[str, Any]:
    """Cut the sound of an upload in its pauses, transcribe the chunks, and publish the transcript.

    A chunk that fails is a marked gap. Run again, it is tried again, and what was heard before is not.

    Args:
        tenant: Whose upload it is: the first part of its key.
        media_key: The upload, as TENANT/client/videos/VIDEO/FILE.
        engine: What hears the words: whisper, an OpenAI-compatible endpoint, or dtmf (keypad tones, for trials).
        language: The language that is spoken, as the engine names it, for example en. Empty: the engine finds out.
        track: Which audio track, counted from 0. Empty: the one in that language, else the default one.
        parallel: How many chunks are transcribed at once.
    """
    version = upload(job, media_key)
    hears = ears(job, engine, parallel)
    cut = partial(plan_chunks, job, media_key, version, language, track, work_folder(job.job))
    plan = cut()
    start_transcription(job, media_key, plan, hears, language)
    heard = hear_chunks(job, media_key, plan, hears, language, parallel, cut)
    start_stitching(job)
    transcript = make_transcript(job, media_key, plan, hears, language, heard)
    published = publish_transcript(job, media_key, transcript)
    show_transcript(job, media_key, transcript)
    return {"manifest": published.artifacts[0].to_json(), **transcript.facts}
