"""One update of a catalogue, stage by stage: the flow and the command line both run these, in this order.

A stage takes plain values and returns plain values, so that it can run in a process that may be killed, and each can be
run again: it goes on where it was, or finds that nothing is left to do. What one attempt finished of a generation and
did not come to publish, the next takes over, if the file is what was written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dailies.canonical import canonical_json, file_digest, write_atomically
from dailies.catalog import crawl
from dailies.catalog.clusters import assigner
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.embed import build_embeddings
from dailies.catalog.embedders import DEFAULT, embedder
from dailies.catalog.generation import (
    check_catalog,
    complete,
    copy_ahead,
    name_of,
    no_room,
    prepare,
    publish,
    sweep,
    sync,
)
from dailies.catalog.hosts import read_whitelist, refuse_private
from dailies.catalog.index import build_index
from dailies.catalog.merge import merge
from dailies.catalog.neighbours import find_neighbours
from dailies.catalog.notes import FOLDER as NOTED
from dailies.catalog.notes import Notes, write
from dailies.catalog.rank import rank
from dailies.catalog.reader import CATALOG, FILES, INDEX, SIMILAR
from dailies.catalog.rules import rule_set
from dailies.catalog.schema import connect
from dailies.catalog.service import service
from dailies.catalog.staging import begin_staging, staging_digest
from dailies.errors import BadInput, DailiesError, Damaged, Transient
from dailies.failpoints import failpoint
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Lease

Progress = Callable[[float], None]
Facts = dict[str, Any]
OWNER, PUBLISHED = "catalog.json", "published.json"
KEPT = 2


@dataclass(frozen=True)
class Update:
    """What is asked for, and the attempt that works on it: all that a stage has to know."""

    prod: Path
    whitelist: str
    as_of: int
    fence: int = 0
    base: str = ""  # the generation that is current, and that this one goes out from
    resume: bool = True
    max_instances: int = 0
    crawl: Crawl = field(default_factory=Crawl)
    rules: str = "ours"
    max_removed: float = 0.1
    model: str = "ngrams-1"
    device: str = "cpu"
    nlist: int = 0
    neighbours: int = 20
    keep_staging: bool = False

    @property
    def name(self) -> str:
        return name_of(self.fence)

    @property
    def folder(self) -> Path:
        return self.prod / self.name

    @property
    def staging(self) -> Path:
        return self.prod / "staging.db"

    @property
    def notes(self) -> Notes:
        return Notes(self.prod, self.name)

    @property
    def production(self) -> str | None:
        return str(self.prod / self.base / CATALOG) if self.base else None

    @property
    def embeds_on(self) -> str:
        """N-grams are counted, and not computed: a GPU is for models, and for the index."""
        return "cuda" if self.device == "gpu" and self.model != DEFAULT else "cpu"

    def to_json(self) -> Facts:
        return {**asdict(self), "prod": str(self.prod), "crawl": self.crawl.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Update:
        return cls(**{**value, "prod": Path(value["prod"]), "crawl": Crawl.from_json(value["crawl"])})


def attempt(update: Update, ledger: Ledger, lease: Lease) -> Update:
    """The same update in the hands of the attempt that has this lease, going out from what is current now."""
    owned(update.prod, lease.resource)
    base = ledger.generations.current(lease.resource) or ""
    if base and not (update.prod / base).is_dir():
        if update.resume:
            raise BadInput(
                f"{base} of {lease.resource} is not in {update.prod}: name the folder where it lies, or begin anew "
                "with nothing (--fresh, or resume=false)"
            )
        base = ""
    return replace(update, fence=lease.fence, base=base)


def owned(prod: Path, resource: str) -> None:
    """A folder is one catalogue's: under two names, two updates would write to the same staging at once."""
    path = prod / OWNER
    if not path.is_file():
        try:
            write_atomically(path, [canonical_json({"resource": resource})])
        except OSError as error:
            raise BadInput(f"{prod} cannot be written: {error.strerror}; name another folder") from error
    owner = json.loads(path.read_bytes())["resource"]
    if owner != resource:
        raise BadInput(f"{prod} is the folder of {owner}, and not of {resource}: name another folder")


