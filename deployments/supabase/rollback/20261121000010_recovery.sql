-- Takes back 20261121000010_recovery.sql: its functions are again what they were before. No row is lost.

CREATE OR REPLACE FUNCTION dailies.announce(_job dailies.jobs, _recovery boolean DEFAULT false) RETURNS void
LANGUAGE sql SET search_path = '' AS $$
    SELECT dailies.write_event(
        _job.id, 'dailies.job.' || lower(_job.state), _job.subject, _job.attempt::text,
        '{"attempt":' || _job.attempt || ',"error_code":' || to_json(_job.error_code) || ',"job":' || to_json(_job.id)
        || ',"kind":' || to_json(_job.kind) || ',"message":' || to_json(_job.message)
        || ',"recovery":' || to_json(_recovery) || ',"state":' || to_json(_job.state)
        || ',"tenant":' || to_json(_job.tenant) || '}')
$$;

CREATE OR REPLACE FUNCTION dailies.job_recover(_request uuid) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    lost text;
    job dailies.jobs;
    recovered json[] := '{}';
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    DELETE FROM dailies.answers WHERE request IN (
        SELECT request FROM dailies.answers WHERE at < dailies.clock() - 3600 LIMIT 5000 FOR UPDATE SKIP LOCKED);
    FOR lost IN
        SELECT id FROM dailies.jobs WHERE state = 'RUNNING' AND NOT EXISTS (
            SELECT 1 FROM dailies.leases
            WHERE resource = 'job:' || id AND holder IS NOT NULL AND expires_at > dailies.clock())
        ORDER BY id
    LOOP
        PERFORM 1 FROM dailies.leases
        WHERE resource = 'job:' || lost AND (holder IS NULL OR expires_at <= dailies.clock())
        FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND AND EXISTS (SELECT 1 FROM dailies.leases WHERE resource = 'job:' || lost);
        UPDATE dailies.jobs SET
            state = CASE WHEN control = 'pause' THEN 'PAUSED' WHEN crashes + 1 < max_attempts THEN 'QUEUED'
                ELSE 'FAILED' END,
            attempt = CASE WHEN control = '' AND crashes + 1 < max_attempts THEN attempt + 1 ELSE attempt END,
            crashes = CASE WHEN control = 'pause' THEN crashes ELSE crashes + 1 END,
            message = CASE WHEN control = 'pause' THEN 'Paused'
                WHEN crashes + 1 < max_attempts THEN 'Recovered after restart' ELSE 'Failed' END,
            error_code = CASE WHEN control = '' AND crashes + 1 >= max_attempts THEN 'died' ELSE error_code END,
            error = CASE WHEN control = '' AND crashes + 1 >= max_attempts
                THEN format('its worker died in each of %s attempts', max_attempts) ELSE error END,
            control = '', updated_at = dailies.clock(), available_at = dailies.clock()
        WHERE id = lost AND state = 'RUNNING' RETURNING * INTO job;
        CONTINUE WHEN NOT FOUND;
        PERFORM dailies.announce(job, true);
        PERFORM dailies.end_run(job.id, job.attempt - 1, 'crashed');    -- it may have moved on to the next one already
        PERFORM dailies.end_run(job.id, job.attempt, 'crashed');
        recovered := recovered || row_to_json(job);
    END LOOP;
    RETURN dailies.answer(_request, array_to_json(recovered)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.unit_begin(
    _request uuid, _resource text, _holder text, _fence bigint, _key text, _step text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    unit dailies.units;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to begin a unit');
    INSERT INTO dailies.units AS known_unit (job, key, step, state, fence, attempts, updated_at)
    VALUES (dailies.job_of(_resource), _key, _step, 'RUNNING', _fence, 1, dailies.clock())
    ON CONFLICT (job, key) DO UPDATE
        SET state = 'RUNNING', fence = excluded.fence, attempts = known_unit.attempts + 1,
            updated_at = excluded.updated_at
    RETURNING * INTO unit;
    RETURN dailies.answer(_request, row_to_json(unit)::text);
END $$;

DROP FUNCTION IF EXISTS dailies.unit_complete(uuid, text, text, bigint, text, text, text, text, boolean, text, text);
CREATE OR REPLACE FUNCTION dailies.unit_complete(
    _request uuid, _resource text, _holder text, _fence bigint, _key text, _step text, _digest text, _result text,
    _reused boolean) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    unit dailies.units;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to complete a unit');
    INSERT INTO dailies.units AS known_unit
        (job, key, step, state, fence, attempts, reuses, digest, result, updated_at)
    VALUES (dailies.job_of(_resource), _key, _step, CASE WHEN _reused THEN 'REUSED' ELSE 'DONE' END, _fence, 0,
            _reused::integer, _digest, _result, dailies.clock())
    ON CONFLICT (job, key) DO UPDATE
        SET state = CASE WHEN known_unit.state = 'DONE' THEN 'DONE' ELSE excluded.state END,
            fence = excluded.fence, reuses = known_unit.reuses + excluded.reuses, digest = excluded.digest,
            result = excluded.result, updated_at = excluded.updated_at
    RETURNING * INTO unit;
    RETURN dailies.answer(_request, row_to_json(unit)::text);
END $$;

DROP FUNCTION IF EXISTS dailies.tell_recovery;

REVOKE ALL ON FUNCTION dailies.unit_complete(uuid, text, text, bigint, text, text, text, text, boolean)
    FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION dailies.unit_complete(uuid, text, text, bigint, text, text, text, text, boolean)
    TO service_role;

CREATE OR REPLACE FUNCTION dailies.version() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT '2'
$$;

NOTIFY pgrst, 'reload schema';
