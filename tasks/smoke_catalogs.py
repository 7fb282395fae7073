"""The catalogues of the scenario orchestrator-smoke: made from a federation, copied for each trial, updated in children
that can be killed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dailies import failpoints
from dailies.canonical import canonical_json, file_digest
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.generation import name_of, publish
from dailies.catalog.importing import inside
from dailies.catalog.notes import FOLDER as NOTED
from dailies.catalog.reader import CATALOG, FILES, META
from dailies.catalog.update import KEPT, Update
from dailies.compute.child import Children
from dailies.ledger.records import Event, Job
from dailies.media.keys import catalog_subject
from dailies.scenarios.federation import Federation
from dailies.scenarios.processes import Child
from tasks import _job, smoke_room
from tasks import catalog as steps
from tasks.caption_parts import attempt_tags, run_flow
from tasks.scenario import TENANT, Scenario
from tasks.smoke_rows import tables

UPDATE_CATALOG = "flows.update_catalog.update_catalog"
WITHOUT_ROOM = "tasks.smoke_room:run_stage_without_room"
SEEDED = ("begin", "embeddings", "merge", "popularity", "index", "similar", "complete")
FIRST = name_of(1)  # under the first lease that a catalogue ever has
SEED_S, UPDATE_S = 120.0, 240.0
TTL_S = 3.0  # short, for a night to have time for many deaths, and long enough for a busy machine to renew it
LEASE_S = 60.0
NOBODY = "nobody"

Digests = dict[str, str]


@dataclass(frozen=True)
class Ground:
    """A federation as it is on one day, and a production from the day before, which its updates begin from."""

    federation: Federation
    before: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "whitelist": self.federation.whitelist_url,
            "as_of": datetime.fromtimestamp(self.federation.as_of / 1000, UTC),
            "allow_private": True,
            "stop_after_pages": 0,
            "page": 100,
            **self.options,
        }


def ground(
    run: Scenario,
    name: str,
    federation: Federation,
    source: Callable[[Path], Mapping[str, int]],
    options: Mapping[str, Any],
) -> Ground:
    """The federation is on the next day afterwards. ``source`` writes the database that production begins with."""
    before = inside(run.place / "catalogs" / name, run.place)
    run.journal.metric(f"{name}_copied", dict(source(before / name_of(0) / CATALOG)))
    hosts = before / "hosts.json"
    hosts.write_bytes(canonical_json(sorted(key[0] for key in tables(before / name_of(0) / CATALOG)["instances"])))
    update = Update(
        prod=before,
        whitelist=str(hosts),
        as_of=federation.as_of,
        fence=1,
        base=name_of(0),
        crawl=Crawl(allow_private=True),
        **{key: options[key] for key in ("model", "device", "nlist") if key in options},
    )
    children = Children()
    try:
        for stage in SEEDED:
            children.call(steps.RUN, timeout=SEED_S, stopped=run.over, stage=stage, update=update.to_json())
    finally:
        children.close()
    for left in (hosts, update.staging, update.prod / NOTED, before / name_of(0)):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    federation.evolve()
    return Ground(federation, before, options)


@dataclass
class Catalogue:
    """One of a trial's own: production as it was before, published as an update publishes it."""

    run: Scenario
    ground: Ground
    name: str
    prod: Path = field(init=False)
    begun: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prod = inside(self.run.place / "catalogs" / self.name, self.run.place)
        shutil.copytree(self.ground.before, self.prod)
        lease = self.run.ledger.leases.acquire(self.resource, f"{self.run.journal.run_id}-{self.name}", LEASE_S)
        publish(self.run.ledger, lease, self.prod, FIRST)
        self.run.ledger.leases.release(lease)

    @property
    def resource(self) -> str:
        return f"catalog:{catalog_subject(TENANT, self.name)}"

    @property
    def current(self) -> str:
        return self.run.ledger.generations.current(self.resource) or ""

    @property
    def holder(self) -> str:
        lease = self.run.ledger.leases.holder(self.resource)
        return lease.holder if lease else NOBODY

    @property
    def kept(self) -> list[str]:
        """The generations that a sweep leaves to readers."""
        return [name for _, name in self.run.ledger.generations.history(self.resource)][-KEPT:]

    def database(self, generation: str = "") -> Path:
        return self.prod / (generation or self.current) / CATALOG

    def digests(self, generation: str = "") -> Digests:
        """Of the files that a generation serves."""
        return digests(self.prod / (generation or self.current))

    def jobs(self) -> list[Job]:
        found = [job for _, job in self.run.jobs() if job.params.get("catalog") == self.name]
        return sorted(found, key=lambda job: job.created_at)

    def fault_log(self, number: int) -> Path:
        return self.run.place / "faults" / f"{self.name}-{number}.jsonl"

    def room_log(self, number: int) -> Path:
        return self.fault_log(number).with_suffix(".room")

    def start(
        self, faults: str = "", *, in_stages: str = "", no_room: str = "", job: Job | None = None, **more: Any
    ) -> Child:
        """An update in a process of its own. ``faults`` are armed in the run, ``in_stages`` in the process that does
        the work for it, and the stage ``no_room`` finds a full disk."""
        number = len(self.begun) + 1
        name, log = f"{self.name}-{number}", self.fault_log(number)
        child = self.run.nursery.spawn(
            attempt,
            {
                "tenant": TENANT,
                "site": self.run.site.name,
                "catalog": self.name,
                "prod": str(self.prod),
                **self.ground.parameters,
                **more,
            },
            self.run.environment["PREFECT_API_URL"],
            [self.run.pool, *(attempt_tags(job) if job else [])],
            faults,
            log,
            bool(no_room),
            name=name,
            env={
                **self.run.environment,
                **failpoints.environment(in_stages, log),
                **smoke_room.environment(no_room, self.room_log(number)),
            },
            log=self.run.log(name),
        )
        self.begun.append(child)
        return child


