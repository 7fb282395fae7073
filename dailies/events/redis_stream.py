"""Events to a Redis stream, and how to hear them there.

**Out.** A batch is appended by one script, which Redis runs as a whole or not at all: nobody's entry comes between,
and no error in the middle lets a later event overtake an earlier one. The script leaves out what is already among the
last ``RECENT`` entries. So an answer that was lost, a relay that was killed before it could mark what it had published,
and two relays at once make no copies. It is the stream itself that is asked: a number of the last event seen would
refuse new events once a second ledger writes or the outbox begins anew, and a list of ids beside the stream could
outlive it. Whoever publishes a batch again after that many others still makes copies: consumers keep an inbox.

**In order.** A relay publishes the oldest undelivered events, and what it leaves out has been answered for before. So
the *first* copies of a job's events stand in the stream in their order, whatever was repeated.

**Lost.** Delivered means that Redis answered. Whether it still has it after a crash is a setting of the server
(``appendonly yes``, ``appendfsync always``); the outbox keeps every event of every job either way.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ssl import SSLCertVerificationError
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    InvalidResponse,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from dailies.canonical import canonical_json
from dailies.errors import DailiesError, NotConfigured, TimedOut, Transient
from dailies.events.interface import cloud_event
from dailies.failpoints import failpoint
from dailies.ledger.interface import Inbox
from dailies.ledger.records import Event

log = logging.getLogger("dailies.events")
STREAM = "dailies:events"
MAX_LENGTH = 100_000
RECENT = 200  # two batches of the relay: one whose answer was lost, and what another relay wrote since
DEFAULT_PORT = 6379
ANSWER_S = 2.0
LOOK_S = 0.05
RETRY_S = 0.5
TURN = 10
CLAIM_AFTER_S = 30.0
LONGEST_LINE = 300
FIELDS = {"id", "source", "type", "subject", "job", "event"}
# Where in a script it went wrong, before the error itself in Redis 5 and 6 and behind it in 7.
SCRIPT = re.compile(r"Error running script \(.*?\): (@user_script: ?\d+: )*| script: \w+, on @user_script:\d+\.")

# What does not pass by itself, by a word of the server's, and what to do about it. The rest is worth another try.
ALLOW = "allow this user eval, evalsha, script|load, and the stream commands on this key"
ADDRESS = "is url right, and does the server run?"
PASSWORD = "set the password (and the user in url) that this server wants, or none if it has none"
REMEDIES = {
    "WRONGTYPE": "a key of that name is there and is no stream: set another stream, or delete it",
    "no permissions": ALLOW,
    "ACL failure": ALLOW,
    "executing the script can't": ALLOW,
    "unauthenticated": PASSWORD,
    "not allowed from scripts": "hearing needs a newer Redis than publishing, 6 or later",
    "unknown command": "it needs Redis 5 or newer",
    "nknown Redis command": "it needs Redis 5 or newer",
    "MOVED": "this is one node of a cluster: set the address of a single server",
    "DB index is out of range": "the number at the end of url is no database of this server",
}

APPEND = """
local function name(source, id) return (source or '') .. ' ' .. (id or '') end
local there = {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[2])) do
  there[name(entry[2][4], entry[2][2])] = true
end
local appended = 0
for at = 3, #ARGV, 6 do
  local id, source = ARGV[at], ARGV[at + 1]
  if not there[name(source, id)] then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'id', id, 'source', source, 'type', ARGV[at + 2],
      'subject', ARGV[at + 3], 'job', ARGV[at + 4], 'event', ARGV[at + 5])
    there[name(source, id)] = true
    appended = appended + 1
  end
end
return appended
"""

# XAUTOCLAIM would need Redis 6.2, and could not be made to look before the same step hands out what is new.
TAKE = """
local group, me, most, idle = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local waiting = redis.call('XPENDING', KEYS[1], group, '-', '+', most)
if #waiting == 0 then
  local new = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', most, 'STREAMS', KEYS[1], '>')
  return {0, {}, new and new[1] and new[1][2] or {}}
