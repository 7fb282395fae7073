"""A site that is saved in Prefect and opened again."""

import pytest
from prefect.client.orchestration import get_client

from blocks.s3 import S3Bucket
from blocks.site import Site, SqliteLedger, open_site
from dailies.errors import NotConfigured
from dailies.ledger.sqlite import SqliteLedger as EmbeddedLedger
from dailies.store.local import LocalFolder
from dailies.store.s3 import S3Store

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("fast_api")]

BUCKET = {
    "bucket": "media",
    "endpoint_url": "http://127.0.0.1:9",
    "access_key": "the-key-id",
    "secret_key": "the-secret",
}


def test_a_site_with_a_bucket_comes_back_as_it_was_saved(tmp_path):
    saved = Site(store=S3Bucket(**BUCKET), ledger=SqliteLedger(path=str(tmp_path / "its.db")))
    saved.save("with-a-bucket", overwrite=True)
    opened = open_site("with-a-bucket")
    assert isinstance(opened.store, S3Store)
    assert isinstance(opened.ledger, EmbeddedLedger)
    assert opened.ledger.path == tmp_path / "its.db"
    opened.ledger.close()


def test_the_secrets_of_a_site_are_never_shown():
    Site(store=S3Bucket(**BUCKET)).save("secretive", overwrite=True)
    with get_client(sync_client=True) as client:
        shown = client.read_block_document_by_name("secretive", "dailies-site", include_secrets=False)
    assert "media" in str(shown.data)
    assert "the-secret" not in str(shown.data)
    assert "the-secret" not in repr(Site.load("secretive"))


def test_a_site_nobody_saved_is_one_line_that_says_what_to_do():
    with pytest.raises(NotConfigured, match="save a 'Dailies site' block"):
        open_site("nowhere")


def test_local_needs_nothing_saved():
    opened = open_site()
    assert isinstance(opened.store, LocalFolder)
    opened.ledger.close()
