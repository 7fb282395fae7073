"""Killed and recovered, beside DBOS Transact: the same chunks of the same talk, the same kills, in one run.

A talk of keypad tones is cut into chunks, each is heard, the words are joined: by transcribe-media, by a DBOS workflow
whose steps are the chunks (SQLite, its defaults), and by a bare loop. One chunk at a time. All three run in processes
that were forked with their code imported; what importing costs stands beside it.

A kill is SIGKILL to oneself at a failpoint of the same name on both sides: a chunk is heard and not yet on record, or
it has just been recorded. What was heard how often is counted by the engine, what was finished by each side's own
record. They notice a death in different ways: here the lease expires and a sweep hands the job on, while DBOS continues
what is pending when its executor is started again, which this benchmark does as soon as the dead process is reaped.
That time is a figure of its own, and the work from there on is another. Flows run without Prefect's heartbeat, whose
thread costs a second at the end of every one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._report import Figure, median, options, report
from benchmarks._talk import (
    DONE,
    Counts,
    bare_loop,
    count,
    hearings,
    places,
    resumed_at,
    unit_ms,
    upper_bound,
)
from benchmarks.step_overhead import own_server
from dailies.failpoints import fired
from dailies.scenarios.processes import Child, Nursery
from dailies.speech.dtmf import TALLY
from dailies.speech.sample import make_talk

if TYPE_CHECKING:
    from dailies.ledger.records import Job

PHRASES, KEYS = 12, 150
STEPS = PHRASES + 7
LOOK_S = 0.05
LONGEST_S = 120.0
PRELOADED = ("benchmarks._dailies", "benchmarks._dbos")
IMPORTS = {"transcribe-media": "flows.transcribe_media", "DBOS": "dbos"}
IMPORT_ROUNDS = 3
RESUME_S = 1.0
MISSING = "dbos is not installed here: pip install -c constraints.txt -e '.[dev]'"


# ── the two sides ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Stage:
    """What both sides are given: the talk, a folder, and children that do not outlive the benchmark."""

    place: Path
    talk: Path
    nursery: Nursery
    url: str
    files: int = field(default=0)

    def spawn(self, target: Any, *arguments: Any, tally: Path) -> Child:
        return self.nursery.spawn(target, *arguments, env={TALLY: str(tally)}, log=self.place / "children.log")

    def path(self, kind: str) -> Path:
        self.files += 1
        return self.place / f"{self.files}.{kind}"


class Side(ABC):
    """One of the two that are compared. ``name`` is of one job, which may take two processes."""

    title: str
    about: str
    notices: str
    resumes: str
    promised: bool
    """Whether a target of ours is held against it."""
    records: Any

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @abstractmethod
    def start(self, name: str, tally: Path, times: Path, faults: str = "") -> tuple[Child, Path]:
        """A process that does the job, or goes on with it; and the log of its failpoints."""

    @abstractmethod
    def notice(self, name: str) -> None:
        """Until this side may go on with a job whose process is dead."""

    @abstractmethod
    def done_at(self, name: str, times: Path) -> float:
        """When the job was on record as done."""


class Dailies(Side):
    title = "dailies"
    about = "a flow run, heard in a child, files synced"
    notices = f"lease 1 s, sweep {LOOK_S} s (as shipped: 6 s, 1 s)"
    resumes = "a fork, a flow run, a child that hears"
    promised = True

    def __init__(self, stage: Stage) -> None:
        from benchmarks import _dailies

        super().__init__(stage)
        self.module = _dailies
        self.records = _dailies.Records()

    def start(self, name: str, tally: Path, times: Path, faults: str = "") -> tuple[Child, Path]:
        job = self.records.job(name) if name in self.records.jobs else self.records.submit(name, self.stage.talk)
        log = self.stage.path("faults")
        return self.stage.spawn(self.module.worker, job, self.stage.url, faults, log, times, tally=tally), log

    def notice(self, name: str) -> None:
        dead: Job = self.records.job(name)
        deadline = time.monotonic() + LONGEST_S
        while not self.records.sweep(name, dead):
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody recovered the job {dead.id}")
            time.sleep(LOOK_S)
        self.records.claim(name)

    def done_at(self, name: str, times: Path) -> float:
        return float(self.records.done_at(name))


class Dbos(Side):
    title = "DBOS"
    about = "launch and workflow, heard in process"
    notices = "started again when reaped (its Conductor: 60 s)"
    resumes = "a fork, its launch, its queue once a second"
    promised = False

    def __init__(self, stage: Stage) -> None:
        from benchmarks import _dbos

        super().__init__(stage)
        self.module = _dbos
        self.records = _dbos.Records(stage.place)

    def start(self, name: str, tally: Path, times: Path, faults: str = "") -> tuple[Child, Path]:
        log = self.stage.path("faults")
        arguments = (self.stage.place, name, str(self.stage.talk), faults, log, times)
        return self.stage.spawn(self.module.worker, *arguments, tally=tally), log

    def notice(self, name: str) -> None:
        """Whoever runs it has seen its process end."""

    def done_at(self, name: str, times: Path) -> float:
        """As its process sees it, which looks every 10 ms: on SQLite its own record has whole seconds."""
        return span(times)[1]


# ── one job ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Wanted:
    sounds: frozenset[str]
    subtitles: str


@dataclass(frozen=True)
class Recovery:
    """One job that was killed once; the times are seconds since it died."""

    point: str
    noticed: float
    resumed: float
    done: float
    counts: Counts
    same: bool


@dataclass(frozen=True)
class Undisturbed:
    took: float
    unit_ms: float


def killed(side: Side, number: int, point: str, chunk: int, wanted: Wanted) -> Recovery:
    name, tally, times = f"killed-{number}", side.stage.path("tally"), side.stage.path("times")
    child, log = side.start(name, tally, times, f"{point}#{chunk}=kill")
    code, evidence = child.wait(LONGEST_S), fired(log)
    if not evidence:
        raise RuntimeError(f"{side.title} ended with {code} and never came to {point}\n{last_words(side.stage)}")
    died, finished = float(str(evidence[0]["time"])), side.records.finished(name)
    side.notice(name)
    noticed = time.time()
    ended(side, side.start(name, tally, times)[0])
    heard = hearings(tally)
    return Recovery(
        point,
        noticed - died,
        resumed_at(heard, died) - died,
        side.done_at(name, times) - died,
        count(heard, died, finished, wanted.sounds),
        side.records.subtitles(name) == wanted.subtitles,
    )


def undisturbed(side: Side, number: int, wanted: Wanted) -> Undisturbed:
    name, tally, times = f"whole-{number}", side.stage.path("tally"), side.stage.path("times")
    ended(side, side.start(name, tally, times)[0])
    if side.records.subtitles(name) != wanted.subtitles:
        raise RuntimeError(f"{side.title} made another transcript than the bare loop")
    return Undisturbed(taken(times), unit_ms(hearings(tally)))


def by_loop(stage: Stage) -> tuple[Undisturbed, Wanted]:
    tally, times, out = stage.path("tally"), stage.path("times"), stage.path("chunks")
    finish(stage, stage.spawn(bare_loop, str(stage.talk), str(out), times, tally=tally), "the bare loop")
    heard = hearings(tally)
    wanted = Wanted(frozenset(one.sound for one in heard), (out / "transcript.srt").read_text())
    return Undisturbed(taken(times), unit_ms(heard)), wanted


def empty_flow(stage: Stage) -> float:
    from benchmarks._dailies import empty_flow

    times = stage.path("times")
    finish(stage, stage.spawn(empty_flow, STEPS, stage.url, times, tally=stage.path("tally")), "the empty flow")
    return taken(times)


def ended(side: Side, child: Child) -> None:
    finish(side.stage, child, side.title)


def finish(stage: Stage, child: Child, what: str) -> None:
    if (code := child.wait(LONGEST_S)) != 0:
        raise RuntimeError(f"{what} ended with {code}\n{last_words(stage)}")


def last_words(stage: Stage) -> str:
    return "\n".join((stage.place / "children.log").read_text().splitlines()[-20:])


def taken(times: Path) -> float:
    begun, ended = span(times)
    return ended - begun


def span(times: Path) -> tuple[float, float]:
    found = json.loads(times.read_text())
    return float(found["begun"]), float(found["ended"])


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(chosen: argparse.Namespace) -> list[Figure]:
    if importlib.util.find_spec("dbos") is None:
        sys.exit(MISSING)
    with stage() as found:
        sides: list[Side] = [Dailies(found), Dbos(found)]
        try:
            return [*whole_figures(found, sides, chosen.rounds), *killed_figures(found, sides, chosen.kills)]
        finally:
            for side in sides:
                side.records.close()


@contextmanager
def stage() -> Iterator[Stage]:
    with own_server() as url, Nursery(PRELOADED) as nursery:
        place = Path(os.environ["DAILIES_HOME"]) / "recovery"
        place.mkdir()
        logging.getLogger("dailies.supervisor").setLevel(logging.ERROR)  # it would tell of every kill
        make_talk(place / "talk.wav", PHRASES, keys=KEYS)
        yield Stage(place, place / "talk.wav", nursery, url)


def whole_figures(stage: Stage, sides: Sequence[Side], rounds: int) -> list[Figure]:
    """What each costs over the bare loop where nothing goes wrong."""
    loops: list[Undisturbed] = []
    empty: list[float] = []
    whole: dict[str, list[Undisturbed]] = {side.title: [] for side in sides}
    for number in range(rounds + 1):  # the first warms up
        loop, wanted = by_loop(stage)
        loops.append(loop)
        for side in sides:
            whole[side.title].append(undisturbed(side, number, wanted))
        empty.append(empty_flow(stage))
    loops = loops[1:]
    return [
        *(import_figure(title, module) for title, module in IMPORTS.items()),
        median(
            "no fault: the bare loop",
            [one.took for one in loops],
            "s",
            note=f"{PHRASES} chunks, n={rounds}; {statistics.median(one.unit_ms for one in loops):.0f} ms a chunk",
        ),
        *(figure for side in sides for figure in cost_figures(side, whole[side.title][1:], loops)),
        median("no fault: a Prefect flow with nothing in it", empty[1:], "s", note=f"{STEPS} empty tasks, server up"),
    ]


def cost_figures(side: Side, whole: Sequence[Undisturbed], loops: Sequence[Undisturbed]) -> list[Figure]:
    """Against the loop's median: a busy machine makes two of its own rounds differ by more than a step costs."""
    job = [one.took - statistics.median(loop.took for loop in loops) for one in whole]
    unit = [one.unit_ms - statistics.median(loop.unit_ms for loop in loops) for one in whole]
    all_of_it = statistics.median(one.took for one in whole)
    return [
        median(f"no fault: {side.title} over the bare loop", job, "s", note=f"{all_of_it:.2f} s in all; {side.about}"),
        median(f"no fault: {side.title} over the bare loop, a chunk", unit, "ms", note="from one hearing to the next"),
    ]


