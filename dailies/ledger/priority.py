"""Who goes first: tier, then age. Pure functions, computed when asked, so that waiting really does raise a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

BASE: Mapping[str, int] = MappingProxyType({"free": 50, "premium": 70, "enterprise": 90})
ALIASES: Mapping[str, str] = MappingProxyType({"demo": "free", "trial": "free", "active": "premium"})
LOWEST, HIGHEST = 0, 100


@dataclass(frozen=True)
class Aging:
    """``per_hour`` for every hour waited, up to ``cap``; switched off, a job keeps the rank it came with."""

    enabled: bool = True
    per_hour: float = 1.0
    cap: float = 20.0


def tier_of(name: str | None) -> str:
    """The tier that a tenant's access level means; whatever is unknown is ``free``."""
    plain = (name or "").strip().lower()
    plain = ALIASES.get(plain, plain)
    return plain if plain in BASE else "free"


def age_boost(waited_s: float, aging: Aging | None = None) -> float:
    aging = aging or Aging()
    if not aging.enabled:
        return 0.0
    return min(max(waited_s, 0.0) / 3600 * aging.per_hour, aging.cap)


def priority(
    tier: str | None,
    waited_s: float = 0.0,
    *,
    boost: float = 0.0,
    base: float | None = None,
    aging: Aging | None = None,
) -> int:
    """0 to 100, higher first. ``base`` overrides the tier's own; ``boost`` is added to whichever counts."""
    start = BASE[tier_of(tier)] if base is None else base
    return int(min(max(start + age_boost(waited_s, aging) + boost, LOWEST), HIGHEST))


def priority_tags(tenant: str, tier: str | None, value: int, aging: Aging | None = None) -> list[str]:
    state = "enabled" if (aging or Aging()).enabled else "disabled"
    return [f"tenant:{tenant}", f"tier:{tier_of(tier)}", f"priority:{value}", f"age-boosting:{state}"]
