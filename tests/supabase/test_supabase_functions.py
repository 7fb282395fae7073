"""The rules that stand in SQL as well as in Python are the same rules, and the audit sees what breaks them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from dailies.canonical import canonical_json
from dailies.errors import Transient, Unreadable
from dailies.ledger.records import ARROWS, VIDEO_ARROWS, JobState, VideoState, event_id, job_resource
from dailies.ledger.sqlite import SqliteLedger
from dailies.ledger.sqlite.audit import RULES
from dailies.ledger.supabase import SupabaseLedger
from tests.supabase.servers import MIGRATIONS, SERVICE_KEY, migrate
from tests.unit.ledger.contract.world import (
    ORDERS,
    RECOVERY_ORDERS,
    ROOM,
    TTL,
    in_state,
    picture,
    recoveries_of,
    request,
    running,
    running_again,
    start_again,
    told,
)

pytestmark = pytest.mark.supabase

ODD = ["", "plain", 'quo"te', "back\\slash", "tab\tnew\nline\r", "\b\f\x01\x1f\x7f", "ü🎬\u2028", "/", "'); --"]


def ask(database: psycopg.Connection, function: str, *arguments: object) -> object:
    holes = ", ".join(["%s"] * len(arguments))
    [answer] = database.execute(f"SELECT dailies.{function}({holes})", arguments).fetchone()
    return answer


@pytest.mark.parametrize("origin", JobState)
def test_a_job_has_the_same_arrows_in_sql(database, origin):
    assert {target for target in JobState if ask(database, "leads", origin, target)} == ARROWS[origin]


@pytest.mark.parametrize("origin", VideoState)
def test_a_video_has_the_same_arrows_in_sql(database, origin):
    assert {target for target in VideoState if ask(database, "video_leads", origin, target)} == VIDEO_ARROWS[origin]


@pytest.mark.parametrize("text", ODD)
def test_an_event_has_the_same_id_whoever_computes_it(database, text):
    for parts in ([text, "b", "c", "d"], ["a", text, "c", "d"], ["a", "b", text, "d"], ["a", "b", "c", text]):
        assert ask(database, "event_id", *parts) == event_id(*parts)


@pytest.mark.parametrize("text", ODD)
def test_metadata_are_merged_to_the_bytes_that_python_would_write(database, text):
    old = {"b": 1.0, "z": {"y": [text], "x": 1}, text: "old", "Z": 2**70, "é": None}
    new = {"a": text, "z": {"only": True}, text: 5e-324}
    merged = ask(database, "merged", canonical_json(old).decode(), canonical_json(new).decode())
    assert merged == canonical_json({**old, **new}).decode()


def test_both_ledgers_tell_the_same_story_in_the_same_bytes(ledger, database, tmp_path, clock):
    """Row by row: what is not random must not depend on the store."""
    embedded = SqliteLedger(tmp_path / "ledger.db", clock)
    stories = []
    for each in (ledger, embedded):
        job, _ = live_through(each, clock)
        stories.append([without(job.id, event.data) | {"type": event.type} for event in each.outbox.of(job.id)])
    rows = database.execute("SELECT data FROM dailies.outbox ORDER BY seq").fetchall()
    written = [row["data"] for row in embedded._database.all("SELECT data FROM outbox ORDER BY seq")]
    ours, theirs = (job.id for each in (ledger, embedded) for job in each.jobs.all())
    embedded.close()
    assert len(stories[0]) == 11
    assert stories[0] == stories[1]
    assert [data.replace(ours, "ID") for (data,) in rows] == [data.replace(theirs, "ID") for data in written]


def live_through(ledger, clock):
    job, lease = running(ledger, subject="acme/v'ü\"1")
    ledger.videos.register("acme", "v'ü\"1", "key")
    video = ledger.leases.acquire("video:acme/v'ü\"1", lease.holder, TTL)
    ledger.videos.update(video, state=VideoState.PROCESSING, metadata={"width": 1})
    ledger.outbox.emit(lease, "dailies.note", "once", {"z": 1, "a": ["ü"]})
    ledger.units.complete(lease, 'ü"1', "probe", "d", 1, event=("dailies.chunk.done", {"z": "\0\n", "a": [1.0, "ü"]}))
    clock.advance(TTL)
    ledger.jobs.recover()
    _, lease = start_again(ledger, job.id, "run-2")
    ledger.jobs.hand_back(lease, "Its worker was told to stop")
    ledger.jobs.cancel(job.id)
    return job, ledger.videos.settle()


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("order", RECOVERY_ORDERS)
def test_both_ledgers_tell_of_a_recovery_in_the_same_bytes(ledger, database, tmp_path, clock, order, text):
    act, max_attempts = RECOVERY_ORDERS[order]
    embedded = SqliteLedger(tmp_path / "ledger.db", clock)
    ids = []
    for each in (ledger, embedded):
        job, lease = running_again(each, clock, max_attempts=max_attempts, subject=f"s{text}")
        if order == "failed":
            each.jobs.failed(lease, Unreadable(text))
        else:
            clock.advance(TTL if order.startswith("recover") else 0)
            act(each, job, lease)
        ids.append(job.id)
    rows = database.execute("SELECT type, subject, data FROM dailies.outbox ORDER BY seq").fetchall()
    written = [tuple(row) for row in embedded._database.all("SELECT type, subject, data FROM outbox ORDER BY seq")]
    embedded.close()
    assert [(*row[:2], row[2].replace(ids[0], "ID")) for row in rows] == [
        (*row[:2], row[2].replace(ids[1], "ID")) for row in written
    ]
    assert sum(kind.startswith("dailies.recovery.") for kind, *_ in rows) == 2


def without(job_id: str, data: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in data.items() if value != job_id}


# ── the audit can fail: one act of damage a rule, which turns that rule red and no other ──────────────────────────────

FAR = 1e12
DAMAGE: dict[str, Callable[[SupabaseLedger], tuple[str, str]]] = {}


def damages(rule: str) -> Callable[[Callable[[SupabaseLedger], tuple[str, str]]], None]:
    """The decorated function returns the statement that breaks the rule, and the offender that the audit must name."""
    return lambda function: DAMAGE.__setitem__(rule, function)


@damages("running without a live lease")
def _(ledger):
    job, _ = running(ledger)
    return f"UPDATE dailies.leases SET holder = NULL WHERE resource = '{job_resource(job.id)}'", job.id


@damages("lease of a job that is not running")
def _(ledger):
    job = ledger.jobs.submit(request())
    resource = job_resource(job.id)
    return f"INSERT INTO dailies.leases VALUES ('{resource}', 'nobody', 1, {FAR})", resource


@damages("expired lease still held")
def _(ledger):
    ledger.leases.acquire("video:1", "a", TTL)
    return "UPDATE dailies.leases SET expires_at = 0", "video:1"


@damages("state unlike its last event")
def _(ledger):
    job = ledger.jobs.submit(request())
    return "UPDATE dailies.jobs SET state = 'PAUSED'", job.id


@damages("video state unlike its last event")
def _(ledger):
    _, lease = running(ledger)
    ledger.videos.register("acme", "v1", "acme/client/videos/v1/clip.mp4")
    video = ledger.leases.acquire("video:acme/v1", lease.holder, TTL)
    ledger.videos.update(video, state=VideoState.PROCESSING)
    return "UPDATE dailies.videos SET state = 'ready'", "acme/v1"


@damages("write past the job's fence")
def _(ledger):
    job, lease = running(ledger)
    ledger.units.complete(lease, "unit-1", "probe", "d", 1)
    return "UPDATE dailies.units SET fence = fence + 1", f"{job.id} unit-1"


@damages("generation past its lease")
def _(ledger):
    ledger.generations.publish(ledger.leases.acquire("video:1", "a", TTL), "gen-1/index")
    return "UPDATE dailies.generations SET fence = fence + 1", "video:1"


@damages("done with a unit unfinished")
def _(ledger):
    job, lease = running(ledger)
    ledger.units.complete(lease, "unit-1", "probe", "d", 1)
    ledger.jobs.done(lease, 1)
    return "UPDATE dailies.units SET state = 'RUNNING'", f"{job.id} unit-1"


def test_every_rule_of_the_audit_has_its_act_of_damage(ledger):
    """And they are the embedded ledger's rules, less those that PostgreSQL sees to itself."""
    assert set(DAMAGE) == set(ledger.audit()) == set(RULES) - {"broken reference", "damaged database"}


