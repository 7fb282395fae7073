-- Videos that say that somebody works on them when nobody does any more.

CREATE INDEX IF NOT EXISTS videos_under_way ON dailies.videos (tenant, video)
    WHERE state IN ('processing', 'inferring');
CREATE INDEX IF NOT EXISTS jobs_by_subject ON dailies.jobs (tenant, subject);

-- Processing or inferring, with no job of theirs under way → error, with what the job that ended last ended with.
-- The event comes among that job's others, so the job is locked, and then the lease: nobody changes a video without it,
-- so from there on what is found of its jobs is decided upon. What others are busy with is left for the next time;
-- waiting for several would be against the order. Who still held an expired lease on the video lost it.
CREATE OR REPLACE FUNCTION dailies.video_settle(_request uuid) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    stuck record;
    film dailies.videos;
    settled json[] := '{}';
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    FOR stuck IN
        SELECT tenant, video, tenant || '/' || video AS about, (
            SELECT id FROM dailies.jobs WHERE jobs.tenant = videos.tenant AND subject = videos.tenant || '/' || video
            ORDER BY updated_at DESC, created_at DESC, id DESC LIMIT 1) AS owner
        FROM dailies.videos
        WHERE state IN ('processing', 'inferring') AND NOT EXISTS (
            SELECT 1 FROM dailies.jobs WHERE jobs.tenant = videos.tenant AND subject = videos.tenant || '/' || video
                AND jobs.state IN ('QUEUED', 'PAUSED', 'RUNNING'))
        ORDER BY tenant, video
    LOOP
        PERFORM 1 FROM dailies.jobs WHERE id = stuck.owner FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        PERFORM 1 FROM dailies.leases
        WHERE resource = 'video:' || stuck.about AND (holder IS NULL OR expires_at <= dailies.clock())
        FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        UPDATE dailies.videos AS known_film SET
            state = 'error', version = version + 1, updated_at = dailies.clock(),
            error_code = CASE last.state WHEN 'CANCELED' THEN 'canceled' WHEN 'DONE' THEN 'abandoned'
                ELSE last.error_code END,
            error = CASE last.state WHEN 'CANCELED' THEN 'Its job was canceled'
                WHEN 'DONE' THEN 'Its job ended without saying what became of it' ELSE last.error END
        FROM dailies.jobs AS last
        WHERE known_film.tenant = stuck.tenant AND known_film.video = stuck.video
            AND known_film.state IN ('processing', 'inferring') AND last.id = stuck.owner AND NOT EXISTS (
                SELECT 1 FROM dailies.jobs AS other
                WHERE other.tenant = stuck.tenant AND other.subject = stuck.about
                    AND (other.state IN ('QUEUED', 'PAUSED', 'RUNNING') OR other.updated_at > last.updated_at))
        RETURNING known_film.* INTO film;
        CONTINUE WHEN NOT FOUND;
        UPDATE dailies.leases SET holder = NULL, fence = fence + 1 WHERE resource = 'video:' || stuck.about;
        PERFORM dailies.write_event(
            stuck.owner, 'dailies.video.error', stuck.about, stuck.about || ':' || film.version,
            '{"error_code":' || to_json(film.error_code) || ',"job":' || to_json(stuck.owner)
            || ',"state":' || to_json(film.state) || ',"tenant":' || to_json(film.tenant)
            || ',"version":' || film.version || ',"video":' || to_json(film.video) || '}');
        settled := settled || row_to_json(film);
    END LOOP;
    RETURN dailies.answer(_request, array_to_json(settled)::text);
END $$;

REVOKE ALL ON FUNCTION dailies.video_settle(uuid) FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION dailies.video_settle(uuid) TO service_role;

CREATE OR REPLACE FUNCTION dailies.version() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT '2'
$$;

NOTIFY pgrst, 'reload schema';
