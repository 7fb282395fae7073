"""Stages of an update on a disk without room: one clear line, and the file of before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dailies.catalog.index import build_index
from dailies.catalog.neighbours import find_neighbours
from dailies.catalog.vectors import made_whole
from tests.unit.catalog import rows
from tests.unit.catalog.vector_rows import clustered, numbered, production

pytestmark = pytest.mark.unit

# No file may become longer than this: the kernel says so, as it says that a disk is full. In a process of its own, for
# the limit cannot be taken back, and a fork of this one may find the threads of FAISS frozen.
PROGRAM = """
import resource, signal, sys
from pathlib import Path
from dailies.catalog.embed import build_embeddings
from dailies.catalog.gathering import Gathering
from dailies.catalog.index import build_index
from dailies.catalog.neighbours import find_neighbours
from dailies.catalog.rank import rank
from dailies.catalog.staging import begin_staging
from dailies.catalog.notes import write
from dailies.errors import BadInput
at = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    {make}
except BadInput as error:
    print(error)
"""
INDEX = "build_index(at / 'catalog.db', at / 'index.faiss')"
SIMILAR = "find_neighbours(at / 'index.faiss', at / 'similar.db')"


@pytest.fixture
def made(tmp_path) -> Path:
    production(tmp_path / "catalog.db", numbered(clustered(400)))
    build_index(tmp_path / "catalog.db", tmp_path / "index.faiss")
    find_neighbours(tmp_path / "index.faiss", tmp_path / "similar.db")
    return tmp_path


@pytest.mark.parametrize(("file", "make"), [("index.faiss", INDEX), ("similar.db", SIMILAR)])
def test_a_disk_without_room_is_one_line_and_the_old_file_stays(made, file, make):
    before = (made / file).read_bytes()
    command = [sys.executable, "-c", PROGRAM.format(make=make, room=16384), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = f"{made / file} could not be written (full, over a limit, or failing): free some space\n"
    assert done.stdout == said, done.stderr
    assert (made / file).read_bytes() == before
    assert sorted(path.name for path in made.iterdir()) == ["catalog.db", "index.faiss", "similar.db"]


@pytest.mark.parametrize(
    ("file", "make"),
    [
        (".staging.db.new", "begin_staging(at / 'staging.db', None, ['a.example'], 0, False)"),
        ("staging.db", "Gathering(at / 'staging.db')"),
        ("staging.db", "build_embeddings(at / 'staging.db', None)"),
        ("catalog.db", f"rank(at / 'catalog.db', {rows.T0})"),
        ("published.json", "write(at / 'published.json', {})"),
    ],
)
def test_where_nothing_at_all_can_be_written_all_is_as_it_was(tmp_path, file, make):
    """SQLite takes a transaction back by itself then, and what it says of the disk must not be lost over that."""
    prod, staged = rows.production(tmp_path / "catalog.db", videos=100), rows.staging(tmp_path / "staging.db")
    rows.add(staged, "videos", rows.video("v1"))
    before, files = [rows.dump(path) for path in (prod, staged)], sorted(tmp_path.iterdir())
    command = [sys.executable, "-c", PROGRAM.format(make=make, room=0), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert re.fullmatch(rf"{tmp_path / file} (could not|cannot) be written \(.+\): free some space.*\n", done.stdout), (
        done.stderr
    )
    assert [rows.dump(path) for path in (prod, staged)] == before
    assert sorted(tmp_path.iterdir()) == files


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="not trained"), made_whole(tmp_path / "index.faiss"):
        raise RuntimeError("index is not trained")