end
local mine = {}
for _, row in ipairs(waiting) do
  if row[2] ~= me and row[3] < idle then break end
  mine[#mine + 1] = row[1]
end
if #mine == 0 then return {1, {}, {}} end
local entries = {}
for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], group, me, 0, unpack(mine))) do
  if entry then entries[#entries + 1] = entry end
end
return {1, mine, entries}
"""


class RedisStream:
    """Appends to one stream of one server, and keeps about its last ``max_length`` entries."""

    def __init__(
        self,
        url: str,
        password: str | None = None,
        stream: str = STREAM,
        max_length: int = MAX_LENGTH,
        recent: int = RECENT,
    ) -> None:
        self.stream = stream
        self._max_length = max_length
        self._recent = recent
        self._where = f"the Redis stream {stream} at {address(url)}"
        self._client = connect(url, password)
        self._append = self._client.register_script(APPEND)
        self._take = self._client.register_script(TAKE)

    def publish(self, events: Sequence[Event]) -> None:
        if events:
            self._publish(events)

    def check(self) -> None:
        """``NotConfigured`` unless the stream can be written now: for whoever sets a site up, not for a run."""
        try:
            self._publish([])
            with errors(self._where, "trim it"):
                self._client.xtrim(self.stream, maxlen=self._max_length, approximate=True)
        except Transient as error:
            raise NotConfigured(line(f"{str(error).removesuffix(f': {ADDRESS}')}: {ADDRESS}")) from error

    def take(self, group: str, name: str, claim_after: float = CLAIM_AFTER_S) -> Sequence[Delivery]:
        """The next entries of this group's, for ``name`` to handle in this order and then to ``acknowledge``.

        New ones are handed out only when the whole group has none unacknowledged, so that the members take turns and
        a job's events are never handled side by side. What a member left comes first: its own at once, another's
        ``claim_after`` seconds after that one took it. A group that is not there (yet, or after a FLUSHALL) begins with
        the oldest entry that the stream has.

        This needs Redis 6: in older ones no script may read for a group.
        """
        with errors(self._where, "read it"):
            again, asked, entries = self._taken(group, name, claim_after)
        found = [(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in entries]
        self._skip(group, set(asked) - {entry for entry, _ in found}, "trimmed before it was handled")
        self._skip(group, {entry for entry, fields in found if not fields.keys() >= FIELDS}, "not written by dailies")
        return [
            Delivery(entry, fields["job"], json.loads(fields["event"]), bool(again))
            for entry, fields in found
            if fields.keys() >= FIELDS
        ]

    def acknowledge(self, group: str, *entries: str) -> None:
        with errors(self._where, "acknowledge"):
            self._client.xack(self.stream, group, *entries)

    def close(self) -> None:
        self._client.close()

    def _publish(self, events: Sequence[Event]) -> None:
        flat = [value for event in events for value in fields_of(event)]
        with errors(self._where, "append to it"):
            self._append(keys=[self.stream], args=[self._max_length, self._recent, *flat])

    def _skip(self, group: str, entries: set[str], why: str) -> None:
        """Nobody can handle these, and while they are pending nobody gets anything new."""
        for entry in sorted(entries):
            log.warning("action=skip stream=%s group=%s entry=%s why=%s", self.stream, group, entry, why)
            self.acknowledge(group, entry)

    def _taken(self, group: str, name: str, claim_after: float) -> Any:
        args: list[str | int] = [group, name, TURN, int(claim_after * 1000)]
        try:
            return self._take(keys=[self.stream], args=args)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
        self._make_group(group)
        return self._take(keys=[self.stream], args=args)

    def _make_group(self, group: str) -> None:
        try:
            self._client.xgroup_create(self.stream, group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another member was faster
                raise


# ── hearing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Delivery:
    """One entry of the stream. ``again``: somebody took it before and did not acknowledge it."""

    entry: str
    job: str
    event: dict[str, Any]
    again: bool = False

    @property
    def source(self) -> str:
        return str(self.event["source"])

    @property
    def id(self) -> str:
        return str(self.event["id"])


Decide = Callable[[Delivery], bool]
Effect = Callable[[Delivery], None]


def consume(
    stream: RedisStream,
    group: str,
    name: str,
    decide: Decide,
    *,
    stopped: threading.Event,
    claim_after: float = CLAIM_AFTER_S,
) -> int:
    """Hear the stream as ``name``, a member of ``group``, until ``stopped``; returns how many effects were made.

    Every entry is decided at least once and acknowledged after that, so whoever dies leaves it to the others. Each
    member decides what it takes in the stream's order, and takes nothing new while anything is unacknowledged: the
    events of a job take effect in their order, by however many members, as long as an effect takes less than
    ``claim_after``. Where it takes longer two members may decide the same entries, each in their order.

    ``decide`` makes an event's effect unless it was made before, and says whether it did. *Effect and inbox must be one
    decision*: whoever accepts first and dies loses the effect, whoever accepts afterwards and dies makes it twice.
    There are three ways, and no fourth:

    - **Exactly once**: ``decide`` is one transaction of the consumer's own database, which inserts (source, id) and,
      if that was new, makes the effect there.
    - ``never_lost(inbox, effect)``, where the effect can be repeated without harm. Most can, when the event's id is the
      key: a job submitted under it as idempotency key, an object named by it.
    - ``never_twice(inbox, effect)``, where it can not (a message to a person) and may rather be missing.

    A ``Transient`` error, of Redis or of ``decide``, is waited out and the entry decided again; any other ends this
    call, and the entry is there for the next one.
    """
    made = 0
    decided = ("", "")  # where the acknowledgement did not get through, this process still knows better
    while not stopped.is_set():
        try:
            deliveries = stream.take(group, name, claim_after)
            for each in deliveries:
                if stopped.is_set():
                    break
                if (each.entry, each.id) != decided:
                    made += decide(each)
                    decided = (each.entry, each.id)
                failpoint("events.before_ack")
                stream.acknowledge(group, each.entry)
            if not deliveries:  # looked for rather than blocked on: a blocked read sleeps through a FLUSHALL
                stopped.wait(LOOK_S)
        except Transient as error:
            log.warning("action=later stream=%s group=%s error=%s", stream.stream, group, error)
            stopped.wait(RETRY_S)
    return made


def never_twice(inbox: Inbox, effect: Effect) -> Decide:
    """Accept, then make the effect: at most once. One that fails or dies half-way is not tried again, and says so."""

    def decide(each: Delivery) -> bool:
        if not inbox.accept(each.source, each.id):
            return False
        failpoint("events.after_accept")
        try:
            effect(each)
        except Exception as error:
            raise DailiesError(f"the effect of event {each.id} failed and will not be tried again: {error}") from error
        return True

    return decide


def never_lost(inbox: Inbox, effect: Effect) -> Decide:
    """At least once, so the effect must bear repeating under the event's id.

    The inbox keeps copies out. An entry that somebody took before is no proof of a copy when it is in the inbox: that
    one may have died before the effect.
    """

    def decide(each: Delivery) -> bool:
        new = inbox.accept(each.source, each.id)
        if not (new or each.again):
            return False
        failpoint("events.after_accept")
        effect(each)
        return True

    return decide


# ── connection and errors ─────────────────────────────────────────────────────────────────────────────────────────────


def connect(url: str, password: str | None) -> Redis:
    """RESP2, which Redis 5 speaks too; and no retries in here: the relay tries again, and knows what it sent."""
    try:
        return Redis.from_url(
            url,
            password=password,
            protocol=2,
            decode_responses=True,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:  # its text can hold a piece of the password
        raise NotConfigured(f"url is no address of a Redis ({address(url)}): set redis://host:6379/0") from None


def address(url: str) -> str:
    """Host and port alone: a url may hold its password in several places, all the more when it is malformed."""
    with suppress(ValueError):
        parts = urlsplit(url)
        return f"{parts.hostname or parts.scheme or 'nowhere'}:{parts.port or DEFAULT_PORT}"
    return "nowhere"


@contextmanager
def errors(where: str, what: str) -> Iterator[None]:
    """Whatever goes wrong in here ends as one of our errors, in one line that holds no secret."""
    try:
        yield
    except RedisError as error:
        kind, remedy = judged(error)
        said = SCRIPT.sub("", str(error))
        raise kind(line(f"{where}: cannot {what}: {said}{remedy and f': {remedy}'}")) from error


def judged(error: RedisError) -> tuple[type[DailiesError], str]:
    said = str(error)
    if isinstance(error, AuthenticationError) or "without any password configured" in said:
        return NotConfigured, PASSWORD
    if isinstance(error, InvalidResponse):
        return NotConfigured, "what answers there is no Redis: set its address and port"
    if isinstance(error.__cause__, SSLCertVerificationError):
        return NotConfigured, "its certificate is not trusted here: set ssl_ca_certs=FILE in url"
    for word, remedy in REMEDIES.items():
        if word in said:
            return NotConfigured, remedy
    if isinstance(error, TimeoutError):
        return TimedOut, ADDRESS
    # Its subclasses come from a server that was reached.
    return Transient, ADDRESS if type(error) is ConnectionError else ""


def fields_of(event: Event) -> tuple[str, ...]:
    """In the order in which the script names them."""
    return event.id, event.source, event.type, event.subject, event.job, canonical_json(cloud_event(event)).decode()


def line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_LINE]
