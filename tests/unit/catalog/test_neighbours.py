"""Neighbours: exactly those, in exactly that order, whether computed whole or from what was there before."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dailies import failpoints
from dailies.canonical import file_digest
from dailies.catalog import neighbours
from dailies.catalog.index import build_index
from dailies.catalog.neighbours import find_neighbours
from dailies.catalog.similar_file import listed, neighbours_of
from dailies.errors import Injected
from tests.unit.catalog.vector_rows import clustered, lists_in, nearest_by_hand, numbered, production

pytestmark = pytest.mark.unit


def found(
    folder: Path,
    name: str,
    vectors: dict[int, np.ndarray],
    before: str | None = None,
    flat_below: int = 50_000,
    k: int = 5,
) -> dict[str, object]:
    db, index, out = production(folder / f"{name}.db", vectors), folder / f"{name}.index", folder / f"{name}.similar"
    old = {kind: folder / f"{before}.{kind}" if before else None for kind in ("index", "similar")}
    build_index(db, index, previous=old["index"], flat_below=flat_below)
    return find_neighbours(index, out, k, old["similar"], batch=256)


def test_they_are_the_nearest_best_first_ties_by_id(tmp_path: Path) -> None:
    matrix = clustered(300)
    matrix[50:90] = matrix[3]
    vectors = numbered(matrix)
    assert found(tmp_path, "a", vectors)["searched"] == 300
    assert lists_in(tmp_path / "a.similar") == nearest_by_hand(vectors, 5)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_with_few_videos_lists_are_short(tmp_path: Path, count: int) -> None:
    vectors = numbered(clustered(count)) if count else {}
    found(tmp_path, "a", vectors)
    assert lists_in(tmp_path / "a.similar") == nearest_by_hand(vectors, 5)


# A few directions in few dimensions, so that ties abound.
DIRECTIONS = clustered(7, dim=4, groups=3)
CATALOGUES = st.dictionaries(st.integers(1, 40), st.integers(0, 6), max_size=30)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(CATALOGUES, CATALOGUES)
def test_an_update_equals_a_computation_of_all(before: dict[int, int], after: dict[int, int]) -> None:
    # Half of what was there stays as it was: else there would be nothing to keep.
    after = after | {number: turn for number, turn in before.items() if number % 2}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors = {number: DIRECTIONS[turn] for number, turn in after.items()}
        found(folder, "before", {number: DIRECTIONS[turn] for number, turn in before.items()})
        found(folder, "updated", vectors, "before")
        found(folder, "anew", vectors)
        assert lists_in(folder / "updated.similar") == nearest_by_hand(vectors, 5)
        assert file_digest(folder / "updated.similar") == file_digest(folder / "anew.similar")


def test_a_new_one_that_is_as_near_as_the_last_comes_in_by_its_smaller_id(tmp_path: Path) -> None:
    first = dict.fromkeys(range(10, 30), DIRECTIONS[0])
    second = first | {1: DIRECTIONS[0]}
    found(tmp_path, "a", first)
    assert found(tmp_path, "b", second, "a")["gained"] == 20
    assert lists_in(tmp_path / "b.similar") == nearest_by_hand(second, 5)


def grown(first: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    kept = {number: vector for number, vector in first.items() if number % 97 != 1}
    return kept | {10: first[100]} | numbered(clustered(40, seed=5), max(first) + 1)


def test_an_update_searches_only_where_something_is_other(tmp_path: Path) -> None:
    first = numbered(clustered(1500))
    second = grown(first)
    found(tmp_path, "a", first)
    told = found(tmp_path, "b", second, "a")
    gone = set(first) - set(second) | {10}
    before, after = nearest_by_hand(first, 5), nearest_by_hand(second, 5)
    fresh = (set(second) - set(first)) | {10}
    stale = {number for number, near in before.items() if gone & {other for other, _ in near}} & set(second) - fresh
    # Who got back as many as he lost, all of them better than his last one was, has nothing to search for.
    short = {number for number in stale if place(after[number][-1]) > place(before[number][-1])}
    assert told["updated"]
    assert 0 < len(short) < len(stale)
    assert told["searched"] == len(fresh | short)
    assert 0 < told["gained"] < 1500
    assert lists_in(tmp_path / "b.similar") == after


def place(neighbour: tuple[int, float]) -> tuple[float, int]:
    return -neighbour[1], neighbour[0]


def test_with_lists_a_reserve_stands_in_for_those_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every list is looked into, so that what an update comes to must be exact, update after update."""
    monkeypatch.setattr(neighbours, "EXACT_FASTER", 0)
    monkeypatch.setattr(neighbours, "RESERVE", 2)
    real = neighbours.load_index

    def everywhere(path: Path, mapped: bool) -> object:
        index = real(path, mapped=mapped)
        index.nprobe = index.nlist
        return index

    monkeypatch.setattr(neighbours, "load_index", everywhere)
    vectors, searched, lost = numbered(clustered(1500)), [], []
    for number in range(5):
        files = [tmp_path / f"{number}.{kind}" for kind in ("db", "index", "similar")]
        old = [tmp_path / f"{number - 1}.{kind}" if number else None for kind in ("index", "similar")]
        build_index(production(files[0], vectors), files[1], previous=old[0], flat_below=1000)
        told = find_neighbours(*files[1:], 5, old[1], breadth=2000)
        assert (told["updated"], told["recall"]) == (number > 0, 1.0)
        assert lists_in(files[2]) == nearest_by_hand(vectors, 5)
        searched.append(told["searched"])
        gone = sorted(vectors)[number :: 40 - number]
        lost.append(sum(bool({other for other, _ in near} & set(gone)) for near in lists_in(files[2]).values()))
        vectors = {place: vector for place, vector in vectors.items() if place not in gone}
        vectors |= numbered(clustered(12, seed=number + 7), max(vectors) + 1)
    assert searched[1] < 20  # the new ones, and nobody whose reserve is used up already
    assert 20 < searched[4] < lost[3]


