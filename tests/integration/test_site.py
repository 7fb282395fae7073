"""A site that is saved in Prefect and opened again."""

import subprocess
import sys

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate
from pydantic import SecretStr

import blocks
from blocks import LocalCompute, ModalCompute, RedisStream, S3Bucket, Site, SqliteLedger, SupabaseLedger
from blocks.site import open_site
from dailies.compute.local import LocalCompute as Processes
from dailies.compute.modal import ModalCompute as ModalFunctions
from dailies.errors import NotConfigured
from dailies.events.fanout import Fanout
from dailies.events.prefect_api import PrefectEvents
from dailies.ledger.sqlite import SqliteLedger as EmbeddedLedger
from dailies.ledger.supabase import SupabaseLedger as RemoteLedger
from dailies.store.local import LocalFolder
from dailies.store.s3 import S3Store
from deployments.block_types import ours

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

NOBODY = "http://127.0.0.1:9"
SECRETS = {"the-secret-of-s3", "the-service-key", "ak-the-id", "as-the-secret", "the-redis-password"}


def everything() -> Site:
    """A site of real services, none of which is asked anything before it is used."""
    return Site(
        store=S3Bucket(
            bucket="media",
            endpoint_url=NOBODY,
            access_key=SecretStr("the-key-id"),
            secret_key=SecretStr("the-secret-of-s3"),
        ),
        ledger=SupabaseLedger(url=NOBODY, service_key=SecretStr("the-service-key")),
        compute=ModalCompute(app_name="ours", token_id=SecretStr("ak-the-id"), token_secret=SecretStr("as-the-secret")),
        stream=RedisStream(url="redis://127.0.0.1:9/0", password=SecretStr("the-redis-password")),
        scenarios=True,
    )


def test_a_site_of_real_services_comes_back_as_it_was_saved():
    everything().save("everything", overwrite=True)
    opened = open_site("everything")
    assert opened.name == "everything"
    assert isinstance(opened.store, S3Store)
    assert isinstance(opened.ledger, RemoteLedger)
    assert isinstance(opened.compute, ModalFunctions)
    assert opened.compute.app == "ours"
    assert isinstance(opened.events, Fanout)
    assert opened.scenarios is True


def test_a_site_that_was_put_together_in_the_ui_opens_like_one_that_was_saved_from_python(client):
    """The form keeps each part as a block of its own, and the site as references to them."""
    parts = everything()
    saved = {name: getattr(parts, name).save(f"ui-{name}", overwrite=True) for name in ("store", "ledger", "compute")}
    Site.register_type_and_schema()
    schema = client.read_block_schema_by_checksum(Site._calculate_schema_checksum())
    refs = {name: {"$ref": {"block_document_id": str(found)}} for name, found in saved.items()}
    stream = parts.stream.save("ui-stream", overwrite=True)
    client.create_block_document(
        BlockDocumentCreate(
            name="from-the-ui",
            block_schema_id=schema.id,
            block_type_id=schema.block_type_id,
            data={**refs, "stream": {"$ref": {"block_document_id": str(stream)}}, "scenarios": True},
        )
    )
    opened = open_site("from-the-ui")
    assert isinstance(opened.store, S3Store)
    assert isinstance(opened.ledger, RemoteLedger)
    assert isinstance(opened.compute, ModalFunctions)
    assert isinstance(opened.events, Fanout)
    assert Site.load("from-the-ui").store.secret_key.get_secret_value() == "the-secret-of-s3"


def test_each_part_of_a_site_can_be_another_one(tmp_path):
    site = Site(
        store=everything().store,
        ledger=SqliteLedger(path=str(tmp_path / "its.db")),
        compute=LocalCompute(path=str(tmp_path / "calls")),
    )
    site.save("mixed", overwrite=True)
    opened = open_site("mixed")
    assert isinstance(opened.store, S3Store)
    assert isinstance(opened.ledger, EmbeddedLedger)
    assert opened.ledger.path == tmp_path / "its.db"
    assert isinstance(opened.compute, Processes)
    assert opened.compute.folder == tmp_path / "calls"
    assert isinstance(opened.events, PrefectEvents)
    assert opened.scenarios is False
    opened.ledger.close()


def test_the_secrets_of_a_site_are_never_shown():
    everything().save("secretive", overwrite=True)
    loaded = Site.load("secretive")
    with get_client(sync_client=True) as client:
        shown = client.read_block_document_by_name("secretive", "dailies-site", include_secrets=False)
    assert "media" in str(shown.data)
    for text in (str(shown.data), repr(loaded), str(loaded), loaded.model_dump_json()):
        assert {secret for secret in SECRETS if secret in text} == set()
    assert loaded.ledger.service_key.get_secret_value() == "the-service-key", "it is there all the same"


def test_modal_cannot_be_given_a_folder_of_this_machine():
    site = Site(compute=everything().compute)
    with pytest.raises(NotConfigured, match="S3 bucket"):
        site.open("half")


def test_a_site_nobody_saved_is_one_line_that_says_what_to_do():
    with pytest.raises(NotConfigured, match="save a 'Dailies site' block"):
        open_site("nowhere")


def test_local_needs_nothing_saved():
    opened = open_site()
    assert isinstance(opened.store, LocalFolder)
    assert isinstance(opened.compute, Processes)
    opened.ledger.close()


def test_prefects_own_command_registers_every_block_of_ours(fast_api, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", fast_api)
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "blocks"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {kind.__name__ for kind in ours()} == set(blocks.__all__)
    with get_client(sync_client=True) as client:
        for kind in ours():
            found = client.read_block_type_by_slug(kind.get_block_type_slug())
            schema = client.read_block_schema_by_checksum(kind._calculate_schema_checksum())
            assert schema.block_type_id == found.id
            assert found.description, kind.__name__
            for name, field in schema.fields["properties"].items():
                assert field.get("description"), f"{kind.__name__}.{name}: the form does not say what it is"
