"""The parts of the scenario orchestrator-smoke that nothing befalls: an update of a federation of every kind of host,
held against what can be worked out without it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dailies.catalog.importing import apart, import_production
from dailies.catalog.merge import merge
from dailies.catalog.reader import CATALOG
from dailies.catalog.schema import connect
from dailies.catalog.update import STAGES
from dailies.events import schemas
from dailies.ledger.records import Event
from dailies.scenarios.federation import Federation
from dailies.scenarios.federation_plan import EVERYTHING
from tasks import smoke_checks as checks
from tasks.contention import part
from tasks.scenario import Scenario
from tasks.smoke_catalogs import FIRST, NOBODY, Catalogue, Ground, Ran, digests, ground, update
from tasks.smoke_reader import Reader
from tasks.smoke_report import say
from tasks.smoke_rows import merge_faults, original_faults, tables

HOSTS = 11
LOOKS = 10
AT_ONCE = 2
NEIGHBOURS = 20
# One host invents videos for ever, and none of the others has so many.
ENDLESS_PAGES = 20
PUBLISHED = "published"
DEVICES = {"cpu": ("cpu", "cpu"), "gpu": ("cuda", "gpu")}  # as a model says it, and as an index does


@dataclass(frozen=True)
class Settings:
    """What the scenario is asked for, as far as the main run goes."""

    videos: int
    gpu: bool = False
    max_instances: int = 0
    max_channels: int = 30
    max_videos_pages: int = 0
    seed_videos_limit: int = 2000
    concurrency: int = 4
    nlist: int = 0
    source_db: str = ""
    service: str = "none"
    original: bool = False
    """Have the original's rules merge in a whole update, too."""

    @property
    def device(self) -> str:
        return "gpu" if self.gpu else "cpu"

    @property
    def model(self) -> str:
        return "minilm" if self.gpu else "ngrams-1"  # the other one has no use for a GPU

    def options(self) -> dict[str, Any]:
        return {
            "max_instances": self.max_instances,
            "max_channels": self.max_channels,
            "max_videos_pages": self.max_videos_pages or ENDLESS_PAGES,
            "concurrency": self.concurrency,
            "nlist": self.nlist,
            "device": self.device,
            "model": self.model,
        }

    def production(self, run: Scenario, federation: Federation, path: Path) -> Mapping[str, int]:
        channels, videos = self.max_channels or 10_000, self.seed_videos_limit
        if not self.source_db:
            return federation.mini_production(path, channels_limit=channels, videos_limit=videos)
        source = apart(self.source_db, run.place)
        return import_production(source, path, channels_limit=channels, videos_limit=videos)

    def is_limited(self, federation: Federation) -> bool:
        """Told to read less than there is."""
        return self.max_videos_pages > 0 or 0 < self.max_channels < federation.setup.scale.channels


@part("smoke")
def smoke(run: Scenario, settings: Settings) -> None:
    """An update of a whole federation, then one with nothing new, and the original's rules on the same rows."""
    log = run.place / "whitelist-http.log"
    with Federation(run.journal.seed, HOSTS, settings.videos, EVERYTHING, log=log) as federation:
        made = ground(
            run, "production", federation, lambda path: settings.production(run, federation, path), settings.options()
        )
        catalogue = Catalogue(run, made, "main")
        federation.forget()
        with run.journal.span("smoke", "update-catalog"), Reader(catalogue) as reader:
            ran = update(catalogue, service=settings.service)
        asked = federation.counters()
        check_run(run, ran, settings)
        check_crawl(run, ran, made, asked, settings)
        check_rows(run, ran)
        check_derived(run, ran)
        check_reader(run, reader)
        say(run.journal, ran, len(federation.hosts))
        federation.show(federation.day)
        with run.journal.span("smoke", "nothing new"):
            again = update(catalogue, service=settings.service)
        check_again(run, ran, again)
        if settings.original:
            original_flow(run, made)
    original(run, made, ran)
    run.ledger.close()  # this thread's connection


