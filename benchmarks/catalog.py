"""The catalogue of a million videos: built whole, then brought up to date where one in a hundred is new.

The videos are made up (see _catalog_data.py) and put where a crawl would have put them. From there on everything is the
updater's own: each stage as the flow calls it, in a child process whose memory is its own. Beside it stands the barest
way to the same end: one SQL statement that fills the same tables, and FAISS called as its manual has it. The crawl is
measured apart, on a federation of twenty hosts of this machine that count how much is asked of them at once.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil

from benchmarks._catalog_data import BEGINNING, DAY_MS, World, first_day, next_day
from benchmarks._catalog_plain import bare_merge, search_figures
from benchmarks._catalog_plot import growth_png
from benchmarks._report import Figure, options, report
from dailies.catalog import crawl
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.notes import FOLDER as NOTED
from dailies.catalog.reader import CATALOG
from dailies.catalog.schema import connect
from dailies.catalog.staging import begin_staging
from dailies.catalog.update import Update, run_stage
from dailies.compute.child import Child
from dailies.scenarios.federation import Federation

MIB = 1 << 20
MILLION, QUICK = 1_000_000, 20_000
SMALLER = (10_000, 100_000)
STAGES = ("embeddings", "merge", "popularity", "index", "similar", "complete")
LONGEST_S = 3600.0
LOOK_S = 0.1
HEARD_S = 1.0
HOSTS, CRAWLED, AT_ONCE_FOR_A_HOST = 20, 10_000, 2
UPDATE_SHARE = 0.1
GROWTH = Path("build/catalog-growth.png")


@dataclass
class Pass:
    """What one update took: seconds, the processor's seconds and the answer of each stage, and the most memory that any
    of them had. The processor's say more where the machine has other work."""

    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak: int = 0
    busiest: str = ""

    @property
    def wall(self) -> float:
        return sum(self.seconds.values())


