"""The index: every vector in it, found as exact search finds them, the same bytes for the same input."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import faiss
import numpy as np
import pytest

from dailies import failpoints
from dailies.canonical import file_digest
from dailies.catalog import index
from dailies.catalog.index import build_index, load_index, search
from dailies.catalog.index_file import MARK, About, contents, entries
from dailies.catalog.vectors import snapped, unkeyed, vectors_of
from dailies.errors import BadInput, Damaged, Injected, Missing, NotConfigured
from tests.unit.catalog.vector_rows import clustered, nearest_by_hand, numbered, production, tell

pytestmark = pytest.mark.unit


def test_a_small_one_is_exact_and_tells_of_itself(tmp_path: Path) -> None:
    vectors = numbered(clustered(300))
    meta = build_index(production(tmp_path / "db", vectors), tmp_path / "index")
    assert (meta["type"], meta["total"], meta["dim"], meta["model"]) == ("flat", 300, 32, "ngrams-1")
    assert (meta["mode"], meta["recall"], meta["nlist"]) == ("cpu", 1.0, 0)
    ids, scores = search(load_index(tmp_path / "index"), np.array([vectors[31]]), 6, np.array([31]))
    assert list(zip(ids[0].tolist(), scores[0].tolist(), strict=True)) == nearest_by_hand(vectors, 6)[31]


def test_of_equals_the_smallest_ids_come_first(tmp_path: Path) -> None:
    """More of them than a search asks for at first, and better ones behind, which push some of them out."""
    matrix = np.repeat(clustered(2), [60, 40], axis=0)
    vectors = numbered(matrix)
    vectors |= {500 + number: matrix[-1] for number in range(8)}
    build_index(production(tmp_path / "db", vectors), tmp_path / "index")
    index = load_index(tmp_path / "index")
    for asks in (1, 181, 503):
        ids, scores = search(index, vectors[asks][None], 55, np.array([asks]))
        assert list(zip(ids[0].tolist(), scores[0].tolist(), strict=True)) == nearest_by_hand(vectors, 55)[asks]


def test_fewer_than_asked_for_is_told_by_minus_one(tmp_path: Path) -> None:
    build_index(production(tmp_path / "db", numbered(clustered(3))), tmp_path / "index")
    ids, scores = search(load_index(tmp_path / "index"), clustered(1), 5)
    assert (ids[0] >= 0).sum() == 3
    assert ids[0, 3:].tolist() == [-1, -1]
    assert np.isneginf(scores[0, 3:]).all()


def test_an_empty_catalogue_has_an_index(tmp_path: Path) -> None:
    meta = build_index(production(tmp_path / "db", {}), tmp_path / "index")
    assert (meta["total"], load_index(tmp_path / "index").ntotal) == (0, 0)


def test_lists_hold_every_vector_without_loss_and_find_what_is_promised(tmp_path: Path) -> None:
    vectors = numbered(clustered(3000))
    meta = build_index(production(tmp_path / "db", vectors), tmp_path / "index", flat_below=1000)
    assert (meta["type"], meta["nlist"], meta["trained_on"]) == ("ivf-fp16", 76, 3000)
    assert "lowered to 76" in meta["note"]
    index = load_index(tmp_path / "index")
    asked = sorted(vectors)[::40]
    ids, scores = search(index, np.array([vectors[number] for number in asked]), 20, np.array(asked))
    exact = nearest_by_hand(vectors, 20)
    hits = sum(
        len({other for other, _ in exact[number]} & set(found)) for number, found in zip(asked, ids, strict=True)
    )
    assert hits / (20 * len(asked)) >= 0.94
    first = [
        np.float64(vectors[number]) @ np.float64(vectors[other]) for number, other in zip(asked, ids[:, 0], strict=True)
    ]
    assert scores[:, 0].tolist() == first
    assert abs(meta["recall"] - hits / (20 * len(asked))) < 0.03


def test_too_little_found_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    noise = snapped(np.random.default_rng(0).normal(size=(2000, 64)) / 8)
    noise = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    db = production(tmp_path / "db", numbered(noise))
    with pytest.raises(BadInput, match=r"finds 0\.\d+ of the 20 nearest, and 0.95 is asked") as refused:
        build_index(db, tmp_path / "index", flat_below=1000)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("flat_below", [1000, 100_000])
def test_the_same_input_gives_the_same_bytes_with_any_number_of_threads(tmp_path: Path, flat_below: int) -> None:
    db = production(tmp_path / "db", numbered(clustered(2500)))
    threads = faiss.omp_get_max_threads()
    try:
        for count in (1, 2, 3):
            faiss.omp_set_num_threads(count)
            build_index(db, tmp_path / f"index-{count}", flat_below=flat_below)
    finally:
        faiss.omp_set_num_threads(threads)
    assert len({file_digest(tmp_path / f"index-{count}") for count in (1, 2, 3)}) == 1


def test_a_look_into_all_lists_is_exact_ties_by_id_wherever_they_lie(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).normal(size=(2000, 31))
    spread = np.sqrt(0.75) * draw / np.linalg.norm(draw, axis=1, keepdims=True)
    vectors = numbered(snapped(np.concatenate([np.full((2000, 1), 0.5), spread], axis=1)))
    build_index(production(tmp_path / "db", vectors), tmp_path / "index", flat_below=1000, recall_floor=0.0)
    every = load_index(tmp_path / "index")
    every.nprobe = every.nlist
    ids, scores = search(every, np.eye(1, 32, dtype=np.float32), 20)
    assert (ids[0].tolist(), set(scores[0].tolist())) == (sorted(vectors)[:20], {0.5})


def changed(vectors: dict[int, np.ndarray], seed: int) -> dict[int, np.ndarray]:
    """Some gone, some with another vector, some new."""
    draw = np.random.default_rng(seed)
    kept = {number: vector for number, vector in vectors.items() if draw.random() > 0.02}
    for number, vector in zip(sorted(kept)[:: 50 + seed], clustered(len(kept), seed=seed + 1), strict=False):
        kept[number] = vector
    return kept | numbered(clustered(60, seed=seed + 2), max(vectors) + 1)


def test_an_update_moves_only_what_is_other_and_does_not_show(tmp_path: Path) -> None:
    first = numbered(clustered(3000))
    middle = changed(first, 1)
    last = changed(middle, 2)
    built = {}
    for name, vectors, before in (("a", first, None), ("b", middle, "a"), ("c", last, "b"), ("direct", last, "a")):
        db = production(tmp_path / f"{name}.db", vectors)
        previous = tmp_path / before if before else None
        built[name] = build_index(db, tmp_path / name, previous=previous, flat_below=1000)
    new = [number for number in last if number not in middle or not np.array_equal(last[number], middle[number])]
    assert (built["c"]["added"], built["c"]["trained_on"], built["c"]["total"]) == (len(new), 3000, len(last))
    assert built["c"]["recall"] >= 0.95
    held, stored = contents(load_index(tmp_path / "c")), vectors_of(tmp_path / "c.db")
    assert held.ids.tolist() == stored.ids().tolist()
    assert file_digest(tmp_path / "c") == file_digest(tmp_path / "direct")


def told_and_compared(folder: Path, first: dict[int, np.ndarray], last: dict[int, np.ndarray], told: Path) -> bool:
    """Whether the index before was compared with all vectors; that it comes to the same is asserted."""
    compared = []
    build_index(production(folder / "a.db", first), folder / "a", flat_below=1000)
    with pytest.MonkeyPatch.context() as patch:
        real = index._Build._compared
        patch.setattr(index._Build, "_compared", lambda *given: compared.append(1) or real(*given))
        meta = build_index(told, folder / "told", previous=folder / "a", told=True, flat_below=1000)
        again = build_index(told, folder / "compared", previous=folder / "a", flat_below=1000)
    assert meta == again
    assert meta["trained_on"] == len(first)
    assert file_digest(folder / "told") == file_digest(folder / "compared")
    return len(compared) == 2


def test_an_index_is_written_as_faiss_writes_it(tmp_path: Path) -> None:
    """With lists that became larger, smaller and empty."""
    first = numbered(clustered(3000))
    build_index(production(tmp_path / "a.db", first), tmp_path / "a", flat_below=1000)
    held = contents(load_index(tmp_path / "a"))
    last = {number: first[number] for number in held.ids[held.lists > 2].tolist()} | changed(first, 1)
    last = {number: vector for number, vector in last.items() if number not in held.ids[held.lists <= 2]}
    build_index(production(tmp_path / "b.db", last), tmp_path / "b", previous=tmp_path / "a", flat_below=1000)
    loaded = load_index(tmp_path / "b")
    sizes = [loaded.invlists.list_size(number) for number in range(loaded.nlist)]
    assert (min(sizes), loaded.ntotal) == (0, len(last))
    assert loaded.nprobe > 1
    faiss.write_index(loaded, str(tmp_path / "by faiss"))
    assert (tmp_path / "b").read_bytes().startswith((tmp_path / "by faiss").read_bytes() + MARK)


def test_what_the_merge_wrote_down_spares_the_comparison(tmp_path: Path) -> None:
    first = numbered(clustered(3000))
    last = changed(first, 1)
    db = production(tmp_path / "b.db", last)
    tell(db, first, last)
    assert not told_and_compared(tmp_path, first, last, db)
    held = contents(load_index(tmp_path / "told"))
    assert np.array_equal(held.matrix(np.arange(len(last))), np.array([last[number] for number in sorted(last)]))


ONE = "DELETE FROM changed_embeddings WHERE id = (SELECT min(id) FROM changed_embeddings WHERE what = '{}')"
WRONG = {
    "nothing": "DELETE FROM changed_embeddings",
    "one new too few": ONE.format("new"),
    "one gone too few": ONE.format("removed"),
    "of a merge before": "SELECT 1",
    # The ids are as told, and a sample of the vectors is looked at.
    "many silent": "UPDATE video_embeddings SET embedding = ? WHERE id % 8 = 0",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_and_where_it_does_not_lead_there_all_are_compared(tmp_path: Path, wrong: str) -> None:
    first = numbered(clustered(3000))
    last = changed(first, 1)
    db = production(tmp_path / "b.db", last)
    tell(db, *(({}, first) if wrong == "of a merge before" else (first, last)))
    with closing(sqlite3.connect(db)) as database, database:
        database.execute(WRONG[wrong], (clustered(1, seed=9).tobytes(),) if "?" in WRONG[wrong] else ())
    assert told_and_compared(tmp_path, first, last, db)


def test_what_exact_search_said_is_kept_and_is_what_it_says_now(tmp_path: Path) -> None:
    """Also where many are equal to one another, and whichever was found first would do for the recall."""
    first = numbered(clustered(3000))
    for number in sorted(first)[::4]:
        first[number] = first[1]
    middle = changed(first, 1)
    last = changed(middle, 2)
    for name, vectors, before in (("a", first, None), ("b", middle, "a"), ("c", last, "b")):
        db = production(tmp_path / f"{name}.db", vectors)
        build_index(db, tmp_path / name, previous=tmp_path / before if before else None, flat_below=1000)
        probed, exact = About.of(tmp_path / name).probed, nearest_by_hand(vectors, 20)
        assert len(probed.ids) == 256
        for number, keys in zip(probed.ids, probed.keys, strict=True):
            ids, scores = unkeyed(np.array(keys))
            assert list(zip(ids.tolist(), scores.tolist(), strict=True)) == exact[number]


@pytest.mark.parametrize("spoil", ["grown", "model", "torn", "gone", "nlist", "an id twice"])
def test_what_does_not_fit_is_trained_anew(tmp_path: Path, spoil: str) -> None:
    vectors = numbered(clustered(2000))
    build_index(production(tmp_path / "a.db", vectors), tmp_path / "a", flat_below=1000)
    if spoil == "grown":
        vectors = numbered(clustered(4100, seed=3))
    if spoil == "torn":
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:5000])
    if spoil == "an id twice":
        data, loaded = (tmp_path / "a").read_bytes(), load_index(tmp_path / "a")
        two = entries(loaded, 0)[0][:2]
        (tmp_path / "a").write_bytes(data.replace(two.tobytes(), two[[0, 0]].tobytes(), 1))
    if spoil == "gone":
        (tmp_path / "a").unlink()
    db = production(tmp_path / "b.db", vectors, model="other" if spoil == "model" else "ngrams-1")
    nlist = 30 if spoil == "nlist" else 0
    meta = build_index(db, tmp_path / "b", nlist, previous=tmp_path / "a", flat_below=1000)
    assert meta["added"] == meta["trained_on"] == len(vectors)
    build_index(db, tmp_path / "anew", nlist, flat_below=1000)
    assert file_digest(tmp_path / "b") == file_digest(tmp_path / "anew")


@pytest.mark.parametrize(("sizes", "anew"), [((2000, 2900, 3900), False), ((2000, 2900, 4100), True)])
def test_centres_are_kept_until_there_are_twice_as_many(tmp_path: Path, sizes: tuple[int, ...], anew: bool) -> None:
    """Step by step, so that no single update is too much of a change."""
    assert by_steps(tmp_path, sizes) == [2000, 2000, sizes[-1] if anew else 2000]


@pytest.mark.parametrize(("sizes", "anew"), [((2400, 1700, 1250), False), ((2400, 1700, 1150), True)])
def test_and_until_there_are_half_as_many(tmp_path: Path, sizes: tuple[int, ...], anew: bool) -> None:
    assert by_steps(tmp_path, sizes) == [2400, 2400, sizes[-1] if anew else 2400]


def by_steps(folder: Path, sizes: tuple[int, ...]) -> list[int]:
    """On how many each index of a row of updates was trained."""
    matrix, trained = clustered(max(sizes)), []
    for number, size in enumerate(sizes):
        db = production(folder / f"{number}.db", numbered(matrix[:size]))
        previous = folder / f"{number - 1}.index" if number else None
        meta = build_index(db, folder / f"{number}.index", previous=previous, flat_below=1000)
        trained.append(meta["trained_on"])
    return trained


@pytest.mark.parametrize("flat_below", [1000, 100_000])
def test_a_build_that_fails_half_way_leaves_the_index_before(tmp_path: Path, flat_below: int) -> None:
    db = production(tmp_path / "db", numbered(clustered(1500)))
    (tmp_path / "index").write_bytes(b"the one before")
    failpoints.arm("catalog.during_ann_build=raise", tmp_path / "fired")
    try:
        with pytest.raises(Injected):
            build_index(db, tmp_path / "index", flat_below=flat_below)
    finally:
        failpoints.arm("", tmp_path / "fired")
    assert (tmp_path / "index").read_bytes() == b"the one before"
    build_index(db, tmp_path / "index", flat_below=flat_below)
    assert load_index(tmp_path / "index").ntotal == 1500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "fired", "index"]


def test_the_gpu_is_refused_in_one_line_where_there_is_none(tmp_path: Path) -> None:
    db = production(tmp_path / "db", numbered(clustered(10)))
    with pytest.raises(NotConfigured, match="GPU") as refused:
        build_index(db, tmp_path / "index", device="gpu")
    assert "\n" not in str(refused.value)


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    wrong = {
        "two models": (production(tmp_path / "two", numbered(clustered(2))), "not all of ngrams-1"),
        "long": (production(tmp_path / "long", numbered(2 * clustered(2))), "is not of length one"),
        "nan": (production(tmp_path / "nan", {1: np.full(32, np.nan)}), "is not of length one"),
    }
    with sqlite3.connect(tmp_path / "two") as database:
        database.execute("UPDATE video_embeddings SET model_name = 'other' WHERE id = 4")
    for db, said in wrong.values():
        with pytest.raises((BadInput, Damaged), match=said):
            build_index(db, tmp_path / "index")
    with pytest.raises(Missing, match="no index"):
        load_index(tmp_path / "index")
    with pytest.raises(BadInput, match="no index, or a damaged one"):
        load_index(tmp_path / "two")
    build_index(production(tmp_path / "db", numbered(clustered(9))), tmp_path / "index")
    with pytest.raises(BadInput, match="use the same embedder"):
        search(load_index(tmp_path / "index"), clustered(1, dim=16))
