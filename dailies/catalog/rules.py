"""How each table of a staging is merged into production: one table of rules, in the order they are applied.

The original's rules only ever add: views, likes, titles and health stay as they were first seen. Ours bring them up to
date, column by column, and each column says when the staged value wins:

    ALWAYS      the host told it, also where it told that there is nothing: a description that was taken down is gone
    UNLESS_NULL a page that does not tell it (a list has no tags; a host did not answer) knows no better than before
    after(x)    goes with the column ``x``: where that is NULL, the whole group was not looked at
    LONGER      as ALWAYS, but a text that a list cut short ("…" as three dots) does not replace the whole one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dailies.errors import BadInput

ALWAYS = "always"
UNLESS_NULL = "unless null"
LONGER = "longer"


def after(column: str) -> str:
    return f"after {column}"


class Strategy(StrEnum):
    INSERT_ONLY = "INSERT_ONLY"
    INSERT_OR_REPLACE = "INSERT_OR_REPLACE"
    UPSERT = "UPSERT"


@dataclass(frozen=True)
class Rule:
    """``columns`` are carried besides the keys. A ``stamp`` moves by itself and makes no row "changed"; what is in
    ``silent`` rides along with a change and is no reason for one; ``revives`` ends a tombstone."""

    table: str
    strategy: Strategy
    keys: tuple[str, ...]
    columns: Mapping[str, str] = field(repr=False)
    stamp: str = ""
    silent: tuple[str, ...] = ()
    revives: bool = False


@dataclass(frozen=True)
class RuleSet:
    """``removes``: what a host that was read to its end does not list any more gets a tombstone."""

    name: str
    rules: tuple[Rule, ...]
    removes: bool


LAST_ERROR = {
    "last_error": after("last_error_at"),
    "last_error_at": UNLESS_NULL,
    "last_error_source": after("last_error_at"),
}
HEALTH = {
    "health_status": after("health_checked_at"),
    "health_checked_at": UNLESS_NULL,
    "health_error": after("health_checked_at"),
}
INSTANCES = {"name": UNLESS_NULL, "version": UNLESS_NULL, **HEALTH, **LAST_ERROR}
CHANNELS = {
    **dict.fromkeys(
        ("channel_name", "channel_url", "display_name", "videos_count", "followers_count", "avatar_url"), UNLESS_NULL
    ),
    **HEALTH,
    **LAST_ERROR,
}
VIDEOS = {
    "video_uuid": UNLESS_NULL,
    "video_numeric_id": UNLESS_NULL,
    "channel_id": UNLESS_NULL,
    "channel_name": UNLESS_NULL,
    "channel_url": UNLESS_NULL,
    "account_name": UNLESS_NULL,
    "account_url": UNLESS_NULL,
    "title": UNLESS_NULL,
    "description": LONGER,
    "tags_json": UNLESS_NULL,
    "category": ALWAYS,
    "published_at": UNLESS_NULL,
    "video_url": UNLESS_NULL,
    "duration": UNLESS_NULL,
    "thumbnail_url": UNLESS_NULL,
    "embed_path": UNLESS_NULL,
    "preview_path": UNLESS_NULL,
    "views": UNLESS_NULL,
    "likes": UNLESS_NULL,
    "dislikes": UNLESS_NULL,
    "comments_count": UNLESS_NULL,
    "nsfw": UNLESS_NULL,
    "last_checked_at": ALWAYS,
    "last_error": after("last_error_at"),
    "last_error_at": UNLESS_NULL,
    "error_count": ALWAYS,
    "invalid_reason": ALWAYS,  # it was listed just now, so what was held against it is over
    "invalid_at": ALWAYS,
}
EMBEDDINGS = dict.fromkeys(("text_digest", "model_name", "embedding_dim", "embedding", "created_at"), ALWAYS)
OF_CHANNEL = ("channel_id", "instance_domain")
OF_VIDEO = ("video_id", "instance_domain")

RULES = RuleSet(
    "ours",
    (
        Rule("instances", Strategy.UPSERT, ("host",), INSTANCES, stamp="health_checked_at"),
        Rule("channels", Strategy.UPSERT, OF_CHANNEL, CHANNELS, stamp="health_checked_at", revives=True),
        Rule("videos", Strategy.UPSERT, OF_VIDEO, VIDEOS, stamp="last_checked_at", revives=True),
        Rule("video_embeddings", Strategy.UPSERT, OF_VIDEO, EMBEDDINGS, silent=("created_at",)),
    ),
    removes=True,
)
ORIGINAL_RULES = RuleSet(
    "original",
    (
        Rule("instances", Strategy.INSERT_ONLY, ("host",), INSTANCES),
        Rule("channels", Strategy.INSERT_ONLY, OF_CHANNEL, CHANNELS),
        Rule("videos", Strategy.INSERT_ONLY, OF_VIDEO, VIDEOS),
        Rule("video_embeddings", Strategy.INSERT_OR_REPLACE, OF_VIDEO, EMBEDDINGS),
    ),
    removes=False,
)
RULE_SETS = {rules.name: rules for rules in (RULES, ORIGINAL_RULES)}


def rule_set(name: str) -> RuleSet:
    if name not in RULE_SETS:
        raise BadInput(f"there are no merge rules {name!r}: choose {' or '.join(RULE_SETS)}")
    return RULE_SETS[name]


def winner(table: str, column: str, when: str) -> str:
    """The value that a row has after an UPSERT, in SQL."""
    old, new = f"{table}.{column}", f"excluded.{column}"
    if when == ALWAYS:
        return new
    if when == UNLESS_NULL:
        return f"ifnull({new}, {old})"
    if when == LONGER:
        head = f"length({new}) - 3"
        cut = f"substr({new}, -3) = '...' AND length({old}) > length({new})"
        return f"iif({cut} AND substr({old}, 1, {head}) = substr({new}, 1, {head}), {old}, {new})"
    return f"iif(excluded.{when.removeprefix('after ')} IS NULL, {old}, {new})"


def statement(rule: Rule, rows: str, identified: bool = False) -> str:
    """One INSERT for the whole table. ``rows`` selects the keys and columns, with a leading id if ``identified``.

    It must have a WHERE, be it ``WHERE true``: the parser reads ON CONFLICT as the ON of a join without. Only a known
    key is passed over: INSERT OR IGNORE would also swallow a row that breaks any other promise of the schema.
    """
    table, keys = rule.table, ", ".join(rule.keys)
    columns = ", ".join((*(("id",) if identified else ()), *rule.keys, *rule.columns))
    if rule.strategy is Strategy.INSERT_OR_REPLACE:
        return f"INSERT OR REPLACE INTO main.{table} ({columns}) {rows}"
    head = f"INSERT INTO main.{table} ({columns}) {rows} ON CONFLICT ({keys}) DO"
    if rule.strategy is Strategy.INSERT_ONLY:
        return f"{head} NOTHING"
    values = {column: winner(table, column, when) for column, when in rule.columns.items()}
    reasons = [f"{table}.{c} IS NOT {v}" for c, v in values.items() if c != rule.stamp and c not in rule.silent]
    if rule.revives:
        values["removed_at"] = "NULL"
        reasons.append(f"{table}.removed_at IS NOT NULL")
    assign = ", ".join(f"{column} = {value}" for column, value in values.items())
    return f"{head} UPDATE SET {assign} WHERE {' OR '.join(reasons)}"
