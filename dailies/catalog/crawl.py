"""The four stages of a crawl: instances, channels, videos, and how many videos each channel has.

    crawl_instances("staging.db", ["video.example.org"], {"concurrency": 4})
    crawl_channels("staging.db"); crawl_videos("staging.db", "gen-000012/catalog.db"); count_videos("staging.db")

Each takes and returns plain JSON values, so that a child process can run it, and each goes on where it was killed:
what is done is not asked for again, and what failed is tried again. A host that fails is written down with its reason
and stops nobody else. That no host at all can be reached is one error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dailies.catalog.crawl_options import Crawl
from dailies.catalog.crawl_stage import Json, Progress, Stage
from dailies.catalog.gathering import Gathering
from dailies.catalog.hosts import refuse_private
from dailies.errors import BadInput

__all__ = ["Crawl", "count_videos", "crawl_channels", "crawl_instances", "crawl_videos"]

Options = Crawl | Mapping[str, Any] | None


def nobody(part: float) -> None:
    """Who is not asked how far it is."""


def crawl_instances(
    staging: str | Path, hosts: Sequence[str], options: Options = None, progress: Progress = nobody
) -> Json:
    """What each host says of itself. Hosts that this machine must not ask are refused before any is asked."""
    chosen = Crawl.from_json(options)
    if not hosts:
        raise BadInput("there are no hosts to crawl")
    refuse_private(hosts, chosen.allow_private)
    with Gathering(Path(staging)) as gathering:
        stage = Stage("instance", gathering, chosen, progress)
        return asyncio.run(stage.run(list(dict.fromkeys(hosts)), stage.instance))


def crawl_channels(staging: str | Path, options: Options = None, progress: Progress = nobody) -> Json:
    """The channels of each host that has answered."""
    with Gathering(Path(staging)) as gathering:
        stage = Stage("channels", gathering, Crawl.from_json(options), progress)
        return asyncio.run(stage.run(stage.answering(), stage.channels))


def crawl_videos(
    staging: str | Path, production: str | Path | None = None, options: Options = None, progress: Progress = nobody
) -> Json:
    """The newest videos of each channel, down to pages that ``production`` holds already."""
    with Gathering(Path(staging), Path(production) if production else None) as gathering:
        stage = Stage("videos", gathering, Crawl.from_json(options), progress)
        return asyncio.run(stage.run(stage.answering(), stage.videos))


def count_videos(staging: str | Path, options: Options = None, progress: Progress = nobody) -> Json:
    """How many videos each channel has, as its host states it: asked only where no page of its videos has said it."""
    with Gathering(Path(staging)) as gathering:
        stage = Stage("count", gathering, Crawl.from_json(options), progress)
        stage.take_over_counts()
        given_up = gathering.failures("videos")
        return asyncio.run(stage.run([host for host in stage.answering() if host not in given_up], stage.counts))