@contextmanager
def disowned_if_refused(prod: Path) -> Iterator[None]:
    """The folder is nobody's again where nothing is in it: what was refused may have borne the wrong name."""
    try:
        yield
    except DailiesError as error:
        if not isinstance(error, Transient) and [path.name for path in prod.iterdir()] == [OWNER]:
            (prod / OWNER).unlink()
        raise


# ── what is new ───────────────────────────────────────────────────────────────────────────────────────────────────────


def begin(update: Update, progress: Progress) -> Facts:
    """Who is to be asked, and a staging database: a fresh one, or what an update left that did not come to its end."""
    with disowned_if_refused(update.prod):
        embedder(update.model, update.embeds_on)  # what is not there is said before the work and not after it
        assigner(update.device)
        rule_set(update.rules)
        hosts = read_whitelist(update.whitelist)
        chosen = hosts[: update.max_instances] if update.max_instances else hosts
        refuse_private(chosen, update.crawl.allow_private)
    begun = begin_staging(update.staging, update.production, chosen, update.as_of, update.resume)
    return {"hosts": len(chosen), "listed": len(hosts), **begun}


def instances(update: Update, progress: Progress) -> Facts:
    with closing(connect(update.staging, "staging")) as database:
        hosts = [host for (host,) in database.execute("SELECT host FROM instances ORDER BY host")]
    return crawl.crawl_instances(update.staging, hosts, update.crawl, progress)


def channels(update: Update, progress: Progress) -> Facts:
    return crawl.crawl_channels(update.staging, update.crawl, progress)


def videos(update: Update, progress: Progress) -> Facts:
    return crawl.crawl_videos(update.staging, update.production, update.crawl, progress)


def counts(update: Update, progress: Progress) -> Facts:
    return crawl.count_videos(update.staging, update.crawl, progress)


def embeddings(update: Update, progress: Progress) -> Facts:
    def copied() -> None:
        if update.base:
            copy_ahead(update.prod, update.name, update.base)

    with beside(copied):
        return build_embeddings(str(update.staging), update.production, update.model, update.embeds_on, progress)


# ── the next generation ───────────────────────────────────────────────────────────────────────────────────────────────


def merged(update: Update, progress: Progress) -> Facts:
    """What was gathered, on a copy of production, in one transaction."""
    failpoint("catalog.before_merge")

    def make() -> Facts:
        prepare(update.prod, update.name, update.base or None)
        return merge(update.staging, update.folder / CATALOG, update.rules, update.max_removed, progress)

    def asked() -> list[Any]:
        digest_of_all = staging_digest(update.staging)
        return [update.base, digest_of_all, update.model, update.rules, update.max_removed, update.as_of]

    return update.notes.made(CATALOG, asked, make)


def ranked(update: Update, progress: Progress) -> Facts:
    """With it the database is finished. What ends it half way leaves it torn: then it is merged again."""
    if not update.notes.of(CATALOG):
        merged(update, progress)
    found = update.notes.known(CATALOG)
    if "ranked" not in found:
        update.notes.path(CATALOG).unlink()
        ranks = rank(update.folder / CATALOG, update.as_of, progress)
        found = {"facts": found["facts"], "key": found["key"], "ranked": ranks}
        update.notes.write(CATALOG, found)
    return dict(found["ranked"])


def index(update: Update, progress: Progress) -> Facts:
    def make() -> Facts:
        files, old = (update.folder / CATALOG, update.folder / INDEX), before(update, INDEX)
        try:
            with beside(lambda: finished(update, CATALOG)):
                return build_index(*files, update.nlist, update.device, old, progress, told=True)
        except Exception:
            checked(update)  # what is wrong may be the database
            raise

    def asked() -> list[Any]:
        return [finished(update, CATALOG), update.base, update.nlist, update.device]

    with doubting(update):
        facts = update.notes.made(INDEX, asked, make)
        finished(update, INDEX)
    return facts


def finished(update: Update, file: str) -> str:
    """It is on the disk and bears its digest, which is returned: from here on a later attempt may take it over."""
    path, found = update.folder / file, update.notes.known(file)
    if "sha256" not in found:
        try:
            sync(path)
        except OSError as error:
            raise no_room(path, error) from error
        update.notes.amend(file, sha256=file_digest(path))
    return str(update.notes.known(file)["sha256"])


