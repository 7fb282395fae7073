-- The ledger's tables, of the same shape as SQLite's.
--
-- They have a schema of their own, so that nothing of an application in `public` can be mistaken for them, and so that
-- dropping the ledger is dropping one schema. The API serves it once it is among the exposed schemas.
-- JSON is kept as text: its bytes are compared and digested, and neither jsonb (which has no NUL, and respells numbers)
-- nor an API that reads JSON into doubles may touch it.
-- Times are seconds since 1970 by dailies.clock(). Row-level security is on from the first moment; the policies come
-- last, and until then nobody but the owner and service_role sees a row.

CREATE SCHEMA IF NOT EXISTS dailies;
REVOKE ALL ON SCHEMA dailies FROM PUBLIC;

CREATE TABLE IF NOT EXISTS dailies.tenants (
    tenant      text PRIMARY KEY,
    tier        text NOT NULL
);

CREATE TABLE IF NOT EXISTS dailies.jobs (
    id              text PRIMARY KEY,
    tenant          text NOT NULL,
    kind            text NOT NULL,
    subject         text NOT NULL,
    params          text NOT NULL,
    deployment      text NOT NULL,
    state           text NOT NULL CHECK (state IN ('QUEUED', 'PAUSED', 'RUNNING', 'DONE', 'FAILED', 'CANCELED')),
    attempt         integer NOT NULL DEFAULT 1,     -- numbers the flow runs; only grows
    crashes         integer NOT NULL DEFAULT 0,     -- attempts that failed or died; max_attempts of them are final
    max_attempts    integer NOT NULL,
    fence           bigint NOT NULL DEFAULT 0,      -- of the lease on job:<id> that the current attempt holds
    control         text NOT NULL DEFAULT '' CHECK (control IN ('', 'pause')),
    message         text NOT NULL DEFAULT '',
    error_code      text NOT NULL DEFAULT '',
    error           text NOT NULL DEFAULT '',
    result          text NOT NULL DEFAULT 'null',
    base            double precision,
    boost           double precision NOT NULL DEFAULT 0,
    aging           boolean NOT NULL DEFAULT true,
    idempotency_key text NOT NULL,
    request_digest  text NOT NULL,
    created_at      double precision NOT NULL,
    updated_at      double precision NOT NULL,
    available_at    double precision NOT NULL,
    UNIQUE (tenant, idempotency_key)
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON dailies.jobs (state, available_at);
CREATE INDEX IF NOT EXISTS jobs_by_age ON dailies.jobs (created_at);

-- One row for each attempt that was given to a flow run. The primary key is what makes a dispatch happen once.
CREATE TABLE IF NOT EXISTS dailies.runs (
    job         text NOT NULL REFERENCES dailies.jobs (id),
    attempt     integer NOT NULL,
    run_id      text NOT NULL DEFAULT '',
    created_at  double precision NOT NULL,
    ending      text NOT NULL DEFAULT '' CHECK (ending IN ('', 'ended', 'crashed', 'cancelled')),
    shown       boolean NOT NULL DEFAULT false,
    PRIMARY KEY (job, attempt)
);
CREATE INDEX IF NOT EXISTS runs_by_run ON dailies.runs (run_id);
CREATE INDEX IF NOT EXISTS runs_unshown ON dailies.runs (created_at)
    WHERE ending IN ('crashed', 'cancelled') AND NOT shown;

-- A released lease keeps its row: the fence must never start again.
CREATE TABLE IF NOT EXISTS dailies.leases (
    resource    text PRIMARY KEY CHECK (resource <> ''),
    holder      text CHECK (holder <> ''),
    fence       bigint NOT NULL,
    expires_at  double precision NOT NULL
);
CREATE INDEX IF NOT EXISTS leases_by_holder ON dailies.leases (holder) WHERE holder IS NOT NULL;

CREATE TABLE IF NOT EXISTS dailies.units (
    job         text NOT NULL REFERENCES dailies.jobs (id),
    key         text NOT NULL,
    step        text NOT NULL,
    state       text NOT NULL CHECK (state IN ('RUNNING', 'DONE', 'REUSED')),
    fence       bigint NOT NULL,
    attempts    integer NOT NULL,                   -- how often the work was begun; reusing it is not beginning it
    reuses      integer NOT NULL DEFAULT 0,
    digest      text NOT NULL DEFAULT '',
    result      text NOT NULL DEFAULT 'null',
    updated_at  double precision NOT NULL,
    position    bigint GENERATED ALWAYS AS IDENTITY,    -- the order in which a job began them
    PRIMARY KEY (job, key)
);
CREATE INDEX IF NOT EXISTS units_by_key ON dailies.units (key) WHERE state = 'DONE';

CREATE TABLE IF NOT EXISTS dailies.calls (
    unit        text NOT NULL,
    job         text NOT NULL REFERENCES dailies.jobs (id),
    call_id     text NOT NULL DEFAULT '',
    state       text NOT NULL CHECK (state IN ('INTENDED', 'SUBMITTED', 'DONE', 'FAILED', 'CANCELED')),
    fence       bigint NOT NULL,
    PRIMARY KEY (job, unit)
);
CREATE INDEX IF NOT EXISTS calls_open ON dailies.calls (job) WHERE state IN ('INTENDED', 'SUBMITTED');

CREATE TABLE IF NOT EXISTS dailies.generations (
    resource    text NOT NULL,
    fence       bigint NOT NULL,
    key         text NOT NULL,
    PRIMARY KEY (resource, fence)
);

-- Events of one job get their seq under the lock on that job, so they are committed in the order of their seq.
CREATE TABLE IF NOT EXISTS dailies.outbox (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          text NOT NULL UNIQUE,
    source      text NOT NULL,
    type        text NOT NULL,
    subject     text NOT NULL,
    job         text NOT NULL REFERENCES dailies.jobs (id),
    time        double precision NOT NULL,
    data        text NOT NULL,
    delivered   boolean NOT NULL DEFAULT false
);
CREATE INDEX IF NOT EXISTS outbox_pending ON dailies.outbox (seq) WHERE NOT delivered;
CREATE INDEX IF NOT EXISTS outbox_by_job ON dailies.outbox (job, seq);
CREATE INDEX IF NOT EXISTS outbox_by_subject ON dailies.outbox (subject, seq);

CREATE TABLE IF NOT EXISTS dailies.inbox (
    source      text NOT NULL,
    id          text NOT NULL,
    PRIMARY KEY (source, id)
);

-- What is known of an upload. A video is changed under the lease on video:<tenant>/<video>,
-- or settled when nobody works on it any more.
CREATE TABLE IF NOT EXISTS dailies.videos (
    tenant      text NOT NULL,
    video       text NOT NULL,
    media_key   text NOT NULL,
    state       text NOT NULL DEFAULT 'uploaded'
                CHECK (state IN ('uploaded', 'processing', 'awaiting_layout', 'inferring', 'ready', 'error')),
    version     integer NOT NULL DEFAULT 0,         -- changes of state
    error_code  text NOT NULL DEFAULT '',
    error       text NOT NULL DEFAULT '',
    metadata    text NOT NULL DEFAULT '{}',
    created_at  double precision NOT NULL,
    updated_at  double precision NOT NULL,
    PRIMARY KEY (tenant, video)
);

-- What a call was answered, written in the transaction that did it: who lost the reply asks again and gets the same.
CREATE TABLE IF NOT EXISTS dailies.answers (
    request     uuid PRIMARY KEY,
    answer      text NOT NULL,
    at          double precision NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_by_age ON dailies.answers (at);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenants', 'jobs', 'runs', 'leases', 'units', 'calls', 'generations', 'outbox', 'inbox',
                                'videos', 'answers']
    LOOP
        EXECUTE format('ALTER TABLE dailies.%I ENABLE ROW LEVEL SECURITY', name);
    END LOOP;
END $$;
