"""The database of a generation between the merge and the index: finished once, taken over only then, and whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dailies.canonical import file_digest
from dailies.catalog import generation
from dailies.catalog import update as stages
from dailies.catalog.reader import CATALOG, INDEX, META, read_meta
from dailies.catalog.update import Update, run_stage
from dailies.errors import BadInput, Conflict, Damaged, Injected, Transient
from tests.unit.catalog import generations
from tests.unit.catalog.rows import T0, add, dump, embedding, instance, production, staging, video

pytestmark = pytest.mark.unit
BASE = "gen-000001"
TO_SIMILAR = ("merge", "popularity", "index", "similar")


@pytest.fixture
def prod(tmp_path: Path) -> Path:
    staged = staging(tmp_path / "staging.db", T0 + 1)
    (tmp_path / BASE).mkdir()
    production(tmp_path / BASE / CATALOG, videos=20)
    add(staged, "instances", instance())
    add(staged, "videos", video("fresh"))
    add(staged, "video_embeddings", embedding("fresh"))
    return tmp_path


def run(prod: Path, fence: int, *names: str) -> Path:
    update = Update(prod, "", T0 + 1, fence=fence, base=BASE)
    for name in names:
        run_stage(name, update.to_json(), lambda part: None)
    return update.folder / CATALOG


def test_whoever_dies_while_it_is_ranked_leaves_it_torn_and_it_is_merged_again(
    prod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file_digest(run(prod, 2, "merge", "popularity"))
    for note in (prod / "made").glob("gen-000002*"):
        note.unlink()
    path = run(prod, 3, "merge")

    def torn(path: Path, *asked: object) -> None:
        path.write_bytes(path.read_bytes()[:8192])
        raise Injected("as a kill would")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "rank", torn)
        with pytest.raises(Injected):
            run(prod, 3, "popularity")
    assert file_digest(path) != whole
    run(prod, 3, "merge", "popularity")
    assert file_digest(path) == whole
    before = path.stat().st_mtime_ns
    run(prod, 3, "merge", "popularity")
    assert path.stat().st_mtime_ns == before


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[object, ...]]:
    """What a function of the stages is asked, each time it is called."""
    calls: list[tuple[object, ...]] = []
    real = getattr(stages, name)
    monkeypatch.setattr(stages, name, lambda *asked, **more: [calls.append(asked), real(*asked, **more)][1])
    return calls


def test_it_is_taken_over_once_it_is_finished_and_not_before(prod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = counted(monkeypatch, "merge")
    run(prod, 2, "merge", "popularity")
    run(prod, 3, "merge", "popularity", "index")
    assert len(merges) == 2
    whole = file_digest(run(prod, 4, "merge", "popularity"))
    assert len(merges) == 2
    assert whole == file_digest(prod / "gen-000003" / CATALOG)


def test_what_is_merged_anew_under_an_index_that_was_taken_over_is_looked_through_as_well(
    prod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, builds = counted(monkeypatch, "check_catalog"), counted(monkeypatch, "build_index")
    (run(prod, 2, *TO_SIMILAR)).unlink()
    path = run(prod, 3, *TO_SIMILAR, "complete")
    assert [asked[0].parent.name for asked in checks] == ["gen-000002", "gen-000003"]
    assert len(builds) == 1
    assert read_meta(path.parent)["files"][CATALOG]["sha256"] == file_digest(path)


def test_it_is_copied_while_texts_are_embedded(prod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = file_digest(run(prod, 2, "merge", "popularity"))
    copies: list[Path] = []
    copy = generation.copy
    monkeypatch.setattr(generation, "copy", lambda old, new: [copies.append(new), copy(old, new)][1])
    monkeypatch.setattr(stages, "build_embeddings", lambda *asked: {"embedded": 0})
    path = run(prod, 3, "embeddings", "embeddings")
    assert not path.exists()
    run(prod, 3, "merge", "popularity")
    assert len(copies) == 1
    assert file_digest(path) == whole
    assert [file.name for file in path.parent.iterdir()] == [CATALOG]
    run(prod, 3, "embeddings")
    assert len(copies) == 1


def test_what_was_copied_in_vain_goes(prod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an attempt that died then, and by one that took a database over."""
    monkeypatch.setattr(stages, "build_embeddings", lambda *asked: {"embedded": 0})
    copied = [prod / f"gen-00000{fence}" / f".{BASE}.{CATALOG}" for fence in (3, 4, 5)]
    for fence, left in ((4, {4}), (3, {3, 4}), (5, {5})):
        run(prod, fence, "embeddings")
        assert {number for number, path in zip((3, 4, 5), copied, strict=True) if path.exists()} == left
    run(prod, 2, "merge", "popularity", "index")
    run(prod, 5, "merge")
    assert [path.name for path in copied[2].parent.iterdir()] == [CATALOG]


def test_a_note_that_is_taken_back_while_notes_are_read_is_passed_over(prod: Path) -> None:
    """Its name is listed still, and the file is gone: as where a frozen predecessor wakes up and begins to rank."""
    whole = file_digest(run(prod, 2, "merge", "popularity", "index"))
    (prod / "made" / "gen-000003.catalog.db.json").symlink_to(prod / "taken back")
    assert file_digest(run(prod, 4, "merge", "popularity")) == whole


