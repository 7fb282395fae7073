-- What must not be in a sound ledger, by rule, each with its offenders. The rules are those of SQLite's ledger, less the
-- two that PostgreSQL sees to itself: broken references and damaged pages.
CREATE OR REPLACE FUNCTION dailies.audit(_grace double precision) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    WITH moment AS (SELECT dailies.clock() AS now)
    SELECT json_build_object(
        -- A sweep may come before recover().
        'running without a live lease', (
            SELECT coalesce(json_agg(id), '[]') FROM dailies.jobs, moment WHERE state = 'RUNNING' AND NOT EXISTS (
                SELECT 1 FROM dailies.leases
                WHERE resource = 'job:' || id AND expires_at > moment.now - _grace
                    AND (holder IS NOT NULL OR expires_at <= moment.now))),
        'lease of a job that is not running', (
            SELECT coalesce(json_agg(resource), '[]') FROM dailies.leases JOIN dailies.jobs ON resource = 'job:' || id
            WHERE holder IS NOT NULL AND state <> 'RUNNING'),
        'expired lease still held', (
            SELECT coalesce(json_agg(resource), '[]') FROM dailies.leases, moment
            WHERE holder IS NOT NULL AND expires_at <= moment.now - _grace),
        'state unlike its last event', (
            SELECT coalesce(json_agg(id), '[]') FROM dailies.jobs
            WHERE 'dailies.job.' || lower(state) IS DISTINCT FROM (
                SELECT type FROM dailies.outbox WHERE outbox.job = jobs.id AND type LIKE 'dailies.job.%'
                ORDER BY seq DESC LIMIT 1)),
        'video state unlike its last event', (
            SELECT coalesce(json_agg(tenant || '/' || video), '[]') FROM dailies.videos
            WHERE version > 0 AND 'dailies.video.' || state IS DISTINCT FROM (
                SELECT type FROM dailies.outbox
                WHERE outbox.subject = tenant || '/' || video AND type LIKE 'dailies.video.%'
                ORDER BY seq DESC LIMIT 1)),
        'write past the job''s fence', (
            SELECT coalesce(json_agg(job || ' ' || key), '[]')
            FROM dailies.units JOIN dailies.leases ON resource = 'job:' || job WHERE units.fence > leases.fence),
        'generation past its lease', (
            SELECT coalesce(json_agg(resource), '[]') FROM dailies.generations JOIN dailies.leases USING (resource)
            WHERE generations.fence > leases.fence),
        'done with a unit unfinished', (
            SELECT coalesce(json_agg(job || ' ' || key), '[]') FROM dailies.units JOIN dailies.jobs ON jobs.id = job
            WHERE jobs.state = 'DONE' AND units.state = 'RUNNING')
    )::text
$$;

-- Grows with every migration that a client must not do without.
CREATE OR REPLACE FUNCTION dailies.version() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT '1'
$$;
