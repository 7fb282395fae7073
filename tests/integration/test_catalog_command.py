"""`dailies catalog`, as somebody types it: update, similar, search; stopped and killed and typed again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dailies import failpoints
from dailies.scenarios.federation import Federation
from tests.integration import conftest as integration

pytestmark = pytest.mark.integration
eventually = integration.eventually

DAILIES = Path(sys.executable).with_name("dailies")


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation(seed=2, hosts=2, videos=200, latency_s=0.0) as running:
        yield running


@pytest.fixture
def words(federation, tmp_path) -> list[str]:
    federation.show(0)
    where = ["--prod", str(tmp_path / "catalog")]
    return ["update", "--whitelist", federation.whitelist_url, "--allow-private", "--stop-after-pages", "0", *where]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    return {**os.environ, "DAILIES_HOME": str(tmp_path / "home")}


@pytest.fixture
def catalog(environment, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        where = [] if words[0] == "update" else ["--prod", str(tmp_path / "catalog")]
        command = [DAILIES, "catalog", *words, *where]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def video(tmp_path: Path) -> tuple[str, str, str, str]:
    (database,) = (tmp_path / "catalog").glob("gen-*/catalog.db")
    with closing(sqlite3.connect(database)) as opened:
        return opened.execute(
            "SELECT video_id, instance_domain, title, description FROM videos ORDER BY id LIMIT 1"
        ).fetchone()


def test_an_update_says_what_it_did_and_the_catalogue_answers(catalog, words, tmp_path):
    done = catalog(*words)
    assert done.returncode == 0, done.stderr
    assert "videos     200 new, 0 changed, 0 removed, 200 in the index" in done.stdout
    assert "hosts      2 of 2 answered to the end" in done.stdout
    name, host, title, description = video(tmp_path)
    near = catalog("similar", f"{name}@{host}", "--count", "3")
    lines = near.stdout.splitlines()
    assert (near.returncode, len(lines)) == (0, 4)
    assert lines[0] == f"{title}  ({name}@{host})"
    found = catalog("search", f"{title} {description}", "--count", "5").stdout
    assert f"({name}@{host})" in found.splitlines()[0]
    nobody = catalog("similar", "no-such-video")
    assert nobody.returncode == 1
    assert nobody.stderr == (
        "dailies: there is no video 'no-such-video' in the catalogue: look for it with `dailies catalog search`\n"
    )


def test_before_the_first_update_there_is_nothing_to_ask(catalog):
    done = catalog("search", "anything")
    assert done.returncode == 1
    said = r"dailies: nothing of catalog:local/catalogs/catalog-[0-9a-f]{8} is published yet: run an update first\n"
    assert re.fullmatch(said, done.stderr)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_it_goes_on_where_it_was(catalog, words, tmp_path, environment, federation, eventually, how):
    log = tmp_path / "faults.jsonl"
    federation.forget()
    process = subprocess.Popen(
        [DAILIES, "catalog", *words],
        env={**environment, **failpoints.environment("catalog.page#6=hang", log)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    eventually(lambda: failpoints.fired(log), 60)
    process.send_signal(how)
    said = process.communicate(timeout=20)[1].decode()
    assert process.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert said.endswith("dailies: stopped; the same command goes on where it was\n") or how is signal.SIGKILL
    asked = federation.counters()["hosts"]
    done = catalog(*words)
    assert done.returncode == 0, done.stderr
    assert "200 in the index" in done.stdout
    pages = [
        times
        for host in federation.counters()["hosts"].values()
        for channel in host["pages"].values()
        for times in channel.values()
    ]
    assert sum(pages) - len(pages) <= 4, "but for the pages that were on their way, each is asked for once"
    assert any(channel for host in asked.values() for channel in host["pages"].values())


def test_bad_input_is_one_line(catalog, words, tmp_path):
    for wrong, said in (
        (["--max-removed", "0.5", "--service", "sysv:x"], "service is none, systemd:UNIT or process:COMMAND"),
        (["--rules", "mine"], "there are no merge rules 'mine': choose ours or original"),
        (["--model", "word2vec"], "word2vec"),
        (["--prod", "/proc/nothing"], "/proc/nothing cannot be written"),
    ):
        done = catalog(*words, *wrong)
        lines = [line for line in done.stderr.splitlines() if line.startswith("dailies:")]
        assert (done.returncode, len(lines)) == (1, 1), done.stderr
        assert said in lines[0]
        assert "asking the hosts" not in done.stderr, "it is said before the work"
        assert "Traceback" not in done.stderr


def test_two_folders_of_one_name_are_two_catalogues(catalog, words, tmp_path):
    other = tmp_path / "of another" / "catalog"
    for prod in (tmp_path / "catalog", other):
        done = catalog(*words[:-1], str(prod))
        assert done.returncode == 0, done.stderr
        assert "the first that is published" in done.stdout
    assert len({(prod / "catalog.json").read_text() for prod in (tmp_path / "catalog", other)}) == 2


def test_where_the_folder_was_removed_a_new_catalogue_is_begun_only_if_asked_for(catalog, words, tmp_path):
    assert catalog(*words).returncode == 0
    shutil.rmtree(tmp_path / "catalog")
    done = catalog(*words)
    assert done.returncode == 1
    assert re.search(
        r"gen-\d+ of catalog:\S+ is not in \S+/catalog: .* or begin anew with nothing \(--fresh", done.stderr
    )
    again = catalog(*words, "--fresh")
    assert again.returncode == 0, again.stderr
    assert "videos     200 new" in again.stdout