def test_another_moment_is_another_ranking(prod: Path) -> None:
    first = run(prod, 2, "merge", "popularity")
    later = Update(prod, "", T0 + 86_400_000, fence=3, base=BASE)
    for name in ("merge", "popularity"):
        run_stage(name, later.to_json(), lambda part: None)
    assert dump(later.folder / CATALOG)["ranked"] == [(T0 + 86_400_000,)] != dump(first)["ranked"]


@pytest.mark.parametrize(
    ("spoil", "compared", "says"),
    [
        (generations.spoil_index, True, "21 of 22 rows in index videos_popularity"),
        (generations.spoil_index, False, "row 22 missing from index videos_popularity"),
        (generations.spoil_order, True, "Rowid 100 out of order"),
        (generations.spoil_vector, True, "the embedding of video 3 in catalog.db is not of length one"),
        (generations.spoil_parents, True, "damaged: 22 rows without their parent"),
        (generations.spoil_pages, True, "damaged"),
    ],
)
def test_what_is_damaged_is_found_before_it_is_complete(
    prod: Path, spoil: Callable[[Path], None], compared: bool, says: str
) -> None:
    """An index before shows that the database before was compared, row by row."""
    if compared:
        (prod / BASE / INDEX).write_bytes(b"")
    folder = run(prod, 2, "merge", "popularity").parent
    spoil(folder)
    with pytest.raises(Damaged, match=says) as told:
        run(prod, 2, "index", "similar")
    assert "\n" not in str(told.value)
    assert not (prod / "made" / "gen-000002.similar.db.json").exists()


@pytest.mark.parametrize("found_by", [2, 3])
@pytest.mark.parametrize("spoil", [generations.spoil_index, generations.spoil_vector, generations.spoil_pages])
def test_and_nobody_takes_it_over(prod: Path, spoil: Callable[[Path], None], found_by: int) -> None:
    path = run(prod, 2, "merge", "popularity")
    whole = file_digest(path)
    spoil(path.parent)
    stages.finished(Update(prod, "", T0 + 1, fence=2, base=BASE), CATALOG)
    with pytest.raises(Damaged):
        run(prod, found_by, *TO_SIMILAR)
    assert file_digest(run(prod, 4, *TO_SIMILAR)) == whole


def test_nor_an_index_of_another_database(prod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made of a database that was damaged unseen, and is gone since."""
    builds = counted(monkeypatch, "build_index")
    path = run(prod, 2, "merge", "popularity")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM video_embeddings WHERE id = 1")
    run(prod, 2, "index")
    path.unlink()
    assert read_meta(run(prod, 3, *TO_SIMILAR, "complete").parent)["total"] == 21
    assert len(builds) == 2


def test_who_was_frozen_over_a_damaged_one_takes_nothing_from_a_later_attempt(prod: Path) -> None:
    generations.spoil_index(run(prod, 2, "merge", "popularity").parent)
    run(prod, 3, "merge", "popularity", "index")
    with pytest.raises(Damaged):
        run(prod, 2, "index", "similar")
    run(prod, 3, "similar", "complete")


def test_but_a_later_attempt_from_him(prod: Path) -> None:
    generations.spoil_index(run(prod, 2, "merge", "popularity").parent)
    run(prod, 2, "index")
    with pytest.raises(Damaged):
        run(prod, 3, *TO_SIMILAR)
    for stage in ("similar", "complete"):
        with pytest.raises(Conflict, match=r"gen-000002 is out of date: a later attempt found that its .+ is damaged"):
            run(prod, 2, stage)


def test_what_is_ranked_late_bears_the_digest_of_what_it_is_then(prod: Path) -> None:
    path = run(prod, 2, "merge", "index", "popularity", "index", "similar", "complete")
    assert read_meta(path.parent)["files"][CATALOG]["sha256"] == file_digest(path)


@pytest.mark.parametrize(("error", "heard"), [(ValueError(), Damaged), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_damage_is_told_before_what_may_come_of_it_but_not_before_an_interrupt(
    prod: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, heard: type[BaseException]
) -> None:
    def interrupted(*asked: object, **more: object) -> None:
        raise error

    generations.spoil_index(run(prod, 2, "merge", "popularity").parent)
    monkeypatch.setattr(stages, "find_neighbours", interrupted)
    run(prod, 2, "index")
    with pytest.raises(heard):
        run(prod, 2, "similar")


def test_a_catalogue_in_which_nothing_is_yet_is_whole_as_well(tmp_path: Path) -> None:
    add(staging(tmp_path / "staging.db", T0), "instances", instance())
    update = Update(tmp_path, "", T0, fence=1)
    for name in ("embeddings", "merge", "popularity", "index", "similar", "complete"):
        run_stage(name, update.to_json(), lambda part: None)
    assert read_meta(update.folder)["total"] == 0
    assert (update.folder / META).is_file()


@pytest.mark.parametrize(("error", "kept"), [(BadInput("no such list"), False), (Transient("it answers 503"), True)])
def test_a_folder_stays_in_the_hands_of_whoever_may_try_again(tmp_path: Path, error: Exception, kept: bool) -> None:
    stages.owned(tmp_path, "catalog:films")
    with pytest.raises(type(error)), stages.disowned_if_refused(tmp_path):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == (["catalog.json"] if kept else [])