def tell(what: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()


def stage(name: str, update: dict[str, Any], progress: Callable[[float], None] = lambda part: None) -> dict[str, Any]:
    """As a child process runs it."""
    return run_stage(name, update, progress)


def run(update: Update, label: str) -> Pass:
    """In one process for all stages, as the flow has it."""
    done, child = Pass(), Child("benchmarks.catalog:stage")
    try:
        for name in STAGES:
            begin = time.perf_counter()
            with watched(child.process.pid) as seen:
                done.facts[name] = child.call({"name": name, "update": update.to_json()}, LONGEST_S, None, nobody)
            done.seconds[name] = time.perf_counter() - begin
            done.busy[name] = seen.busy
            if seen.peak > done.peak:
                done.peak, done.busiest = seen.peak, name
            took = f"{done.seconds[name]:.1f} s ({seen.busy:.1f} s of the processor), {seen.peak // MIB} MiB"
            tell(f"{label}: {name} {took}, {said(done.facts[name])}")
    finally:
        child.end()
    return done


def nobody(part: float) -> None:
    """The stages tell how far they are; the benchmark tells when they are done."""


def said(facts: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in facts.items() if isinstance(value, bool | int | float))


@dataclass
class Seen:
    before: float
    peak: int = 0
    busy: float = 0.0

    def look(self, process: psutil.Process) -> None:
        self.peak = max(self.peak, process.memory_info().rss)
        self.busy = worked(process) - self.before


def worked(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def watched(pid: int) -> Iterator[Seen]:
    """The most memory that a process has had, looked at ten times a second, and how long it was at work."""
    process, over = psutil.Process(pid), Event()
    seen = Seen(worked(process))

    def look() -> None:
        while not over.wait(LOOK_S):
            seen.look(process)

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
        seen.look(process)  # it waits for the next call
    finally:
        over.set()
        thread.join()


@dataclass
class Built:
    world: World
    prod: Path
    whole: Pass
    later: Pass
    day: dict[str, int]
    size: int

    @property
    def share(self) -> float:
        return self.later.wall / self.whole.wall

    @property
    def busy_share(self) -> float:
        return sum(self.later.busy.values()) / max(0.01, sum(self.whole.busy.values()))


def build(place: Path, videos: int) -> Built:
    """A first generation, and a second one of the next day."""
    world, prod = World(videos), place / f"prod-{videos}"
    prod.mkdir()
    hosts = [f"host-{number}.example" for number in range(world.hosts)]
    first = Update(prod, "", BEGINNING, fence=1)
    begin = time.perf_counter()
    begin_staging(first.staging, None, hosts, first.as_of, False)
    first_day(world, first.staging)
    tell(f"{videos:,} videos made up in {time.perf_counter() - begin:.1f} s")
    whole = run(first, f"{videos:,} whole")
    second = Update(prod, "", BEGINNING + DAY_MS, fence=2, base=first.name)
    first.staging.rename(prod / "first.db")
    shutil.rmtree(prod / NOTED)  # as whoever publishes does
    begin_staging(second.staging, second.production, hosts, second.as_of, False)
    day = next_day(world, second.staging, first.folder / CATALOG)
    later = run(second, f"{videos:,} update")
    size = sum(path.stat().st_size for path in first.folder.iterdir())
    return Built(world, prod, whole, later, day, size)


# ── the crawl ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def crawl_figures(place: Path, hosts: int, videos: int) -> list[Figure]:
    with Federation(seed=1, hosts=hosts, videos=videos) as federation:
        staging = place / "crawl.db"
        begin_staging(staging, None, federation.hosts, federation.as_of, False)
        chosen = Crawl(concurrency=hosts, page=100, allow_private=True, schemes=("http",))
        begin = time.perf_counter()
        crawl.crawl_instances(staging, federation.hosts, chosen)
        crawl.crawl_channels(staging, chosen)
        crawl.crawl_videos(staging, None, chosen)
        crawl.count_videos(staging, chosen)
        seconds = time.perf_counter() - begin
        counted = federation.counters()
    with closing(connect(staging, "staging")) as database:
        found = database.execute("SELECT count(*) FROM videos").fetchone()[0]
    hosts_counted = counted["hosts"].values() if isinstance(counted["hosts"], dict) else counted["hosts"]
    asked = sum(each["requests"] for each in hosts_counted)
    most = max(each["most_at_once"] for each in hosts_counted)
    return [
        Figure("crawl", asked / seconds, "requests/s", note=f"{found:,} videos of {hosts} hosts in {seconds:.1f} s"),
        Figure("crawl: at once for one host", most, "", at_most=AT_ONCE_FOR_A_HOST, note="as the hosts counted"),
    ]


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole_figures(built: Built, bare_s: float) -> list[Figure]:
    whole, later, world = built.whole, built.later, built.world
    tables = whole.facts["merge"]["tables"].values()
    rows = sum(table["inserted"] for table in tables)
    merge_s = whole.seconds["merge"]
    about = later.facts["similar"]
    day = ", ".join(f"{count:,} {what}" for what, count in built.day.items())
    return [
        Figure("full build", whole.wall, "s", note=f"{world.videos:,} videos, {built.size // MIB:,} MiB"),
        *stage_figures("full build", whole),
        Figure("update", later.wall, "s", note=day),
        *stage_figures("update", later),
        Figure(
            "update against the full build",
            built.share,
            "×",
            at_most=UPDATE_SHARE if world.videos >= MILLION else None,  # for few, the share is of fixed costs
            note=f"wall time; of the processor's time {built.busy_share:.3f}",
        ),
        Figure("merge", rows / merge_s, "rows/s", note=f"{rows:,} rows, with the digest of all of them"),
        Figure("merge: bare SQL", rows / bare_s, "rows/s", note="the same rows, one INSERT a table"),
        Figure(
            "similar: all",
            world.videos / whole.seconds["similar"],
            "videos/s",
            note=f"recall {whole.facts['similar']['recall']:.4f}, written and synced",
        ),
        Figure("similar: update", about["searched"], "searched", note=f"{about['gained']:,} others gained one"),
        Figure("peak memory, full build", whole.peak / MIB, "MiB", note=f"in {whole.busiest}"),
        Figure("peak memory, update", later.peak / MIB, "MiB", note=f"in {later.busiest}"),
    ]


def stage_figures(what: str, done: Pass) -> list[Figure]:
    return [
        Figure(f"{what}: {name}", seconds, "s", note=f"{done.busy.get(name, 0.0):.1f} s of the processor")
        for name, seconds in done.seconds.items()
    ]


def copy_figure(built: Built) -> Figure:
    from dailies.catalog.generation import copy

    source, target = built.prod / "gen-000001" / CATALOG, built.prod / "copy.db"
    begin = time.perf_counter()
    way = copy(source, target)
    seconds = time.perf_counter() - begin
    target.unlink()
    return Figure("copy of the generation's database", source.stat().st_size / MIB / seconds, "MiB/s", note=way)


def measure(chosen: argparse.Namespace) -> list[Figure]:
    videos = min(chosen.videos, QUICK) if chosen.quick else chosen.videos
    crawled = (4, 400) if chosen.quick else (HOSTS, CRAWLED)
    with folder() as place:
        figures = crawl_figures(place, *crawled)
        tell(f"crawl: {figures[0].value:.0f} requests/s")
        growth = []
        for size in [*(size for size in SMALLER if size < videos), videos]:
            built = build(place, size)
            growth.append((size, built.whole.wall, built.later.wall, built.whole.peak / MIB))
            if size < videos:
                shutil.rmtree(built.prod)
        bare_s = bare_merge(built.prod / "first.db", place)
        searched = built.prod / "gen-000001", built.whole.facts["index"], built.whole.seconds["index"]
        figures += [*whole_figures(built, bare_s), copy_figure(built), *search_figures(*searched)]
    for size, whole, later, peak in growth[:-1]:
        note = f"update {later:.1f} s ({later / whole:.0%}), {peak:.0f} MiB"
        figures.append(Figure(f"full build of {size:,}", whole, "s", note=note))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_bytes(growth_png(growth))
    tell(f"growth drawn in {chosen.out}")
    return figures


@contextmanager
def folder() -> Iterator[Path]:
    """It goes also when this is asked to end, and asked again while it goes: gigabytes."""
    asked = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    for number, before in asked.items():
        if before != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        with tempfile.TemporaryDirectory(prefix="dailies-catalog-") as name:
            try:
                yield Path(name)
            finally:
                for number in asked:
                    signal.signal(number, signal.SIG_IGN)
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        for number, before in asked.items():
            signal.signal(number, before)


def end(number: int, frame: Any) -> None:
    """Python drops what is raised while it clears an object away, so this is raised until it has been heard."""
    signal.setitimer(signal.ITIMER_REAL, HEARD_S)
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser = options("The catalogue of a million videos")
    parser.add_argument("--videos", type=int, default=MILLION, metavar="N")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} videos at most, and a small crawl")
    parser.add_argument("--out", type=Path, default=GROWTH, metavar="PNG", help="growth, as a plot")
    try:
        report(parser, measure)
    except KeyboardInterrupt:
        sys.exit(130)
