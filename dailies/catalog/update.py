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

from dailies.canonical import canonical_json, digest, file_digest, write_atomically
from dailies.catalog import crawl
from dailies.catalog.clusters import assigner
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.embed import build_embeddings
from dailies.catalog.embedders import DEFAULT, embedder
from dailies.catalog.generation import (
    check_catalog,
    clone,
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
from dailies.catalog.rank import rank
from dailies.catalog.reader import CATALOG, FILES, INDEX, SIMILAR
from dailies.catalog.schema import connect
from dailies.catalog.service import service
from dailies.catalog.staging import begin_staging, staging_digest
from dailies.errors import BadInput, Conflict, DailiesError, Damaged, Transient
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
    return replace(update, fence=lease.fence, base=ledger.generations.current(lease.resource) or "")


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

    return made(update, CATALOG, asked, make)


def ranked(update: Update, progress: Progress) -> Facts:
    """With it the database is finished. What ends it half way leaves it torn: then it is merged again."""
    if not note_of(update, CATALOG):
        merged(update, progress)
    found = note_of(update, CATALOG)
    if "ranked" not in found:
        note_path(update, CATALOG).unlink()
        ranks = rank(update.folder / CATALOG, update.as_of, progress)
        found = {"facts": found["facts"], "key": found["key"], "ranked": ranks}
        note(update, CATALOG, found)
    return dict(found["ranked"])


def index(update: Update, progress: Progress) -> Facts:
    def make() -> Facts:
        files, old = (update.folder / CATALOG, update.folder / INDEX), before(update, INDEX)
        try:
            with beside(lambda: finished(update)):
                return build_index(*files, update.nlist, update.device, old, progress, told=True)
        except Exception:
            checked(update)  # what is wrong may be the database
            raise

    def asked() -> list[Any]:
        finished(update)
        return [sha256_of(update, CATALOG), update.base, update.nlist, update.device]

    with doubting(update):
        return made(update, INDEX, asked, make)


def finished(update: Update) -> None:
    """The database is on the disk and bears its digest: from here on a later attempt may take it over."""
    path = update.folder / CATALOG
    if "sha256" not in known_of(update, CATALOG):
        try:
            sync(path)
        except OSError as error:
            raise no_room(path, error) from error
        amend(update, CATALOG, sha256=file_digest(path))


def similar(update: Update, progress: Progress) -> Facts:
    failpoint("catalog.after_merge_before_similarity")

    def make() -> Facts:
        files = update.folder / INDEX, update.folder / SIMILAR
        with beside(lambda: checked(update)):
            return find_neighbours(*files, update.neighbours, before(update, SIMILAR), progress)

    with doubting(update):
        return made(update, SIMILAR, lambda: [sha256_of(update, INDEX), update.base, update.neighbours], make)


def checked(update: Update) -> None:
    if "checked" not in known_of(update, CATALOG):
        check_catalog(update.folder / CATALOG, deep=before(update, INDEX) is None)
        amend(update, CATALOG, checked=True)


@contextmanager
def doubting(update: Update) -> Iterator[None]:
    """Nobody takes over a database that is damaged, nor an index of it: both are made again. Of later attempts nothing
    is removed, for who finds this may have been frozen meanwhile."""
    try:
        yield
    except Damaged:
        for file in (CATALOG, INDEX):
            for path in notes_of(update, file):
                if path.name <= note_path(update, file).name:
                    path.unlink(missing_ok=True)
        raise


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
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
    about = known_of(update, INDEX)["facts"]
    meta = {
        "as_of": update.as_of,
        "dim": about["dim"],
        "index": about,
        "model": about["model"],
        "neighbours": update.neighbours,
        "previous": update.base or None,
        "staging_digest": known_of(update, CATALOG)["facts"]["staging_digest"],
        "total": about["total"],
    }
    with doubting(update):  # who took the other files over may have merged anew
        finished(update)
        checked(update)
    digests = {file: sha256_of(update, file) for file in FILES}
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
    shutil.rmtree(update.prod / NOTES, ignore_errors=True)
    return sweep(update.prod, ledger, resource, KEPT)


# ── what an attempt before this one has made ──────────────────────────────────────────────────────────────────────────

NOTES = "made"
FORMAT = 2  # of the files: what an older program made of them is not taken over


def made(update: Update, file: str, asked: Callable[[], list[Any]], make: Callable[[], Facts]) -> Facts:
    """``file`` of this attempt's own folder: taken over from an attempt that died after it had made it, or made now.

    Taken over is a copy, and never the file itself: who is only frozen may still write to his. Only what is finished
    is, and bears its digest. What it was made of and for is not ``asked`` before somebody has made one.
    """
    key = key_of(asked) if notes_of(update, file) else ""
    if key and (note_of(update, file).get("key") == key or take_over(update, file, key)):
        return dict(note_of(update, file)["facts"])
    found: Facts = {"facts": make()}
    found["key"] = key or key_of(asked)
    if file != CATALOG:
        found["sha256"] = file_digest(update.folder / file)
    note(update, file, found)
    return dict(found["facts"])


def key_of(asked: Callable[[], list[Any]]) -> str:
    return digest([FORMAT, *asked()])


def take_over(update: Update, file: str, key: str) -> bool:
    for path in notes_of(update, file):
        try:
            theirs = json.loads(path.read_bytes())
        except FileNotFoundError:  # whoever is only frozen takes his back before he ranks
            continue
        if theirs["key"] != key or "sha256" not in theirs:
            continue
        update.folder.mkdir(exist_ok=True)
        for left in update.folder.glob(".*"):  # half of something, or copied in vain
            left.unlink()
        try:
            clone(update.prod / path.name.partition(".")[0] / file, update.folder / file, theirs["sha256"])
        except Damaged:
            continue
        note(update, file, theirs)
        return True
    return False


def sha256_of(update: Update, file: str) -> str:
    return str(known_of(update, file)["sha256"])


def note_path(update: Update, file: str) -> Path:
    return update.prod / NOTES / f"{update.name}.{file}.json"


def notes_of(update: Update, file: str) -> list[Path]:
    """Of all attempts, the latest first."""
    return sorted((update.prod / NOTES).glob(f"gen-*.{file}.json"), reverse=True)


def note(update: Update, file: str, what: Facts) -> None:
    write(note_path(update, file), what)


def amend(update: Update, file: str, **more: Any) -> None:
    note(update, file, {**known_of(update, file), **more})


def known_of(update: Update, file: str) -> Facts:
    """What must have been noted by now: where it is gone, a later attempt took it away."""
    found = note_of(update, file)
    if not found:
        raise Conflict(f"{update.name} is out of date: a later attempt found that its {file} is damaged")
    return found


def note_of(update: Update, file: str) -> Facts:
    path = note_path(update, file)
    found: Facts = json.loads(path.read_bytes()) if path.is_file() else {}
    return found


def write(path: Path, what: Facts) -> None:
    try:
        write_atomically(path, [canonical_json(what)])
    except OSError as error:
        raise no_room(path, error) from error
