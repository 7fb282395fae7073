"""The steps of update-catalog: one for each stage of dailies/catalog/update.py, and what makes a generation current."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact

from dailies.canonical import digest, file_digest
from dailies.catalog.reader import META, read_meta
from dailies.catalog.service import service
from dailies.catalog.update import Update, clear_away, disowned_if_refused, make_current, serve
from dailies.events import schemas
from tasks._job import Working
from tasks._step import Output, Step, effect, in_child

HOUR = 3600.0
RUN = "dailies.catalog.update:run_stage"
TOLD = 20


def stage(job: Working, step: Step[...], name: str, update: Update) -> Output:
    facts = in_child(job, step, RUN, keep=True, stage=name, update=update.to_json())
    job.tell(schemas.CATALOG_STAGE, name, {"event": "catalog_stage", "stage": name, "facts": brief(facts)})
    return Output(facts=facts)


def brief(facts: Any) -> Any:
    """An event is no place for the reason of each of a thousand hosts: those are in the database."""
    if not isinstance(facts, Mapping):
        return facts
    return {name: brief(value) for name, value in list(facts.items())[:TOLD]}


# ── what is new: gathered in the staging database, which knows how far it came ────────────────────────────────────────


@effect(timeout=300)
def begin_update(job: Working, update: Update, how: str) -> Output:
    """Staging is begun from the current generation, or taken up again where an update before left it."""
    with disowned_if_refused(update.prod):
        service(how, update.prod)  # what can be refused is refused before the work and not after it
    return stage(job, begin_update, "begin", update)


@effect(timeout=2 * HOUR)
def crawl_instances(job: Working, update: Update) -> Output:
    """Each host says what it is, or is on record with the reason why not; no host stops another."""
    return stage(job, crawl_instances, "instances", update)


@effect(timeout=6 * HOUR)
def crawl_channels(job: Working, update: Update) -> Output:
    """Every page counts once, however often this is begun: a page and the place of the next are written together."""
    return stage(job, crawl_channels, "channels", update)


@effect(timeout=24 * HOUR)
def crawl_videos(job: Working, update: Update) -> Output:
    """Local videos alone, newest first; what shifts between two pages is neither lost nor there twice."""
    return stage(job, crawl_videos, "videos", update)


@effect(timeout=2 * HOUR)
def count_videos(job: Working, update: Update) -> Output:
    """How many videos a channel has, as its host says."""
    return stage(job, count_videos, "counts", update)


@effect(timeout=12 * HOUR)
def embed_videos(job: Working, update: Update) -> Output:
    """What is new or reads otherwise than before has a vector; another model means all of them, and says so."""
    return stage(job, embed_videos, "embeddings", update)


# ── the next generation: in a folder that no other attempt writes to ──────────────────────────────────────────────────


@effect(timeout=2 * HOUR)
def merge_catalog(job: Working, update: Update) -> Output:
    """Production with what was gathered, in one transaction on a copy: production itself is never written to."""
    return stage(job, merge_catalog, "merge", update)


@effect(timeout=HOUR)
def rank_videos(job: Working, update: Update) -> Output:
    """Popularity as it is at the update's ``as_of``."""
    return stage(job, rank_videos, "popularity", update)


@effect(timeout=12 * HOUR)
def index_videos(job: Working, update: Update) -> Output:
    """An index of exactly the vectors that the database has; one that finds too little is refused."""
    return stage(job, index_videos, "index", update)


@effect(timeout=12 * HOUR)
def relate_videos(job: Working, update: Update) -> Output:
    """The neighbours of each video, also of an old one that a new one comes close to."""
    return stage(job, relate_videos, "similar", update)


@effect(timeout=HOUR)
def complete_catalog(job: Working, update: Update) -> Output:
    """All files are whole and on the disk before anybody can be shown them."""
    return stage(job, complete_catalog, "complete", update)


@effect(timeout=300)
def publish_catalog(job: Working, update: Update, how: str) -> Output:
    """The one moment in which the catalogue changes. An older attempt can never change it back: it is fenced."""
    make_current(update, job.site.ledger, job.claim, how, job.job.id)
    return Output()


@effect(timeout=300)
def announce_catalog(job: Working, update: Update, how: str) -> Output:
    """Told once for each generation, and whoever serves it is up: an attempt may have died before it came to that."""
    serve(update, job.site.ledger, job.claim, how)
    told = {
        "generation": update.name,
        "digest": file_digest(update.folder / META),
        "as_of": read_meta(update.folder)["as_of"],
    }
    job.tell(schemas.CATALOG_PUBLISHED, update.name, {"event": "catalog_published", **told})
    return Output(facts=told)


@effect(timeout=HOUR)
def sweep_catalog(job: Working, update: Update) -> Output:
    """What was gathered is published, and old generations go, but those that somebody reads."""
    removed = clear_away(update, job.site.ledger, job.claim.resource)
    return Output(facts={"removed": removed})


@effect(timeout=60)
def show_catalog(job: Working, update: Update) -> Output:
    """Show in the UI what the update did. Showing it twice shows the newest."""
    done = told_stages(job)
    create_markdown_artifact(table(update, done), key=f"catalog-{digest(job.job.subject)[:12]}")
    return Output(facts=done)


def told_stages(job: Working) -> dict[str, Any]:
    """What each stage did, as the job has told it, in whichever attempt that was."""
    told = [event.data for event in job.site.ledger.outbox.of(job.job.id) if event.type == schemas.CATALOG_STAGE]
    return {data["stage"]: data["facts"] for data in told}


def table(update: Update, done: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {', '.join(facts_line(facts))} |" for name, facts in done.items()]
    return "\n".join([f"### `{update.name}`", "", "| stage | what it did |", "|---|---|", *rows])


def facts_line(facts: Mapping[str, Any]) -> list[str]:
    """The plain ones: a list of hosts or of rules is in the events."""
    return [f"{name} {value}" for name, value in sorted(facts.items()) if isinstance(value, str | int | float)]