# ── how it ran ────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_run(run: Scenario, ran: Ran, settings: Settings) -> None:
    run.journal.expect("smoke: every stage is told, in order, and then the publication", markers(ran.events),
                       [*STAGES, PUBLISHED], "see stage() in tasks/catalog.py")  # fmt: skip
    said = ran.facts("embeddings").get("device"), ran.facts("index").get("mode")
    run.journal.expect("smoke: device and mode are those asked for", said, DEVICES[settings.device],
                       "a device that is not there is an error, and never another device")  # fmt: skip
    run.journal.expect("smoke: the lock is released", ran.catalogue.holder, NOBODY, "see give_back in holding.py")
    kept = [ran.before, ran.after, ran.staging.name]
    run.journal.expect("smoke: nothing is left behind", checks.left_behind(ran.catalogue.prod, kept), [],
                       "see clear_away in dailies/catalog/update.py")  # fmt: skip
    untouched = ran.catalogue.digests(ran.before) == digests(ran.catalogue.ground.before / FIRST)
    run.journal.expect("smoke: the generation before is untouched", untouched, True, "write to a copy alone")
    run.journal.metric("update_s", round(ran.seconds, 2))


def markers(events: list[Event]) -> list[str]:
    names = {schemas.CATALOG_STAGE: lambda data: str(data["stage"]), schemas.CATALOG_PUBLISHED: lambda data: PUBLISHED}
    return [names[event.type](event.data) for event in events if event.type in names]


def check_crawl(run: Scenario, ran: Ran, made: Ground, asked: Mapping[str, Any], settings: Settings) -> None:
    truth = made.federation.truth()
    hosts = made.federation.hosts[: settings.max_instances or None]
    found = tables(ran.staging)
    videos = set(found["videos"])
    missing = {key for key in truth.missing(videos) if key[1] in hosts}
    if not settings.is_limited(made.federation):
        run.journal.expect("smoke: the crawl missed nothing", sorted(missing)[:5], [], "see dailies/catalog/paging.py")
    surplus = sorted(truth.surplus(videos))[:5]
    run.journal.expect("smoke: the crawl found nothing that nobody has", surplus, [], "see documents.py, whose")
    ill = sorted(host for host in hosts if not truth.hosts[host].healthy)
    failed = ran.facts("instances").get("hosts", {}).get("failed", {})
    named = sorted(host for host, why in failed.items() if why.strip())
    stored = sorted(key[0] for key, row in tables(ran.new)["instances"].items() if key[0] in ill and row["last_error"])
    run.journal.expect("smoke: each host that fails is recorded with its reason", (named, stored), (ill, ill),
                       "see health() in dailies/catalog/gathering.py")  # fmt: skip
    most = {host: told["most_at_once"] for host, told in asked["hosts"].items() if told["most_at_once"] > AT_ONCE}
    run.journal.expect(
        "smoke: never more than two requests at once for a host", most, {}, "see dailies/catalog/polite.py"
    )
    requests = sum(told["requests"] for told in asked["hosts"].values())
    run.journal.metric("crawl", {"hosts": len(hosts), "requests": requests, "videos": len(videos)})


# ── what it made ──────────────────────────────────────────────────────────────────────────────────────────────────────


def check_rows(run: Scenario, ran: Ran) -> None:
    as_of = int(ran.meta["as_of"])
    for table, wrong in merge_faults(ran.old, ran.staging, ran.new, as_of).items():
        run.journal.expect(f"smoke: every row of {table} is as the merge rules say", wrong, {},
                           "see dailies/catalog/rules.py, and tasks/smoke_rows.py")  # fmt: skip
    run.journal.expect("smoke: no video has another id", checks.id_faults(ran.old, ran.new), {}, "see merge.py")
    run.journal.expect("smoke: no key is there twice", set(checks.duplicates(ran.new).values()), {0}, "see the schema")
    run.journal.expect("smoke: the database is whole", checks.integrity(ran.new), "ok", "see complete()")


