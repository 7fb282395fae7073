-- Takes back 20261121000009_settle.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.video_settle;
DROP INDEX IF EXISTS dailies.jobs_by_subject;
DROP INDEX IF EXISTS dailies.videos_under_way;

CREATE OR REPLACE FUNCTION dailies.version() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT '1'
$$;

NOTIFY pgrst, 'reload schema';
