import json
from pathlib import Path

import pytest

from dailies.media.isolated import contact_sheet_file, probe_file
from dailies.media.sample import make_clip

pytestmark = pytest.mark.unit


def test_the_clip_is_the_same_every_time_and_as_long_as_asked(tmp_path: Path):
    first, second = make_clip(tmp_path / "a.mp4", 2), make_clip(tmp_path / "b.mp4", 2)
    assert first.read_bytes() == second.read_bytes()
    probe = probe_file(str(first), accept_damaged=False, progress=lambda part: None)
    assert {stream["kind"] for stream in probe["streams"]} == {"video", "audio"}
    assert abs(probe["decoded_us"] - 2_000_000) < 40_000


def test_a_contact_sheet_made_in_a_child_is_the_same_every_time(tmp_path: Path):
    clip = make_clip(tmp_path / "clip.mp4", 2)
    described = json.dumps(probe_file(str(clip), accept_damaged=False, progress=lambda part: None))
    for name in ("a.png", "b.png"):
        contact_sheet_file(str(clip), described, str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
