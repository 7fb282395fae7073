"""A staging merged into a generation of production that is being made: all of it in one transaction, or nothing.

The staging is attached for reading alone. Rows go in by the order of their keys, so that the same two databases give
the same ids. The merge writes down under the staging's digest what it did, in the same transaction: the same staging
again changes nothing and is answered with those counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dailies.catalog.removal import bury, find_gone, guard
from dailies.catalog.rules import Rule, RuleSet, Strategy, rule_set, statement
from dailies.catalog.schema import connect, refusals, transaction
from dailies.catalog.staging import contents_digest, recover, staged_as_of
from dailies.errors import BadInput
from dailies.failpoints import failpoint

CACHE_KIB = 65536
MIXED = "would leave vectors of several models side by side ({}): embed all of them anew"

# A seeded channel that its host does not list says nothing of whether that channel lives.
STAGED = {
    "channels": "seen = 1 OR NOT EXISTS (SELECT 1 FROM main.channels AS old WHERE old.removed_at IS NOT NULL "
    "AND old.channel_id = channels.channel_id AND old.instance_domain = channels.instance_domain)"
}


def merge(
    staging: str | Path,
    production_copy: str | Path,
    rules: str = "ours",
    max_removed: float = 0.1,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """``max_removed`` is the share of the living videos that may get a tombstone: above it nothing is changed.

    Which vectors came, changed or went stands in the table ``changed_embeddings``, for the index.
    """
    chosen = rule_set(rules)
    if not 0 <= max_removed <= 1:
        raise BadInput(f"max_removed is a share from 0 to 1, not {max_removed}")
    source, path = Path(staging), Path(production_copy)
    recover(source)
    connect(source, "staging").close()
    with closing(open_to_write(path)) as database, writing(path):
        database.execute("ATTACH ? AS staging", (f"file:{quote(str(source))}?mode=ro",))
        with transaction(database):
            digest = contents_digest(database, "staging")
            return logged(database, digest) or _merge(
                database, digest, chosen, max_removed, progress or (lambda _: None)
            )


def open_to_write(path: Path) -> sqlite3.Connection:
    """A generation that is complete is read-only, which stops everybody but the administrator; this stops that one."""
    if path.is_file() and not path.stat().st_mode & 0o222:
        raise BadInput(f"{path} is read-only, as a finished generation is: copy it, and write to the copy")
    database = connect(path, "production", write=True)
    database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    # What a power cut may spoil is a generation that is not finished, and is made again; it is synced when it is.
    database.execute("PRAGMA synchronous = OFF")
    return database


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """As ``refusals``, and what only a writer meets."""
    try:
        with refusals(path):
            yield
    except BadInput as error:
        if isinstance(error.__cause__, sqlite3.IntegrityError):
            raise BadInput(f"the staging does not fit {path}: {error.__cause__}; nothing was changed") from error
        raise


def logged(database: sqlite3.Connection, digest: str) -> dict[str, Any] | None:
    """What an earlier merge of this staging did here; None if there was none."""
    cursor = database.execute("SELECT * FROM main.merge_log WHERE staging_digest = ?", (digest,))
    names = [column[0] for column in cursor.description]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    if not rows:
        return None
    as_of = rows[0]["as_of"]
    left_out = ("staging_digest", "table_name", "as_of")
    tables = {row["table_name"]: {k: v for k, v in row.items() if k not in left_out} for row in rows}
    found = dict(database.execute("SELECT what, count(*) FROM main.changed_embeddings GROUP BY what"))
    return {
        "again": True,
        "staging_digest": digest,
        "as_of": as_of,
        "tables": tables,
        "embeddings": {what: found.get(what, 0) for what in ("new", "changed", "removed")},
    }


def _merge(
    database: sqlite3.Connection, digest: str, chosen: RuleSet, max_removed: float, progress: Callable[[float], None]
) -> dict[str, Any]:
    as_of = staged_as_of(database, "staging")
    staged, had = _staged_model(database), _model(database)
    before = {rule.table: _count(database, rule.table) for rule in chosen.rules}
    if chosen.removes:
        guard(database, find_gone(database), max_removed)
    database.execute("DELETE FROM main.changed_embeddings")
    database.execute("DELETE FROM main.ranked")
    removed: dict[str, int] = {}
    for number, rule in enumerate(chosen.rules, 1):
        if rule.table == "video_embeddings":
            failpoint("catalog.during_merge")
            removed = bury(database, as_of) if chosen.removes else {}
            _note_changes(database, rule)
        _log(database, rule, digest, as_of, before[rule.table], removed.get(rule.table, 0))
        progress(number / len(chosen.rules))
    for table, count in removed.items():
        database.execute(
            "UPDATE main.merge_log SET removed = ? WHERE staging_digest = ? AND table_name = ?", (count, digest, table)
        )
    if staged is not None and had not in (None, staged):  # else one model came in, and one goes out
        _refuse_mixture(database, staged)
    done = logged(database, digest)
    assert done is not None
    return {**done, "again": False}


def _log(database: sqlite3.Connection, rule: Rule, digest: str, as_of: int, before: int, removed: int) -> None:
    touched = database.execute(_statement(rule)).rowcount
    staged = database.execute(f"SELECT count(*) FROM staging.{rule.table}").fetchone()[0]
    if rule.stamp and rule.strategy is Strategy.UPSERT and touched < staged:
        database.execute(_stamping(rule))
    now = _count(database, rule.table)
    inserted = now - before + removed
    database.execute(
        "INSERT INTO main.merge_log VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (digest, rule.table, str(rule.strategy), before, now, inserted, touched - inserted, removed, as_of),
    )


def _statement(rule: Rule) -> str:
    columns, keys = [*rule.keys, *rule.columns], ", ".join(rule.keys)
    if rule.table != "video_embeddings":
        rows = f"SELECT {', '.join(columns)} FROM staging.{rule.table} WHERE {STAGED.get(rule.table, 'true')}"
        return statement(rule, f"{rows} ORDER BY {keys}")
    staged = ", ".join(f"staged.{column}" for column in columns)
    rows = f"SELECT videos.id, {staged} {VECTORS} ORDER BY staged.video_id, staged.instance_domain"
    return statement(rule, rows, identified=True)


# A vector bears the id of its video, and a video that is gone gets none.
VECTORS = """FROM staging.video_embeddings AS staged CROSS JOIN main.videos AS videos
    ON videos.video_id = staged.video_id AND videos.instance_domain = staged.instance_domain
    WHERE videos.removed_at IS NULL"""


def _stamping(rule: Rule) -> str:
    """The rows that were looked at again and found as they were: the moment of that look, and nothing else.

    By IN, so that the staged rows are gone through and not all of production.
    """
    keys, stamp = ", ".join(rule.keys), rule.stamp
    same = " AND ".join(f"staged.{key} = {rule.table}.{key}" for key in rule.keys)
    staged = f"(SELECT {stamp} FROM staging.{rule.table} AS staged WHERE {same})"
    return f"""UPDATE main.{rule.table} SET {stamp} = {staged}
        WHERE ({keys}) IN (SELECT {keys} FROM staging.{rule.table} WHERE {stamp} IS NOT NULL)
            AND {stamp} IS NOT {staged}"""


def _note_changes(database: sqlite3.Connection, rule: Rule) -> None:
    """Before they are merged, while the old vectors are still there to compare with."""
    database.execute(
        f"""INSERT INTO main.changed_embeddings
            SELECT id, iif(id IN (SELECT id FROM main.video_embeddings), 'changed', 'new')
            FROM (SELECT videos.id AS id, staged.text_digest, staged.model_name, staged.embedding {VECTORS}) AS other
            WHERE NOT EXISTS (
                SELECT 1 FROM main.video_embeddings AS old
                WHERE old.id = other.id AND (? OR (old.text_digest = other.text_digest
                    AND old.model_name = other.model_name AND old.embedding = other.embedding)))
            ORDER BY id""",
        (rule.strategy is Strategy.INSERT_ONLY,),
    )


def _staged_model(database: sqlite3.Connection) -> tuple[str, int] | None:
    """The one model of the staged vectors, each of which has the length that it states."""
    found = database.execute(
        """SELECT model_name, embedding_dim, sum(length(embedding) != 4 * embedding_dim)
           FROM staging.video_embeddings GROUP BY model_name, embedding_dim ORDER BY model_name, embedding_dim"""
    ).fetchall()
    if torn := sum(row[2] for row in found):
        raise BadInput(f"{torn} staged vectors have not the length that they state: embed their videos anew")
    if len(found) > 1:
        raise BadInput(f"this staging {MIXED.format(', '.join(f'{name}/{dim}' for name, dim, _ in found))}")
    return found[0][:2] if found else None


def _model(database: sqlite3.Connection) -> tuple[str, int] | None:
    found = database.execute("SELECT model_name, embedding_dim FROM main.video_embeddings LIMIT 1").fetchone()
    return None if found is None else (found[0], found[1])


def _refuse_mixture(database: sqlite3.Connection, staged: tuple[str, int]) -> None:
    left = database.execute(
        "SELECT count(*) FROM main.video_embeddings WHERE (model_name, embedding_dim) IS NOT (?, ?)", staged
    ).fetchone()[0]
    if left:
        raise BadInput(f"this merge {MIXED.format(f'{left} are not of {staged[0]}/{staged[1]}')}")


def _count(database: sqlite3.Connection, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM main.{table}").fetchone()[0])
