"""The embedded ledger keeps the contract, and what is SQLite's own: damage, full disks, old files."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import pytest

from dailies.errors import DailiesError, Injected, Missing, NotConfigured, Transient, Unreadable
from dailies.ledger.records import JobState, VideoState, job_resource
from dailies.ledger.sqlite import SqliteLedger, database
from dailies.ledger.sqlite.audit import RULES
from dailies.ledger.sqlite.messages import write_event
from dailies.ledger.sqlite.units import SqliteUnits
from tests.unit.ledger.contract import dispatch, jobs, leases, messages, recoveries, units, videos, whole
from tests.unit.ledger.contract.world import (
    ORDERS,
    RECOVERY_ORDERS,
    ROOM,
    TTL,
    Clock,
    at_once,
    in_state,
    picture,
    recoveries_of,
    request,
    running,
    running_again,
    told,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def another(tmp_path, clock):
    return lambda: SqliteLedger(tmp_path / "ledger.db", clock)


@pytest.fixture
def ledger(another):
    ledger = another()
    yield ledger
    ledger.close()


@pytest.fixture
def damage(ledger):
    """Write past every rule of the ledger and of the database."""

    def write(*statements: str) -> None:
        with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("PRAGMA ignore_check_constraints = ON")
            for statement in statements:
                connection.execute(statement)

    return write


class TestFences(leases.FenceContract):
    pass


class TestLostRuns(leases.LostRunContract):
    pass


class TestLeases(leases.LeaseContract):
    pass


class TestSubmit(jobs.SubmitContract):
    pass


class TestStates(jobs.StateContract):
    pass


class TestHandBack(jobs.HandBackContract):
    pass


class TestRecovery(jobs.RecoveryContract):
    pass


class TestRecoveryEvents(recoveries.RecoveryEventContract):
    pass


class TestUnits(units.UnitContract):
    pass


class TestCalls(units.CallContract):
    pass


class TestGenerations(units.GenerationContract):
    pass


class TestDispatch(dispatch.DispatchContract):
    pass


class TestOutbox(messages.OutboxContract):
    pass


class TestInbox(messages.InboxContract):
    pass


class TestTenants(messages.TenantContract):
    pass


class TestVideos(videos.VideoContract):
    pass


class TestAudit(whole.AuditContract):
    pass


class TestClose(whole.CloseContract):
    pass


# ── the audit can fail: one act of damage a rule, which turns that rule red and no other ──────────────────────────────

FAR = 1e12
DAMAGE: dict[str, Callable[[SqliteLedger], tuple[str, str]]] = {}


def damages(rule: str) -> Callable[[Callable[[SqliteLedger], tuple[str, str]]], None]:
    """The decorated function returns the statement that breaks the rule, and the offender that the audit must name."""
    return lambda function: DAMAGE.__setitem__(rule, function)


@damages("running without a live lease")
def _(ledger):
    job, _ = running(ledger)
    return f"UPDATE leases SET holder = NULL WHERE resource = '{job_resource(job.id)}'", job.id


@damages("lease of a job that is not running")
def _(ledger):
    job = ledger.jobs.submit(request())
    resource = job_resource(job.id)
    return f"INSERT INTO leases VALUES ('{resource}', 'nobody', 1, {FAR})", resource


@damages("expired lease still held")
def _(ledger):
    ledger.leases.acquire("video:1", "a", TTL)
    return "UPDATE leases SET expires_at = 0", "video:1"


@damages("state unlike its last event")
def _(ledger):
    job = ledger.jobs.submit(request())
    return "UPDATE jobs SET state = 'PAUSED'", job.id


@damages("write past the job's fence")
def _(ledger):
    job, lease = running(ledger)
    ledger.units.complete(lease, "unit-1", "probe", "d", 1)
    return "UPDATE units SET fence = fence + 1", f"{job.id} unit-1"


@damages("generation past its lease")
def _(ledger):
    ledger.generations.publish(ledger.leases.acquire("video:1", "a", TTL), "gen-1/index")
    return "UPDATE generations SET fence = fence + 1", "video:1"


@damages("done with a unit unfinished")
def _(ledger):
    job, lease = running(ledger)
    ledger.units.complete(lease, "unit-1", "probe", "d", 1)
    ledger.jobs.done(lease, 1)
    return "UPDATE units SET state = 'RUNNING'", f"{job.id} unit-1"


@damages("video state unlike its last event")
def _(ledger):
    _, lease = running(ledger)
    ledger.videos.register("acme", "v1", "acme/client/videos/v1/clip.mp4")
    video = ledger.leases.acquire("video:acme/v1", lease.holder, TTL)
    ledger.videos.update(video, state=VideoState.PROCESSING)
    return "UPDATE videos SET state = 'ready'", "acme/v1"


@damages("broken reference")
def _(ledger):
    return "INSERT INTO calls (unit, job, state, fence) VALUES ('u', 'nobody', 'DONE', 1)", "calls 1"


@damages("damaged database")
def _(ledger):
    ledger.jobs.submit(request())
    return "UPDATE jobs SET control = 'nonsense'", "CHECK constraint failed in jobs"


def test_every_rule_of_the_audit_has_its_act_of_damage():
    assert set(DAMAGE) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_damage_turns_exactly_its_rule_red(ledger, damage, rule):
    statement, offender = DAMAGE[rule](ledger)
    assert not any(ledger.audit().values()), "it was sound before"
    damage(statement)
    assert {name: found for name, found in ledger.audit().items() if found} == {rule: [offender]}


@pytest.mark.parametrize("fate", ["lost", "another state"])
def test_an_event_that_is_not_there_is_unlike_the_state(ledger, damage, fate):
    job = ledger.jobs.submit(request())
    damage("DELETE FROM outbox" if fate == "lost" else "UPDATE outbox SET type = 'dailies.job.done'")
    assert ledger.audit()["state unlike its last event"] == [job.id]


def test_a_broken_page_is_found(ledger):
    for number in range(200):
        ledger.tenants.set_tier(f"tenant-{number}", "free")
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tenants'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with ledger.path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(os.urandom(size))
    with pytest.raises(DailiesError, match="damaged"):
        ledger.tenants.tier("tenant-7")


# ── a transition and its event are written together or not at all ─────────────────────────────────────────────────────

TRANSITIONS = {
    "start": JobState.QUEUED,
    "resume": JobState.PAUSED,
    "cancel": JobState.QUEUED,
    "pause": JobState.QUEUED,
    "done": JobState.RUNNING,
    "failed": JobState.RUNNING,
    "failed with retry": JobState.RUNNING,
    "paused": JobState.RUNNING,
    "recover": JobState.RUNNING,
    "give up": JobState.QUEUED,
}


@pytest.mark.parametrize("order", TRANSITIONS)
def test_a_transition_whose_event_cannot_be_written_does_not_happen(ledger, clock, damage, order):
    job, lease = in_state(ledger, TRANSITIONS[order])
    if job.state is JobState.QUEUED:
        ledger.dispatch.next(ROOM)
    if order == "recover":
        clock.advance(TTL)
    damage("CREATE TRIGGER deny BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no more events'); END")
    before = picture(ledger, job.id)
    give_up = {"give up": lambda ledger, job, lease: ledger.dispatch.give_up(job.id, job.attempt)}
    with pytest.raises(sqlite3.IntegrityError, match="no more events"):
        {**ORDERS, **give_up}[order](ledger, job, lease)
    assert picture(ledger, job.id) == before
    damage("DROP TRIGGER deny")
    {**ORDERS, **give_up}[order](ledger, job, lease)
    assert picture(ledger, job.id) != before


def test_a_submission_whose_event_cannot_be_written_was_not_accepted(ledger, damage):
    damage("CREATE TRIGGER deny BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no more events'); END")
    with pytest.raises(sqlite3.IntegrityError, match="no more events"):
        ledger.jobs.submit(request(), key="upload-7", run_id="run-1")
    assert list(ledger.jobs.all()) == []
    assert list(ledger.dispatch.jobs_of("run-1")) == []


DENY = """CREATE TRIGGER deny BEFORE INSERT ON outbox WHEN NEW.type LIKE '{about}'
    BEGIN SELECT RAISE(ABORT, 'no more events'); END"""


@pytest.mark.parametrize("order", RECOVERY_ORDERS)
def test_a_transition_whose_recovery_cannot_be_told_does_not_happen(ledger, clock, damage, order):
    """The event of its state alone could be written."""
    act, max_attempts = RECOVERY_ORDERS[order]
    job, lease = running_again(ledger, clock, max_attempts=max_attempts)
    if order.startswith("recover"):
        clock.advance(TTL)
    before = picture(ledger, job.id)
    damage(DENY.format(about="dailies.recovery.%"))
    with pytest.raises(sqlite3.IntegrityError, match="no more events"):
        act(ledger, job, lease)
    assert picture(ledger, job.id) == before
    damage("DROP TRIGGER deny")
    told_before = len(recoveries_of(ledger, job.id))
    act(ledger, job, lease)
    assert len(recoveries_of(ledger, job.id)) == told_before + 1


class TellsAfterwards(SqliteUnits):
    """Completes the unit, and writes its event in the next transaction."""

    def complete(self, lease, key, step, digest, result, *, reused=False, event=None):
        unit = super().complete(lease, key, step, digest, result, reused=reused)
        with self._database.transaction() as tx:
            write_event(tx, unit.job, event[0], "video-1", key, event[1])
        return unit


@pytest.mark.parametrize("reused", [False, True])
def test_a_unit_whose_event_cannot_be_written_is_not_done(ledger, damage, reused):
    job, lease = running(ledger)
    before = complete_without_events(ledger, damage, job, lease, reused)
    assert picture(ledger, job.id) == before
    damage("DROP TRIGGER deny")
    ledger.units.complete(lease, "unit-1", "probe", "d", 1, reused=reused, event=("dailies.chunk.done", {}))
    assert [event.type for event in told(ledger, job.id, "chunk")] == ["dailies.chunk.done"]


def test_a_unit_that_tells_in_another_transaction_is_done_without_its_event(ledger, damage):
    """The control of the test above: a process that died between the two would have left the same."""
    ledger.units = TellsAfterwards(ledger._database)
    job, lease = running(ledger)
    before = complete_without_events(ledger, damage, job, lease, reused=False)
    assert picture(ledger, job.id) != before
    assert ([unit.state for unit in ledger.units.of(job.id)], told(ledger, job.id, "chunk")) == (["DONE"], [])


def complete_without_events(ledger, damage, job, lease, reused):
    ledger.units.begin(lease, "unit-1", "probe")
    before = picture(ledger, job.id)
    damage(DENY.format(about="dailies.chunk.%"))
    with pytest.raises(sqlite3.IntegrityError, match="no more events"):
        ledger.units.complete(lease, "unit-1", "probe", "d", 1, reused=reused, event=("dailies.chunk.done", {}))
    return before


# ── one file, many processes ──────────────────────────────────────────────────────────────────────────────────────────


def test_every_commit_reaches_the_disk_before_it_returns(ledger):
    assert ledger._database.one("PRAGMA synchronous")[0] == 2
    assert ledger._database.one("PRAGMA journal_mode")[0] == "wal"
    assert ledger._database.one("PRAGMA foreign_keys")[0] == 1


def test_many_can_open_a_new_ledger_at_the_same_moment(tmp_path, clock):
    def open_it(number):
        ledger = SqliteLedger(tmp_path / "new" / "ledger.db", clock)
        job = ledger.jobs.submit(request(subject=f"video-{number}"))
        ledger.close()
        return job.id

    ids = at_once(8, open_it)
    ledger = SqliteLedger(tmp_path / "new" / "ledger.db", clock)
    assert {job.id for job in ledger.jobs.all()} == set(ids)
    ledger.close()


def _write_in_child(ledger: SqliteLedger) -> None:
    for number in range(20):
        ledger.tenants.set_tier(f"child-{number}", "premium")


def test_a_forked_process_uses_a_connection_of_its_own(ledger):
    ledger.tenants.set_tier("parent", "enterprise")
    child = multiprocessing.get_context("fork").Process(target=_write_in_child, args=(ledger,))
    child.start()
    for number in range(20):
        ledger.tenants.set_tier(f"parent-{number}", "premium")
    child.join(10)
    assert child.exitcode == 0
    assert {ledger.tenants.tier(f"{who}-{n}") for who in ("parent", "child") for n in range(20)} == {"premium"}
    assert not any(ledger.audit().values())


def _recover_in_child(ledger: SqliteLedger, gate: Barrier, counts: SimpleQueue[int]) -> None:
    gate.wait(10)
    counts.put(len(ledger.jobs.recover()))


def test_five_processes_that_recover_at_once_tell_it_once(ledger, clock):
    ids = [running(ledger, run=f"run-{number}", subject=f"video-{number}")[0].id for number in range(4)]
    clock.advance(TTL)
    fork = multiprocessing.get_context("fork")
    gate, counts = fork.Barrier(5), fork.SimpleQueue()
    children = [fork.Process(target=_recover_in_child, args=(ledger, gate, counts)) for _ in range(5)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0] * 5
    assert sum(counts.get() for _ in children) == len(ids)
    assert [recoveries_of(ledger, job) for job in ids] == [[("started", 2)]] * len(ids)
    assert not any(ledger.audit().values())


# ── what a user is told when the file is not as it should be ──────────────────────────────────────────────────────────


def test_a_ledger_of_another_schema_is_not_touched(tmp_path):
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(NotConfigured, match="schema 99"):
        SqliteLedger(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def test_a_ledger_of_an_earlier_schema_is_brought_up_to_date_with_what_it_holds(tmp_path, clock, monkeypatch):
    first = database.schema()[:1]
    with monkeypatch.context() as earlier:
        earlier.setattr(database, "schema", lambda: first)
        old = SqliteLedger(tmp_path / "ledger.db", clock)
        job = old.jobs.submit(request())
        old.close()
    ledger = SqliteLedger(tmp_path / "ledger.db", clock)
    assert ledger.jobs.get(job.id) == job
    assert ledger.videos.register("acme", "v1", "key").state is VideoState.UPLOADED
    ledger.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotConfigured, match="cannot create the ledger's folder"):
        SqliteLedger(tmp_path / "file" / "ledger.db")


def test_a_path_that_is_no_file_is_named(tmp_path):
    with pytest.raises(NotConfigured, match="cannot be opened"):
        SqliteLedger(tmp_path)


def test_a_file_that_is_no_database_is_called_damaged(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"this is a letter, not a ledger. " * 100)
    with pytest.raises(DailiesError, match="damaged"):
        SqliteLedger(tmp_path / "ledger.db")


def test_a_ledger_locked_for_too_long_is_worth_another_try(another, ledger, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        with pytest.raises(Transient, match="locked"):
            another()
        rival.execute("ROLLBACK")
    another().close()


def test_a_full_disk_is_worth_another_try_and_costs_nothing_that_was_accepted(ledger):
    job = ledger.jobs.submit(request())
    pages = ledger._database.one("PRAGMA page_count")[0]
    ledger._database.one(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Transient, match="full"):
        ledger.jobs.submit(request(params={"long": "x" * 100_000}))
    assert [found.id for found in ledger.jobs.all()] == [job.id]
    ledger._database.one("PRAGMA max_page_count = 1000000")
    ledger.jobs.submit(request(params={"long": "x" * 100_000}))


def test_a_ledger_that_may_only_be_read_says_so(ledger):
    ledger._database.one("PRAGMA query_only = ON")
    with pytest.raises(NotConfigured, match="readonly"):
        ledger.jobs.submit(request())


def test_a_mistake_in_our_own_sql_is_not_called_anything_else(ledger):
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        ledger._database.all("SELECT * FROM nowhere")
    with pytest.raises(sqlite3.ProgrammingError, match="binding"):
        ledger._database.all("SELECT :value")


def test_a_call_cannot_end_in_a_state_that_there_is_not(ledger):
    _, lease = running(ledger)
    ledger.calls.intend(lease, "unit-1")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        ledger.calls.ended(lease, "unit-1", "VANISHED")
    assert ledger.calls.intend(lease, "unit-1").state == "INTENDED"


def fail(ledger: SqliteLedger, sql: str, error: BaseException) -> None:
    with ledger._database.transaction() as tx:
        tx.run(sql)
        raise error


def test_an_interrupted_transaction_leaves_the_connection_usable(ledger):
    with pytest.raises(KeyboardInterrupt):
        fail(ledger, "INSERT INTO tenants VALUES ('acme', 'premium')", KeyboardInterrupt())
    assert ledger.tenants.tier("acme") == "free"
    ledger.tenants.set_tier("acme", "premium")
    assert ledger.tenants.tier("acme") == "premium"


def test_a_lost_error_is_not_covered_by_the_rollback(ledger):
    """SQLite may end a transaction by itself (a full disk): rolling back then must not hide the reason."""
    with pytest.raises(Injected):
        fail(ledger, "ROLLBACK", Injected("the reason"))
    ledger.tenants.set_tier("acme", "premium")


def test_a_commit_that_fails_is_rolled_back(ledger, damage):
    """A foreign key that is checked at the end only fails the COMMIT itself."""

    def write_what_breaks_at_the_end() -> None:
        with ledger._database.transaction() as tx:
            tx.run("PRAGMA defer_foreign_keys = ON")
            tx.run("INSERT INTO calls (unit, job, state, fence) VALUES ('u', 'nobody', 'DONE', 1)")

    with pytest.raises(Missing):
        write_what_breaks_at_the_end()
    ledger.tenants.set_tier("acme", "premium")
    assert ledger.tenants.tier("acme") == "premium"
    assert not any(ledger.audit().values())


def test_the_reason_of_a_failure_reaches_the_ledger_whole(ledger):
    _, lease = running(ledger)
    assert ledger.jobs.failed(lease, Unreadable("not media: \x00\n'; DROP TABLE jobs; --")).error_code == "unreadable"
    assert len(ledger.jobs.all()) == 1
