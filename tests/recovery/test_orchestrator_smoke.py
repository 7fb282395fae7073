"""orchestrator-smoke passes on a product that is whole, and says what is wrong with one that is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dailies.canonical import file_digest
from dailies.catalog.merge import merge
from dailies.catalog.update import STAGES
from dailies.errors import BadInput
from dailies.scenarios.journal import Journal, read
from flows import update_catalog
from flows.scenarios import orchestrator_smoke as scenario
from tasks import smoke_checks as checks
from tasks import smoke_plan, smoke_room
from tasks._step import POINTS, REGISTRY
from tasks.smoke_plan import BETWEEN, NAMED, QUICK_RUNS, STEPS, Failure, failures
from tasks.smoke_rows import merge_faults, original_faults
from tests.integration import conftest as integration
from tests.recovery import broken_catalog
from tests.unit.catalog.original import original
from tests.unit.catalog.rows import add, embedding, instance, production, staging, video

pytestmark = [pytest.mark.recovery]
home = integration.home
real = pytest.mark.usefixtures("fast_api")


def judged(**parameters: Any) -> Journal:
    scenario.orchestrator_smoke(**parameters, return_state=True)
    return read(Path(os.environ["DAILIES_HOME"]) / "runs" / "last" / "orchestrator-smoke.json")


def red(journal: Journal) -> set[str]:
    return {check.name for _, check in journal.every_check() if not check.passed}


# ── what is covered ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_full_kills_and_raises_at_every_point_of_every_step_and_kills_at_every_failpoint_of_the_catalogue():
    source = Path(str(update_catalog.__file__)).read_text()
    used = {name for name in REGISTRY if re.search(rf"\b{name}\(job", source)}
    assert used == {step.name for step in STEPS}
    assert len(used) >= 13
    every = {f"{step}:{point}" for step in used for point in POINTS}
    for ways in (("run", "kill"), ("step", "raise")):
        points = [failure.point for failure in failures(full=True) if (failure.where, failure.action) == ways]
        assert sorted(points) == sorted(every)
    inside = {
        path: path.read_text() for path in Path(str(update_catalog.__file__)).parents[1].glob("dailies/catalog/*.py")
    }
    named = {name for text in inside.values() for name in re.findall(r'failpoint\("(catalog\.\w+)"\)', text)}
    assert named == {f"catalog.{name}" for name in NAMED} | {point.partition("#")[0] for point in BETWEEN}


def test_quick_has_the_seeds_three_failures_and_three_dead_runs_and_full_has_all_of_quick():
    quick, full = failures(full=False), failures(full=True)
    assert [failure.name for failure in quick] == [*NAMED, *QUICK_RUNS]
    assert set(quick) <= set(full)
    for named in (f"{name}-{way}" for name in NAMED for way in ("raise", "disk-full")):
        assert named in {failure.name for failure in full}
    assert len({failure.name for failure in full}) == len(full)


def test_full_fills_the_disk_in_every_stage_and_at_the_publication():
    points = [failure.point for failure in failures(full=True) if (failure.where, failure.action) == ("disk", "full")]
    assert points == [*STAGES, smoke_room.PUBLISH]
    assert set(points) >= smoke_room.LITTLE


def test_what_is_added_to_an_update_is_in_the_plan(monkeypatch):
    before = set(failures(full=True))
    added = SimpleNamespace(name="archive_catalog", points=tuple(f"archive_catalog:{point}" for point in POINTS))
    monkeypatch.setattr(smoke_plan, "STEPS", [*STEPS, added])
    monkeypatch.setattr(smoke_plan, "STAGES", [*STAGES, "archive"])
    assert {(failure.where, failure.action, failure.point) for failure in set(failures(full=True)) - before} == {
        *(("run", "kill", point) for point in added.points),
        *(("step", "raise", point) for point in added.points),
        ("disk", "full", "archive"),
    }


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"site": "staging"}, "on the site 'local' alone"),
        ({"use_systemctl": True}, "set systemd_unit"),
        ({"only": "smoke,everything"}, "no part 'everything'"),
        ({"source_db": "/nowhere/films.db"}, "source_db: there is no database at /nowhere/films.db"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(parameters, said):
    with pytest.raises(BadInput, match=said) as refused:
        scenario.orchestrator_smoke.fn(**parameters)
    assert "\n" not in str(refused.value)


# ── whole ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@real
def test_an_update_is_right_and_nobody_sees_half_of_it_whatever_is_killed(home, tmp_path, monkeypatch):
    told = stand_in_for_systemctl(tmp_path / "bin", monkeypatch)
    journal = judged(keep_workdir=True, use_systemctl=True, systemd_unit="films.service")
    assert (journal.status, red(journal), journal.error) == ("passed", set(), None)
    assert {fault.name: fault.fired for fault in journal.faults} == dict.fromkeys(
        (failure.told for failure in failures(full=False)), 1
    )
    smoke = journal.smoke
    assert (smoke["status"], smoke["error"], smoke["host_count"]) == ("pass", None, 11)
    assert smoke["checks"]["ann_meta_total"]["expected"] == smoke["checks"]["ann_meta_total"]["actual"] > 1000
    for table in ("instances", "channels", "videos", "video_embeddings"):
        assert smoke["checks"][f"duplicates.{table}"] == 0
        delta = smoke["checks"][f"delta.{table}"]
        assert delta["expected"] == delta["actual"] > 0
    assert smoke["checks"]["replace_overlap.video_embeddings"] > 0
    assert smoke["failure_scenarios"].keys() == {*NAMED, *QUICK_RUNS}
    for name, failure in smoke["failure_scenarios"].items():
        assert (failure["db_unchanged"], failure["lock_released"]) == (name != "publish_catalog:after", True)
    folder = home / "runs" / "orchestrator-smoke" / journal.run_id
    assert {path.name for path in folder.iterdir()} == {
        "report.json", "smoke.log", "worker.log", "whitelist-http.log", "workdir"
    }  # fmt: skip
    assert json.loads((folder.parent / "last-report.json").read_bytes()) == json.loads(
        (folder / "report.json").read_bytes()
    )
    assert "GET /api/v1/video-channels" in (folder / "whitelist-http.log").read_text()
    assert "update-catalog" in (folder / "worker.log").read_text()
    assert "action=verdict status=passed" in (folder / "smoke.log").read_text()
    assert told.read_text().split() == ["stop", "films.service", "start", "films.service"] * 2
    spoil_each(folder / "workdir", home / "spoilt")
    assert list((home / "scenarios").iterdir()) == []


def stand_in_for_systemctl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes down what it is asked for; nothing of this machine is stopped or started."""
    folder.mkdir()
    told, program = folder / "told", folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return told