@pytest.mark.parametrize("rule", DAMAGE)
def test_damage_turns_exactly_its_rule_red(ledger, database, rule):
    statement, offender = DAMAGE[rule](ledger)
    assert not any(ledger.audit().values()), "it was sound before"
    database.execute(statement)
    assert {name: found for name, found in ledger.audit().items() if found} == {rule: [offender]}


@pytest.mark.parametrize("fate", ["lost", "another state"])
def test_an_event_that_is_not_there_is_unlike_the_state(ledger, database, fate):
    job = ledger.jobs.submit(request())
    lost = "DELETE FROM dailies.outbox"
    database.execute(lost if fate == "lost" else "UPDATE dailies.outbox SET type = 'dailies.job.done'")
    assert ledger.audit(grace=math.inf)["state unlike its last event"] == [job.id]


# ── a transition and its event are written together or not at all ─────────────────────────────────────────────────────


@pytest.fixture
def hasty(api, ledger) -> Iterator[SupabaseLedger]:
    """Tries once: what a trigger of these tests refuses, it refuses again."""
    hasty = SupabaseLedger(api.url, SERVICE_KEY, patience=0)
    yield hasty
    hasty.close()


@pytest.fixture
def no_more_events(database) -> Iterator[Callable[[], None]]:
    database.execute(
        """CREATE OR REPLACE FUNCTION tests.deny() RETURNS trigger LANGUAGE plpgsql
           AS $$ BEGIN RAISE EXCEPTION 'no more events'; END $$;
           GRANT EXECUTE ON FUNCTION tests.deny TO service_role"""
    )
    yield lambda about="%": database.execute(
        f"""CREATE TRIGGER deny BEFORE INSERT ON dailies.outbox FOR EACH ROW WHEN (NEW.type LIKE '{about}')
            EXECUTE FUNCTION tests.deny()"""
    )
    database.execute("DROP TRIGGER IF EXISTS deny ON dailies.outbox")


