"""A catalogue asked for a text: the same vectors as those of its videos, and the same index."""

from __future__ import annotations

from dailies.catalog.embedders import embedder
from dailies.catalog.index import load_index
from dailies.catalog.index import search as search_index
from dailies.catalog.reader import INDEX, Catalog


def nearest(catalog: Catalog, text: str, count: int) -> list[tuple[int, float]]:
    """Ids and scores of living videos, best first. The model is the one that the catalogue was made with."""
    asked = embedder(catalog.meta["model"]).embed([text])
    index = load_index(catalog.folder / INDEX, mapped=True)
    ids, scores = search_index(index, asked, count)
    return [(int(number), float(score)) for number, score in zip(ids[0], scores[0], strict=True) if number >= 0]
