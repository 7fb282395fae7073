"""What the fake federation holds: the same from the same seed, day after day, and with a meaning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from statistics import mean

import pytest

from dailies.canonical import digest
from dailies.scenarios import federation_content as content
from dailies.scenarios.federation_content import Scale, Video, channels, videos

pytestmark = pytest.mark.unit
SCALE = Scale(seed=7, hosts=3, videos=600)


def everything(scale: Scale, day: int) -> list[Video]:
    numbers = range(1, scale.channels + 1)
    return [each for host in range(scale.hosts) for number in numbers for each in videos(scale, host, number, day)]


def forget_what_was_made() -> None:
    videos.cache_clear()
    channels.cache_clear()


def test_the_same_seed_gives_the_same_content_on_every_day_and_another_seed_another():
    def made(scale: Scale, day: int) -> str:
        forget_what_was_made()
        return digest(repr(everything(scale, day)).encode())

    assert made(SCALE, 3) == made(SCALE, 3)
    assert len({made(SCALE, 0), made(SCALE, 3), made(Scale(seed=8, hosts=3, videos=600), 0)}) == 3


def test_the_content_does_not_hang_on_the_process_that_makes_it():
    program = (
        "from dailies.canonical import digest\nfrom dailies.scenarios.federation_content import Scale, videos\n"
        "print(digest(repr(videos(Scale(seed=7, hosts=3, videos=600), 0, 1, 2)).encode()))"
    )
    elsewhere = {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", program], env=elsewhere, capture_output=True, text=True, timeout=30)
    assert said.stdout.strip() == digest(repr(videos(SCALE, 0, 1, 2)).encode())


def test_as_many_videos_as_wanted_each_known_once_in_an_order_that_is_certain():
    found = everything(Scale(seed=1, hosts=7, videos=1003), 0)
    assert len(found) == 1003
    assert len({each.uuid for each in found}) == len(found)
    assert len({(each.host, each.id) for each in found}) == len(found)
    for host in range(7):
        listed = videos(Scale(seed=1, hosts=7, videos=1003), host, 1, 0)
        moments = [each.published for each in listed]
        assert moments == sorted(set(moments), reverse=True)


def test_a_day_brings_new_videos_on_top_takes_some_and_changes_some():
    scale = Scale(seed=7, hosts=3, videos=600, births=0.1, deaths=0.05, changes=0.2)
    before, after = videos(scale, 0, 1, 0), videos(scale, 0, 1, 1)
    old, new = {each.uuid: each for each in before}, {each.uuid: each for each in after}
    assert len(before) == 100
    assert len(new.keys() - old.keys()) == 10
    assert len(old.keys() - new.keys()) == 5
    assert {each.uuid for each in after[:10]} == new.keys() - old.keys()
    assert all(each.born == 1 and each.published > content.EPOCH for each in after[:10])
    changed = [uuid for uuid in old.keys() & new.keys() if old[uuid] != new[uuid]]
    assert len(changed) == 19  # a fifth of the 95 that stayed
    assert all(new[uuid].views > old[uuid].views for uuid in changed)
    assert 0 < sum(new[uuid].title != old[uuid].title for uuid in changed) < len(changed)
    assert max(each.published for each in after) < content.as_of(0)


def test_no_change_is_asked_for_and_none_comes():
    scale = Scale(seed=7, hosts=3, videos=600, births=0, deaths=0, changes=0)
    assert everything(scale, 5) == everything(scale, 0)


def words(video: Video) -> set[str]:
    return set(re.findall(r"\w{4,}", f"{video.title} {video.description} {' '.join(video.tags)}".lower()))


def test_videos_of_one_topic_resemble_each_other_more_than_others_do():
    some = everything(SCALE, 0)[::6]
    pairs = [(a, b) for a in some for b in some if a.uuid < b.uuid]

    def likeness(same: bool) -> float:
        return mean(
            len(words(a) & words(b)) / len(words(a) | words(b)) for a, b in pairs if (a.topic == b.topic) is same
        )

    assert likeness(True) > 1.5 * likeness(False)
