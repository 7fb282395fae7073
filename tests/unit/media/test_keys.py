import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies.errors import BadInput
from dailies.media.keys import MediaKey

pytestmark = pytest.mark.unit

ESCAPES = [
    "",
    ".",
    "..",
    "a/b",
    "/a",
    "a/",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\n",
    ".hidden",
    "-a",
    " a",
    "é",
    "ａ",
    "a\u202eb",
]
TOO_LONG = "a" * 129

anything = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="aZ9._-/\\ \0\n", max_size=12),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.sampled_from(ESCAPES),
)


def test_a_key_is_parsed_and_spelled_the_same() -> None:
    text = "acme/client/videos/v-1/First take.mp4"
    key = MediaKey.parse("acme", text)
    assert key == MediaKey("acme", "v-1", "First take.mp4")
    assert str(key) == text


def test_derived_keys_lie_on_the_side_that_was_asked_for() -> None:
    key = MediaKey("acme", "v-1", "film.mp4")
    assert key.client("contact-sheet", "ab12.png") == "acme/client/videos/v-1/contact-sheet/ab12.png"
    assert key.server("probe", "ab12.json") == "acme/server/videos/v-1/probe/ab12.json"


@pytest.mark.parametrize("part", [*ESCAPES, TOO_LONG, "a b"])
def test_a_part_that_could_escape_is_refused_wherever_it_stands(part: str) -> None:
    with pytest.raises(BadInput):
        MediaKey(part, "v", "film.mp4")
    with pytest.raises(BadInput):
        MediaKey("acme", part, "film.mp4")
    with pytest.raises(BadInput):
        MediaKey("acme", "v", "film.mp4").client("frames", part)
    with pytest.raises(BadInput):
        MediaKey("acme", "v", "film.mp4").server(part)


@pytest.mark.parametrize("name", [*ESCAPES, "a" * 256])
def test_a_file_name_that_could_escape_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        MediaKey("acme", "v", name)


def test_a_file_name_may_hold_spaces_and_255_characters() -> None:
    assert MediaKey("acme", "v", "b" + " c" * 127).name == "b" + " c" * 127


@pytest.mark.parametrize(
    "key",
    [
        "",
        "acme",
        "acme/client/videos/v",
        "acme/client/videos/v/",
        "acme/client/videos/v/a/b.mp4",
        "acme/server/videos/v/film.mp4",
        "acme/client/audio/v/film.mp4",
        "/acme/client/videos/v/film.mp4",
        "acme/client/videos/../film.mp4",
    ],
)
def test_a_malformed_key_is_refused_in_one_line(key: str) -> None:
    with pytest.raises(BadInput) as refused:
        MediaKey.parse("acme", key)
    assert "\n" not in str(refused.value)


def test_another_tenants_key_is_refused() -> None:
    with pytest.raises(BadInput, match="does not belong to tenant"):
        MediaKey.parse("acme", "evil/client/videos/v/film.mp4")


def test_no_derived_key_is_the_upload_or_lies_beneath_it() -> None:
    key = MediaKey("acme", "v", "probe")
    with pytest.raises(BadInput, match="upload itself"):
        key.client("probe")
    with pytest.raises(BadInput, match="upload itself"):
        key.client("probe", "x.json")
    with pytest.raises(BadInput, match="needs a name"):
        key.client()


@given(anything, anything, anything, st.lists(anything, max_size=3))
def test_whatever_comes_in_the_key_stays_under_its_prefix(tenant: str, video: str, name: str, parts: list[str]) -> None:
    try:
        key = MediaKey(tenant, video, name)
        built = [(str(key), "client"), (key.client(*parts), "client"), (key.server(*parts), "server")]
    except BadInput as error:
        refused = error
    else:
        refused = None
    if refused:
        assert str(refused).isprintable()
        return
    for text, side in built:
        assert text.startswith(f"{tenant}/{side}/videos/{video}/")
        pieces = text.split("/")
        assert pieces[0] == tenant
        assert not {"", ".", ".."} & set(pieces)
        assert text.isascii()
        assert text.isprintable()
        assert "\\" not in text


@given(anything, st.text(max_size=60) | st.text(alphabet="a/.clientvdos", max_size=40))
def test_whatever_is_parsed_belongs_to_the_tenant_or_is_refused(tenant: str, text: str) -> None:
    try:
        key = MediaKey.parse(tenant, text)
    except BadInput as error:
        refused = error
    else:
        refused = None
    if refused:
        assert str(refused).isprintable()
        return
    assert str(key) == text
    assert text.startswith(f"{tenant}/client/videos/")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True))
def test_a_plain_name_is_never_refused(name: str) -> None:
    key = MediaKey(name, name, name)
    assert MediaKey.parse(name, str(key)) == key
