"""What an object key is: one rule for every store, so that what one takes another takes as well."""

from __future__ import annotations

from dailies.errors import BadInput

LONGEST = 1024  # bytes: the most that S3 takes


def is_key(key: str) -> bool:
    """Whether the key stays beneath its store's root, whatever the store is made of, and survives being listed."""
    if not key.isprintable() or len(key.encode()) > LONGEST:
        return False
    return all(part and not part.startswith(".") and "\\" not in part for part in key.split("/"))


def check_key(key: str) -> str:
    if not is_key(key):
        raise BadInput(
            f"{_shown(key)} is no object key: printable, at most {LONGEST} bytes, "
            "and its parts must not be empty nor begin with a dot"
        )
    return key


def _shown(key: str) -> str:
    """One printable line of bounded length: what came in may hold anything."""
    text = ascii(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
