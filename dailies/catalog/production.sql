-- One generation of the catalogue. `id` names a video's vector in the index and in similar.db; it is never given to
-- another video. Times are milliseconds since 1970, UTC, and come from the update's `as_of`, never from a clock.
PRAGMA application_id = 1145258324;  -- "DCAT"
PRAGMA user_version = 1;

CREATE TABLE instances (
    host               TEXT NOT NULL PRIMARY KEY,
    name               TEXT,
    version            TEXT,
    health_status      TEXT,
    health_checked_at  INTEGER,
    health_error       TEXT,
    last_error         TEXT,
    last_error_at      INTEGER,
    last_error_source  TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE channels (
    channel_id         TEXT NOT NULL,
    instance_domain    TEXT NOT NULL REFERENCES instances (host),
    channel_name       TEXT,
    channel_url        TEXT,
    display_name       TEXT,
    videos_count       INTEGER,
    followers_count    INTEGER,
    avatar_url         TEXT,
    health_status      TEXT,
    health_checked_at  INTEGER,
    health_error       TEXT,
    last_error         TEXT,
    last_error_at      INTEGER,
    last_error_source  TEXT,
    removed_at         INTEGER,  -- a tombstone: its host was crawled to the end without it
    PRIMARY KEY (channel_id, instance_domain)
) STRICT, WITHOUT ROWID;

CREATE TABLE videos (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    video_id          TEXT NOT NULL,
    instance_domain   TEXT NOT NULL REFERENCES instances (host),
    video_uuid        TEXT,
    video_numeric_id  INTEGER,
    channel_id        TEXT,
    channel_name      TEXT,
    channel_url       TEXT,
    account_name      TEXT,
    account_url       TEXT,
    title             TEXT,
    description       TEXT,
    tags_json         TEXT,
    category          TEXT,
    published_at      INTEGER,
    video_url         TEXT,
    duration          INTEGER,
    thumbnail_url     TEXT,
    embed_path        TEXT,
    preview_path      TEXT,
    views             INTEGER,
    likes             INTEGER,
    dislikes          INTEGER,
    comments_count    INTEGER,
    nsfw              INTEGER,
    last_checked_at   INTEGER NOT NULL,
    last_error        TEXT,
    last_error_at     INTEGER,
    error_count       INTEGER NOT NULL DEFAULT 0,
    invalid_reason    TEXT,
    invalid_at        INTEGER,
    removed_at        INTEGER,
    popularity        REAL NOT NULL DEFAULT 0,
    popularity_as_of  INTEGER,  -- the moment for which `popularity` is exact; see rank.py
    UNIQUE (video_id, instance_domain)
) STRICT;
CREATE INDEX videos_popularity ON videos (popularity DESC);
CREATE INDEX videos_channel ON videos (instance_domain, channel_id);

CREATE TABLE video_embeddings (
    id               INTEGER PRIMARY KEY REFERENCES videos (id) ON DELETE CASCADE,
    video_id         TEXT NOT NULL,
    instance_domain  TEXT NOT NULL,
    text_digest      TEXT NOT NULL,  -- of the text that was embedded: another text is embedded anew
    model_name       TEXT NOT NULL,
    embedding_dim    INTEGER NOT NULL,
    embedding        BLOB NOT NULL,  -- float32, little-endian, of length one
    created_at       INTEGER NOT NULL,
    UNIQUE (video_id, instance_domain)
) STRICT;

CREATE TABLE merge_log (
    staging_digest  TEXT NOT NULL,
    table_name      TEXT NOT NULL,
    strategy        TEXT NOT NULL,
    rows_before     INTEGER NOT NULL,
    rows_after      INTEGER NOT NULL,
    inserted        INTEGER NOT NULL,
    changed         INTEGER NOT NULL,
    removed         INTEGER NOT NULL,
    as_of           INTEGER NOT NULL,
    PRIMARY KEY (staging_digest, table_name)
) STRICT, WITHOUT ROWID;

-- Which vectors the latest merge made, changed or took away: all that an index of them has to catch up with.
CREATE TABLE changed_embeddings (
    id    INTEGER PRIMARY KEY,
    what  TEXT NOT NULL CHECK (what IN ('new', 'changed', 'removed'))
) STRICT;

-- The moment of the last ranking, in one row; none after a merge, until the ranking is done again.
CREATE TABLE ranked (
    as_of  INTEGER NOT NULL
) STRICT;

CREATE INDEX videos_removed ON videos (removed_at) WHERE removed_at IS NOT NULL;
