"""What the hosts of the fake federation hold each day: a pure function of the seed, so that a restart changes nothing.

A day follows from the day before it: some videos come, some go, some are seen and liked more or get another title.
Hosts, channels and videos are known by numbers here; their addresses come in when documents are made of them.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from functools import lru_cache

from dailies.errors import BadInput
from dailies.scenarios.federation_words import BY_NAME, PEOPLE, PLACES, SENTENCES, TITLES, TOPICS, Topic

EPOCH = 1_748_736_000_000  # 2025-06-01: day 0 ends here; long enough ago for every clock
DAY = 86_400_000
SHARES = 0.5  # of what is left goes to each next channel: few large ones, which have many pages, and small ones
BORN = 1_000_000  # serial numbers a day
LAST_DAY = 365
MAIN_TOPIC = 0.85


@dataclass(frozen=True)
class Scale:
    """Everything that the content depends on. The fractions are of a channel's videos, each day."""

    seed: int = 0
    hosts: int = 6
    videos: int = 3000
    channels: int = 4
    births: float = 0.02
    deaths: float = 0.01
    changes: float = 0.05

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= 200 or not 1 <= self.channels <= 200:
            raise BadInput("a federation has 1 to 200 hosts, with 1 to 200 channels each")
        if not 0 <= self.videos < BORN:
            raise BadInput(f"a federation has 0 to {BORN - 1} videos")
        if not all(0 <= each <= 0.5 for each in (self.births, self.deaths, self.changes)):
            raise BadInput("births, deaths and changes are fractions from 0 to 0.5")


@dataclass(frozen=True)
class Channel:
    host: int
    number: int  # from 1
    name: str
    display_name: str
    topic: str
    owner: str
    followers: int
    created: int


@dataclass(frozen=True)
class Video:
    host: int
    channel: int
    serial: int  # BORN · day + n
    id: int
    uuid: str
    topic: str
    title: str
    description: str
    tags: tuple[str, ...]
    published: int
    duration: int
    views: int
    likes: int
    dislikes: int
    comments: int
    nsfw: bool

    @property
    def born(self) -> int:
        return self.serial // BORN


def as_of(day: int) -> int:
    """A moment after everything that is shown on this day, what a shifting host shows early included."""
    return EPOCH + (day + 1) * DAY


@lru_cache(maxsize=256)
def channels(scale: Scale, host: int) -> tuple[Channel, ...]:
    rng = random.Random(f"{scale.seed}/channels/{host}")
    found = []
    for number in range(1, scale.channels + 1):
        topic = rng.choice(TOPICS)
        place, owner = rng.choice(PLACES), rng.choice(PEOPLE)
        created = EPOCH - rng.randrange(1000, 3000) * DAY - number
        named = f"{topic.name}_{place}_{number}"
        shown = f"{owner.title()}'s {topic.name} {place}"
        found.append(Channel(host, number, named, shown, topic.name, owner, rng.randrange(900), created))
    return tuple(found)


def sizes(scale: Scale, host: int) -> list[int]:
    """How many videos each channel begins with."""
    left = scale.videos // scale.hosts + (host < scale.videos % scale.hosts)
    found = []
    for _ in range(scale.channels - 1):
        found.append(int(left * SHARES))
        left -= found[-1]
    return [*found, left]


@lru_cache(maxsize=2048)
def videos(scale: Scale, host: int, channel: int, day: int) -> tuple[Video, ...]:
    """A channel's videos on a day, newest first."""
    if not 0 <= day <= LAST_DAY:
        raise BadInput(f"days are counted from 0 to {LAST_DAY}")
    if day == 0:
        return _first_day(scale, host, channel)
    rng = random.Random(f"{scale.seed}/{host}/{channel}/day {day}")
    before = videos(scale, host, channel, day - 1)
    kept = _edited(scale, rng, _survivors(scale, rng, before), day)
    return (*_born(scale, rng, host, channel, day, amount(scale.births, len(before))), *kept)


