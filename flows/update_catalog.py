"""update-catalog: from a list of hosts to a catalogue that can be searched, with the neighbours of each video."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dailies.catalog.crawl_options import LARGEST_PAGE, Crawl
from dailies.catalog.generation import fence_of
from dailies.catalog.update import Update, attempt, published_by
from dailies.home import home
from dailies.media.keys import catalog_subject
from tasks._job import Working, job_flow
from tasks.catalog import (
    announce_catalog,
    begin_update,
    complete_catalog,
    count_videos,
    crawl_channels,
    crawl_instances,
    crawl_videos,
    embed_videos,
    index_videos,
    merge_catalog,
    publish_catalog,
    rank_videos,
    relate_videos,
    show_catalog,
    sweep_catalog,
)

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Page = Annotated[int, Field(ge=2, le=LARGEST_PAGE)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0.1)]


def catalog_of(tenant: str, catalog: str = "main", **_: Any) -> str:
    return catalog_subject(tenant, catalog)


@job_flow(
    "update-catalog",
    subject=catalog_of,
    resource="catalog",
    flow_run_name="update-{tenant}-{catalog}",
    timeout_seconds=48 * 3600,
)
def update_catalog(
    job: Working,
    tenant: str,
    whitelist: str,
    catalog: str = "main",
    prod: str = "",
    as_of: datetime | None = None,
    resume: bool = True,
    max_instances: Count = 0,
    max_channels: Count = 0,
    max_videos_pages: Count = 0,
    stop_after_pages: Count = 2,
    page: Page = 50,
    concurrency: AtLeastOne = 4,
    timeout_s: Seconds = 5.0,
    allow_private: bool = False,
    rules: Literal["ours", "original"] = "ours",
    max_removed: Share = 0.1,
    model: Literal["ngrams-1", "minilm"] = "ngrams-1",
    device: Literal["cpu", "gpu"] = "cpu",
    nlist: Count = 0,
    neighbours: AtLeastOne = 20,
    service: str = "none",
    keep_staging: bool = False,
) -> dict[str, Any]:
    """Crawl the hosts of a list, and publish database, index and neighbours together.

    Readers see the generation before or the new one, whole. Killed anywhere, the next attempt goes on.

    Args:
        tenant: Whose catalogue it is.
        whitelist: The hosts: a URL or a file with {"data": [{"host": …}]}, or a bare list.
        catalog: The name of the catalogue.
        prod: The folder of its generations, on a disk that readers share. Empty: in the home of Dailies.
        as_of: The moment that times and popularity are counted from. Empty: now.
        resume: Go on with what an update left that did not come to its end.
        max_instances: Ask so many hosts at most; 0 for all.
        max_channels: So many channels of a host at most; 0 for all.
        max_videos_pages: So many pages of a channel at most; 0 for all.
        stop_after_pages: Stop in a channel after so many pages without news; 0 reads all, and finds all that went.
        page: Videos or channels on a page.
        concurrency: Hosts at once. One host never gets more than two requests at once.
        timeout_s: Seconds to wait for a host.
        allow_private: Crawl hosts with private addresses, too: for trials on one machine.
        rules: What a merge does with a row that is there already: ours refreshes it, original keeps it.
        max_removed: Refuse to remove more than this share of the videos.
        model: What makes vectors of texts.
        device: Where vectors and index are made.
        nlist: Cells of a large index; 0 chooses by the number of videos.
        neighbours: So many for each video.
        service: What to stop and start around the publication: none, systemd:UNIT or process:COMMAND.
        keep_staging: Leave what was gathered beside the generations, for whoever wants to look into it.
    """
    update = attempt(
        Update(
            prod=Path(prod) if prod else home() / "catalog" / tenant / catalog,
            whitelist=whitelist,
            as_of=round((as_of.timestamp() if as_of else time.time()) * 1000),
            resume=resume,
            max_instances=max_instances,
            crawl=Crawl(
                concurrency=concurrency,
                timeout_s=timeout_s,
                page=page,
                stop_after_pages=stop_after_pages,
                max_channels=max_channels,
                max_videos_pages=max_videos_pages,
                allow_private=allow_private,
            ),
            rules=rules,
            max_removed=max_removed,
            model=model,
            device=device,
            nlist=nlist,
            neighbours=neighbours,
            keep_staging=keep_staging,
        ),
        job.site.ledger,
        job.claim,
    )
    if published_by(update, job.job.id):  # an attempt before this one died behind the publication
        update = replace(update, fence=fence_of(update.base))
    else:
        update = next_generation(job, update, service)
        publish_catalog(job, update, service)
    published = announce_catalog(job, update, service)
    done = show_catalog(job, update)
    sweep_catalog(job, update)
    return {**published.facts, **done.facts}


def next_generation(job: Working, update: Update, service: str) -> Update:
    started = begin_update(job, update, service)
    update = replace(update, as_of=started.facts["as_of"])  # an update that goes on keeps its moment
    crawl_instances(job, update)
    crawl_channels(job, update)
    crawl_videos(job, update)
    count_videos(job, update)
    embed_videos(job, update)
    merge_catalog(job, update)
    rank_videos(job, update)
    index_videos(job, update)
    relate_videos(job, update)
    complete_catalog(job, update)
    return update