def spoil_each(kept: Path, place: Path) -> None:
    """Every check on files is silent on what was made, and speaks when one thing of it is otherwise."""
    for name, (file, spoiling, check) in SPOILT.items():
        shutil.copytree(kept / "main", place)
        made = Made(place, kept / "production" / "gen-000001" / "catalog.db")
        assert not check(made), name
        if callable(spoiling):
            with broken_catalog.relisted(place / made.after / file) as lists:
                spoiling(*lists)
        else:
            with broken_catalog.writing(place / made.after / file) as database:
                assert all(database.execute(statement).rowcount != 0 for statement in spoiling.split(";")), name
        assert check(made), name
        shutil.rmtree(place)


class Made:
    """The first update of the main run, and what it went out from."""

    def __init__(self, place: Path, old: Path) -> None:
        self.after = "gen-000002"
        self.folder = place / self.after
        self.old, self.new = old, place / self.after / "catalog.db"
        self.staging = place / f"staging-{self.after}.db"

    @property
    def as_of(self) -> int:
        return int(json.loads((self.folder / "meta.json").read_bytes())["as_of"])


def rows_of(table: str) -> Callable[[Made], Any]:
    return lambda made: merge_faults(made.old, made.staging, made.new, made.as_of)[table]


def totals_differ(made: Made) -> bool:
    found = checks.totals(made.folder, json.loads((made.folder / "meta.json").read_bytes()))
    return len(set(found.values())) > 1


OLD_VIDEO = "SELECT min(id) FROM videos WHERE removed_at IS NULL"
OF_ID, OF_SCORE = 2**39 - 1, -(2**39)  # in a key of similar.db


def lists_of_another(ids: Any, lists: Any) -> None:
    lists[4] = lists[-1]


def of_a_removed_one(ids: Any, lists: Any) -> None:
    ids[-1] += 1_000_000


def scores_of_another(ids: Any, lists: Any) -> None:
    lists[4] = (lists[4] & OF_ID) | (lists[-1] & OF_SCORE)


