"""The benchmark of the catalogue is given what it says it is given, and can come out badly."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import catalog
from benchmarks._catalog_data import AT_ONCE, COLUMNS, World, first_day, next_day
from benchmarks._catalog_plot import growth_png
from benchmarks.catalog import MILLION, QUICK, STAGES, Built, Pass, whole_figures
from dailies.catalog.embedders import embedder, video_text
from dailies.catalog.generation import prepare
from dailies.catalog.merge import merge
from dailies.catalog.staging import begin_staging
from dailies.scenarios.picture import LANE_COLOURS
from tests.unit.catalog.rows import rows

pytestmark = pytest.mark.unit

AS_OF = 1_780_000_000_000


def test_the_same_numbers_make_the_same_videos_and_another_version_has_another_text() -> None:
    one, again = World(3000).block(0, 500, AS_OF), World(3000).block(0, 500, AS_OF)
    other = World(3000).block(0, 500, AS_OF, version=1)[0]
    assert one[0] == again[0]
    title, key = COLUMNS.index("title"), slice(0, 2)
    assert [row[key] for row in one[0]] == [row[key] for row in other]
    assert sum(a[title] != b[title] for a, b in zip(one[0], other, strict=True)) > 495
    assert World(3000).block(500, 500, AS_OF)[0][0][key] not in [row[key] for row in one[0]]


def test_videos_are_many_and_those_of_a_subject_lie_near_each_other() -> None:
    made, subjects = World(4000).block(0, 2000, AS_OF)
    texts = [video_text(dict(zip(COLUMNS, row, strict=True))) for row in made]
    assert len(set(texts)) > 0.99 * len(texts)
    vectors = embedder().embed(texts)
    near = vectors @ vectors.T
    for at in range(len(near)):
        near[at, at] = -1
    nearest = near.argmax(axis=1)
    common = {subject for subject in set(subjects.tolist()) if (subjects == subject).sum() > 5}
    asked = [at for at in range(len(texts)) if subjects[at] in common]
    assert sum(subjects[nearest[at]] == subjects[at] for at in asked) / len(asked) > 0.7
    assert len(common) > 20


def test_a_day_adds_changes_and_removes_what_it_says(tmp_path: Path) -> None:
    world = World(4000)
    assert world.videos < AT_ONCE
    hosts = [f"host-{number}.example" for number in range(world.hosts)]
    begin_staging(tmp_path / "staging.db", None, hosts, AS_OF, False)
    assert first_day(world, tmp_path / "staging.db") == 4000
    production = prepare(tmp_path, "gen-000001", None) / "catalog.db"
    merge(tmp_path / "staging.db", production)
    begin_staging(tmp_path / "next.db", production, hosts, AS_OF + 1, False)
    day = next_day(world, tmp_path / "next.db", production)
    assert (day["new"], day["changed"]) == (40, 20)
    assert 0 < day["gone"] <= 5
    told = merge(tmp_path / "next.db", production)["tables"]["videos"]
    assert (told["inserted"], told["changed"], told["removed"]) == (40, 20, day["gone"])
    assert rows(production, "SELECT count(*) FROM videos WHERE removed_at IS NULL") == [(4040 - day["gone"],)]
    tags = [json.loads(row[0]) for row in rows(production, "SELECT tags_json FROM videos")]
    assert any(tags)


def test_the_plot_has_a_line_for_each_cost() -> None:
    plot = growth_png([(10_000, 3.0, 2.0, 100.0), (100_000, 40.0, 5.0, 400.0), (1_000_000, 500.0, 40.0, 3000.0)])
    with Image.open(io.BytesIO(plot)) as image:
        colours = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.convert("RGB").getcolors(1 << 20) or []}
        assert image.size == (900, 560)
    assert set(LANE_COLOURS[:3]) <= colours
    slower = (1_000_000, 900.0, 40.0, 3000.0)
    assert plot != growth_png([(10_000, 3.0, 2.0, 100.0), (100_000, 40.0, 5.0, 400.0), slower])


@pytest.mark.parametrize(
    ("videos", "later", "reached"), [(MILLION, 9.0, True), (MILLION, 11.0, False), (QUICK, 11.0, None)]
)
def test_an_update_that_costs_more_than_a_tenth_is_a_target_missed_where_there_are_many(
    videos: int, later: float, reached: bool | None
) -> None:
    facts = {
        "merge": {"tables": {"videos": {"inserted": 900}, "channels": {"inserted": 100}}},
        "similar": {"recall": 0.97, "searched": 7, "gained": 3},
    }

    def took(seconds: float) -> Pass:
        each = dict.fromkeys(STAGES, seconds / len(STAGES))
        return Pass(each, {}, facts, 5 << 20, "merge")

    built = Built(World(videos), Path(), took(100.0), took(later), {"new": 6}, 0)
    figures = {figure.name: figure for figure in whole_figures(built, bare_s=10.0)}
    assert figures["update against the full build"].reached is reached
    assert figures["update against the full build"].value == pytest.approx(later / 100)
    assert figures["merge: bare SQL"].value == 100
    assert figures["merge"].value == pytest.approx(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_its_folder_goes_also_when_the_word_to_end_comes_where_python_drops_it(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Cleared:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    monkeypatch.setattr(catalog, "HEARD_S", 0.05)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    places = []

    def work() -> None:
        with catalog.folder() as place:
            places.append(place)
            assert place.is_dir()
            Cleared()
            time.sleep(2.0)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [place.exists() for place in places] == [False]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
