"""What must not be in a sound ledger: one query a rule, each returning its offenders."""

from __future__ import annotations

from dailies.ledger.sqlite.database import Database

RULES = {
    "running without a live lease": """
        SELECT id FROM jobs WHERE state = 'RUNNING' AND NOT EXISTS (
            SELECT 1 FROM leases
            WHERE resource = 'job:' || id AND expires_at > clock() - :grace
                AND (holder IS NOT NULL OR expires_at <= clock()))""",  # a sweep may come before recover()
    "lease of a job that is not running": """
        SELECT resource FROM leases JOIN jobs ON resource = 'job:' || id
        WHERE holder IS NOT NULL AND state != 'RUNNING'""",
    "expired lease still held": """
        SELECT resource FROM leases WHERE holder IS NOT NULL AND expires_at <= clock() - :grace""",
    "state unlike its last event": """
        SELECT id FROM jobs WHERE 'dailies.job.' || lower(state) IS NOT (
            SELECT type FROM outbox WHERE job = jobs.id AND type LIKE 'dailies.job.%' ORDER BY seq DESC LIMIT 1)""",
    "write past the job's fence": """
        SELECT job || ' ' || key FROM units JOIN leases ON resource = 'job:' || job WHERE units.fence > leases.fence""",
    "generation past its lease": """
        SELECT resource FROM generations JOIN leases USING (resource) WHERE generations.fence > leases.fence""",
    "done with a unit unfinished": """
        SELECT job || ' ' || key FROM units JOIN jobs ON jobs.id = job
        WHERE jobs.state = 'DONE' AND units.state = 'RUNNING'""",
    "video state unlike its last event": """
        SELECT tenant || '/' || video FROM videos WHERE version > 0 AND 'dailies.video.' || state IS NOT (
            SELECT type FROM outbox WHERE subject = tenant || '/' || video AND type LIKE 'dailies.video.%'
            ORDER BY seq DESC LIMIT 1)""",
    "broken reference": "SELECT \"table\" || ' ' || rowid FROM pragma_foreign_key_check",
    "damaged database": "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check != 'ok'",
}


def audit(database: Database, grace: float) -> dict[str, list[str]]:
    return {
        rule: [str(row[0]) for row in database.all(sql, **({"grace": grace} if ":grace" in sql else {}))]
        for rule, sql in RULES.items()
    }
