"""An upload in a store: bytes that a tenant may replace at any moment, also while they are being read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dailies.errors import BadInput, Changed, Missing
from dailies.media.keys import MediaKey
from dailies.store.interface import Store


def version_of(store: Store, key: MediaKey) -> str:
    """It changes whenever the bytes do, so it keys the first unit of every job."""
    found = store.stat(str(key))
    if found is None:
        raise Missing(f"there is no upload {key}: put the file there first")
    return found.version


@contextmanager
def unchanged(store: Store, key: MediaKey, version: str) -> Iterator[None]:
    """What was computed from bytes that changed meanwhile is not the result, nor is its failure the file's fault."""
    failure: BadInput | None = None
    try:
        yield
    except BadInput as error:
        failure = error
    if version_of(store, key) != version:
        raise changed(key)
    if failure is not None:
        raise failure


def changed(key: MediaKey) -> Changed:
    return Changed(f"{key} changed while it was read: put it there whole, then ask again")
