"""The migrations can be applied, applied again, and taken back, and leave nothing of ours behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.supabase.servers import COMMAND, MIGRATIONS, SUPABASE, migrate

pytestmark = pytest.mark.supabase

ROLLBACKS = sorted((SUPABASE / "rollback").glob("*.sql"))
CATALOGUE = """
    SELECT 'schema', nspname FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT 'relation', oid::regclass::text FROM pg_class WHERE relnamespace::regnamespace::text !~ '^pg_'
    UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE pronamespace::regnamespace::text !~ '^pg_'
    UNION ALL SELECT 'type', oid::regtype::text FROM pg_type WHERE typnamespace::regnamespace::text !~ '^pg_'
    UNION ALL SELECT 'policy', polname::text FROM pg_policy
    UNION ALL SELECT 'role', rolname::text FROM pg_roles
    UNION ALL SELECT 'default right', defaclacl::text FROM pg_default_acl
"""


def catalogue(database: psycopg.Connection) -> set[tuple[str, str]]:
    return set(database.execute(CATALOGUE).fetchall())


def shape(database: psycopg.Connection) -> list[tuple[object, ...]]:
    """Everything that a migration could have left different: columns, bodies, rights and policies."""
    return [
        *database.execute(
            """SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns
               WHERE table_schema = 'dailies' ORDER BY 1, 2"""
        ).fetchall(),
        *database.execute(
            """SELECT proname, prosrc, proacl::text FROM pg_proc WHERE pronamespace = 'dailies'::regnamespace
               ORDER BY 1"""
        ).fetchall(),
        *database.execute(
            """SELECT relname, relrowsecurity, relacl::text FROM pg_class WHERE relnamespace = 'dailies'::regnamespace
               ORDER BY 1"""
        ).fetchall(),
        *database.execute("SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy ORDER BY 1").fetchall(),
    ]


def with_rows(database: psycopg.Connection) -> list[tuple[object, ...]]:
    submit = "SELECT dailies.job_submit(%s, 'j1', 'acme', 'k', 's', '{}', 'd', 3, NULL, 0, true, 'key', 'dig', 'run-1')"
    database.execute(submit, [uuid4()])
    database.execute("SELECT dailies.job_start(%s, 'j1', 1, 'run-1', 60)", [uuid4()])
    return rows(database)


def rows(database: psycopg.Connection) -> list[tuple[object, ...]]:
    return [
        row
        for table in ("jobs", "runs", "leases", "outbox", "answers")
        for row in database.execute(f"SELECT * FROM dailies.{table}").fetchall()
    ]


def test_every_migration_has_the_name_that_the_command_line_looks_for_and_a_way_back():
    names = [script.name for script in MIGRATIONS]
    assert len(names) >= 2
    assert all(re.fullmatch(r"\d{14}_[a-z_]+\.sql", name) for name in names)
    assert len({name[:14] for name in names}) == len(names)
    assert [script.name for script in ROLLBACKS] == names


def test_the_project_exposes_the_schema():
    assert "dailies" in tomllib.loads((SUPABASE / "config.toml").read_text())["api"]["schemas"]


def test_applied_twice_they_are_as_applied_once(postgres):
    with postgres.database("twice") as database:
        migrate(database, MIGRATIONS)
        once = shape(database)
        assert len(once) > 100
        migrate(database, MIGRATIONS)
        assert shape(database) == once


def test_applied_to_a_ledger_with_rows_they_lose_none(postgres):
    with postgres.database("with_rows") as database:
        migrate(database, MIGRATIONS)
        before = with_rows(database)
        assert len(before) == 7
        migrate(database, MIGRATIONS)
        assert rows(database) == before


def test_taken_back_they_leave_nothing_and_can_be_applied_again(postgres):
    with postgres.database("back") as database:
        before = catalogue(database)
        migrate(database, MIGRATIONS)
        once = shape(database)
        with_rows(database)
        assert catalogue(database) > before
        migrate(database, ROLLBACKS[::-1])
        assert catalogue(database) == before
        migrate(database, MIGRATIONS)
        assert shape(database) == once


@pytest.mark.parametrize("depth", range(1, len(MIGRATIONS)), ids=lambda depth: MIGRATIONS[-depth].stem[15:])
def test_taken_back_in_part_they_keep_the_rows_and_can_be_applied_again(postgres, depth):
    with postgres.database("in_part") as database:
        migrate(database, MIGRATIONS)
        once, before = shape(database), with_rows(database)
        migrate(database, ROLLBACKS[::-1][:depth])
        assert shape(database) != once
        assert rows(database) == before
        migrate(database, MIGRATIONS[-depth:])
        assert (shape(database), rows(database)) == (once, before)


RIGHTS = next(place for place, script in enumerate(MIGRATIONS, 1) if script.stem.endswith("_rights"))


@pytest.mark.parametrize("place", range(RIGHTS, len(MIGRATIONS)), ids=lambda place: MIGRATIONS[place].stem[15:])
def test_taken_back_a_migration_leaves_the_functions_and_their_rights_as_it_found_them(postgres, place):
    """Of those after the rights: before them, a right that nobody has may be written down in two ways."""
    with postgres.database("found_again") as database:
        migrate(database, MIGRATIONS[:place])
        before, found = shape(database), catalogue(database)
        migrate(database, [MIGRATIONS[place]])
        assert shape(database) != before
        migrate(database, [ROLLBACKS[place]])
        assert (shape(database), catalogue(database)) == (before, found)


def test_what_is_not_ours_is_never_dropped(postgres):
    with postgres.database("not_ours") as database:
        migrate(database, MIGRATIONS)
        database.execute(
            "CREATE TABLE dailies.somebody_elses (number integer); INSERT INTO dailies.somebody_elses VALUES (7)"
        )
        with pytest.raises(psycopg.errors.DependentObjectsStillExist):
            migrate(database, ROLLBACKS[::-1])
        assert database.execute("SELECT number FROM dailies.somebody_elses").fetchall() == [(7,)]


def test_between_two_migrations_nobody_can_call_or_read_anything(postgres):
    """A function may be called by everybody until that is revoked, but not in a schema that nobody may use."""
    with postgres.database("between") as database:
        for script in MIGRATIONS:
            migrate(database, [script])
            for role in ("anon", "authenticated"):
                usage = "SELECT has_schema_privilege(%s, 'dailies', 'USAGE')"
                if database.execute(usage, [role]).fetchall() == [(True,)]:
                    assert (role, open_to(database, role)) == ("authenticated", {"tenant"})


def open_to(database: psycopg.Connection, role: str) -> set[str]:
    """What this role may call."""
    privilege = """SELECT proname FROM pg_proc
        WHERE pronamespace = 'dailies'::regnamespace AND has_function_privilege(%s, oid, 'EXECUTE')"""
    return {name for (name,) in database.execute(privilege, [role]).fetchall()}


def test_a_migration_that_forgets_to_close_its_function_is_found_out(postgres):
    """The control of the test above: what comes after the rights is closed by nobody else."""
    with postgres.database("forgetful") as database:
        migrate(database, MIGRATIONS)
        database.execute("CREATE FUNCTION dailies.forgotten() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$")
        assert open_to(database, "authenticated") == {"tenant", "forgotten"}


def test_a_command_line_that_follows_supabases_finds_and_applies_them(postgres, tmp_path: Path):
    """Of @supabase/lite, which reads the same folder by the same rules; Supabase's own cannot be installed here."""
    shutil.copytree(SUPABASE / "migrations", tmp_path / "supabase" / "migrations")
    with postgres.database("by_command") as database:
        (tmp_path / "supabase" / "config.toml").write_text(
            f'[db]\ndriver = "postgres"\nurl = "{postgres.address("by_command")}"\n'
        )
        done = subprocess.run(
            ["node", str(COMMAND), "migration", "up"],
            cwd=tmp_path,
            env=os.environ | {"DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        applied = database.execute("SELECT version FROM supabase_migrations.schema_migrations ORDER BY 1").fetchall()
        assert [version for (version,) in applied] == [script.name[:14] for script in MIGRATIONS]
        assert len(with_rows(database)) == 7
