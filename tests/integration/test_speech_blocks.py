"""What hears speech, as a site has it: saved in Prefect, opened again, and handed on as plain settings."""

from __future__ import annotations

import json

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from pydantic import SecretStr, ValidationError

from blocks import Site, SpeechEndpoint, WhisperModel
from blocks.site import open_site
from dailies.speech.engine import SETTINGS, engine

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

SECRET = "sk-a-key-nobody-prints"
ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "ours", "per_minute": 7.0, "timeout_s": 3.0}
WHISPER = {"model": "small", "device": "cpu", "compute_type": "float32", "cache": "models"}


def hearing() -> Site:
    return Site(speech_endpoint=SpeechEndpoint(api_key=SecretStr(SECRET), **ENDPOINT), whisper=WhisperModel(**WHISPER))


def test_a_site_gives_each_engine_the_settings_that_were_saved():
    hearing().save("hearing", overwrite=True)
    opened = open_site("hearing")
    assert opened.engines == {"openai": {**ENDPOINT, "api_key": SECRET}, "whisper": WHISPER}
    assert json.loads(json.dumps(opened.engines)) == opened.engines, "they travel as plain JSON"
    assert engine("openai", opened.engines["openai"]).version == "ours at http://127.0.0.1:9/v1, 1"


def test_a_site_that_was_put_together_in_the_ui_gives_the_same(client):
    """The form keeps each part as a block of its own, and which it is, only its fields say."""
    site = hearing()
    saved = {
        name: getattr(site, name).save(f"ui-{name.replace('_', '-')}", overwrite=True)
        for name in ("speech_endpoint", "whisper")
    }
    Site.register_type_and_schema()
    schema = client.read_block_schema_by_checksum(Site._calculate_schema_checksum())
    refs = {name: {"$ref": {"block_document_id": str(found)}} for name, found in saved.items()}
    client.create_block_document(
        BlockDocumentCreate(
            name="hearing-from-the-ui", block_schema_id=schema.id, block_type_id=schema.block_type_id, data=refs
        )
    )
    assert open_site("hearing-from-the-ui").engines == site.engines()


def test_only_what_is_set_is_said_so_that_the_environment_says_the_rest():
    assert open_site("local").engines == {}
    assert set(Site(whisper=WhisperModel()).engines()) == {"whisper"}


def test_a_site_that_was_saved_before_there_was_speech_still_opens():
    Site(scenarios=True).save("before", overwrite=True)
    with get_client(sync_client=True) as client:
        found = client.read_block_document_by_name("before", "dailies-site")
        assert not found.data.get("speech_endpoint")
    assert open_site("before").engines == {}


@pytest.mark.parametrize(("block", "name"), [(SpeechEndpoint, "openai"), (WhisperModel, "whisper")])
def test_a_block_sets_just_what_its_engine_takes(block, name):
    assert set(block().settings()) == set(SETTINGS[name])


def test_the_key_is_shown_to_nobody():
    hearing().save("secretive-hearing", overwrite=True)
    loaded = Site.load("secretive-hearing")
    with get_client(sync_client=True) as client:
        shown = client.read_block_document_by_name("secretive-hearing", "dailies-site", include_secrets=False)
    opened = open_site("secretive-hearing")
    assert "ours" in str(shown.data)
    assert SECRET not in f"{shown.data} {loaded!r} {loaded.model_dump_json()} {opened!r} {opened}"
    assert opened.engines["openai"]["api_key"] == SECRET, "it is there all the same"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SpeechEndpoint(per_minute=0),
        lambda: SpeechEndpoint(timeout_s=-1),
        lambda: SpeechEndpoint(colour="blue"),
        lambda: WhisperModel(device="tpu"),
    ],
)
def test_a_block_that_makes_no_sense_is_not_made(wrong):
    with pytest.raises(ValidationError):
        wrong()
