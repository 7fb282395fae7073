"""The failures of orchestrator-smoke: an update that is killed, broken or without room, and the next that repairs all.

Each lane has a federation of its own, whose answers are the same each time, so that its counters tell what one trial
has asked for, and every trial of a lane must come to the same bytes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dailies.failpoints import fired, passages
from dailies.ledger.records import Job
from dailies.scenarios.federation import Federation
from dailies.scenarios.federation_plan import Behaviour
from tasks.caption_parts import handed_on, remains
from tasks.contention import part
from tasks.scenario import SWEEP_S, Scenario
from tasks.smoke_catalogs import FIRST, NOBODY, TTL_S, UPDATE_S, Catalogue, Digests, Ground, digests, ground, served
from tasks.smoke_checks import left_behind
from tasks.smoke_plan import MAKES, Failure, made_before
from tasks.smoke_reader import Reader
from tasks.smoke_rows import opened

WATCHED = "; ".join(f"{name}=sleep(0)" for names in MAKES.values() for name in names)
FREEZE_S = 30.0
STEADY = {1: Behaviour("lying"), 2: Behaviour("slow", delay_s=0.01)}
HOSTS = 4
LOOKS = 5

Pages = dict[tuple[str, str], dict[str, int]]


@dataclass
class Lane:
    """``undisturbed``: what an update comes to that nothing befalls."""

    run: Scenario
    ground: Ground
    undisturbed: Digests
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def lane(run: Scenario, number: int, videos: int) -> Iterator[Lane]:
    seed = run.journal.seed + 100 + number
    with Federation(seed, HOSTS, videos, STEADY, log=run.place / "whitelist-http.log") as federation:
        place = f"failures-{number}"
        made = ground(run, place, federation, lambda path: federation.mini_production(path, hosts_limit=2), {})
        reference = Catalogue(run, made, f"undisturbed-{number}")
        served(reference, reference.start())
        yield Lane(run, made, reference.digests())


@part("failures")
def fail_everywhere(run: Scenario, chosen: Sequence[Failure], number: int, videos: int) -> dict[str, Any]:
    """One lane: whatever befalls an update, the old generation is served until a new one is whole."""
    with run.journal.span(f"failures {number}", f"{len(chosen)} failures"), lane(run, number, videos) as own:
        for failure in chosen:
            play(own, failure)
    run.ledger.close()  # this thread's connection
    return own.records


def play(own: Lane, failure: Failure) -> None:
    run, name = own.run, failure.name.replace(":", "-").replace("_", "-").replace(".", "-").replace("#", "-")
    run.journal.fault(failure.told)
    trial = Trial(own, failure, Catalogue(run, own.ground, name))
    own.ground.federation.forget()
    began = time.monotonic()
    with ExitStack() as stack:
        trial.reader = stack.enter_context(Reader(trial.catalogue))
        {
            "stage": trial.in_stage,
            "run": trial.in_run,
            "step": trial.in_step,
            "disk": trial.on_disk,
            "zombie": trial.as_zombie,
        }[failure.where]()
    trial.judge()
    own.records[failure.name] = {
        "rc": trial.code,
        "duration_ms": round((time.monotonic() - began) * 1000),
        "db_unchanged": trial.unchanged,
        "lock_released": trial.catalogue.holder == NOBODY,
    }
    shutil.rmtree(trial.catalogue.prod)


@dataclass
class Trial:
    own: Lane
    failure: Failure
    catalogue: Catalogue
    reader: Reader = field(init=False)
    code: int | None = None
    unchanged: bool = False
    attempts: int = 1
    finished: Pages = field(default_factory=dict)
    """Pages of channels that were read to their end, at the moment of the failure."""

    @property
    def run(self) -> Scenario:
        return self.own.run

    # ── what befalls it ───────────────────────────────────────────────────────────────────────────────────────────────

    def in_stage(self) -> None:
        """The run itself lives: its step tries again."""
        child = self.catalogue.start(in_stages=f"{self.failure.point}={self.failure.action}")
        log = self.catalogue.fault_log(1)
        self.run.until(lambda: bool(fired(log)) or not child.alive, UPDATE_S, f"{child.name} came to no end")
        self.look()
        self.fired(f"pid {fired(log)[0]['pid']} of a stage" if fired(log) else "")
        served(self.catalogue, child)
        self.code = child.exitcode

    def in_run(self) -> None:
        child = self.catalogue.start(f"{self.failure.point}={self.failure.action}")
        self.code = child.wait(UPDATE_S)
        self.fired(f"pid {child.pid} exit {self.code}" if fired(self.catalogue.fault_log(1)) else "")
        job = self.hand_on()
        served(self.catalogue, self.catalogue.start(in_stages=WATCHED, job=job))
        self.expect_made_once(passages(self.catalogue.fault_log(2)))

    def in_step(self) -> None:
        """An error, and the run lives: its step is tried again, and frozen on the way for a look at what is there."""
        again = self.failure.next
        child = self.catalogue.start(f"{self.failure.point}=raise; {again}=stop", in_stages=WATCHED)
        log = self.catalogue.fault_log(1)

        def acted() -> list[dict[str, object]]:
            return [entry for entry in fired(log) if entry["action"] in ("raise", "stop")]

        self.run.until(lambda: len(acted()) > 1 or not child.alive, UPDATE_S, f"{child.name} came to no end")
        self.fired(f"pid {child.pid} of the run" if acted() else "")
        self.expect("its step is tried again", len(acted()), 2, "an error that is worth another try is Transient")
        if child.alive:
            child.wait_frozen(FREEZE_S)
            self.look()
            child.revive()
        served(self.catalogue, child)
        self.code = child.exitcode
        raised = [entry["action"] for entry in passages(log)].index("raise")
        self.expect_made_once(passages(log)[raised:])

    def expect_made_once(self, passed: list[dict[str, object]]) -> None:
        again = {str(entry["name"]) for entry in passed} & made_before(self.failure)
        self.expect("no file that was finished is made again", sorted(again), [], "see made() in catalog/update.py")

    def as_zombie(self) -> None:
        """Frozen before it publishes, and awake again when its heir has published."""
        child = self.catalogue.start(f"{self.failure.point}={self.failure.action}")
        log = self.catalogue.fault_log(1)
        self.run.until(lambda: bool(fired(log)) or not child.alive, UPDATE_S, f"{child.name} came to no end")
        child.wait_frozen(10)
        self.fired(f"pid {child.pid} {child.state}")
        job = self.hand_on()
        served(self.catalogue, self.catalogue.start(job=job))
        heir = self.catalogue.current
        child.revive()
        self.code = child.wait(UPDATE_S)
        history = [name for _, name in self.run.ledger.generations.history(self.catalogue.resource)]
        self.expect("who is revived publishes nothing", history, [FIRST, heir], "the pointer carries the fence")

    def on_disk(self) -> None:
        child = self.catalogue.start(no_room=self.failure.point)
        self.code = child.wait(UPDATE_S)
        log = self.catalogue.room_log(1)
        said = log.read_text().splitlines() if log.exists() else []
        self.fired(said[0] if said else "")
        self.look()
        (job,) = self.catalogue.jobs()
        ended = (said, job.state.value, job.error_code)
        self.expect("the job says in one clear line what is wrong", ended, ([f"bad_input: {job.error}"], "FAILED",
                    "bad_input"), "say BadInput where a file cannot be written")  # fmt: skip
        served(self.catalogue, self.catalogue.start())

    def hand_on(self) -> Job:
        self.look()
        died = float(str(fired(self.catalogue.fault_log(1))[0]["time"]))
        job, delay = handed_on(self.run, remains(self.run, self.catalogue.jobs()[-1], died), self.catalogue.resource)
        self.attempts = 2
        self.run.journal.expect_at_most(
            f"{self.failure.name}: the lock is free within ttl + sweep (s)",
            round(delay, 2),
            TTL_S + SWEEP_S,
            "is the sweep running?",
        )
        return job

    def fired(self, evidence: str) -> None:
        if not evidence:
            raise RuntimeError(f"{self.catalogue.name} never came to {self.failure.point}: see its log")
        self.run.journal.fault(self.failure.told, fired=1, evidence=evidence)

    # ── what came of it ───────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """At the moment of the failure, before anybody repairs anything."""
        before = self.catalogue.digests(FIRST) == digests(self.own.ground.before / FIRST)
        shown = (self.catalogue.current == FIRST) is not self.failure.published
        self.unchanged = before and self.catalogue.current == FIRST
        self.expect("production is as it was, and only a whole generation is current", (before, shown), (True, True),
                    "write to a folder of the attempt's own, and publish with one pointer")  # fmt: skip
        asked = pages(self.own.ground.federation)
        read = asked if self.failure.published else read_to_the_end(self.catalogue.prod / "staging.db")
        self.finished = {one: asked.get(one, {}) for one in read}

    def judge(self) -> None:
        own, catalogue = self.own, self.catalogue
        job = catalogue.jobs()[-1]
        attempts = self.attempts if len(catalogue.jobs()) == 1 else 1
        self.expect("the job is done", (job.state.value, job.attempt), ("DONE", attempts), "see the last child's log")
        found = catalogue.digests()
        self.expect("all files are the undisturbed run's, byte for byte", found, own.undisturbed,
                    "compare the two: a stage must not depend on how often it was begun")  # fmt: skip
        self.expect(
            "nothing is left behind",
            left_behind(catalogue.prod, catalogue.kept),
            [],
            "see clear_away in dailies/catalog/update.py",
        )
        self.expect("the lock is free", catalogue.holder, NOBODY, "see give_back")
        now = pages(own.ground.federation)
        again = sorted(
            f"{host} {name}" for (host, name), asked in self.finished.items() if now.get((host, name)) != asked
        )
        self.expect("no page of a finished channel is asked for again", again, [], "see crawl_progress")
        self.check_reader()

    def check_reader(self) -> None:
        reader = self.reader
        self.expect("a reader saw whole generations alone", reader.faults[:5], [], "complete before you publish")
        seen = len(reader.seen) <= 2 and reader.looks >= LOOKS
        self.expect("it saw the old one and the new one, and looked all the time", seen, True, "see the pointer")

    def expect(self, what: str, actual: object, wanted: object, fix: str) -> None:
        self.run.journal.expect(f"{self.failure.name}: {what}", actual, wanted, fix)


def pages(federation: Federation) -> Pages:
    hosts = federation.counters()["hosts"]
    return {(host, name): dict(asked) for host, told in hosts.items() for name, asked in told["pages"].items()}


def read_to_the_end(staging: Path) -> list[tuple[str, str]]:
    """Host and name of the channels; looked up in a copy, so that looking leaves no trace."""
    if not staging.is_file():
        return []
    with TemporaryDirectory() as folder:
        for path in staging.parent.glob("staging.db*"):
            shutil.copy(path, folder)
        with opened(Path(folder) / staging.name) as database:
            return [
                (row[0], row[1])
                for row in database.execute(
                    """SELECT host, channel_name FROM crawl_progress AS p JOIN channels AS c
                       ON c.channel_id = p.channel_id AND c.instance_domain = p.host
                       WHERE p.what = 'videos' AND p.status = 'done' ORDER BY 1, 2"""
                )
            ]
