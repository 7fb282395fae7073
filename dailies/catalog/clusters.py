"""Where the lists of an inverted index have their middle: k-means on the sphere.

Our own rather than the library's, because both vectors and centres lie on the grid of vectors.py: who is nearest is
then decided by exact arithmetic, sums are exact, and the same sample gives the same centres with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from dailies.catalog.vectors import Ids, Matrix, on_grid
from dailies.errors import NotConfigured

ROUNDS = 8

Nearest = Callable[[Matrix], Ids]
# From centres to the function that finds the nearest of them.
Assigner = Callable[[Matrix], Nearest]


def assigner(device: str) -> Assigner:
    return _on_gpu() if device == "gpu" else _on_cpu


def train(points: Matrix, count: int, assigner: Assigner, progress: Callable[[float], None]) -> Matrix:
    """`points` come in the order of a hash, so that the first are as good as any to begin with."""
    centres = points[:count].copy()
    for number in range(ROUNDS):
        centres = _moved(points, centres, assigner(centres)(points))
        progress((number + 1) / ROUNDS)
    return centres


def _moved(points: Matrix, centres: Matrix, nearest: Ids) -> Matrix:
    order = np.argsort(nearest, kind="stable")
    taken, starts = np.unique(nearest[order], return_index=True)
    moved = centres.copy()
    moved[taken] = on_grid(np.add.reduceat(points[order], starts, axis=0, dtype=np.float64))
    empty = np.setdiff1d(np.arange(len(centres)), taken)
    if len(empty):
        # Those that lie farthest from their centre are the worst served.
        served = np.einsum("ij,ij->i", points, moved[nearest])
        moved[empty] = points[np.argsort(served, kind="stable")[: len(empty)]]
    return moved


def _flat(centres: Matrix) -> Any:
    flat = faiss.IndexFlatIP(centres.shape[1])
    flat.add(centres)
    return flat


def _on_cpu(centres: Matrix) -> Nearest:
    flat = _flat(centres)
    return lambda points: np.asarray(flat.search(points, 1)[1], dtype=np.int64).ravel()


def _on_gpu() -> Assigner:
    if not hasattr(faiss, "StandardGpuResources"):
        raise NotConfigured("this FAISS knows no GPU: install faiss-gpu-cu12 in place of faiss-cpu, or ask for the cpu")
    if not faiss.get_num_gpus():
        raise NotConfigured("FAISS finds no GPU here: install its driver, or ask for the cpu")
    resources = faiss.StandardGpuResources()

    def of(centres: Matrix) -> Nearest:
        moved = faiss.index_cpu_to_gpu(resources, 0, _flat(centres))
        return lambda points: np.asarray(moved.search(points, 1)[1], dtype=np.int64).ravel()

    return of
