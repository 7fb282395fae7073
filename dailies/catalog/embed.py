"""Embeddings for what is new or has another text, gathered in staging; for everything, where the model is another.

Each batch is one transaction, and what it holds is known by its text's digest: a run that was killed goes on behind the
last one. Nothing is skipped in silence: a video of production that has no embedding gets one as well, and one that
waits in staging and is not needed any more goes, so that the merge does not put an old vector over a newer one.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dailies.catalog.embedders import DEFAULT, Embedder, embedder, text_digest, video_text
from dailies.catalog.schema import connect, refusals, transaction
from dailies.errors import BadInput

log = logging.getLogger("dailies.catalog")

BATCH = 2000
COLUMNS = ("title", "description", "tags_json", "category", "channel_name")
TEXT = ", ".join(f"v.{column}" for column in COLUMNS)
FACTS = "e.text_digest, e.model_name, e.embedding_dim"
# Both tables have the same columns where it matters, so that both passes are one function.
STAGED = f"""
    SELECT v.video_id, v.instance_domain, {TEXT}, {FACTS}, p.text_digest, p.model_name, p.embedding_dim
    FROM main.videos v
    LEFT JOIN main.video_embeddings e USING (video_id, instance_domain)
    LEFT JOIN production.video_embeddings p USING (video_id, instance_domain)
    WHERE (v.video_id, v.instance_domain) > (?, ?) ORDER BY v.video_id, v.instance_domain LIMIT {BATCH}
"""
# Those alone that staging does not tell of anew. A tombstone has no embedding, and needs none.
PUBLISHED = f"""
    SELECT v.video_id, v.instance_domain, {TEXT}, {FACTS}, p.text_digest, p.model_name, p.embedding_dim
    FROM production.videos v
    LEFT JOIN main.video_embeddings e USING (video_id, instance_domain)
    LEFT JOIN production.video_embeddings p USING (video_id, instance_domain)
    WHERE (v.video_id, v.instance_domain) > (?, ?) AND v.removed_at IS NULL
    AND NOT EXISTS (
        SELECT 1 FROM main.videos s WHERE s.video_id = v.video_id AND s.instance_domain = v.instance_domain
    )
    ORDER BY v.video_id, v.instance_domain LIMIT {BATCH}
"""
# Where nothing is embedded anew, only the gaps of production are of interest. There are none where both counts agree,
# for a tombstone has no vector.
LIVING = """SELECT (SELECT count(*) FROM production.videos)
    - (SELECT count(*) FROM production.videos WHERE removed_at IS NOT NULL)"""
VECTORS = "SELECT count(*) FROM production.video_embeddings"
GAPS = PUBLISHED.replace("AND NOT EXISTS", "AND p.video_id IS NULL AND NOT EXISTS")
OTHER = "SELECT EXISTS (SELECT 1 FROM production.video_embeddings WHERE (model_name, embedding_dim) != (?, ?))"
WRITE = "INSERT OR REPLACE INTO main.video_embeddings VALUES (?, ?, ?, ?, ?, ?, ?)"
DROP = "DELETE FROM main.video_embeddings WHERE video_id = ? AND instance_domain = ?"
# What an earlier run left behind, for another model: no video of this update asks for it.
STRAYS = """
    DELETE FROM main.video_embeddings AS e WHERE (e.model_name, e.embedding_dim) != (?, ?) AND NOT EXISTS (
        SELECT 1 FROM main.videos v WHERE v.video_id = e.video_id AND v.instance_domain = e.instance_domain
    )
