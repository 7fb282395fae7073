"""What is gone from its host gets a tombstone, where the crawl can know it; and a generation has one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dailies.catalog.merge import merge
from dailies.errors import BadInput
from tests.unit.catalog import merging
from tests.unit.catalog.merging import NOW
from tests.unit.catalog.rows import (
    HOST,
    add,
    changes,
    channel,
    counts,
    embedding,
    instance,
    production,
    rows,
    staging,
    vector,
    video,
    whole,
)

pytestmark = pytest.mark.unit
stage, prod = merging.stage, merging.prod


def removed(path: Path) -> set[str]:
    return {name for (name,) in rows(path, "SELECT video_id FROM videos WHERE removed_at IS NOT NULL")}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Channels c1, c2 and c3, two videos each, and a video that names no channel."""
    path = production(tmp_path / "catalog.db", videos=6, channels=("c1", "c2", "c3"))
    add(path, "videos", video("stray", channel_id=None))
    return path


def test_what_a_list_that_was_read_to_its_end_does_not_name_is_gone(stage: Path, three: Path) -> None:
    add(stage, "channels", channel("c1", seen=1), channel("c2", seen=1), channel("c3"))
    add(stage, "videos", video("v000"))
    add(stage, "crawl_progress", *whole(HOST, "c1"))
    add(stage, "crawl_progress", {"host": HOST, "what": "videos", "channel_id": "c2", "status": "in_progress"})
    said = merge(stage, three, max_removed=0.5)
    # v003 is missing from c1's list; c3, with v002 and v005, from the host's; c2 was not read to its end.
    assert removed(three) == {"v003", "v002", "v005"}
    assert rows(three, "SELECT DISTINCT removed_at FROM videos WHERE removed_at IS NOT NULL") == [(NOW,)]
    assert rows(three, "SELECT channel_id, removed_at FROM channels WHERE removed_at IS NOT NULL") == [("c3", NOW)]
    assert {name for (name,) in rows(three, "SELECT video_id FROM video_embeddings")} == {"v000", "v001", "v004"}
    assert changes(three) == {3: "removed", 4: "removed", 6: "removed"}
    assert counts(said, "videos") == (7, 7, 0, 0, 3)
    assert counts(said, "channels") == (3, 3, 0, 0, 1)
    assert counts(said, "video_embeddings") == (6, 3, 0, 0, 3)


@pytest.mark.parametrize(
    "progress",
    [
        [],
        [{"host": HOST, "what": "channels", "status": "error"}, whole(HOST, "c1", "c2", "c3")[1]],
        [{"host": HOST, "what": "channels", "status": "done", "whole": 0}, *whole(HOST, "c1", "c2", "c3")[1:]],
        whole("other.example", "c1", "c2", "c3"),
    ],
    ids=["nothing read", "host failed", "host read in part", "another host"],
)
def test_nothing_is_removed_for_a_host_that_was_not_read_to_its_end(stage: Path, three: Path, progress: Any) -> None:
    add(stage, "crawl_progress", *progress)
    merge(stage, three, max_removed=0)
    assert removed(three) == set()


def test_a_video_that_is_seen_again_lives_under_its_old_id(stage: Path, three: Path, tmp_path: Path) -> None:
    add(stage, "crawl_progress", *whole(HOST))
    merge(stage, three, max_removed=1)
    assert removed(three) == {f"v00{number}" for number in range(6)}
    later = staging(tmp_path / "later.db", NOW + 1)
    add(later, "instances", instance())
    add(later, "channels", channel("c1", seen=1), channel("c2"))
    add(later, "videos", video("v003"))
    add(later, "video_embeddings", embedding("v003"))
    said = merge(later, three)
    assert rows(three, "SELECT id, removed_at FROM videos WHERE video_id = 'v003'") == [(4, None)]
    assert rows(three, "SELECT id FROM video_embeddings") == [(4,)]
    assert changes(three) == {4: "new"}
    assert rows(three, "SELECT channel_id FROM channels WHERE removed_at IS NULL") == [("c1",)]
    assert counts(said, "videos") == (7, 7, 0, 1, 0)


