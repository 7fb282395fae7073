"""A site is the set of connections that a flow runs against. ``local`` needs nothing registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.settings import get_current_settings
from pydantic import Field, SecretStr

from blocks._part import Part
from blocks.compute import LocalCompute, ModalCompute
from blocks.redis import RedisStream
from blocks.s3 import S3Bucket
from blocks.speech import SpeechEndpoint, WhisperModel
from blocks.supabase import SupabaseLedger
from dailies.compute.interface import Compute
from dailies.errors import NotConfigured
from dailies.events.fanout import Fanout
from dailies.events.interface import Sink
from dailies.events.prefect_api import PrefectEvents as HttpEvents
from dailies.home import home
from dailies.ledger.interface import Ledger
from dailies.ledger.sqlite import SqliteLedger as EmbeddedLedger
from dailies.store.interface import Store
from dailies.store.local import LocalFolder as FolderStore


@dataclass(frozen=True)
class OpenSite:
    name: str
    store: Store
    ledger: Ledger
    compute: Compute
    events: Sink | None
    scenarios: bool = True
    # Settings by engine. They hold the keys in plain text, because they travel.
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)


class LocalFolder(Part):
    """Objects as files below one folder."""

    _block_type_name = "Dailies local folder"
    _block_type_slug = "dailies-local-folder"

    path: str = Field(default="", description="The folder that holds the objects. Empty: media/ in DAILIES_HOME.")

    def open(self) -> Store:
        return FolderStore(Path(self.path) if self.path else home() / "media")


class SqliteLedger(Part):
    """Jobs, units and leases in one SQLite file, for any number of processes on one machine."""

    _block_type_name = "Dailies SQLite ledger"
    _block_type_slug = "dailies-sqlite-ledger"

    path: str = Field(default="", description="The database file. Empty: ledger.db in DAILIES_HOME.")

    def open(self) -> Ledger:
        return EmbeddedLedger(Path(self.path) if self.path else home() / "ledger.db")


class PrefectEvents(Part):
    """Events to a Prefect server."""

    _block_type_name = "Dailies Prefect events"
    _block_type_slug = "dailies-prefect-events"

    api_url: str = Field(default="", description="The Prefect API. Empty: the one that the flow itself talks to.")
    api_key: SecretStr | None = Field(default=None, description="Sent as a bearer token, where the API asks for one.")

    def open(self) -> Sink | None:
        """None while no API is known: events then wait in the outbox."""
        api_url = self.api_url or get_current_settings().api.url
        key = self.api_key or get_current_settings().api.key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        return HttpEvents(api_url, headers) if api_url else None


class Site(Block):
    """Store, ledger, compute and events together. Flows name it in their parameter ``site``."""

    _block_type_name = "Dailies site"
    _block_type_slug = "dailies-site"

    store: LocalFolder | S3Bucket = Field(
        default_factory=LocalFolder, description="Where media and results are kept: a local folder or a bucket."
    )
    ledger: SqliteLedger | SupabaseLedger = Field(
        default_factory=SqliteLedger,
        description="Where jobs, units and leases are kept: a SQLite file for one machine, Supabase for many.",
    )
    compute: LocalCompute | ModalCompute = Field(
        default_factory=LocalCompute, description="Where heavy work runs: processes of this machine, or Modal."
    )
    events: PrefectEvents = Field(
        default_factory=PrefectEvents, title="Events", description="The Prefect server that gets the events."
    )
    stream: RedisStream | None = Field(
        default=None, title="Stream", description="A Redis stream that gets the events as well. Empty: Prefect alone."
    )
    speech_endpoint: SpeechEndpoint | None = Field(
        default=None,
        title="Speech endpoint",
        description="What the engine openai asks. Empty: what the environment of the work says.",
    )
    whisper: WhisperModel | None = Field(
        default=None,
        title="Whisper",
        description="The model of the engine whisper. Empty: what the environment of the work says, else base.",
    )
    scenarios: bool = Field(
        default=False,
        description="Whether scenarios may run here. They kill, freeze and take over whatever they find in the ledger: "
        "allow it for a site that serves nothing else, never for production.",
    )

    def open(self, name: str) -> OpenSite:
        return OpenSite(
            name,
            self.store.open(),
            self.ledger.open(),
            self.compute.open(self.store),
            self.open_events(),
            self.scenarios,
            self.engines(),
        )

    def engines(self) -> dict[str, dict[str, Any]]:
        """Settings by the engine's name, and only for what is set here."""
        parts = {"openai": self.speech_endpoint, "whisper": self.whisper}
        return {name: part.settings() for name, part in parts.items() if part is not None}

    def open_events(self) -> Sink | None:
        prefect = self.events.open()
        if prefect is None or self.stream is None:
            return prefect
        return Fanout([self.stream.open(), prefect])  # the quicker one first: each waits for those before it


def open_site(name: str = "local") -> OpenSite:
    return (Site() if name == "local" else described(name)).open(name)


def described(name: str) -> Site:
    """The block of that name, with nothing opened yet."""
    try:
        site = Site.load(name)
    except (ValueError, httpx.InvalidURL) as error:
        raise NotConfigured(
            f"there is no site {name!r}: save a 'Dailies site' block of that name in Prefect, or use site 'local'"
        ) from error
    assert isinstance(site, Site)
    return site