def similar(update: Update, progress: Progress) -> Facts:
    failpoint("catalog.after_merge_before_similarity")

    def make() -> Facts:
        files = update.folder / INDEX, update.folder / SIMILAR
        with beside(lambda: checked(update)):
            return find_neighbours(*files, update.neighbours, before(update, SIMILAR), progress)

    with doubting(update):
        facts = update.notes.made(SIMILAR, lambda: [finished(update, INDEX), update.base, update.neighbours], make)
        finished(update, SIMILAR)
    return facts


def checked(update: Update) -> None:
    if "checked" not in update.notes.known(CATALOG):
        check_catalog(update.folder / CATALOG, deep=before(update, INDEX) is None)
        update.notes.amend(CATALOG, checked=True)


@contextmanager
def doubting(update: Update) -> Iterator[None]:
    """Of a database that is damaged nothing is taken over, and neither is the index of it: both are made again."""
    try:
        yield
    except Damaged:
        update.notes.forget(INDEX, CATALOG)
        raise


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """On a second thread. Its error comes before any other, which may be a consequence; but not before an interrupt."""
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            yield
        except Exception:
            working.result()
            raise
        working.result()


def before(update: Update, file: str) -> Path | None:
    """The same file of the generation that this one goes out from. A production that was brought here from elsewhere
    is a database and nothing else."""
    path = update.prod / update.base / file
    return path if update.base and path.is_file() else None


def completed(update: Update, progress: Progress) -> Facts:
    """Whole, on the disk, and read-only: from here on it may be made current."""
    about, database = update.notes.known(INDEX)["facts"], update.notes.known(CATALOG)["facts"]
    meta = {
        "as_of": update.as_of,
        "dim": about["dim"],
        "index": about,
        "model": about["model"],
        "neighbours": update.neighbours,
        "previous": update.base or None,
        "staging_digest": database["staging_digest"],
        "total": about["total"],
    }
    with doubting(update):  # who took the other files over may have merged anew
        digests = {file: finished(update, file) for file in FILES}
        checked(update)
    return {"digest": complete(update.folder, meta, digests), "total": about["total"]}


STAGES: Mapping[str, Callable[[Update, Progress], Facts]] = {
    "begin": begin,
    "instances": instances,
    "channels": channels,
    "videos": videos,
    "counts": counts,
    "embeddings": embeddings,
    "merge": merged,
    "popularity": ranked,
    "index": index,
    "similar": similar,
    "complete": completed,
}


def run_stage(stage: str, update: Mapping[str, Any], progress: Progress) -> Facts:
    """One stage as a child process runs it."""
    return STAGES[stage](Update.from_json(update), progress)


def make_current(update: Update, ledger: Ledger, lease: Lease, how: str, job: str = "") -> None:
    """The one moment in which the catalogue changes: a fenced pointer, that an older attempt cannot turn back.

    Whoever serves is stopped before, and it is ``serve`` that starts it again.
    """
    service(how, update.prod).stop()
    try:
        # Before and not after: the attempt may die right behind the pointer.
        write(update.prod / PUBLISHED, {"generation": update.name, "job": job})
        publish(ledger, lease, update.prod, update.name)
    except BaseException:
        serve(update, ledger, lease, how)
        raise


def serve(update: Update, ledger: Ledger, lease: Lease, how: str) -> None:
    """What is current is whole, whatever became of an update."""
    current = ledger.generations.current(lease.resource)
    if current is not None:
        service(how, update.prod).start(update.prod / current)


def published_by(update: Update, job: str) -> bool:
    """Whether what is current is this job's own: an attempt before this one died behind the publication."""
    path = update.prod / PUBLISHED
    made_by = {"generation": update.base, "job": job}
    return bool(update.base) and path.is_file() and json.loads(path.read_bytes()) == made_by


def clear_away(update: Update, ledger: Ledger, resource: str) -> list[str]:
    """What was gathered is published now, and old generations go, but those that somebody reads; returns these."""
    if update.keep_staging and update.staging.is_file():
        with closing(connect(update.staging, "staging", write=True)) as database:
            database.execute("PRAGMA journal_mode = DELETE")  # all of it in the one file that is moved
        update.staging.rename(update.prod / f"staging-{update.name}.db")
    for suffix in ("", "-journal", "-wal", "-shm"):
        update.staging.with_name(update.staging.name + suffix).unlink(missing_ok=True)
    shutil.rmtree(update.prod / NOTED, ignore_errors=True)
    return sweep(update.prod, ledger, resource, KEPT)