def import_figure(title: str, module: str) -> Figure:
    command = [sys.executable, "-c", f"import {module}"]
    took = [timed_run(command) for _ in range(IMPORT_ROUNDS + 1)][1:]  # the first reads the disk
    return median(f"a new process until {title} is imported", took, "s", note="in none of the figures below")


def timed_run(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def killed_figures(stage: Stage, sides: Sequence[Side], kills: int) -> list[Figure]:
    wanted = by_loop(stage)[1]
    found: dict[str, list[Recovery]] = {side.title: [] for side in sides}
    for number, (point, chunk) in enumerate(places(kills, PHRASES)):
        for side in sides:
            found[side.title].append(killed(side, number, point, chunk, wanted))
    return [figure for side in sides for figure in recovery_figures(side, found[side.title])]


def recovery_figures(side: Side | type[Side], found: Sequence[Recovery]) -> list[Figure]:
    """The upper end of the rounds is the worst of them."""
    n = f"n={len(found)}"
    never = f"{n}: at 95 % below {upper_bound(len(found)):.0%}"
    in_flight = sum(one.point == DONE for one in found)
    times = [
        ("kill → noticed", [one.noticed for one in found], None, f"{n}; {side.notices}"),
        ("noticed → first chunk", [one.resumed - one.noticed for one in found], RESUME_S, f"{n}; {side.resumes}"),
        ("noticed → done", [one.done - one.noticed for one in found], None, n),
        ("kill → first chunk", [one.resumed for one in found], None, n),
        ("kill → done", [one.done for one in found], None, n),
    ]
    totals = [
        ("finished chunks heard again", sum(one.counts.duplicates for one in found), 0, never),
        ("chunks in flight heard again", sum(one.counts.redone for one in found), in_flight, f"{in_flight} were"),
        ("chunks lost", sum(one.counts.lost for one in found), 0, never),
        ("transcripts unlike the bare loop's", sum(not one.same for one in found), 0, never),
    ]
    return [
        *(
            median(f"{side.title}: {what}", took, "s", **held(side, most), note=note)
            for what, took, most, note in times
        ),
        *(
            Figure(f"{side.title}: {what}", total, "", **held(side, most), note=note)
            for what, total, most, note in totals
        ),
    ]


def held(side: Side | type[Side], most: float | None) -> dict[str, Any]:
    return {"at_most": most} if side.promised else {}


if __name__ == "__main__":
    parser = options("Killed and recovered: dailies and DBOS Transact")
    parser.add_argument("--kills", type=int, default=20, help="of each side (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="without a kill (default 5)")
    report(parser, measure)