"""


def build_embeddings(
    staging: str | Path,
    production: str | Path | None,
    model: str = DEFAULT,
    device: str = "cpu",
    progress: Callable[[float], None] = lambda part: None,
) -> dict[str, Any]:
    embeds = embedder(model, device)
    log.info("action=embed device=%s model=%s dim=%d", embeds.device, embeds.name, embeds.dim)
    with closing(_opened(Path(staging), production)) as database, refusals(Path(staging)):
        return _Work(database, embeds, _as_of(database), progress).all()


def _opened(staging: Path, production: str | Path | None) -> sqlite3.Connection:
    database = connect(staging, "staging", write=True)
    database.row_factory = sqlite3.Row
    if production is None:
        database.execute("ATTACH ':memory:' AS production")
        database.execute("CREATE TABLE production.videos AS SELECT *, NULL AS removed_at FROM main.videos WHERE 0")
        database.execute("CREATE TABLE production.video_embeddings AS SELECT * FROM main.video_embeddings WHERE 0")
        return database
    try:
        connect(Path(production), "production").close()
        database.execute("ATTACH ? AS production", [f"file:{quote(str(production))}?mode=ro"])
    except BaseException:
        database.close()
        raise
    return database


def _as_of(database: sqlite3.Connection) -> int:
    found = database.execute("SELECT value FROM crawl_state WHERE key = 'as_of'").fetchone()
    if found is None:
        raise BadInput("staging does not say for which moment it was gathered: begin it anew")
    return int(found[0])


@dataclass
class _Work:
    database: sqlite3.Connection
    embeds: Embedder
    as_of: int
    progress: Callable[[float], None]
    embedded: int = 0
    kept: int = 0
    seen: int = 0

    def all(self) -> dict[str, Any]:
        rebuild = bool(self._number(OTHER, *self._model))
        with transaction(self.database):
            self.database.execute(STRAYS, self._model)
        count = self._number("SELECT count(*) FROM main.videos")
        if rebuild:
            count += self._number("SELECT count(*) FROM production.videos WHERE removed_at IS NULL")
        self._pass(STAGED, count)
        if rebuild:
            self._pass(PUBLISHED, count)
        elif self._number(LIVING) != self._number(VECTORS):
            self._pass(GAPS, count)
        self.progress(1.0)
        log.info("action=embedded embedded=%d kept=%d rebuild=%s", self.embedded, self.kept, str(rebuild).lower())
        return {
            "device": self.embeds.device,
            "dim": self.embeds.dim,
            "embedded": self.embedded,
            "kept": self.kept,
            "model": self.embeds.name,
            "rebuild": rebuild,
        }

    @property
    def _model(self) -> tuple[str, int]:
        return self.embeds.name, self.embeds.dim

    def _number(self, statement: str, *given: str | int) -> int:
        return int(self.database.execute(statement, given).fetchone()[0])

    def _pass(self, statement: str, count: int) -> None:
        last = ("", "")
        while rows := self.database.execute(statement, last).fetchall():
            self._batch(rows)
            last = (rows[-1]["video_id"], rows[-1]["instance_domain"])
            self.seen += len(rows)
            self.progress(min(1.0, self.seen / max(1, count)))

    def _batch(self, rows: Sequence[sqlite3.Row]) -> None:
        texts, wanted, needless = [], [], []
        for row in rows:
            text = video_text(dict(zip(COLUMNS, row[2:7], strict=True)))
            digest = text_digest(text)
            fits = (digest, *self._model)
            published, gathered = tuple(row[10:13]) == fits, tuple(row[7:10]) == fits
            key = (row["video_id"], row["instance_domain"])
            if published and row[7] is not None and not gathered:
                needless.append(key)
            if published or gathered:
                self.kept += 1
            else:
                texts.append(text)
                wanted.append((*key, digest, *self._model))
        if not texts and not needless:
            return
        vectors = self.embeds.embed(texts).astype("<f4", copy=False) if texts else np.empty((0, self.embeds.dim))
        with transaction(self.database):
            self.database.executemany(DROP, needless)
            rows_of = ((*facts, vector.tobytes(), self.as_of) for facts, vector in zip(wanted, vectors, strict=True))
            self.database.executemany(WRITE, rows_of)
        self.embedded += len(texts)
