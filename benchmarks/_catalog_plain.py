"""The barest way to what an update makes: one SQL statement a table, and FAISS called as its manual has it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks._report import Figure
from dailies.catalog.index import POINTS
from dailies.catalog.index_file import load_index, search_keys
from dailies.catalog.reader import CATALOG, INDEX
from dailies.catalog.schema import connect, create
from dailies.catalog.vectors import NEIGHBOURS, PROBED, Exact, Ids, keys, recall, sample, vectors_of, without

ASKED = 10_000
PLAIN_NPROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def bare_merge(staging: Path, place: Path) -> float:
    """Seconds for the same rows into the same empty tables, one statement each and nothing looked at."""
    path = place / "bare.db"
    create(path, "production")
    with closing(connect(path, "production", write=True)) as database:
        database.execute("ATTACH ? AS staging", [f"file:{staging}?mode=ro"])
        begin = time.perf_counter()
        database.execute("BEGIN IMMEDIATE")
        for table, extra, order in (
            ("instances", "", "host"),
            ("channels", "", "channel_id, instance_domain"),
            ("videos", "", "video_id, instance_domain"),
            ("video_embeddings", "v.id, ", "video_id, instance_domain"),
        ):
            names = [row[1] for row in database.execute(f"PRAGMA staging.table_info({table})") if row[1] != "seen"]
            join = "JOIN main.videos AS v USING (video_id, instance_domain)" if extra else ""
            columns = ", ".join(names)
            told = ", ".join(f"s.{name}" for name in names)
            database.execute(
                f"INSERT INTO main.{table} ({'id, ' if extra else ''}{columns}) "
                f"SELECT {extra}{told} FROM staging.{table} AS s {join} ORDER BY {order}"
            )
        database.execute("COMMIT")
        seconds = time.perf_counter() - begin
    path.unlink()
    return seconds


@dataclass(frozen=True)
class Plain:
    build_s: float
    queries: float
    recall: float
    nprobe: int


def plain_faiss(ids: Ids, matrix: Any, nlist: int, aim: float, exact: Exact, asked: Any) -> Plain:
    """``index_factory``, ``train``, ``add_with_ids`` and ``search``, with so few probes as find as much as ours."""
    begin = time.perf_counter()
    index = faiss.index_factory(
        matrix.shape[1], f"IVF{nlist},Flat" if nlist else "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT
    )
    index.train(matrix[sample(ids, POINTS * nlist, 5)] if nlist else matrix)
    index.add_with_ids(matrix, ids)
    seconds = time.perf_counter() - begin
    found = 1.0
    for nprobe in PLAIN_NPROBES if nlist else ():
        index.nprobe = nprobe
        scores, places = index.search(exact.asked, exact.count + 1)
        found = recall(without(keys(scores, places), exact.own)[:, : exact.count + 1], exact.found)
        if found >= aim:
            break
    begin = time.perf_counter()
    index.search(asked, NEIGHBOURS + 1)
    return Plain(seconds, len(asked) / (time.perf_counter() - begin), found, index.nprobe if nlist else 0)


def search_figures(folder: Path, about: Mapping[str, Any], seconds: float) -> list[Figure]:
    """Of the generation in ``folder``, of whose index the update said ``about`` and which took it so many seconds."""
    vectors = vectors_of(folder / CATALOG)
    blocks = list(vectors.blocks())
    ids, matrix = np.concatenate([some for some, _ in blocks]), np.concatenate([some for _, some in blocks])
    del blocks
    rows = sample(ids, min(ASKED, len(ids)), 3)
    probed = sample(ids, PROBED, 4)
    exact = Exact(matrix[probed], ids[probed], NEIGHBOURS)
    exact.see(ids, matrix)
    index = load_index(folder / INDEX)
    found = recall(search_keys(index, exact.asked, NEIGHBOURS, exact.own), exact.found)
    begin = time.perf_counter()
    search_keys(index, matrix[rows], NEIGHBOURS, ids[rows])
    ours = len(rows) / (time.perf_counter() - begin)
    del index
    plain = plain_faiss(ids, matrix, about["nlist"], found, exact, matrix[rows])
    lists = f"{about['nlist']} lists" if about["nlist"] else "no lists"
    return [
        Figure("index: build", seconds, "s", note=f"{lists}; read, trained, filled, measured, synced"),
        Figure(
            "index: build, FAISS alone",
            plain.build_s,
            "s",
            note="float32, as many points to train with; nothing read, nothing written",
        ),
        Figure(
            "index: recall@20", found, "", at_least=0.95, note=f"nprobe {about['nprobe']}; {PROBED} other questions"
        ),
        Figure("index: questions", ours, "1/s", note="exact scores, ties by id"),
        Figure(
            "index: questions, FAISS alone",
            plain.queries,
            "1/s",
            note=f"recall {plain.recall:.4f}, nprobe {plain.nprobe}",
        ),
    ]
