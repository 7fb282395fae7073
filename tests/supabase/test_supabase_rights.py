"""What a tenant can do in PostgreSQL itself, past the API: read what is its own, and nothing else.

On a database that no API serves: the API of these tests grants every table to every role, and leaves the rest to the
policies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

from dailies.errors import NotConfigured
from dailies.ledger.supabase import SupabaseLedger
from tests.supabase.servers import MIGRATIONS, PUBLISHABLE_KEY, Postgres, migrate

pytestmark = pytest.mark.supabase

OPEN = ("tenants", "jobs", "units", "outbox", "videos")
CLOSED = ("runs", "leases", "calls", "generations", "inbox", "answers")
TENANT_OF = {
    "units": "(SELECT tenant FROM dailies.jobs WHERE jobs.id = units.job)",
    "outbox": "(SELECT tenant FROM dailies.jobs WHERE jobs.id = outbox.job)",
}
WRITES = {
    "tenants": "UPDATE dailies.tenants SET tier = 'enterprise'",
    "jobs": "UPDATE dailies.jobs SET boost = 100",
    "units": "UPDATE dailies.units SET result = '0'",
    "outbox": "UPDATE dailies.outbox SET delivered = true",
    "videos": "UPDATE dailies.videos SET media_key = 'globex/key'",
    "leases": "UPDATE dailies.leases SET expires_at = 0",
    "runs": "UPDATE dailies.runs SET run_id = ''",
}


@pytest.fixture(scope="module")
def owner(postgres: Postgres) -> Iterator[psycopg.Connection]:
    with postgres.database("rights") as connection:
        migrate(connection, MIGRATIONS)
        for tenant in ("acme", "globex"):
            fill(connection, tenant)
        yield connection


def fill(connection: psycopg.Connection, tenant: str) -> None:
    """A row in each table, made by the ledger's own functions as a worker with the service key would."""
    run = f"run-{tenant}"
    with acting(connection, "service_role", None):
        call(connection, "tenant_set_tier", tenant, "premium")
        call(connection, "video_register", tenant, "v1", f"{tenant}/clip.mp4")
        numbers = (3, None, 0.0, True, run, "digest", run)
        call(connection, "job_submit", f"job-{tenant}", tenant, "ingest", "v1", "{}", "ingest/cpu", *numbers)
        call(connection, "job_start", f"job-{tenant}", 1, run, 60.0)
        call(connection, "lease_acquire", f"video:{tenant}/v1", run, 60.0)
        call(connection, "unit_begin", f"job:job-{tenant}", run, 1, "unit-1", "probe")
        call(connection, "call_intend", f"job:job-{tenant}", run, 1, "unit-1")
        call(connection, "generation_publish", f"video:{tenant}/v1", run, 1, f"{tenant}/gen-1")
        call(connection, "inbox_accept", tenant, "event-1")


def call(connection: psycopg.Connection, function: str, *arguments: object) -> None:
    holes = sql.SQL(", ").join(sql.Placeholder() * (len(arguments) + 1))
    connection.execute(sql.SQL("SELECT dailies.{}({})").format(sql.Identifier(function), holes), [uuid4(), *arguments])


@contextmanager
def acting(connection: psycopg.Connection, role: str, claims: object, before: str = "") -> Iterator[None]:
    """As PostgREST does it: the role and the token's claims for one transaction. ``before`` is done as the owner."""
    with connection.transaction(force_rollback=role != "service_role"):
        if before:
            connection.execute(before)
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
        if claims is not None:
            text = claims if isinstance(claims, str) else json.dumps(claims)
            connection.execute("SELECT set_config('request.jwt.claims', %s, true)", [text])
        yield


def of(tenant: str) -> dict[str, object]:
    return {"role": "authenticated", "sub": "user-1", "app_metadata": {"tenant": tenant}}


def count(connection: psycopg.Connection, table: str, where: str = "true") -> int:
    [[rows]] = connection.execute(f"SELECT count(*) FROM dailies.{table} WHERE {where}").fetchall()
    return rows


GRANTED = """
    GRANT USAGE ON SCHEMA dailies TO anon, authenticated;
    GRANT ALL ON ALL TABLES IN SCHEMA dailies TO anon, authenticated;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA dailies TO anon, authenticated;
"""
CALLABLE = GRANTED + "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA dailies TO anon, authenticated;"
WAYS = pytest.mark.parametrize("before", ["", GRANTED], ids=["as migrated", "with every table granted"])


