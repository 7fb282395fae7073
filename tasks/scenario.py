"""The frame of every scenario: a place of its own, clean-up that always runs, universal checks, a verdict."""

from __future__ import annotations

import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from prefect import State, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterTags,
)
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled

from blocks.site import LocalFolder, OpenSite, Site, SqliteLedger, open_site
from dailies.errors import DailiesError, Held, NotConfigured
from dailies.events.relay import relay
from dailies.home import home
from dailies.ledger.holding import TTL_S, acquire, give_back, keeping
from dailies.ledger.interface import Ledger
from dailies.ledger.records import FINAL, Job
from dailies.ledger.sqlite import SqliteLedger as EmbeddedLedger
from dailies.scenarios.contenders import until
from dailies.scenarios.journal import Check, Journal, expect
from dailies.scenarios.leaks import no_files, no_processes
from dailies.scenarios.processes import Child, Nursery
from dailies.scenarios.verdict import Verdict, conclude
from tasks.verdict import final_state, publish_verdict

Mode = Literal["quick", "full"]
TENANT = "scenario"
MANY = 100_000
POOL_PREFIX = "scenario-"
LEFTOVER_AGE = timedelta(hours=1)
KEPT_RUNS = 20
ENDINGS = {f"dailies.job.{state.lower()}" for state in FINAL}
SWEEP_S = 1.0


