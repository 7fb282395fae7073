-- Times are seconds since 1970 by the ledger's own clock() function. Rows are added by one conditional statement each.

CREATE TABLE tenants (
    tenant      TEXT PRIMARY KEY,
    tier        TEXT NOT NULL
) STRICT;

CREATE TABLE jobs (
    id              TEXT PRIMARY KEY,
    tenant          TEXT NOT NULL,
    kind            TEXT NOT NULL,
    subject         TEXT NOT NULL,
    params          TEXT NOT NULL,
    deployment      TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('QUEUED', 'PAUSED', 'RUNNING', 'DONE', 'FAILED', 'CANCELED')),
    attempt         INTEGER NOT NULL DEFAULT 1,     -- numbers the flow runs; only grows
    crashes         INTEGER NOT NULL DEFAULT 0,     -- attempts that failed or died; max_attempts of them are final
    max_attempts    INTEGER NOT NULL,
    fence           INTEGER NOT NULL DEFAULT 0,     -- of the lease on job:<id> that the current attempt holds
    control         TEXT NOT NULL DEFAULT '' CHECK (control IN ('', 'pause')),
    message         TEXT NOT NULL DEFAULT '',
    error_code      TEXT NOT NULL DEFAULT '',
    error           TEXT NOT NULL DEFAULT '',
    result          TEXT NOT NULL DEFAULT 'null',
    base            REAL,
    boost           REAL NOT NULL DEFAULT 0,
    aging           INTEGER NOT NULL DEFAULT 1,
    idempotency_key TEXT NOT NULL,
    request_digest  TEXT NOT NULL,
    created_at      REAL NOT NULL,
    updated_at      REAL NOT NULL,
    available_at    REAL NOT NULL,
    UNIQUE (tenant, idempotency_key)
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, available_at);

-- One row for each attempt that was given to a flow run. The primary key is what makes a dispatch happen once.
CREATE TABLE runs (
    job         TEXT NOT NULL REFERENCES jobs (id),
    attempt     INTEGER NOT NULL,
    run_id      TEXT NOT NULL DEFAULT '',
    created_at  REAL NOT NULL,
    ending      TEXT NOT NULL DEFAULT '' CHECK (ending IN ('', 'ended', 'crashed', 'cancelled')),
    shown       INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, attempt)
) STRICT;

-- A slot is taken from the moment a job is claimed, not from when its run gets round to starting.
CREATE VIEW slots_taken AS
    SELECT id AS job, tenant FROM jobs
    WHERE state = 'RUNNING' OR state = 'QUEUED' AND EXISTS (
        SELECT 1 FROM runs WHERE runs.job = jobs.id AND runs.attempt = jobs.attempt AND runs.ending = '');

-- A released lease keeps its row: the fence must never start again.
CREATE TABLE leases (
    resource    TEXT PRIMARY KEY,
    holder      TEXT,
    fence       INTEGER NOT NULL,
    expires_at  REAL NOT NULL
) STRICT;

CREATE TABLE units (
    job         TEXT NOT NULL REFERENCES jobs (id),
    key         TEXT NOT NULL,
    step        TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('RUNNING', 'DONE', 'REUSED')),
    fence       INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,                   -- how often the work was begun; reusing it is not beginning it
    reuses      INTEGER NOT NULL DEFAULT 0,
    digest      TEXT NOT NULL DEFAULT '',
    result      TEXT NOT NULL DEFAULT 'null',
    updated_at  REAL NOT NULL,
    PRIMARY KEY (job, key)
) STRICT;
CREATE INDEX units_by_key ON units (key) WHERE state = 'DONE';

CREATE TABLE calls (
    unit        TEXT NOT NULL,
    job         TEXT NOT NULL REFERENCES jobs (id),
    call_id     TEXT NOT NULL DEFAULT '',
    state       TEXT NOT NULL CHECK (state IN ('INTENDED', 'SUBMITTED', 'DONE', 'FAILED', 'CANCELED')),
    fence       INTEGER NOT NULL,
    PRIMARY KEY (job, unit)
) STRICT;

CREATE TABLE generations (
    resource    TEXT NOT NULL,
    fence       INTEGER NOT NULL,
    key         TEXT NOT NULL,
    PRIMARY KEY (resource, fence)
) STRICT;

CREATE TABLE outbox (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    source      TEXT NOT NULL,
    type        TEXT NOT NULL,
    subject     TEXT NOT NULL,
    job         TEXT NOT NULL REFERENCES jobs (id),
    time        REAL NOT NULL,
    data        TEXT NOT NULL,
    delivered   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX outbox_pending ON outbox (seq) WHERE delivered = 0;
CREATE INDEX outbox_by_job ON outbox (job, seq);

CREATE TABLE inbox (
    source      TEXT NOT NULL,
    id          TEXT NOT NULL,
    PRIMARY KEY (source, id)
) STRICT;