TRANSITIONS = {
    "start": JobState.QUEUED,
    "resume": JobState.PAUSED,
    "cancel": JobState.RUNNING,
    "pause": JobState.QUEUED,
    "done": JobState.RUNNING,
    "failed": JobState.RUNNING,
    "failed with retry": JobState.RUNNING,
    "paused": JobState.RUNNING,
    "recover": JobState.RUNNING,
    "give up": JobState.QUEUED,
}


@pytest.mark.parametrize("order", TRANSITIONS)
def test_a_transition_whose_event_cannot_be_written_does_not_happen(
    ledger, hasty, clock, database, no_more_events, order
):
    job, lease = in_state(ledger, TRANSITIONS[order])
    if job.state is JobState.QUEUED:
        ledger.dispatch.next(ROOM)
    if order == "recover":
        clock.advance(TTL)
    orders = {**ORDERS, "give up": lambda ledger, job, lease: ledger.dispatch.give_up(job.id, job.attempt)}
    before = picture(ledger, job.id)
    no_more_events()
    with pytest.raises(Transient, match="no more events"):
        orders[order](hasty, job, lease)
    assert picture(ledger, job.id) == before
    database.execute("DROP TRIGGER deny ON dailies.outbox")
    orders[order](hasty, job, lease)
    assert picture(ledger, job.id) != before


@pytest.mark.parametrize("order", RECOVERY_ORDERS)
def test_a_transition_whose_recovery_cannot_be_told_does_not_happen(
    ledger, hasty, clock, database, no_more_events, order
):
    """The event of its state alone could be written."""
    act, max_attempts = RECOVERY_ORDERS[order]
    job, lease = running_again(ledger, clock, max_attempts=max_attempts)
    if order.startswith("recover"):
        clock.advance(TTL)
    before = picture(ledger, job.id)
    no_more_events("dailies.recovery.%")
    with pytest.raises(Transient, match="no more events"):
        act(hasty, job, lease)
    assert picture(ledger, job.id) == before
    database.execute("DROP TRIGGER deny ON dailies.outbox")
    told_before = len(recoveries_of(ledger, job.id))
    act(ledger, job, lease)
    assert len(recoveries_of(ledger, job.id)) == told_before + 1