def amount(fraction: float, of: int) -> int:
    """At least one, so that small federations change as well."""
    return max(1, round(fraction * of)) if fraction and of > 1 else 0


def _first_day(scale: Scale, host: int, channel: int) -> tuple[Video, ...]:
    rng = random.Random(f"{scale.seed}/{host}/{channel}/day 0")
    size = sizes(scale, host)[channel - 1]
    moments = sorted(rng.sample(range(3, 1_500_000), size))  # minutes ago; no two at once, so that the order is certain
    return tuple(_video(scale, host, channel, size - place, EPOCH - ago * 60_000) for place, ago in enumerate(moments))


def _survivors(scale: Scale, rng: random.Random, before: tuple[Video, ...]) -> list[Video]:
    """New videos go rather than old ones: they are on the pages that a crawl has read already."""
    gone: set[int] = set()
    while len(gone) < amount(scale.deaths, len(before)):
        gone.add(int(len(before) * rng.random() ** 2))
    return [video for place, video in enumerate(before) if place not in gone]


def _edited(scale: Scale, rng: random.Random, kept: list[Video], day: int) -> list[Video]:
    for place in rng.sample(range(len(kept)), min(len(kept), amount(scale.changes, len(kept)))):
        old = kept[place]
        new = replace(old, views=old.views + rng.randrange(1, 500), likes=old.likes + rng.randrange(20))
        if rng.random() < 0.3:
            new = replace(new, title=f"{_phrase(rng, rng.choice(TITLES), BY_NAME[old.topic])} (take {day + 1})")
        kept[place] = new
    return kept


def _born(scale: Scale, rng: random.Random, host: int, channel: int, day: int, count: int) -> list[Video]:
    moments = sorted(rng.sample(range(1, DAY), count))
    made = [
        _video(scale, host, channel, day * BORN + number, EPOCH + (day - 1) * DAY + moment)
        for number, moment in enumerate(moments)
    ]
    return made[::-1]


def _video(scale: Scale, host: int, channel: int, serial: int, published: int) -> Video:
    name = f"{scale.seed}/{host}/{channel}/{serial}"
    rng = random.Random(name)
    main = channels(scale, host)[channel - 1].topic
    topic = BY_NAME[main if rng.random() < MAIN_TOPIC else rng.choice(TOPICS).name]
    views = int(rng.paretovariate(0.8) * 10) % 2_000_000
    likes = int(views * rng.uniform(0, 0.1))
    return Video(
        host=host,
        channel=channel,
        serial=serial,
        id=serial * scale.channels + channel,
        uuid=uuid_of(name),
        topic=topic.name,
        title=_phrase(rng, rng.choice(TITLES), topic),
        description=" ".join(_phrase(rng, each, topic) for each in rng.sample(SENTENCES, rng.randrange(1, 4))),
        tags=tuple(rng.sample(topic.words, rng.randrange(0, 5))),
        published=published,
        duration=rng.randrange(30, 7200),
        views=views,
        likes=likes,
        dislikes=likes // 20,
        comments=likes // 7,
        nsfw=rng.random() < 0.01,
    )


def invented(scale: Scale, host: int, channel: int, place: int) -> Video:
    """What an endless host shows below its last video, in place after place."""
    made = _video(scale, host, channel, -1 - place, EPOCH - 1_500_000 * 60_000 - place * 1000)
    return replace(made, id=2**40 + place * scale.channels + channel)


def uuid_of(name: str) -> str:
    made = hashlib.sha256(name.encode()).hexdigest()
    return f"{made[:8]}-{made[8:12]}-4{made[13:16]}-a{made[17:20]}-{made[20:32]}"


def _phrase(rng: random.Random, template: str, topic: Topic) -> str:
    a, b, c = rng.sample(topic.words, 3)
    action = rng.choice(topic.actions)
    return template.format(a=a, b=b, c=c, A=a[0].upper() + a[1:], action=action, Action=action.capitalize())