def attempt(parameters: dict[str, Any], api_url: str, tagged: list[str], faults: str, log: Path, no_room: bool) -> None:
    """In a child: the production flow, with leases that end soon after it does."""
    vars(_job)["TTL_S"] = TTL_S
    if no_room:
        vars(steps).update(RUN=WITHOUT_ROOM, make_current=smoke_room.publish_without_room)
    run_flow(UPDATE_CATALOG, parameters, api_url, tagged, faults, log)


def digests(folder: Path) -> Digests:
    """A file that is missing is a finding, and no error of whoever looks."""
    return {file: file_digest(folder / file) if (folder / file).is_file() else "missing" for file in FILES}


def served(catalogue: Catalogue, child: Child) -> float:
    """When an update has ended, which it must do by itself: how long it took from now."""
    since = time.monotonic()
    code = child.wait(UPDATE_S)
    if code != 0:
        raise RuntimeError(f"{child.name} ended with {code}: see its log")
    (*_, job) = catalogue.jobs()
    if job.state.value != "DONE":
        raise RuntimeError(f"{child.name}: its job is {job.state.value} ({job.error or job.message}): see its log")
    return time.monotonic() - since


@dataclass(frozen=True)
class Ran:
    """One update that came to its end, and what was seen meanwhile."""

    catalogue: Catalogue
    before: str
    after: str
    events: list[Event]
    seconds: float

    @property
    def folder(self) -> Path:
        return self.catalogue.prod / self.after

    @property
    def old(self) -> Path:
        return self.catalogue.prod / self.before / CATALOG

    @property
    def new(self) -> Path:
        return self.folder / CATALOG

    @property
    def staging(self) -> Path:
        return self.catalogue.prod / f"staging-{self.after}.db"

    @property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / META).read_bytes())
        return found

    def facts(self, stage: str) -> dict[str, Any]:
        found = [event.data["facts"] for event in self.events if event.data.get("stage") == stage]
        return dict(found[-1]) if found else {}


def update(catalogue: Catalogue, **more: Any) -> Ran:
    before = catalogue.current
    seconds = served(catalogue, catalogue.start(keep_staging=True, **more))
    events = list(catalogue.run.ledger.outbox.of(catalogue.jobs()[-1].id))
    return Ran(catalogue, before, catalogue.current, events, seconds)