@WAYS
@pytest.mark.parametrize("tenant", ["acme", "globex"])
@pytest.mark.parametrize("table", OPEN)
def test_a_tenant_reads_its_own_rows_and_no_others(owner, tenant, table, before):
    whose = TENANT_OF.get(table, "tenant")
    with acting(owner, "authenticated", of(tenant), before):
        assert count(owner, table) > 0
        assert count(owner, table, f"{whose} = '{tenant}'") == count(owner, table)
    assert count(owner, table, f"{whose} <> '{tenant}'") > 0, "there was something to hide"


def test_without_its_policies_the_same_question_shows_the_other_tenant(owner):
    """The control of the test above: it can fail."""
    with acting(owner, "authenticated", of("acme"), "ALTER TABLE dailies.jobs DISABLE ROW LEVEL SECURITY"):
        assert count(owner, "jobs", "tenant = 'globex'") == 1


@pytest.mark.parametrize("role", ["authenticated", "anon"])
@pytest.mark.parametrize("table", CLOSED)
def test_what_only_workers_need_is_closed_to_everybody_else(owner, role, table):
    assert count(owner, table) > 0, "there is something to hide"
    with pytest.raises(errors.InsufficientPrivilege), acting(owner, role, of("acme")):
        count(owner, table)
    with acting(owner, role, of("acme"), GRANTED):
        assert count(owner, table) == 0, "the grant alone opens nothing"
    with acting(owner, "service_role", None):
        assert count(owner, table) > 0


@pytest.mark.parametrize("table", OPEN)
def test_who_did_not_log_in_reads_nothing(owner, table):
    with pytest.raises(errors.InsufficientPrivilege), acting(owner, "anon", of("acme")):
        count(owner, table)
    with acting(owner, "anon", of("acme"), GRANTED):
        assert count(owner, table) == 0


@pytest.mark.parametrize(
    "claims",
    [
        None,
        "",
        {},
        {"tenant": "acme"},
        {"user_metadata": {"tenant": "acme"}},
        {"app_metadata": {}},
        {"app_metadata": {"tenant": None}},
        {"app_metadata": {"tenant": ""}},
        {"app_metadata": {"tenant": "ACME"}},
        {"app_metadata": {"tenant": "%"}},
        {"app_metadata": {"tenant": ["acme"]}},
    ],
    ids=str,
)
def test_a_token_that_names_no_tenant_reads_nothing(owner, claims):
    with acting(owner, "authenticated", claims):
        assert [count(owner, table) for table in OPEN] == [0] * len(OPEN)


@pytest.mark.parametrize("table", WRITES)
def test_a_tenant_changes_nothing_not_even_its_own(owner, table):
    with pytest.raises(errors.InsufficientPrivilege), acting(owner, "authenticated", of("acme")):
        owner.execute(WRITES[table])
    with acting(owner, "authenticated", of("acme"), GRANTED):
        assert owner.execute(WRITES[table]).rowcount == 0
        assert owner.execute(f"DELETE FROM dailies.{table}").rowcount == 0
        assert count(owner, "jobs") == 1, "it is somebody: it still reads its own"
    with acting(owner, "service_role", None):
        assert count(owner, table) >= 2, "nothing is gone"


@pytest.mark.parametrize("table", [*OPEN, *CLOSED])
def test_a_tenant_locks_nothing_that_a_worker_may_be_waiting_for(owner, table):
    with pytest.raises(errors.InsufficientPrivilege), acting(owner, "authenticated", of("acme")):
        owner.execute(f"SELECT * FROM dailies.{table} FOR UPDATE")
    with acting(owner, "authenticated", of("acme"), GRANTED):
        for strength in ("UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"):
            assert owner.execute(f"SELECT * FROM dailies.{table} FOR {strength}").fetchall() == []
        assert count(owner, "jobs") == 1


@pytest.mark.parametrize("video", ["v1", "nowhere"])
def test_a_tenant_cannot_find_out_what_another_has_by_what_is_refused(owner, video):
    """A row that is there and one that is not are refused in the same words: before any key is compared."""
    said = set()
    for tenant in ("globex", "acme"):
        with (
            pytest.raises(errors.InsufficientPrivilege) as refused,
            acting(owner, "authenticated", of("acme"), GRANTED),
        ):
            owner.execute(
                "INSERT INTO dailies.videos VALUES (%s, %s, 'k', 'ready', 1, '', '', '{}', 0, 0)", [tenant, video]
            )
        said.add(str(refused.value))
    assert said == {'new row violates row-level security policy for table "videos"'}