SPOILT: dict[str, tuple[str, str | Callable[[Any, Any], None], Callable[[Made], Any]]] = {
    "a row lost": ("catalog.db", f"DELETE FROM videos WHERE id = ({OLD_VIDEO})", rows_of("videos")),
    "a row from nowhere": (
        "catalog.db",
        "INSERT INTO videos (video_id, instance_domain, last_checked_at) SELECT 'x', host, 0 FROM instances LIMIT 1",
        rows_of("videos"),
    ),
    "a value overwritten": ("catalog.db", f"UPDATE videos SET likes = -1 WHERE id = ({OLD_VIDEO})", rows_of("videos")),
    "a tombstone gone": (
        "catalog.db",
        "UPDATE videos SET removed_at = NULL WHERE removed_at IS NOT NULL",
        rows_of("videos"),
    ),
    "a channel renamed": (
        "catalog.db",
        "UPDATE channels SET display_name = 'x' WHERE channel_id = '1'",
        rows_of("channels"),
    ),
    "a host's error gone": (
        "catalog.db",
        "UPDATE instances SET last_error = NULL WHERE last_error IS NOT NULL",
        rows_of("instances"),
    ),
    "another vector": (
        "catalog.db",
        "UPDATE video_embeddings SET embedding = zeroblob(length(embedding)) WHERE id = 5",
        rows_of("video_embeddings"),
    ),
    "another id": (
        "catalog.db",
        "UPDATE videos SET id = 999999 WHERE id = 3",
        lambda made: checks.id_faults(made.old, made.new),
    ),
    "another popularity": (
        "catalog.db",
        f"UPDATE videos SET popularity = popularity * 1.02 + 1 WHERE id = ({OLD_VIDEO})",
        lambda made: checks.popularity_faults(made.new, made.as_of),
    ),
    "ranked at another moment": (
        "catalog.db",
        "UPDATE ranked SET as_of = as_of - 86400000",
        lambda made: checks.popularity_faults(made.new, made.as_of),
    ),
    "a vector fewer": ("catalog.db", "DELETE FROM video_embeddings WHERE id = 5", totals_differ),
    "a parent gone": (
        "catalog.db",
        "DELETE FROM instances WHERE host = (SELECT instance_domain FROM videos LIMIT 1)",
        lambda made: checks.integrity(made.new) != "ok",
    ),
    "neighbours of somebody else": (
        "similar.db",
        lists_of_another,
        lambda made: checks.neighbour_faults(made.folder, 20, exact=True),
    ),
    "a removed video among them": (
        "similar.db",
        of_a_removed_one,
        lambda made: checks.neighbour_faults(made.folder, 20, exact=True),
    ),
    "scores of somebody else": (
        "similar.db",
        scores_of_another,
        lambda made: checks.neighbour_faults(made.folder, 20, exact=True),
    ),
}


def test_the_rules_of_the_original_are_told_from_ours(tmp_path):
    """One video that both of them have, one that is new; ours refresh the first one's views."""
    for rules, changed, mismatch in (("original", 0, 0), ("ours", 1, 0)):
        place = tmp_path / rules
        old, new, staged = place / "old.db", place / "new.db", staging(place / "staging.db")
        for path in (old, new):
            production(path, videos=1)
        add(staged, "instances", instance())
        add(staged, "videos", video("v000", views=11), video("fresh"))
        add(staged, "video_embeddings", embedding("v000", text="another"), embedding("fresh"))
        merge(staged, new, rules)
        found = original_faults(old, staged, new)
        assert found["insert_only_changed.videos"] == changed
        assert found["insert_only_absent.videos"] == 0
        assert found["replace_overlap.video_embeddings"] == 1
        assert found["replace_mismatch.video_embeddings"] == mismatch
        with closing(sqlite3.connect(new)) as database, database:
            database.execute("UPDATE video_embeddings SET text_digest = 'stale' WHERE video_id = 'v000'")
            database.execute("DELETE FROM video_embeddings WHERE video_id = 'fresh'")
            database.execute("DELETE FROM videos WHERE video_id = 'fresh'")
        found = original_faults(old, staged, new)
        assert found["replace_mismatch.video_embeddings"] == 2
        assert found["insert_only_absent.videos"] == 1


@real
def test_a_gpu_that_is_not_there_skips_the_scenario_with_the_reason(home):
    journal = judged(gpu=True)
    if journal.status != "skipped":
        pytest.skip("there is a GPU here")
    assert "no GPU to work on" in str(journal.skipped)
    assert journal.smoke["status"] == "fail"  # nothing was shown
    assert journal.faults == []