def test_an_id_is_never_given_away(stage: Path, three: Path) -> None:
    add(stage, "crawl_progress", *whole(HOST))
    add(stage, "videos", video("a-new-one", channel_id=None))
    merge(stage, three, max_removed=1)
    assert rows(three, "SELECT id > 7 FROM videos WHERE video_id = 'a-new-one'") == [(1,)]


def test_too_many_removals_are_refused_and_nothing_is_changed(stage: Path, three: Path) -> None:
    add(stage, "channels", channel("c1", seen=1), channel("c2", seen=1), channel("c3", seen=1))
    add(stage, "videos", video("v000", views=10**6), video("w1"))
    add(stage, "crawl_progress", *whole(HOST, "c1"))
    before = three.read_bytes()
    with pytest.raises(BadInput) as refused:
        merge(stage, three, max_removed=0.14)
    assert str(refused.value).startswith(
        "this merge would remove 1 of 7 videos (14.3%), and 14.0% is the most allowed; most of them at a.example (1):"
    )
    assert three.read_bytes() == before
    assert merge(stage, three, max_removed=1 / 7)["tables"]["videos"]["removed"] == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(stage: Path, prod: Path, share: float) -> None:
    with pytest.raises(BadInput, match="a share from 0 to 1"):
        merge(stage, prod, max_removed=share)


def test_the_dead_get_no_vector_of_a_new_model(stage: Path, three: Path) -> None:
    """All of production is embedded anew then, also what this very merge finds gone."""
    add(stage, "channels", channel("c1", seen=1), channel("c2", seen=1))
    add(stage, "crawl_progress", *whole(HOST))
    add(stage, "video_embeddings", *(embedding(f"v00{number}", model="m2") for number in range(6)))
    merge(stage, three, max_removed=1)
    assert removed(three) == {"v002", "v005"}
    left = {name for (name,) in rows(three, "SELECT video_id FROM video_embeddings WHERE model_name = 'm2'")}
    assert left == {"v000", "v001", "v003", "v004"}
    assert changes(three) == {1: "changed", 2: "changed", 4: "changed", 5: "changed", 3: "removed", 6: "removed"}


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_model_must_be_there_for_every_video(stage: Path, prod: Path) -> None:
    add(stage, "video_embeddings", *(embedding(f"v{number:03d}", model="m2", dim=8) for number in range(19)))
    before = prod.read_bytes()
    with pytest.raises(BadInput, match=r"several models side by side \(1 are not of m2/8\)"):
        merge(stage, prod)
    assert prod.read_bytes() == before
    add(stage, "video_embeddings", embedding("v019", model="m2", dim=8))
    said = merge(stage, prod)
    assert said["embeddings"] == {"new": 0, "changed": 20, "removed": 0}
    assert rows(prod, "SELECT DISTINCT model_name, embedding_dim FROM video_embeddings") == [("m2", 8)]


def test_a_staging_of_two_models_or_with_torn_vectors_is_refused(stage: Path, prod: Path) -> None:
    add(stage, "video_embeddings", embedding("v000", model="m2"), embedding("v001"))
    with pytest.raises(BadInput, match="m/4, m2/4"):
        merge(stage, prod)
    add(stage, "video_embeddings", {**embedding("v002"), "embedding": b"short"})
    with pytest.raises(BadInput, match="1 staged vectors have not the length"):
        merge(stage, prod)


def test_another_vector_of_the_same_text_is_a_change(stage: Path, prod: Path) -> None:
    add(stage, "video_embeddings", {**embedding("v004"), "embedding": vector("other")}, embedding("v005"))
    merge(stage, prod)
    assert changes(prod) == {5: "changed"}
    assert rows(prod, "SELECT embedding FROM video_embeddings WHERE id = 5") == [(vector("other"),)]
