"""How each host of the fake federation behaves: plain values, so that a child process can be given them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from dailies.errors import BadInput
from dailies.scenarios.federation_content import LAST_DAY, Scale

Kind = Literal[
    "healthy",
    "shifting",
    "slow",
    "failing",
    "malformed",
    "rate_limiting",
    "lying",
    "dead",
    "redirecting",
    "endless",
]
Lie = Literal["foreign", "duplicates", "count", "high_total", "low_total"]
USUAL_LIES: tuple[Lie, ...] = ("foreign", "duplicates", "count", "high_total")
FOR_EVER = -1


@dataclass(frozen=True)
class Behaviour:
    """``kind``, and what belongs to it:

    shifting        after each ``every``-th page that goes further down a channel than any before, one of tomorrow's
                    videos is put on top, or one of those that tomorrow lacks, and that was listed already, goes
    slow            each answer takes ``delay_s``
    failing         ``first`` requests get a 500 (-1: all of them) once ``after`` were answered
    malformed       one document in ``every`` is broken in itself; the last channel's pages are not JSON at all
    rate_limiting   each ``every``-th request gets a 429 with ``Retry-After: retry_after``
    lying           ``lies``: other hosts' videos and channels among its own, doubled ones, at most ``every`` documents
                    on a page whatever was asked for, a total that is too high or too low
    dead            refuses connections
    redirecting     sends every request to ``to`` (an address), or else to the next host
    endless         invents videos below the last one, or (``repeats``) shows the first page again and again
    """

    kind: Kind = "healthy"
    every: int = 0
    delay_s: float = 0.0
    first: int = 2
    after: int = 0
    retry_after: int = 1
    lies: tuple[Lie, ...] = USUAL_LIES
    to: str = ""
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise BadInput(f"no host behaves {self.kind!r}: choose from {', '.join(get_args(Kind))}")
        if unknown := set(self.lies) - set(get_args(Lie)):
            raise BadInput(f"no host lies about {', '.join(sorted(unknown))}: choose from {', '.join(get_args(Lie))}")
        if self.every < 0 or self.delay_s < 0 or self.after < 0 or self.retry_after < 0 or self.first < FOR_EVER:
            raise BadInput(f"a behaviour's numbers are not negative: {self}")

    @property
    def each(self) -> int:
        return self.every or {"shifting": 1, "malformed": 9, "rate_limiting": 20, "lying": 30}.get(self.kind, 0)


HEALTHY = Behaviour()
# One of each, with healthy hosts between them; the first few are those that a small federation has.
EVERYTHING: dict[int, Behaviour] = {
    1: Behaviour("shifting"),
    2: Behaviour("malformed"),
    3: Behaviour("lying"),
    4: Behaviour("failing", first=FOR_EVER),
    5: Behaviour("rate_limiting"),
    6: Behaviour("slow", delay_s=0.05),
    7: Behaviour("dead"),
    8: Behaviour("failing", first=2),
    9: Behaviour("redirecting"),
    10: Behaviour("endless"),
}


@dataclass(frozen=True)
class Setup:
    """What a server is started with. ``ports`` (the index's first) bring back the addresses of an earlier one."""

    scale: Scale = field(default_factory=Scale)
    plan: Mapping[int, Behaviour] = field(default_factory=dict)
    day: int = 0
    latency_s: float = 0.002
    log: str = ""
    ports: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if strangers := [host for host in self.plan if not 0 <= host < self.scale.hosts]:
            raise BadInput(f"the plan speaks of host {strangers[0]}, and there are {self.scale.hosts}, from 0")
        if self.ports and len(self.ports) != self.scale.hosts + 1:
            raise BadInput("ports are wanted for the index and for each host, or none at all")
        if self.latency_s < 0:
            raise BadInput("the latency is not negative")
        if not 0 <= self.day < LAST_DAY:
            raise BadInput(f"days are counted from 0 to {LAST_DAY - 1}")

    def behaviour(self, host: int) -> Behaviour:
        return self.plan.get(host, HEALTHY)

    def to_json(self) -> dict[str, Any]:
        plan = {str(host): asdict(each) for host, each in self.plan.items()}
        return {**asdict(self), "plan": plan}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Setup:
        plan = {int(host): behaviour_from_json(each) for host, each in value["plan"].items()}
        others = {each.name: value[each.name] for each in fields(cls) if each.name in {"day", "latency_s", "log"}}
        return cls(scale=Scale(**value["scale"]), plan=plan, ports=tuple(value["ports"]), **others)


def behaviour_from_json(value: Mapping[str, Any]) -> Behaviour:
    known = {each.name for each in fields(Behaviour)}
    if unknown := set(value) - known:
        raise BadInput(f"a behaviour has no {', '.join(sorted(unknown))}")
    lies: Iterable[Lie] = value.get("lies", USUAL_LIES)
    return Behaviour(**{**value, "lies": tuple(lies)})