class Scenario:
    """What the parts of a scenario share. ``state`` is what its flow returns."""

    state: State[Any]

    def __init__(self, journal: Journal, place: Path, nursery: Nursery, site: OpenSite, trial: Ledger) -> None:
        self.journal = journal
        self.place = place
        self.nursery = nursery
        self.site = site
        self.ledger = site.ledger
        self.trial = trial  # for what no supervisor may meddle with; on a site of many machines there is only one
        self.store = site.store
        self.earlier = frozenset(job.id for job in self.ledger.jobs.all(limit=MANY))
        self.pool = f"{POOL_PREFIX}{journal.run_id[:12]}"
        self.over = threading.Event()
        self.width = 1  # how many units of one job may be under way at the moment that it dies

    @property
    def has_a_ledger_of_its_own(self) -> bool:
        return self.trial is not self.ledger

    def named(self, name: str) -> str:
        """A name for a resource or a video that no other scenario on the same site uses."""
        return f"{self.journal.run_id[-8:]}-{name}"

    def ledgers(self) -> dict[str, Ledger]:
        trial = {"trial ledger": self.trial} if self.has_a_ledger_of_its_own else {}
        return {"ledger": self.ledger, **trial}

    def jobs(self) -> list[tuple[Ledger, Job]]:
        """Those that this scenario submitted."""
        found = [(ledger, job) for ledger in self.ledgers().values() for job in ledger.jobs.all(limit=MANY)]
        return [(ledger, job) for ledger, job in found if job.id not in self.earlier]

    @property
    def environment(self) -> dict[str, str]:
        """For children: the same Prefect, but a home of their own, so that nothing armed reaches a stranger."""
        return {
            "DAILIES_HOME": str(self.place),
            "PREFECT_API_URL": api_url(),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def until(self, true: Callable[[], bool], seconds: float, otherwise: str) -> None:
        until(true, seconds, otherwise, self.over)

    def log(self, name: str) -> Path:
        path = self.place / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def deploy(self, flow: str, entrypoint: str, environment: Mapping[str, str], name: str = "") -> str:
        """A deployment on this scenario's own pool, whose runs get this environment; returns its full name."""
        name = f"{self.pool}-{name}" if name else self.pool
        with get_client(sync_client=True) as client:
            client.create_deployment(
                flow_id=client.create_flow_from_name(flow),
                name=name,
                entrypoint=entrypoint,
                work_pool_name=self.pool,
                tags=[self.pool],
                job_variables={"env": {**self.environment, **environment}},
            )
        return f"{flow}/{name}"

    def worker(self, name: str) -> Child:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", self.pool, "--name", name]
        return self.nursery.popen(command, name=name, env=self.environment, log=self.log(name))

    def supervisor(self, name: str = "supervisor", slots: int = 2) -> Child:
        caps = ["--slots", str(slots), "--slots-per-tenant", str(slots)]
        command = [sys.executable, "-m", "services.supervisor", "--site", self.site.name, *caps]
        return self.nursery.popen(command, name=name, env=self.environment, log=self.log(name))


@contextmanager
def scenario(
    name: str, seed: int, parameters: Mapping[str, Any], site: str = "local", preload: tuple[str, ...] = ()
) -> Iterator[Scenario]:
    """Whatever happens inside ends in a journal and a verdict; an error of the scenario's own is one of them.

    On ``local`` it has store and ledger to itself, in a folder of its own; on another site nobody else may be at work.
    """
    api_url()
    journal = Journal(scenario=name, seed=seed, parameters={"site": site, **parameters})
    place = home() / "scenarios" / journal.run_id
    with ExitStack() as last, get_client(sync_client=True) as client:
        stage, trial = of_its_own(place) if site == "local" else last.enter_context(to_itself(site, journal.run_id))
        place.mkdir(parents=True, exist_ok=True)
        nursery = last.enter_context(Nursery(preload))
        run = Scenario(journal, place, nursery, stage, trial)
        sweep_leftovers(client)
        client.create_work_pool(WorkPoolCreate(name=run.pool, type="process"))
        last.callback(delete_pool, client, run.pool)
        try:
            journal.steady("before", *sound(run, grace=0.0), no_processes(nursery))
            yield run
            checks = (*sound(run, grace=TTL_S + SWEEP_S), *nothing_lost(run), all_told(run), no_processes(nursery))
            journal.steady("after", *checks)
        except Exception as error:  # noqa: BLE001 - a scenario that breaks is a verdict too
            get_run_logger().exception("the scenario itself failed")
            journal.error = one_line(error)
        except BaseException:
            run.over.set()
            nursery.cleanup()
            shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            run.over.set()
            nursery.cleanup()
            end_runs(client, run.pool)
        clear_away(run)
        for ledger in run.ledgers().values():
            ledger.close()
    settle(run)


def of_its_own(place: Path) -> tuple[OpenSite, Ledger]:
    site = Site(store=LocalFolder(path=str(place / "media")), ledger=SqliteLedger(path=str(place / "ledger.db")))
    return site.open("local"), EmbeddedLedger(place / "trial.db")


@contextmanager
def to_itself(name: str, run_id: str) -> Iterator[tuple[OpenSite, Ledger]]:
    """A site that is there for scenarios, with no work under way: they take over whatever they find."""
    site = open_site(name)
    if not site.scenarios:
        raise NotConfigured(
            f"site {name!r} is not open to scenarios, which kill and take over what they find there: "
            "set `scenarios` in its block, if it serves nothing else"
        )
    try:
        lease = acquire(site.ledger, "scenarios", run_id)
    except Held as held:
        raise NotConfigured(f"another scenario is at work on site {name!r}: wait for its end") from held
    with keeping(site.ledger) as keeper:
        keeper.add(lease)
        try:
            end_leftovers(site)
            if busy := [job.id for job in site.ledger.jobs.all(limit=MANY) if not job.final]:
                raise NotConfigured(f"site {name!r} is at work: let its {len(busy)} jobs end first ({busy[0]}, …)")
            yield site, site.ledger
        finally:
            give_back(site.ledger, keeper, lease)


def end_leftovers(site: OpenSite) -> None:
    """What a scenario left that was stopped half way. Only one is here at a time, so that nobody is waiting for it."""
    for job in site.ledger.jobs.all(limit=MANY):
        if job.tenant == TENANT and not job.final:
            site.ledger.jobs.cancel(job.id)
    site.ledger.leases.sweep()
    site.store.delete(TENANT)


def clear_away(run: Scenario) -> None:
    """A place of its own goes with the scenario's folder; elsewhere only its objects are its to delete."""
    if run.has_a_ledger_of_its_own:
        run.journal.add(no_files(run.place / "media"))
        return
    for key in objects_of(run):
        run.store.delete(key)
    run.journal.expect("no object left in the store", objects_of(run), [], "who still writes there?")


def objects_of(run: Scenario) -> list[str]:
    folders = (f"{TENANT}/{side}/videos" for side in ("client", "server"))
    return [
        found.key
        for folder in folders
        for found in run.store.list(folder)
        if found.key.removeprefix(f"{folder}/").startswith(run.named(""))
    ]


def api_url() -> str:
    """A scenario starts workers, which cannot reach the temporary server that a bare flow call would bring up."""
    url = get_current_settings().api.url
    if not url:
        raise NotConfigured("a scenario needs a Prefect server: use `dailies scenario NAME`, or set PREFECT_API_URL")
    return url


def settle(run: Scenario) -> None:
    verdict = conclude(run.journal)
    if verdict is Verdict.PASSED:
        shutil.rmtree(run.place)
    else:
        run.journal.artifact(run.place)
    get_run_logger().info("action=verdict status=%s report=%s", verdict, run.journal.write(home()))
    forget_old_runs(run.journal.scenario)
    publish_verdict(run.journal)
    run.state = final_state(run.journal)


def sound(run: Scenario, grace: float) -> list[Check]:
    """Every rule of the ledger's audit: states match leases and events, references and pages are whole."""
    fix = "see dailies/ledger/sqlite/audit.py for the rule, and the ledger in the scenario's folder for the rows"
    return [
        expect(f"{name}: no {rule}", found, [], fix)
        for name, ledger in run.ledgers().items()
        for rule, found in ledger.audit(grace).items()
    ]


def nothing_lost(run: Scenario) -> list[Check]:
    """Call when all work has ended: what was accepted must have come to an end, and no effect happened twice."""
    accepted = run.jobs()
    unfinished = [f"{job.id} is {job.state}" for _, job in accepted if not job.final]
    twice = [fault for ledger, job in accepted if (fault := effects_twice(ledger, job, run.width))]
    return [
        expect("no accepted job lost", unfinished, [], "look for its run in Prefect, and at the supervisor's log"),
        expect("no effect twice", twice, [], "record a unit and a state in the one fenced statement that decides it"),
    ]


def all_told(run: Scenario) -> Check:
    """The supervisors are gone by now, so what is left is delivered here, as the next one would."""
    if run.site.events is not None:
        relay(run.ledger, run.site.events)
    left = [event.id for event in run.ledger.outbox.pending()]
    return expect("every event delivered", left, [], "is the receiver up? the supervisor's log says what it answered")


def effects_twice(ledger: Ledger, job: Job, width: int = 1) -> str:
    """A job ends once; and an attempt that died or was stopped may cost the units that it was in, no finished one."""
    ends = [event for event in ledger.outbox.of(job.id) if event.type in ENDINGS]
    redone = sum(max(unit.attempts - 1, 0) for unit in ledger.units.of(job.id))
    if len(ends) > 1:
        return f"job {job.id} ended {len(ends)} times"
    return f"job {job.id} redid {redone} units in {job.attempt} attempts" if redone > width * (job.attempt - 1) else ""


def sweep_leftovers(client: SyncPrefectClient) -> None:
    """Pools of scenarios that were killed: only those older than any scenario may run."""
    for pool in client.read_work_pools():
        old = pool.created and datetime.now(UTC) - pool.created > LEFTOVER_AGE
        if pool.name.startswith(POOL_PREFIX) and old:
            end_runs(client, pool.name)
            delete_pool(client, pool.name)


def end_runs(client: SyncPrefectClient, pool: str) -> None:
    """What was killed with its children must not show as running for ever: nobody else will end it."""
    ours = FlowRunFilter(tags=FlowRunFilterTags(all_=[pool]))
    for run in client.read_flow_runs(flow_run_filter=ours):
        if run.state is not None and not run.state.is_final():
            client.set_flow_run_state(run.id, Cancelled(message="Its scenario is over"), force=True)


def delete_pool(client: SyncPrefectClient, name: str) -> None:
    """With the deployments on it, which carry its name as their tag."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[name]))
    for deployment in client.read_deployments(deployment_filter=tagged):
        client.delete_deployment(deployment.id)
    try:
        client.delete_work_pool(name)
    except ObjectNotFound:
        return


def forget_old_runs(scenario: str) -> None:
    runs = sorted((home() / "runs" / scenario).glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    for report in runs[:-KEPT_RUNS]:
        shutil.rmtree(report.parent)
        shutil.rmtree(home() / "scenarios" / report.parent.name, ignore_errors=True)


def one_line(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error) if isinstance(error, DailiesError) else f"{type(error).__name__}: {error}"
    return f"{said.splitlines()[0] if said else type(error).__name__} ({Path(where.filename).name}:{where.lineno})"