def test_a_tenant_sees_no_trace_of_another_through_a_join_or_an_aggregate(owner):
    with acting(owner, "authenticated", of("acme"), GRANTED):
        [[names]] = owner.execute(
            """SELECT array_agg(DISTINCT jobs.tenant) FROM dailies.jobs
               FULL JOIN dailies.units ON true FULL JOIN dailies.outbox ON true FULL JOIN dailies.videos ON true"""
        ).fetchall()
        assert names == ["acme"]
        assert owner.execute("SELECT max(fence) FROM dailies.leases").fetchall() == [(None,)]


FUNCTIONS = "SELECT oid::regprocedure::text, oid FROM pg_proc WHERE pronamespace = 'dailies'::regnamespace ORDER BY 1"


@pytest.mark.parametrize("role", ["anon", "authenticated", "public"])
def test_nobody_but_a_worker_may_call_the_ledgers_functions(owner, role):
    found = owner.execute(FUNCTIONS).fetchall()
    callable_by = {
        name
        for name, oid in found
        if owner.execute("SELECT has_function_privilege(%s, %s::oid, 'EXECUTE')", [role, oid]).fetchall() == [(True,)]
    }
    assert len(found) > 60
    assert callable_by == ({"dailies.tenant()"} if role == "authenticated" else set())
    by_worker = [
        owner.execute("SELECT has_function_privilege('service_role', %s::oid, 'EXECUTE')", [oid]).fetchone()[0]
        for _, oid in found
    ]
    assert all(by_worker)


def test_every_function_acts_with_its_callers_rights_and_finds_nothing_but_what_it_names(owner):
    found = owner.execute(
        "SELECT proname, prosecdef, proconfig FROM pg_proc WHERE pronamespace = 'dailies'::regnamespace"
    ).fetchall()
    assert {(definer, tuple(config)) for _, definer, config in found} == {(False, ('search_path=""',))}


ATTEMPTS: dict[str, Callable[[psycopg.Connection], object]] = {
    "cancel": lambda c: call(c, "job_cancel", "job-globex"),
    "acquire": lambda c: call(c, "lease_acquire", "video:globex/v2", "thief", 60.0),
    "release": lambda c: call(c, "lease_release", "job:job-globex", "run-globex", 1),
    "complete": lambda c: call(
        c, "unit_complete", "job:job-globex", "run-globex", 1, "unit-1", "probe", "d", "0", False
    ),
    "tier": lambda c: call(c, "tenant_set_tier", "acme", "enterprise"),
    "sweep": lambda c: call(c, "lease_sweep"),
    "settle": lambda c: call(c, "video_settle"),
    "look": lambda c: c.execute("SELECT dailies.job_get('job-globex')"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_tenant_calls_nothing_and_with_execute_granted_it_still_has_no_more_rights_than_its_own(owner, attempt):
    with pytest.raises(errors.InsufficientPrivilege), acting(owner, "authenticated", of("acme")):
        ATTEMPTS[attempt](owner)
    before = owner.execute("SELECT * FROM dailies.leases ORDER BY resource").fetchall()
    with pytest.raises(psycopg.Error) as refused, acting(owner, "authenticated", of("acme"), CALLABLE):
        ATTEMPTS[attempt](owner)
    assert refused.value.sqlstate in {"42501", "PT404"}, "refused, or not to be found"
    assert owner.execute("SELECT * FROM dailies.leases ORDER BY resource").fetchall() == before


def test_the_publishable_key_is_told_to_be_the_wrong_one(api):
    with pytest.raises(NotConfigured, match="service key"):
        SupabaseLedger(api.url, PUBLISHABLE_KEY).jobs.all()


def test_the_api_acts_as_the_service_role_and_not_as_the_owner(ledger, database):
    """The control of this whole module: what the role may not do, the ledger cannot."""
    ledger.tenants.tier("acme")
    database.execute("REVOKE EXECUTE ON FUNCTION dailies.tenant_tier FROM service_role")
    try:
        with pytest.raises(NotConfigured):
            ledger.tenants.tier("acme")
    finally:
        database.execute("GRANT EXECUTE ON FUNCTION dailies.tenant_tier TO service_role")