@pytest.mark.slow
@real
def test_it_begins_with_a_copy_of_a_production_of_the_original_and_leaves_that_as_it_is(home, tmp_path):
    """Whose vectors are another model's: all of them are made anew, and every check holds on its rows, too."""
    source = original(tmp_path / "theirs" / "whitelist.db", hosts=3, channels=4, videos=12)
    before = file_digest(source)
    journal = judged(only="smoke", source_db=str(source), seed_videos_limit=100)
    assert (journal.status, red(journal), journal.error) == ("passed", set(), None)
    assert sorted(path.name for path in source.parent.iterdir()) == ["whitelist.db"]
    assert file_digest(source) == before
    assert journal.smoke["checks"]["ann_meta_total"]["actual"] > 1000


# ── broken on purpose ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@real
def test_whatever_is_wrong_with_what_an_update_makes_is_seen(home, monkeypatch):
    monkeypatch.setattr("tasks.smoke_catalogs.attempt", broken_catalog.attempt)
    journal = judged(only="smoke")
    assert (journal.status, journal.error) == ("violated", None)
    assert journal.smoke["status"] == "fail"
    assert red(journal) == {
        "smoke: every stage is told, in order, and then the publication",
        "smoke: device and mode are those asked for",
        "smoke: nothing is left behind",
        "smoke: the crawl missed nothing",
        "smoke: each host that fails is recorded with its reason",
        "smoke: never more than two requests at once for a host",
        "smoke: every row of videos is as the merge rules say",
        "smoke: every row of video_embeddings is as the merge rules say",
        "smoke: no video has another id",
        "smoke: popularity is what the formula gives",
        "smoke: the neighbours are those of an exact search",
        "smoke: with nothing new no row changes",
        "smoke: a reader saw whole generations alone",
        "smoke: nor does index.faiss",
        "smoke: nor does similar.db",
    }


CONTROLS = {
    Failure("writes-to-production", "stage", "catalog.before_merge"): {
        "production is as it was, and only a whole generation is current",
        "all files are the undisturbed run's, byte for byte",
    },
    Failure("keeps-its-lease", "stage", "catalog.during_ann_build"): {"the lock is free"},
    Failure("publishes-early", "stage", "catalog.after_merge_before_similarity"): {
        "production is as it was, and only a whole generation is current",
        "a reader saw whole generations alone",
    },
    Failure("forgets", "run", "relate_videos:before"): {
        "no page of a finished channel is asked for again",
        "no file that was finished is made again",
    },
    Failure("makes-twice", "step", "index_videos:committed", "raise"): {"no file that was finished is made again"},
    Failure("says-nothing", "disk", "merge", "full"): {"the job says in one clear line what is wrong"},
    Failure("shrugs", "disk", "counts", "full"): {
        "production is as it was, and only a whole generation is current",
        "the job says in one clear line what is wrong",
        "all files are the undisturbed run's, byte for byte",
        "it saw the old one and the new one, and looked all the time",
    },
    Failure("mixes", "stage", "catalog.during_merge"): {
        "all files are the undisturbed run's, byte for byte",
        "a reader saw whole generations alone",
    },
    Failure("unfenced", "zombie", "publish_catalog:before", "stop"): {
        "who is revived publishes nothing",
        "all files are the undisturbed run's, byte for byte",
        "nothing is left behind",
        "a reader saw whole generations alone",
    },
}


@pytest.mark.slow
@real
def test_whatever_is_wrong_with_how_an_update_fails_is_seen(home, monkeypatch):
    monkeypatch.setattr("tasks.smoke_catalogs.attempt", broken_catalog.attempt)
    monkeypatch.setattr(scenario, "failures", lambda full: list(CONTROLS))
    journal = judged(only="failures")
    assert (journal.status, journal.error) == ("violated", None)
    for failure, wanted in CONTROLS.items():
        found = {
            name.removeprefix(f"{failure.name}: ") for name in red(journal) if name.startswith(f"{failure.name}: ")
        }
        assert found == wanted, failure.name
    assert journal.smoke["failure_scenarios"]["writes-to-production"]["db_unchanged"] is False
    assert journal.smoke["failure_scenarios"]["keeps-its-lease"]["lock_released"] is False