def test_where_many_lists_are_looked_into_all_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = numbered(clustered(1500))
    second = grown(first)
    monkeypatch.setattr(neighbours, "EXACT_FASTER", 10_000)
    assert found(tmp_path, "a", first, flat_below=1000)["exact"]
    told = found(tmp_path, "b", second, "a", flat_below=1000)
    assert (told["exact"], told["updated"]) == (True, True)
    assert lists_in(tmp_path / "b.similar") == nearest_by_hand(second, 5)


@pytest.mark.parametrize("apart", [3, 2 * neighbours.SPARSE + 1])
def test_with_lists_an_update_finds_nearly_all_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: int
) -> None:
    monkeypatch.setattr(neighbours, "EXACT_FASTER", 0)
    first = numbered(clustered(3000), step=apart)
    second = grown(first)
    found(tmp_path, "a", first, flat_below=1000)
    told = found(tmp_path, "b", second, "a", flat_below=1000)
    exact, mine = nearest_by_hand(second, 5), lists_in(tmp_path / "b.similar")
    assert told["updated"]
    hits = sum(len(set(exact[number]) & set(mine[number])) for number in second)
    assert hits / (5 * len(second)) >= 0.95
    assert told["recall"] == pytest.approx(hits / (5 * len(second)), abs=0.03)
    # The old ones that gained a new one: none is forgotten of those that are far nearer than the last.
    new = set(second) - set(first)
    should = {(number, other) for number, near in exact.items() for other, _ in near if other in new}
    have = {(number, other) for number, near in mine.items() for other, _ in near if other in new}
    assert len(should & have) / len(should) >= 0.95


@pytest.mark.parametrize("flat_below", [1000, 50_000])
def test_one_that_dies_between_batches_is_made_again_the_same(tmp_path: Path, flat_below: int) -> None:
    first = numbered(clustered(1500))
    found(tmp_path, "a", first, flat_below=flat_below)
    whole = file_digest(tmp_path / "a.similar")
    failpoints.arm("catalog.similar#2=raise", tmp_path / "fired")
    try:
        with pytest.raises(Injected):
            find_neighbours(tmp_path / "a.index", tmp_path / "c.similar", 5, batch=256)
    finally:
        failpoints.arm("", tmp_path / "fired")
    assert not (tmp_path / "c.similar").exists()
    find_neighbours(tmp_path / "a.index", tmp_path / "c.similar", 5, batch=300)
    assert file_digest(tmp_path / "c.similar") == whole


def test_another_count_of_neighbours_is_computed_anew(tmp_path: Path) -> None:
    vectors = numbered(clustered(200))
    found(tmp_path, "a", vectors)
    assert not found(tmp_path, "b", vectors, "a", k=7)["updated"]
    assert lists_in(tmp_path / "b.similar") == nearest_by_hand(vectors, 7)


def test_those_in_the_form_of_another_version_are_computed_anew(tmp_path: Path) -> None:
    vectors = numbered(clustered(200))
    found(tmp_path, "a", vectors)
    with closing(sqlite3.connect(tmp_path / "a.similar")) as database, database:
        database.execute("UPDATE meta SET value = '1' WHERE key = 'format'")
    assert not found(tmp_path, "b", vectors, "a")["updated"]


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
def test_a_reader_finds_the_list_of_each_and_of_nobody_else(tmp_path: Path, count: int) -> None:
    """Many lists share a row of the file, and between the ids there are gaps."""
    vectors = numbered(clustered(count)) if count else {}
    found(tmp_path, "a", vectors)
    wanted = nearest_by_hand(vectors, 5)
    with closing(sqlite3.connect(tmp_path / "a.similar")) as database:
        assert listed(database) == count
        for number in range(-1, 3 * count + 4):
            assert neighbours_of(database, number) == wanted.get(number, [])