def check_derived(run: Scenario, ran: Ran) -> None:
    totals = checks.totals(ran.folder, ran.meta)
    run.journal.expect("smoke: every living video has one vector everywhere", len(set(totals.values())), 1, str(totals))
    popular = checks.popularity_faults(ran.new, int(ran.meta["as_of"]))
    run.journal.expect("smoke: popularity is what the formula gives", popular, [], "see dailies/catalog/rank.py")
    exact = ran.meta["index"]["type"] == "flat"
    wrong = checks.neighbour_faults(ran.folder, NEIGHBOURS, exact)
    run.journal.expect("smoke: the neighbours are those of an exact search", wrong, [], "see neighbours.py")
    run.journal.metric("totals", totals)


def check_reader(run: Scenario, reader: Reader) -> None:
    run.journal.expect("smoke: a reader saw whole generations alone", reader.faults[:5], [], "complete, then publish")
    run.journal.expect("smoke: it saw the old one, then the new one", len(reader.seen), 2, "publish with one pointer")
    run.journal.check("smoke: it looked all the time", reader.looks >= LOOKS, f"{LOOKS} or more", reader.looks)


def check_again(run: Scenario, first: Ran, again: Ran) -> None:
    """Tombstones apart from nothing: hosts show the same day once more."""
    run.journal.expect("smoke: with nothing new no row changes", checks.row_digests(again.new),
                       checks.row_digests(first.new), "a merge writes what differs, and nothing else")  # fmt: skip
    same = [first.catalogue.digests(ran.after) for ran in (first, again)]
    for file in ("index.faiss", "similar.db"):
        run.journal.expect(f"smoke: nor does {file}", same[1][file], same[0][file], "it depends on the vectors alone")
    run.journal.metric("update_with_nothing_new_s", round(again.seconds, 2))


# ── the rules of the original ─────────────────────────────────────────────────────────────────────────────────────────


def original(run: Scenario, made: Ground, ran: Ran) -> None:
    """On a copy of production before and of what was gathered, with one vector that both of them have."""
    place = run.place / "catalogs" / "original"
    place.mkdir()
    copy, staging = place / CATALOG, place / "staging.db"
    shutil.copy(made.before / FIRST / CATALOG, copy)
    copy.chmod(0o644)
    shutil.copy(ran.staging, staging)
    overlap(made.before / FIRST / CATALOG, staging, run.journal.seed)
    merge(staging, copy, "original")
    found = original_faults(made.before / FIRST / CATALOG, staging, copy)
    overlapping = found.pop("replace_overlap.video_embeddings")
    run.journal.check("original rules: what was gathered overlaps what was there", overlapping > 0, True)
    run.journal.expect("original rules: rows stay, and vectors are replaced", found, dict.fromkeys(found, 0),
                       "see ORIGINAL_RULES in dailies/catalog/rules.py")  # fmt: skip
    run.journal.expect("original rules: the database is whole", checks.integrity(copy), "ok")
    seen = {name: count for name, count in found.items() if not name.startswith("insert_only_absent")}
    run.journal.smoke["checks"] |= {"replace_overlap.video_embeddings": overlapping, **seen}


def original_flow(run: Scenario, made: Ground) -> None:
    """Through the flow, where nothing overlaps: an unchanged text is not embedded again."""
    made.federation.show(made.federation.day)
    ran = update(Catalogue(run, made, "original-rules"), rules="original")
    found = original_faults(ran.old, ran.staging, ran.new)
    found.pop("replace_overlap.video_embeddings")
    run.journal.expect("original rules, through the flow: rows stay, and vectors are replaced", found,
                       dict.fromkeys(found, 0), "see rules in flows/update_catalog.py")  # fmt: skip
    totals = checks.totals(ran.folder, ran.meta)
    run.journal.expect("original rules, through the flow: one vector each", len(set(totals.values())), 1, str(totals))


def overlap(production: Path, staging: Path, seed: int) -> None:
    """As the seed does it: the same vector, but for the first byte."""
    vectors = tables(production)["video_embeddings"]
    row = vectors[random.Random(seed).choice(sorted(vectors))]
    blob = bytes([row["embedding"][0] ^ 0xFF]) + row["embedding"][1:]
    names = [name for name in row if name != "id"]
    with closing(connect(staging, "staging", write=True)) as database:
        database.execute(
            f"INSERT OR REPLACE INTO video_embeddings ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [blob if name == "embedding" else row[name] for name in names],
        )