@pytest.mark.parametrize("reused", [False, True])
def test_a_unit_whose_event_cannot_be_written_is_not_done(ledger, hasty, database, no_more_events, reused):
    job, lease = running(ledger)
    ledger.units.begin(lease, "unit-1", "probe")
    before = picture(ledger, job.id)
    no_more_events("dailies.chunk.%")
    with pytest.raises(Transient, match="no more events"):
        hasty.units.complete(lease, "unit-1", "probe", "d", 1, reused=reused, event=("dailies.chunk.done", {}))
    assert picture(ledger, job.id) == before
    database.execute("DROP TRIGGER deny ON dailies.outbox")
    ledger.units.complete(lease, "unit-1", "probe", "d", 1, reused=reused, event=("dailies.chunk.done", {}))
    assert [event.type for event in told(ledger, job.id, "chunk")] == ["dailies.chunk.done"]


def test_a_client_that_knows_of_no_units_events_completes_them_as_before(ledger):
    """A worker that was there before the migration goes on."""
    job, lease = running(ledger)
    asked = {"key": "unit-1", "step": "probe", "digest": "d", "result": "1", "reused": False}
    ledger._api.tell("unit_complete", resource=lease.resource, holder=lease.holder, fence=lease.fence, **asked)
    assert [(unit.state, unit.result) for unit in ledger.units.of(job.id)] == [("DONE", 1)]
    assert len(ledger.outbox.of(job.id)) == 2


def test_a_video_whose_event_cannot_be_written_is_not_settled(ledger, hasty, no_more_events, database):
    job, lease = running(ledger, subject="acme/v1")
    ledger.videos.register("acme", "v1", "key")
    video = ledger.leases.acquire("video:acme/v1", lease.holder, TTL)
    before = ledger.videos.update(video, state=VideoState.PROCESSING)
    ledger.jobs.cancel(job.id)
    no_more_events()
    with pytest.raises(Transient, match="no more events"):
        hasty.videos.settle()
    assert ledger.videos.get("acme", "v1") == before
    database.execute("DROP TRIGGER deny ON dailies.outbox")
    assert [video.error_code for video in hasty.videos.settle()] == ["canceled"]


def test_a_submission_whose_event_cannot_be_written_was_not_accepted(ledger, hasty, no_more_events):
    no_more_events()
    with pytest.raises(Transient, match="no more events"):
        hasty.jobs.submit(request(), key="upload-7", run_id="run-1")
    assert list(ledger.jobs.all()) == []
    assert list(ledger.dispatch.jobs_of("run-1")) == []


# ── a queue that is long ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_next_job_is_the_most_urgent_of_a_queue_of_which_only_the_beginnings_are_sent(ledger, clock):
    ledger.tenants.set_tier("acme", "premium")
    for number in range(12):
        ledger.jobs.submit(request(tenant="acme", subject=f"video-{number}"))
        ledger.jobs.submit(request(tenant="globex", subject=f"video-{number}", boost=number % 3 * 15))
        clock.advance(600)
    expected = [job.id for job, _ in ledger.dispatch.ranked()]
    assert len(ledger._api.ask("dispatch_candidates")["waiting"]) == 20, "eight of acme's, four of each boost"
    assert [ledger.dispatch.next(ROOM).id for _ in expected] == expected


def test_the_databases_own_clock_is_the_time_of_day_and_moves_within_a_transaction(postgres):
    """The clock of these tests stands in for the migrations' own, which is looked at on a database of its own."""
    with postgres.database("clocks") as connection:
        migrate(connection, MIGRATIONS)
        with connection.transaction():
            first = ask(connection, "clock")
            connection.execute("SELECT pg_sleep(0.05)")
            assert ask(connection, "clock") - first >= 0.05
        assert first == pytest.approx(time.time(), abs=5)
