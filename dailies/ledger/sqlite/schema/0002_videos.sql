-- What is known of an upload. A video is changed under the lease on video:<tenant>/<video>,
-- or settled when nobody works on it any more.

CREATE TABLE videos (
    tenant      TEXT NOT NULL,
    video       TEXT NOT NULL,
    media_key   TEXT NOT NULL,
    state       TEXT NOT NULL DEFAULT 'uploaded'
                CHECK (state IN ('uploaded', 'processing', 'awaiting_layout', 'inferring', 'ready', 'error')),
    version     INTEGER NOT NULL DEFAULT 0,         -- changes of state
    error_code  TEXT NOT NULL DEFAULT '',
    error       TEXT NOT NULL DEFAULT '',
    metadata    TEXT NOT NULL DEFAULT '{}',
    created_at  REAL NOT NULL,
    updated_at  REAL NOT NULL,
    PRIMARY KEY (tenant, video)
) STRICT;
