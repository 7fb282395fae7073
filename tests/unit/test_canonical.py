"""The same value gives the same bytes, and a file is the old one or the new one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies.canonical import CHUNK, canonical_json, digest, file_digest, write_atomically

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aü✓ \n"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abü", max_size=3), inner, max_size=4),
    max_leaves=12,
)


def test_json_has_sorted_keys_no_spaces_and_plain_letters():
    assert canonical_json({"b": [1, 2.5, None], "a": {"ü": True}}) == '{"a":{"ü":true},"b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [n], lambda n: {"a": {"b": n}}], ids=["bare", "list", "dict"])
def test_what_is_no_number_is_refused_wherever_it_hides(number, wrap):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(wrap(number))
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(wrap(number))


def test_what_is_no_json_is_refused():
    with pytest.raises(TypeError):
        canonical_json({"when": object()})


@given(JSON)
def test_json_comes_back_as_it_was_and_is_spelled_the_same_again(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=6), st.randoms())
def test_the_order_of_a_dictionary_does_not_matter(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)


def test_a_digest_is_sha256_of_bytes_as_they_are_and_of_the_rest_as_json():
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert digest({"b": 1, "a": 2}) == hashlib.sha256(b'{"a":2,"b":1}').hexdigest()
    assert digest("abc") != digest(b"abc")


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    data = os.urandom(3 * CHUNK + 17)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == digest(data)


def test_a_file_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, [b"one ", b"", b"two"])
    assert path.read_bytes() == b"one two"
    write_atomically(path, iter([b"three"]))
    assert path.read_bytes() == b"three"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_writer_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path):
    def chunks():
        yield b"half of the new"
        raise RuntimeError("the source broke off")

    path = tmp_path / "file"
    write_atomically(path, [b"old"])
    with pytest.raises(RuntimeError):
        write_atomically(path, chunks())
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from dailies.canonical import write_atomically

def chunks():
    yield b"new " * 1_000_000
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), chunks())
"""


@pytest.mark.parametrize("old", [b"old", None], ids=["with an old file", "without"])
def test_a_writer_killed_midway_leaves_the_old_file(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        write_atomically(path, [old])
    child = subprocess.run([sys.executable, "-c", KILLED_MIDWAY, str(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == old
    leftover = [found for found in tmp_path.iterdir() if found != path]
    assert all(found.name.startswith(".file.") and found.name.endswith(".tmp") for found in leftover)
    write_atomically(path, [b"new"])
    assert path.read_bytes() == b"new"
