-- What one update has gathered so far, and how far it came. Everything found on a page is written in one transaction
-- with the page's cursor, so that a crawl that was killed goes on at the next page.
PRAGMA application_id = 1146311751;  -- "DSTG"
PRAGMA user_version = 1;

CREATE TABLE crawl_state (
    key    TEXT NOT NULL PRIMARY KEY,  -- as_of, seeded_from, whitelist, …
    value  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

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
    instance_domain    TEXT NOT NULL,
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
    seen               INTEGER NOT NULL DEFAULT 0,  -- 1: listed by its host in this crawl; 0: seeded from production
    PRIMARY KEY (channel_id, instance_domain)
) STRICT, WITHOUT ROWID;

CREATE TABLE videos (
    video_id          TEXT NOT NULL,
    instance_domain   TEXT NOT NULL,
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
    PRIMARY KEY (video_id, instance_domain)
) STRICT, WITHOUT ROWID;

CREATE TABLE video_embeddings (
    video_id         TEXT NOT NULL,
    instance_domain  TEXT NOT NULL,
    text_digest      TEXT NOT NULL,
    model_name       TEXT NOT NULL,
    embedding_dim    INTEGER NOT NULL,
    embedding        BLOB NOT NULL,
    created_at       INTEGER NOT NULL,
    PRIMARY KEY (video_id, instance_domain)
) STRICT;

-- How far the crawl came. `host` is a host of the whitelist, `channel_id` empty where the row is the host's own list
-- of channels. `whole` is 1 where every page was read to the last one: only then does what is absent count as gone.
CREATE TABLE crawl_progress (
    host        TEXT NOT NULL,
    what        TEXT NOT NULL CHECK (what IN ('instance', 'channels', 'videos', 'count')),
    channel_id  TEXT NOT NULL DEFAULT '',
    status      TEXT NOT NULL CHECK (status IN ('in_progress', 'done', 'error')),
    next_start  INTEGER NOT NULL DEFAULT 0,
    tail        TEXT NOT NULL DEFAULT '[]',  -- the last keys of the page before: where the next page must join on
    idle_pages  INTEGER NOT NULL DEFAULT 0,  -- pages in a row without news
    whole       INTEGER NOT NULL DEFAULT 0,
    total       INTEGER,                     -- as the host states it
    error       TEXT,
    PRIMARY KEY (host, what, channel_id)
) STRICT, WITHOUT ROWID;

-- Documents that were not what the API promises: each costs itself alone.
CREATE TABLE refused (
    host    TEXT NOT NULL,
    what    TEXT NOT NULL,
    name    TEXT NOT NULL,
    reason  TEXT NOT NULL,
    PRIMARY KEY (host, what, name)
) STRICT, WITHOUT ROWID;
