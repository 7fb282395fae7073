"""What was computed from bytes that changed meanwhile is neither recorded nor blamed on the file."""

from __future__ import annotations

import pytest

from dailies.errors import Changed, Missing, Unreadable
from dailies.media.keys import MediaKey
from dailies.media.upload import unchanged, version_of
from dailies.store.local import LocalFolder

pytestmark = pytest.mark.unit

KEY = MediaKey("acme", "v1", "clip.mp4")


@pytest.fixture
def store(tmp_path):
    made = LocalFolder(tmp_path)
    made.put(str(KEY), b"as it came")
    return made


def test_what_stays_as_it_was_is_let_through(store):
    with unchanged(store, KEY, version_of(store, KEY)):
        pass


@pytest.mark.parametrize("failure", [None, Unreadable("half a file")])
def test_a_change_is_the_reason_whatever_came_of_it(store, failure):
    def work() -> None:
        with unchanged(store, KEY, version_of(store, KEY)):
            store.put(str(KEY), b"another film")
            if failure:
                raise failure

    with pytest.raises(Changed, match=r"acme/client/videos/v1/clip\.mp4 changed while it was read"):
        work()


def test_a_bad_file_that_did_not_change_is_a_bad_file(store):
    with pytest.raises(Unreadable, match="not media"), unchanged(store, KEY, version_of(store, KEY)):
        raise Unreadable("not media")


def test_an_upload_that_is_not_there_says_which(store):
    with pytest.raises(Missing, match=r"no upload acme/client/videos/v2/clip\.mp4"):
        version_of(store, MediaKey("acme", "v2", "clip.mp4"))
