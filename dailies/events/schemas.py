"""What the events about jobs say: the fields of each type, as JSON schemas, checked before anything is written.

Seen from outside, in the order of a job that meets no trouble:

    dailies.chunks.created             dailies.transcription.started      dailies.chunk.transcribed, one for each
    dailies.transcript.processing      dailies.transcription.completed    dailies.job.done

and with trouble: dailies.chunk.failed, dailies.job.failed, and on the way back dailies.recovery.started,
dailies.processing.resumed, dailies.recovery.completed or dailies.recovery.failed. The time of each is the event's own.
The update of a catalogue tells dailies.catalog.stage when a stage is done, and dailies.catalog.published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]

TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
SECONDS = {"type": "number", "minimum": 0}
RECOVERY = {"const": True}

CHUNKS_CREATED = "dailies.chunks.created"
TRANSCRIPTION_STARTED = "dailies.transcription.started"
CHUNK_TRANSCRIBED = "dailies.chunk.transcribed"
CHUNK_FAILED = "dailies.chunk.failed"
TRANSCRIPT_PROCESSING = "dailies.transcript.processing"
TRANSCRIPTION_COMPLETED = "dailies.transcription.completed"
RECOVERY_STARTED = "dailies.recovery.started"
PROCESSING_RESUMED = "dailies.processing.resumed"
RECOVERY_COMPLETED = "dailies.recovery.completed"
RECOVERY_FAILED = "dailies.recovery.failed"
CATALOG_STAGE = "dailies.catalog.stage"
CATALOG_PUBLISHED = "dailies.catalog.published"


def _fields(event: str, optional: Schema | None = None, **required: Any) -> Schema:
    always = {"event": {"const": event}, "job_id": {"type": "string", "minLength": 1}}
    return {
        "type": "object",
        "properties": {**always, **required, **(optional or {})},
        "required": [*always, *required],
        "additionalProperties": False,
    }


SCHEMAS: Mapping[str, Schema] = {
    CHUNKS_CREATED: _fields(
        "chunks_created",
        chunk_count=COUNT,
        chunks={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "file_path": TEXT,
                    "index": COUNT,
                    "start_time": SECONDS,
                    "duration": SECONDS,
                    "size_bytes": COUNT,
                },
                "required": ["file_path", "index", "start_time", "duration", "size_bytes"],
                "additionalProperties": False,
            },
        },
    ),
    TRANSCRIPTION_STARTED: _fields("transcription_started", message=TEXT),
    CHUNK_TRANSCRIBED: _fields(
        "chunk_transcribed",
        {"recovered": {"const": True}},
        chunk_index=COUNT,
        chunk_text=TEXT,
        processing_time=SECONDS,
        retry_count=COUNT,
    ),
    CHUNK_FAILED: _fields(
        "chunk_failed", {"recovered": {"const": True}}, chunk_index=COUNT, error_message=TEXT, retry_count=COUNT
    ),
    TRANSCRIPT_PROCESSING: _fields("transcript_processing_started"),
    TRANSCRIPTION_COMPLETED: _fields(
        "transcription_completed",
        transcript=TEXT,
        normalized_transcript=TEXT,
        metadata={"type": "object"},
        result_key=TEXT,
        transcript_file=TEXT,
    ),
    RECOVERY_STARTED: _fields(
        "recovery_started", attempt=COUNT, message=TEXT, recovery=RECOVERY, recovery_type={"const": "lease_expired"}
    ),
    PROCESSING_RESUMED: _fields(
        "processing_resumed", message=TEXT, recovery=RECOVERY, remaining_chunks=COUNT, completed_chunks=COUNT
    ),
    RECOVERY_COMPLETED: _fields(
        "recovery_completed", attempt=COUNT, message=TEXT, recovery=RECOVERY, recovery_result={"const": "success"}
    ),
    RECOVERY_FAILED: _fields(
        "recovery_failed", attempt=COUNT, message=TEXT, recovery=RECOVERY, recovery_result={"const": "failed"}
    ),
    CATALOG_STAGE: _fields("catalog_stage", stage=TEXT, facts={"type": "object"}),
    CATALOG_PUBLISHED: _fields("catalog_published", generation=TEXT, digest=TEXT, as_of=COUNT),
}
_VALIDATORS = {kind: Draft202012Validator(schema) for kind, schema in SCHEMAS.items()}


def checked(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data; a mistake of ours in it ends the attempt instead of reaching whoever listens."""
    if faults := faults_of(kind, data):
        raise ValueError(f"{kind} is no event like that: {'; '.join(faults)}")
    return dict(data)


def faults_of(kind: str, data: Mapping[str, Any]) -> list[str]:
    """What is wrong with an event, in words. A type that has no schema is not ours to judge."""
    if kind not in _VALIDATORS:
        return []
    return sorted(error.message for error in _VALIDATORS[kind].iter_errors(dict(data)))
