"""Histories of who used a lock, and the judge of them.

Contenders write to one file, each event with one ``write`` on a descriptor opened for appending: the kernel puts them
in one order, whichever process they come from, and that order is the history. Clocks only measure waits.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from dailies.canonical import canonical_json
from dailies.errors import BadInput, Missing
from dailies.scenarios.journal import Check, expect, expect_at_least

What = Literal["asked", "refused", "enter", "exit", "died"]


@dataclass(frozen=True)
class Event:
    """``fence`` counts for enter and exit; ``died`` is written by whoever killed the contender."""

    who: str
    what: What
    fence: int = 0
    t: float = 0.0


@dataclass(frozen=True)
class History:
    """Events in the order of the file; ``torn`` counts the half line that a killed writer may leave at the end."""

    events: tuple[Event, ...]
    torn: int = 0


class EffectLog:
    """One file that any number of processes append to; each event is there whole and in order, or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._file)

    def append(self, who: str, what: What, fence: int = 0) -> None:
        line = canonical_json({"t": time.monotonic(), "who": who, "fence": fence, "what": what}) + b"\n"
        # A second write for the rest could land behind another contender's line.
        if os.write(self._file, line) != len(line):
            raise OSError("the event was written in part: the history is broken from here on")


def read_history(path: Path) -> History:
    try:
        *lines, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise Missing(f"no history at {path}") from None
    return History(tuple(_event(line, number) for number, line in enumerate(lines, start=1)), torn=int(bool(rest)))


def _event(line: bytes, number: int) -> Event:
    try:
        raw = json.loads(line)
    except ValueError:
        raise BadInput(f"line {number} of the history is no JSON: {line[:80]!r}") from None
    if not _is_event(raw):
        raise BadInput(f"line {number} of the history is no event: {line[:80]!r}")
    return Event(raw["who"], raw["what"], raw["fence"], raw["t"])


def _is_event(raw: Any) -> bool:
    return (
        isinstance(raw, dict)
        and isinstance(raw.get("who"), str)
        and raw.get("what") in get_args(What)
        and type(raw.get("fence")) is int
        and type(raw.get("t")) in (int, float)
        and math.isfinite(raw["t"])
    )


@dataclass
class Findings:
    """What is wrong with a history, in words that name the events, and how the lock was shared."""

    overlaps: list[str] = field(default_factory=list)
    regressions: list[str] = field(default_factory=list)
    strange_exits: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    starved: list[str] = field(default_factory=list)
    longest_wait: float | None = None
    turns: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not (self.overlaps or self.regressions or self.strange_exits or self.unfinished or self.starved)

    def checks(self) -> list[Check]:
        """An empty history holds no violation and proves nothing: somebody must have been in."""
        return [
            expect_at_least("somebody got the lock", sum(self.turns.values()), 1, "do the contenders start at all?"),
            expect("never two inside", self.overlaps, [], "claim with one conditional write, and renew before it ends"),
            expect("fences only grow", self.regressions, [], "count the fence in the write that grants the claim"),
            expect("nobody leaves who was not in", self.strange_exits, [], "act under the claim, with its own fence"),
            expect("everybody who entered left or died", self.unfinished, [], "release in a finally; look at the log"),
            expect("nobody starved", self.starved, [], "retry with jitter, until a deadline longer than all turns"),
        ]


def examine(history: History) -> Findings:
    """Every violation of mutual exclusion in this order of events; a ``died`` ends all that its contender had begun."""
    found = Findings(
        regressions=_regressions(history),
        starved=_starved(history),
        longest_wait=max(_waits(history), default=None),
        turns=dict(sorted(Counter(event.who for event in history.events if event.what == "enter").items())),
    )
    _follow_tenures(history, found)
    return found


def _follow_tenures(history: History, found: Findings) -> None:
    inside: list[tuple[int, Event]] = []
    for number, event in enumerate(history.events, start=1):
        if event.what == "enter":
            found.overlaps += [f"{_said(number, event)} while {_said(*other)} was inside" for other in inside]
            inside.append((number, event))
        elif event.what == "exit":
            mine = [each for each in inside if (each[1].who, each[1].fence) == (event.who, event.fence)]
            if mine:
                inside.remove(mine[0])
            else:
                found.strange_exits.append(_said(number, event))
        elif event.what == "died":
            inside = [each for each in inside if each[1].who != event.who]
    found.unfinished += [_said(*each) for each in inside]


def _regressions(history: History) -> list[str]:
    found, highest = [], -math.inf
    for number, event in enumerate(history.events, start=1):
        if event.what == "enter":
            if event.fence <= highest:
                found.append(f"{_said(number, event)} after fence {highest}")
            highest = max(highest, event.fence)
    return found


def _starved(history: History) -> list[str]:
    waiting: dict[str, None] = {}
    for event in history.events:
        if event.what in ("asked", "refused"):
            waiting[event.who] = None
        elif event.what in ("enter", "died"):
            waiting.pop(event.who, None)
    served = {event.who for event in history.events if event.what == "enter"}
    return sorted(who for who in waiting if who not in served)


def _waits(history: History) -> list[float]:
    """From the first time of asking to getting in: being refused in between ends no wait."""
    waits, asked = [], dict[str, float]()
    for event in history.events:
        if event.what == "asked":
            asked.setdefault(event.who, event.t)
        elif event.what == "enter" and event.who in asked:
            waits.append(event.t - asked.pop(event.who))
        elif event.what == "died":
            asked.pop(event.who, None)
    return waits


def _said(number: int, event: Event) -> str:
    return f"line {number}: {event.who} {event.what} (fence {event.fence})"
