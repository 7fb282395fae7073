"""The types of our blocks: without them the UI has no form for a site."""

from __future__ import annotations

import inspect

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

import blocks


def ours() -> list[type[Block]]:
    found = [kind for kind in vars(blocks).values() if inspect.isclass(kind) and issubclass(kind, Block)]
    return sorted(found, key=lambda kind: kind.__name__)


def drift(client: SyncPrefectClient) -> list[str]:
    return [f"block type {kind.get_block_type_slug()} {what}" for kind in ours() if (what := state_of(client, kind))]


def state_of(client: SyncPrefectClient, kind: type[Block]) -> str:
    try:
        client.read_block_type_by_slug(kind.get_block_type_slug())
    except ObjectNotFound:
        return "is missing"
    try:
        client.read_block_schema_by_checksum(kind._calculate_schema_checksum())
    except ObjectNotFound:
        return "has other fields on the server"
    return ""


def apply(client: SyncPrefectClient) -> None:
    for kind in ours():
        if state_of(client, kind):
            kind.register_type_and_schema()  # to the server of the settings, which is this client's
