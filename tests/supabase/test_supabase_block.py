"""The block that a site's ledger is chosen with."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from blocks.supabase import SupabaseLedger as Block
from dailies.errors import NotConfigured, Transient
from tests.supabase.servers import SERVICE_KEY, free_port
from tests.unit.ledger.contract.world import request

pytestmark = pytest.mark.supabase


def test_the_block_opens_the_ledger_of_its_project(api, ledger):
    opened = Block(url=f"{api.url}/", service_key=SERVICE_KEY).open()
    job = opened.jobs.submit(request())
    opened.close()
    assert ledger.jobs.get(job.id) == job


def test_its_patience_is_the_ledgers():
    opened = Block(url=f"http://127.0.0.1:{free_port()}", service_key=SERVICE_KEY, patience=0.1).open()
    with pytest.raises(Transient):
        opened.jobs.all()


def test_the_key_is_shown_to_nobody(api):
    block = Block(url=api.url, service_key=SERVICE_KEY)
    opened = block.open()
    assert SERVICE_KEY not in f"{block!r} {block} {block.model_dump()} {opened!r} {vars(opened)}"


def test_the_form_says_what_each_field_is():
    assert all(field.description for name, field in Block.model_fields.items())
    assert Block.get_block_type_slug() == "dailies-supabase-ledger"


@pytest.mark.parametrize("wrong", [{"url": "http://x"}, {"service_key": "k"}, {"patience": 0}], ids=str)
def test_a_block_that_lacks_something_is_not_made(wrong):
    with pytest.raises(ValidationError):
        Block(**{"patience": 1, **wrong})


def test_an_address_that_is_none_is_told_when_it_is_opened():
    with pytest.raises(NotConfigured, match=r"supabase\.co"):
        Block(url="project", service_key="k").open()
