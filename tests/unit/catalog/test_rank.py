"""Popularity is exact where it is asked for, near enough where it is stored, and written seldom."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dailies.catalog import rank as module
from dailies.catalog.merge import merge, open_to_write
from dailies.catalog.rank import EXACT, SLACK, popularity, rank, top
from dailies.errors import BadInput
from tests.unit.catalog.rows import DAY, T0, add, database, instance, production, rows, staging, video

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("views", "likes", "published_at", "value"),
    [
        (100, 10, T0, 120.0),
        (100, 10, T0 - 30 * DAY, 60.0),
        (100, 10, T0 - 15 * DAY, 80.0),
        (100, 10, T0 + 90 * DAY, 120.0),
        (100, 10, None, 120 / (1 + 3650 / 30)),
        (-5, 10, T0, 20.0),
        (5, -10, T0, 5.0),
        (None, None, T0, 0.0),
    ],
)
def test_the_formula(views: int | None, likes: int | None, published_at: int | None, value: float) -> None:
    assert popularity(views, likes, published_at, T0) == pytest.approx(value, rel=1e-12)


COUNT = st.one_of(st.none(), st.integers(-3, 50), st.integers(0, 10**7))
TIME = st.one_of(st.none(), st.integers(T0 - 4000 * DAY, T0 + 40 * DAY), st.integers(T0 - 3 * DAY, T0 + 3 * DAY))
VIDEO = st.tuples(COUNT, COUNT, TIME, st.booleans())


@given(COUNT, COUNT, TIME, st.integers(T0 - 4000 * DAY, T0 + 4000 * DAY))
def test_sql_and_python_give_the_same_bits(views: Any, likes: Any, published_at: Any, as_of: int) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        told = {"views": views, "likes": likes, "published_at": published_at, "as_of": as_of}
        said = db.execute(
            f"SELECT {EXACT} FROM (SELECT :views AS views, :likes AS likes, :published_at AS published_at)", told
        ).fetchone()[0]
    assert said == popularity(views, likes, published_at, as_of)


def make(folder: Path, videos: list[tuple[Any, ...]]) -> Path:
    path = database(folder / "catalog.db", "production")
    add(path, "instances", instance())
    add(
        path,
        "videos",
        *(
            video(f"v{n}", views=views, likes=likes, published_at=at, removed_at=1 if gone else None)
            for n, (views, likes, at, gone) in enumerate(videos)
        ),
    )
    return path


def recomputed(path: Path, as_of: int) -> list[tuple[int, float]]:
    """All of them, in another language, and sorted."""
    found = rows(path, "SELECT id, views, likes, published_at FROM videos WHERE removed_at IS NULL")
    return sorted(((number, popularity(*told, as_of)) for number, *told in found), key=lambda pair: (-pair[1], pair[0]))


def best(path: Path, as_of: int, n: int) -> list[tuple[int, float]]:
    with closing(sqlite3.connect(path)) as db:
        return top(db, as_of, n)


def unsynced(path: Path) -> sqlite3.Connection:
    db = open_to_write(path)
    db.execute("PRAGMA synchronous = OFF")
    return db


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    videos=st.lists(VIDEO, max_size=30),
    later=st.lists(st.integers(0, 60 * DAY), max_size=3),
    asked=st.integers(-400 * DAY, 400 * DAY),
    n=st.integers(0, 8),
)
def test_the_top_is_that_of_a_full_recomputation_at_any_moment(
    videos: list[tuple[Any, ...]], later: list[int], asked: int, n: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_to_write", unsynced)
        path = make(Path(folder), videos)
        moment = T0
        for wait in [0, *later]:
            moment += wait
            rank(path, moment)
            for value, stored in rows(
                path, f"SELECT {EXACT.replace(':as_of', str(moment))}, popularity FROM videos WHERE removed_at IS NULL"
            ):
                assert abs(stored - value) <= SLACK * value * (1 + 1e-12)
        for as_of in (moment, moment + asked):
            assert best(path, as_of, n) == recomputed(path, as_of)[:n]


def test_it_writes_only_what_is_off_by_more_than_a_hundredth(tmp_path: Path) -> None:
    old, young = T0 - 1000 * DAY, T0 - DAY
    path = make(tmp_path, [(100, 0, old, False), (100, 0, young, False), (100, 0, None, False), (0, 0, young, False)])
    assert rank(path, T0)["rewritten"] == 4
    before = path.read_bytes()
    assert rank(path, T0)["rewritten"] == 0
    assert path.read_bytes() == before
    assert rank(path, T0 + DAY)["rewritten"] == 1
    assert rows(path, "SELECT popularity_as_of FROM videos ORDER BY id") == [(T0,), (T0 + DAY,), (T0,), (T0,)]
    assert rank(path, T0 + 12 * DAY)["rewritten"] == 2
    stored = rows(path, "SELECT popularity FROM videos ORDER BY id")
    assert stored[0][0] == popularity(100, 0, old, T0 + 12 * DAY)


def test_views_that_grew_are_written_and_the_dead_are_left_out(tmp_path: Path) -> None:
    path = make(tmp_path, [(1000, 0, None, False), (1000, 0, None, False), (10**9, 0, None, True)])
    assert rank(path, T0)["rewritten"] == 2
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE videos SET views = 1009 WHERE id = 1")
        db.execute("UPDATE videos SET views = 1011 WHERE id = 2")
    assert rank(path, T0)["rewritten"] == 1
    assert [number for number, _ in best(path, T0, 5)] == [2, 1]


def test_one_whose_stored_value_is_a_little_low_is_found(tmp_path: Path) -> None:
    path = make(tmp_path, [(1000, 0, None, False), (1005, 0, None, False)])
    rank(path, T0)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE videos SET views = 1009 WHERE id = 1")
    assert rank(path, T0)["rewritten"] == 0
    assert [number for number, _ in best(path, T0, 1)] == [1]


def test_one_that_was_more_popular_before_the_ranking_is_found(tmp_path: Path) -> None:
    steady = 150 * (1 + 3650 / 30)
    path = make(tmp_path, [(300, 0, T0 - 60 * DAY, False), (round(steady), 0, None, False)])
    rank(path, T0)
    assert [number for number, _ in best(path, T0, 1)] == [2]
    assert [number for number, _ in best(path, T0 - 60 * DAY, 1)] == [1]


def test_the_top_reads_a_little_and_not_all(tmp_path: Path) -> None:
    path = make(tmp_path, [(n * n, 0, T0 - (n % 50) * DAY, False) for n in range(1, 2001)])
    rank(path, T0)
    looked = []
    with closing(sqlite3.connect(path)) as db:
        db.create_function("iif", 3, lambda test, yes, no: looked.append(1) or (yes if test else no))
        assert top(db, T0 + DAY // 2, 10) == recomputed(path, T0 + DAY // 2)[:10]
    assert 10 <= len(looked) < 100


def test_after_a_merge_the_top_is_exact_also_before_the_ranking(tmp_path: Path) -> None:
    path, stage = production(tmp_path / "catalog.db", videos=5), staging(tmp_path / "staging.db", T0)
    rank(path, T0)
    add(stage, "instances", instance())
    add(stage, "videos", video("v004", views=10**6))
    merge(stage, path)
    assert rows(path, "SELECT * FROM ranked") == []
    assert best(path, T0, 2) == recomputed(path, T0)[:2]
    assert best(path, T0, 1)[0][0] == 5
    rank(path, T0)
    assert rows(path, "SELECT * FROM ranked") == [(T0,)]


def test_a_finished_generation_is_not_ranked(tmp_path: Path) -> None:
    path = make(tmp_path, [(1, 1, T0, False)])
    path.chmod(0o444)
    with pytest.raises(BadInput, match="is read-only"):
        rank(path, T0)
