"""Text as vectors of length one: hashed n-grams without any model, or MiniLM where its package is installed.

Every vector lies on a grid of 1/2048 (see vectors.py), so that the products of two vectors add up exactly in float32,
in whatever order. Up to the last step the n-grams are counted and projected in whole numbers below 2**24, which
float32 holds exactly too: so a text has the same bytes in any batch, with any BLAS, on any machine.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dailies.canonical import digest
from dailies.catalog.vectors import Matrix, on_grid
from dailies.errors import BadInput, NotConfigured

DEFAULT = "ngrams-1"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
DIM, BUCKETS = 256, 2048
# A word says more than a run of three letters.
WORD_WEIGHT, PAIR_WEIGHT, LETTERS_WEIGHT = 4, 2, 1
# The root of a count, in sixteenths; the largest keeps every sum of the projection below 2**24.
ROOT_STEPS, LARGEST_ROOT = 16, 4096
# So many code points are hashed at once: what is worked on stays in the processor's cache.
AT_ONCE = 24_000
# So many are projected at once: the threads of a product of matrices wait for each other at its end, for long where the
# machine has other work.
PROJECTED = 2000
# Code points above are counted as letters: ideographs, and scripts that Unicode still adds.
CLASSIFIED = 0x20000
LONGEST_WORD = 64

Whole = NDArray[np.uint32]


class Embedder(Protocol):
    name: str
    dim: int
    device: str

    def embed(self, texts: Sequence[str]) -> Matrix:
        """One row for each text."""


def embedder(name: str = DEFAULT, device: str = "cpu") -> Embedder:
    if device not in ("cpu", "cuda"):
        raise BadInput(f"there is no device {device!r} for embeddings: ask for cpu or cuda")
    if name == DEFAULT:
        if device != "cpu":
            raise NotConfigured(
                f"the embedder {DEFAULT} runs on the cpu alone: ask for that, or for the embedder minilm"
            )
        return Ngrams()
    if name == "minilm":
        return MiniLM(device)
    raise BadInput(f"there is no embedder {name!r}: ask for {DEFAULT} or minilm")


def video_text(video: Mapping[str, Any]) -> str:
    """What a video is found by. Counters are not in it: it would have to be embedded anew with every comment."""
    tags = ", ".join(_tags(video["tags_json"]))
    labelled = (("tags", tags), ("category", video["category"]), ("channel", video["channel_name"]))
    parts = [video["title"], video["description"], *(f"{label}: {said}" for label, said in labelled if said)]
    return "\n".join(part for part in parts if part)


def text_digest(text: str) -> str:
    return digest(text.encode("utf-8", "surrogatepass"))


def _tags(stored: str | None) -> list[str]:
    try:
        tags = json.loads(stored or "[]")
    except ValueError:
        return []
    return [tag for tag in tags if isinstance(tag, str) and tag] if isinstance(tags, list) else []


class Ngrams:
    """Words, pairs of words and runs of three and four letters, hashed with a sign into buckets, their counts rooted,
    and projected. A text without a single letter or digit gets the first axis: a vector like any other, near nothing
    but its own kind, so that every video has one."""

    name = DEFAULT
    dim = DIM
    device = "cpu"

    def embed(self, texts: Sequence[str]) -> Matrix:
        out = np.empty((len(texts), DIM), dtype=np.float32)
        for at in range(0, len(texts), PROJECTED):
            out[at : at + PROJECTED] = _projected(_rooted([_folded(text) for text in texts[at : at + PROJECTED]]))
        return out


def _rooted(texts: Sequence[str]) -> Matrix:
    rooted = np.empty((len(texts), BUCKETS), dtype=np.float32)
    first = 0
    while first < len(texts):
        last, size = first + 1, len(texts[first])
        while last < len(texts) and size + len(texts[last]) <= AT_ONCE:
            size += len(texts[last])
            last += 1
        counts = _counts(texts[first:last])
        roots = np.minimum(np.rint(np.sqrt(np.abs(counts)) * ROOT_STEPS), LARGEST_ROOT)
        rooted[first:last] = np.copysign(roots, counts)
        first = last
    return rooted


def _folded(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def _counts(texts: Sequence[str]) -> NDArray[np.float64]:
    """What is in each bucket: whole numbers, with a sign, so that what meets by chance cancels out on average."""
    codes, owner = _letters(texts)
    hashes, owners, weights = [], [], []
    for weight, (hashed, of) in (
        (WORD_WEIGHT, _words(codes, owner, 1)),
        (PAIR_WEIGHT, _words(codes, owner, 2)),
        (LETTERS_WEIGHT, _runs(codes, owner, 3)),
        (LETTERS_WEIGHT, _runs(codes, owner, 4)),
    ):
        hashes.append(hashed)
        owners.append(of)
        weights.append(np.full(len(hashed), weight, dtype=np.float64))
    every = np.concatenate(hashes)
    where = np.concatenate(owners) * BUCKETS + (every >> np.uint32(21)).astype(np.int64)
    signed = np.concatenate(weights)
    np.negative(signed, out=signed, where=(every & np.uint32(1)).astype(bool))
    counted = np.bincount(where, weights=signed, minlength=len(texts) * BUCKETS)
    return counted.astype(np.float64, copy=False).reshape(len(texts), BUCKETS)


def _letters(texts: Sequence[str]) -> tuple[Whole, NDArray[np.int64]]:
    """Code points, with zero for whatever is no letter or digit, once between words and around each text; and the text
    that each belongs to."""
    joined = " " + "  ".join(texts) + " "
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32)
    codes = np.where(_is_letter()[np.minimum(codes, CLASSIFIED)], codes, np.uint32(0))
    owner = np.repeat(np.arange(len(texts)), [len(text) + 2 for text in texts])
    kept = codes != 0
    kept[1:] |= (codes[:-1] != 0) | (owner[1:] != owner[:-1])
    kept[0] = True
    return codes[kept], owner[kept]


def _runs(codes: Whole, owner: NDArray[np.int64], length: int) -> tuple[Whole, NDArray[np.int64]]:
    count = max(0, len(codes) - length + 1)
    mixed = _mixed(codes)
    hashed = np.zeros(count, dtype=np.uint32)
    for place in range(length):
        hashed += mixed[place : place + count] * _odd(length, place)
    whole = owner[:count] == owner[length - 1 : length - 1 + count]
    return _mixed(hashed[whole]), owner[:count][whole]


def _words(codes: Whole, owner: NDArray[np.int64], length: int) -> tuple[Whole, NDArray[np.int64]]:
    """Single words, or each with the one after it."""
    letter = codes != 0
    starts = np.flatnonzero(letter & ~np.concatenate([[False], letter[:-1]]))
    if not len(starts):
        return np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.int64)
    # The zero after a word counts with it, and adds nothing.
    begin = np.repeat(starts, np.diff(np.append(starts, len(codes))))
    place = np.minimum(np.arange(starts[0], len(codes)) - begin, LONGEST_WORD - 1)
    values = np.where(letter, _mixed(codes), np.uint32(0))[starts[0] :] * _places()[place]
    words = np.add.reduceat(values, starts - starts[0], dtype=np.uint32)
    of = owner[starts]
    if length == 1:
        return _mixed(words ^ _odd(1, 0)), of
    same = of[1:] == of[:-1]
    pairs = _mixed(words[:-1]) * _odd(2, 0) + _mixed(words[1:]) * _odd(2, 1)
    return _mixed(pairs[same]), of[:-1][same]


def _projected(rooted: Matrix) -> Matrix:
    sums = rooted @ _projection()
    sums[~rooted.any(axis=1), 0] = 1
    return on_grid(sums)


def _mixed(values: Whole) -> Whole:
    """Every bit of the answer depends on every bit of the value."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x7FEB352D)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))


