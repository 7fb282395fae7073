-- What is told of a recovery, and of a unit; and what counts as beginning a unit again.

-- After the event of the state that it goes with, and like that one once in an attempt. Names in their order: the data
-- are the bytes that SQLite's ledger writes.
CREATE OR REPLACE FUNCTION dailies.tell_recovery(_job dailies.jobs, _what text) RETURNS void
LANGUAGE sql SET search_path = '' AS $$
    SELECT dailies.write_event(
        _job.id, 'dailies.recovery.' || _what, _job.subject, _job.attempt::text,
        '{"attempt":' || _job.attempt || ',"event":' || to_json('recovery_' || _what) || ',"job_id":' || to_json(_job.id)
        || ',"message":' || to_json(CASE _what WHEN 'started' THEN 'Recovered after restart'
            WHEN 'completed' THEN 'Recovery completed' ELSE 'Recovery failed: ' || _job.error END)
        || ',"recovery":true'
        || CASE _what WHEN 'started' THEN ',"recovery_type":"lease_expired"}'
            WHEN 'completed' THEN ',"recovery_result":"success"}' ELSE ',"recovery_result":"failed"}' END)
$$;

-- A state is entered at most once in an attempt, so (state, attempt) names the transition. Names in their order: the
-- data are the bytes that SQLite's ledger writes. A job that was recovered once tells how that went when it ends by
-- itself.
CREATE OR REPLACE FUNCTION dailies.announce(_job dailies.jobs, _recovery boolean DEFAULT false) RETURNS void
LANGUAGE sql SET search_path = '' AS $$
    SELECT dailies.write_event(
        _job.id, 'dailies.job.' || lower(_job.state), _job.subject, _job.attempt::text,
        '{"attempt":' || _job.attempt || ',"error_code":' || to_json(_job.error_code) || ',"job":' || to_json(_job.id)
        || ',"kind":' || to_json(_job.kind) || ',"message":' || to_json(_job.message)
        || ',"recovery":' || to_json(_recovery) || ',"state":' || to_json(_job.state)
        || ',"tenant":' || to_json(_job.tenant) || '}');
    SELECT dailies.tell_recovery(_job, CASE _job.state WHEN 'DONE' THEN 'completed' ELSE 'failed' END)
    WHERE _job.state IN ('DONE', 'FAILED') AND EXISTS (
        SELECT 1 FROM dailies.outbox WHERE job = _job.id AND type = 'dailies.recovery.started')
$$;

-- A job that was told to pause pauses: its holder died before it could. What others are busy with is left for the next
-- time. Answers are forgotten here: who lost a reply gave up within seconds, not within an hour.
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
        IF job.state = 'QUEUED' THEN
            PERFORM dailies.tell_recovery(job, 'started');
        ELSIF job.state = 'FAILED' THEN     -- also one that never got another attempt
            PERFORM dailies.tell_recovery(job, 'failed');
        END IF;
        PERFORM dailies.end_run(job.id, job.attempt - 1, 'crashed');    -- it may have moved on to the next one already
        PERFORM dailies.end_run(job.id, job.attempt, 'crashed');
        recovered := recovered || row_to_json(job);
    END LOOP;
    RETURN dailies.answer(_request, array_to_json(recovered)::text);
END $$;

-- Beginning it again under the same fence, before it ended, is the same attempt at it.
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
        SET state = 'RUNNING', fence = excluded.fence, updated_at = excluded.updated_at,
            attempts = known_unit.attempts
                + (known_unit.state <> 'RUNNING' OR known_unit.fence <> excluded.fence)::integer
    RETURNING * INTO unit;
    RETURN dailies.answer(_request, row_to_json(unit)::text);
END $$;

-- Reusing one's own finished unit leaves it DONE: it is still the record that others find. With a _kind it is told of;
-- the job is locked for that, so that its events keep their order. Without one it is called as before.
DROP FUNCTION IF EXISTS dailies.unit_complete(uuid, text, text, bigint, text, text, text, text, boolean);
CREATE OR REPLACE FUNCTION dailies.unit_complete(
    _request uuid, _resource text, _holder text, _fence bigint, _key text, _step text, _digest text, _result text,
    _reused boolean, _kind text DEFAULT NULL, _data text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    unit dailies.units;
    about text;
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
    IF _kind IS NOT NULL THEN
        SELECT subject INTO about FROM dailies.jobs WHERE id = unit.job FOR NO KEY UPDATE;
        PERFORM dailies.write_event(unit.job, _kind, about, _key, _data);
    END IF;
    RETURN dailies.answer(_request, row_to_json(unit)::text);
END $$;

REVOKE ALL ON FUNCTION dailies.tell_recovery(dailies.jobs, text) FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION dailies.tell_recovery(dailies.jobs, text) TO service_role;
REVOKE ALL ON FUNCTION dailies.unit_complete(uuid, text, text, bigint, text, text, text, text, boolean, text, text)
    FROM PUBLIC, anon, authenticated;
GRANT EXECUTE ON FUNCTION dailies.unit_complete(uuid, text, text, bigint, text, text, text, text, boolean, text, text)
    TO service_role;

CREATE OR REPLACE FUNCTION dailies.version() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT '3'
$$;

NOTIFY pgrst, 'reload schema';
