"""A catalogue made up from numbers, of any size, and what a day adds to it: the same rows on every machine.

There are 2,000 subjects in 100 fields in six languages. A subject has 60 words of its own and shares 150 with the other
subjects of its field; a language has 120 short words that are everywhere and 20,000 others. In each of these the n-th
word is used 1/n as often as the first. Of the words of a text 40 % are the subject's, 20 % the field's, 28 % the short
ones and 12 % any; tags are the subject's and the field's alone. Subjects are as unequal as 1/(n + 10), a description
has 24 words in the median, and a channel keeps to its subject in 85 of 100 videos. No text is copied.

These numbers were chosen once, before anything was measured on them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dailies.canonical import canonical_json
from dailies.catalog.schema import connect, transaction

Numbers = NDArray[np.int64]
Row = tuple[Any, ...]

SEED, AT_ONCE, DAY_MS = 6, 20_000, 86_400_000
BEGINNING = 1_780_000_000_000
LANGUAGES, FIELDS, SUBJECTS = (0.35, 0.2, 0.15, 0.12, 0.1, 0.08), 100, 2000
SHORT, ANY, OF_FIELD, OF_SUBJECT = 120, 20_000, 150, 60
# Of a text: the subject's words, the field's, the short ones, any.
SHARES = (0.4, 0.2, 0.28, 0.12)
DESCRIPTION, SPREAD, LONGEST = 24, 0.7, 150
PER_CHANNEL, CHANNELS_PER_HOST, FAITHFUL = 50, 100, 0.85
NEW, CHANGED, REMOVED, LOST_PER_CHANNEL = 0.01, 0.005, 0.001, 5
SYLLABLES = [
    first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", "l", "n", "r", "s")
]
CATEGORIES = ("Music", "Films", "Vehicles", "Art", "Sports", "Travels", "Gaming", "People", "Comedy", "Entertainment")
CATEGORIES += ("News & Politics", "How To", "Education", "Activism", "Science & Technology", "Animals", "Kids", "Food")
COLUMNS = (
    *("video_id", "instance_domain", "video_uuid", "video_numeric_id", "channel_id", "channel_name", "account_name"),
    *("title", "description", "tags_json", "category", "published_at", "video_url", "duration", "thumbnail_url"),
    *("views", "likes", "dislikes", "comments_count", "nsfw", "last_checked_at"),
)
PUT = f"INSERT OR REPLACE INTO videos ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


def zipf(count: int, offset: float = 0.0) -> NDArray[np.float64]:
    """The running sum of 1/(n + offset), up to one: where a number from 0 to 1 falls is a rank."""
    sums = np.cumsum(1 / (np.arange(1, count + 1) + offset))
    return np.asarray(sums / sums[-1], dtype=np.float64)


@cache
def vocabulary(seed: int) -> list[str]:
    """Short words of each language, then the others of each, those of the fields, and those of the subjects."""
    draw = np.random.default_rng([seed, 1])
    languages = len(LANGUAGES)
    rest = languages * ANY + FIELDS * OF_FIELD + SUBJECTS * OF_SUBJECT
    lengths = np.concatenate([np.ones(languages * SHORT, dtype=np.int64), draw.integers(2, 5, rest)])
    spelt = draw.integers(0, len(SYLLABLES), (len(lengths), 4))
    return [
        "".join([SYLLABLES[at] for at in some[:length]])
        for some, length in zip(spelt.tolist(), lengths.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class World:
    """``videos`` is how many there are on the first day."""

    videos: int
    seed: int = SEED

    @property
    def channels(self) -> int:
        return max(8, self.videos // PER_CHANNEL)

    @property
    def hosts(self) -> int:
        return max(4, self.channels // CHANNELS_PER_HOST)

    @property
    def words(self) -> list[str]:
        return vocabulary(self.seed)

    @cached_property
    def languages(self) -> Numbers:
        """Of each field."""
        return np.random.default_rng([self.seed, 2]).choice(len(LANGUAGES), FIELDS, p=LANGUAGES)

    @cached_property
    def subjects(self) -> Numbers:
        """Of each channel."""
        return self.drawn_subjects(np.random.default_rng([self.seed, 3]), self.channels)

    @cached_property
    def names(self) -> list[str]:
        """Of each channel: a word of its subject, and any."""
        draw = np.random.default_rng([self.seed, 4])
        one = self.words_of(self.subjects, np.zeros(self.channels, dtype=np.int64), draw.random(self.channels))
        two = self.words_of(self.subjects, np.full(self.channels, 3), draw.random(self.channels))
        return [f"{self.words[a]} {self.words[b]}".title() for a, b in zip(one.tolist(), two.tolist(), strict=True)]

    def drawn_subjects(self, draw: np.random.Generator, count: int) -> Numbers:
        return np.searchsorted(zipf(SUBJECTS, 10), draw.random(count))

    def words_of(self, subjects: Numbers, kinds: Numbers, chance: NDArray[np.float64]) -> Numbers:
        """Which words they are: one for each subject and kind, in the order of ``SHARES``."""
        field = subjects % FIELDS
        language = self.languages[field]
        fields = len(LANGUAGES) * (SHORT + ANY)
        first = np.choose(
            kinds,
            [
                fields + FIELDS * OF_FIELD + subjects * OF_SUBJECT,
                fields + field * OF_FIELD,
                language * SHORT,
                len(LANGUAGES) * SHORT + language * ANY,
            ],
        )
        sizes = (OF_SUBJECT, OF_FIELD, SHORT, ANY)
        ranks = np.zeros(len(kinds), dtype=np.int64)
        for kind, size in enumerate(sizes):
            here = kinds == kind
            ranks[here] = np.searchsorted(zipf(size), chance[here])
        return first + ranks

    def texts(self, draw: np.random.Generator, subjects: Numbers, lengths: Numbers, kinds: int = 4) -> list[list[str]]:
        """So many words for each; of the first ``kinds`` of words alone."""
        owner = np.repeat(np.arange(len(subjects)), lengths)
        sums = np.cumsum(SHARES[:kinds]) / sum(SHARES[:kinds])
        drawn = np.minimum(np.searchsorted(sums, draw.random(len(owner))), kinds - 1)
        which = self.words_of(subjects[owner], drawn, draw.random(len(owner))).tolist()
        words = self.words
        ends = np.cumsum(lengths).tolist()
        return [
            [words[at] for at in which[end - length : end]] for end, length in zip(ends, lengths.tolist(), strict=True)
        ]

    def host(self, channel: int) -> str:
        return f"host-{channel % self.hosts}.example"

    def block(self, first: int, count: int, as_of: int, version: int = 0) -> tuple[list[Row], Numbers]:
        """Videos from the ``first`` on, as the crawl has them, and the subject of each. Another version of the same
        video has another text."""
        draw = np.random.default_rng([self.seed, 5, first])
        channels = (self.channels * draw.random(count) ** 1.5).astype(np.int64)
        strays = draw.random(count) > FAITHFUL
        subjects = np.where(strays, self.drawn_subjects(draw, count), self.subjects[channels])
        age = draw.exponential(700.0, count) * DAY_MS if first < self.videos else draw.random(count) * DAY_MS
        views = (10 * draw.pareto(1.1, count)).astype(np.int64) % 10_000_000
        names = np.random.default_rng([self.seed, 6, first]).bytes(16 * count).hex()
        if version:
            draw = np.random.default_rng([self.seed, 7, first, version])
        titles = self.texts(draw, subjects, draw.integers(3, 10, count))
        long = np.clip(np.exp(draw.normal(np.log(DESCRIPTION), SPREAD, count)), 0, LONGEST).astype(np.int64)
        descriptions = self.texts(draw, subjects, long)
        tags = self.texts(draw, subjects, draw.integers(0, 6, count), kinds=2)
        rows = []
        columns = channels.tolist(), subjects.tolist(), (BEGINNING - age).astype(np.int64).tolist(), views.tolist()
        for at, (channel, subject, published, seen) in enumerate(zip(*columns, strict=True)):
            name, host = names[32 * at : 32 * at + 32], self.host(channel)
            rows.append((
                name[:22], host, name, first + at, f"channel-{channel}", self.names[channel], f"account-{channel}",
                " ".join(titles[at]).capitalize(), " ".join(descriptions[at]), canonical_json(tags[at]).decode(),
                CATEGORIES[subject % FIELDS % len(CATEGORIES)], published, f"https://{host}/w/{name[:22]}",
                60 + seen % 3000, f"https://{host}/lazy-static/thumbnails/{name}.jpg", seen, seen // 20, seen // 400,
                seen // 50, 0, as_of,
            ))  # fmt: skip
        return rows, subjects

    def blocks(self, first: int, last: int, as_of: int) -> Iterator[list[Row]]:
        for at in range(first, last, AT_ONCE):
            yield self.block(at, min(AT_ONCE, last - at), as_of)[0]


def first_day(world: World, staging: Path, progress: Callable[[float], None] = lambda part: None) -> int:
    """Fill a staging that was begun as a crawl of everything would; returns how many videos."""
    with closing(_opened(staging)) as database:
        as_of = int(database.execute("SELECT value FROM crawl_state WHERE key = 'as_of'").fetchone()[0])
        with transaction(database):
            hosts = [(f"host-{number}.example", "PeerTube", as_of) for number in range(world.hosts)]
            database.executemany(
                "INSERT OR REPLACE INTO instances (host, name, health_status, health_checked_at) "
                "VALUES (?, ?, 'ok', ?)",
                hosts,
            )
            database.executemany(
                "INSERT INTO channels (channel_id, instance_domain, channel_name, seen) VALUES (?, ?, ?, 1)",
                ((f"channel-{at}", world.host(at), name) for at, name in enumerate(world.names)),
            )
            done = 0
            for rows in world.blocks(0, world.videos, as_of):
                database.executemany(PUT, rows)
                done += len(rows)
                progress(done / world.videos)
    return done


def next_day(world: World, staging: Path, production: Path) -> dict[str, int]:
    """One percent of new videos, half as many with another text, and a tenth as many gone: from some channels that were
    read to their end, each of which lost a few. The other videos of these are listed again as they were."""
    with closing(_opened(staging)) as database:
        as_of = int(database.execute("SELECT value FROM crawl_state WHERE key = 'as_of'").fetchone()[0])
        new, changed = max(1, int(NEW * world.videos)), max(1, int(CHANGED * world.videos))
        with transaction(database):
            for rows in world.blocks(world.videos, world.videos + new, as_of):
                database.executemany(PUT, rows)
            # From the first block on: its rows are of all channels and subjects, and so no other than a random part.
            for at in range(0, changed, AT_ONCE):
                count = min(AT_ONCE, world.videos - at)
                database.executemany(PUT, world.block(at, count, as_of, version=1)[0][: changed - at])
        database.execute("ATTACH ? AS production", [f"file:{production}?mode=ro"])
        gone = _lose(database, max(1, int(REMOVED * world.videos)), as_of)
        database.execute("DETACH production")
    return {"new": new, "changed": changed, "gone": gone}


def _lose(database: sqlite3.Connection, count: int, as_of: int) -> int:
    with transaction(database):
        database.execute(
            """CREATE TEMP TABLE losers AS SELECT channel_id, instance_domain FROM production.videos
               GROUP BY channel_id, instance_domain HAVING count(*) >= 40 ORDER BY channel_id LIMIT ?""",
            [max(1, count // LOST_PER_CHANNEL)],
        )
        database.execute(
            f"""CREATE TEMP TABLE lost AS SELECT video_id, instance_domain FROM (
                    SELECT video_id, instance_domain, row_number() OVER (
                        PARTITION BY channel_id, instance_domain ORDER BY video_id) AS place
                    FROM production.videos JOIN losers USING (channel_id, instance_domain)
                    WHERE (video_id, instance_domain) NOT IN (SELECT video_id, instance_domain FROM main.videos))
                WHERE place <= {LOST_PER_CHANNEL}"""
        )
        columns = ", ".join(COLUMNS)
        database.execute(
            f"""INSERT OR IGNORE INTO main.videos ({columns})
                SELECT {columns.replace("last_checked_at", str(as_of))} FROM production.videos
                JOIN losers USING (channel_id, instance_domain)
                WHERE (video_id, instance_domain) NOT IN (SELECT video_id, instance_domain FROM lost)"""
        )
        database.execute(
            """UPDATE channels SET seen = 1 WHERE instance_domain IN (SELECT instance_domain FROM losers)"""
        )
        database.execute(
            """INSERT OR REPLACE INTO crawl_progress (host, what, status, whole)
               SELECT DISTINCT instance_domain, 'channels', 'done', 1 FROM losers"""
        )
        database.execute(
            """INSERT OR REPLACE INTO crawl_progress (host, what, channel_id, status, whole)
               SELECT instance_domain, 'videos', channel_id, 'done', 1 FROM losers"""
        )
        return int(database.execute("SELECT count(*) FROM lost").fetchone()[0])


def _opened(staging: Path) -> sqlite3.Connection:
    """Rows come in no order of their keys: with little memory they would be written many times over."""
    database = connect(staging, "staging", write=True)
    database.execute("PRAGMA cache_size = -1000000")
    database.execute("PRAGMA synchronous = OFF")
    return database