@cache
def _odd(length: int, place: int) -> np.uint32:
    return np.uint32(_mixed(np.array([length * 64 + place + 1], dtype=np.uint32))[0] | np.uint32(1))


@cache
def _places() -> Whole:
    return np.array([_odd(0, place) for place in range(LONGEST_WORD)], dtype=np.uint32)


@cache
def _is_letter() -> NDArray[np.bool_]:
    kinds = [unicodedata.category(chr(code))[0] in "LMN" for code in range(CLASSIFIED)]
    return np.array([*kinds, True])


@cache
def _projection() -> Matrix:
    """A sign for each bucket and dimension, by our own hash: no generator of numpy's, whose stream may change."""
    signs = _mixed(np.arange(1, BUCKETS * DIM + 1, dtype=np.uint32)) >> np.uint32(31)
    return (1 - 2 * signs.astype(np.float32)).reshape(BUCKETS, DIM)


class MiniLM:
    """all-MiniLM-L6-v2. It is read from the cache of Hugging Face and never fetched from here: a library that waits
    for a silent server would hold up the update for as long."""

    name = "minilm"
    dim = 384

    def __init__(self, device: str = "cpu") -> None:
        if find_spec("sentence_transformers") is None:
            raise NotConfigured(
                "the embedder minilm needs its package: pip install '.[embeddings]' from the folder of Dailies"
            )
        if device == "cuda" and not import_module("torch").cuda.is_available():
            raise NotConfigured("torch finds no CUDA device here: ask for the device cpu, or install its driver")
        self.device = device
        try:
            self._model: Any = import_module("sentence_transformers").SentenceTransformer(
                MINILM, device=device, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise NotConfigured(
                f"the model {MINILM} is not in the cache of Hugging Face: "
                f"run `hf download {MINILM}` where there is a network, or ask for the embedder {DEFAULT}"
            ) from error

    def embed(self, texts: Sequence[str]) -> Matrix:
        found = self._model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return on_grid(np.asarray(found, dtype=np.float32).reshape(len(texts), self.dim))
