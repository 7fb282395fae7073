-- What a job leaves behind, each row under its fence: units, calls, generations; and the videos it works on.

CREATE OR REPLACE FUNCTION dailies.unit_find(_key text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce((
        SELECT row_to_json(units)::text FROM dailies.units WHERE key = _key AND state = 'DONE'
        ORDER BY updated_at DESC LIMIT 1), 'null')
$$;

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

-- Reusing one's own finished unit leaves it DONE: it is still the record that others find.
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

CREATE OR REPLACE FUNCTION dailies.unit_of(_job text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(units) ORDER BY position), '[]')::text FROM dailies.units WHERE job = _job
$$;

-- A submission already known comes back. One that came to nothing is intended anew.
CREATE OR REPLACE FUNCTION dailies.call_intend(
    _request uuid, _resource text, _holder text, _fence bigint, _unit text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    call dailies.calls;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to record a call');
    INSERT INTO dailies.calls AS known_call (unit, job, state, fence)
    VALUES (_unit, dailies.job_of(_resource), 'INTENDED', _fence)
    ON CONFLICT (job, unit) DO UPDATE SET
        call_id = CASE WHEN known_call.state IN ('FAILED', 'CANCELED') THEN '' ELSE known_call.call_id END,
        state = CASE WHEN known_call.state IN ('FAILED', 'CANCELED') THEN 'INTENDED' ELSE known_call.state END,
        fence = excluded.fence
    RETURNING * INTO call;
    RETURN dailies.answer(_request, row_to_json(call)::text);
END $$;

-- Without a _call_id the one it has stays.
CREATE OR REPLACE FUNCTION dailies.call_become(
    _request uuid, _resource text, _holder text, _fence bigint, _unit text, _state text, _call_id text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    call dailies.calls;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    IF _state NOT IN ('SUBMITTED', 'DONE', 'FAILED', 'CANCELED') THEN
        PERFORM dailies.refuse('bad_input', format('a call cannot become %s', _state));
    END IF;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to record a call');
    UPDATE dailies.calls SET call_id = coalesce(_call_id, call_id), state = _state
    WHERE job = dailies.job_of(_resource) AND unit = _unit RETURNING * INTO call;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('no call was intended for unit %s of %s', _unit, _resource));
    END IF;
    RETURN dailies.answer(_request, row_to_json(call)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.call_orphans() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(calls)), '[]')::text
    FROM dailies.calls JOIN dailies.jobs ON jobs.id = calls.job
    WHERE calls.state IN ('INTENDED', 'SUBMITTED') AND jobs.state IN ('DONE', 'FAILED', 'CANCELED')
$$;

-- It needs no lease, for nobody holds a final job's; and final is final, so it needs no lock on the job either.
CREATE OR REPLACE FUNCTION dailies.call_reap(_request uuid, _job text, _unit text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    UPDATE dailies.calls SET state = 'CANCELED'
    WHERE job = _job AND unit = _unit AND state IN ('INTENDED', 'SUBMITTED') AND EXISTS (
        SELECT 1 FROM dailies.jobs WHERE jobs.id = calls.job AND jobs.state IN ('DONE', 'FAILED', 'CANCELED'));
    RETURN dailies.answer(_request, 'null');
END $$;

CREATE OR REPLACE FUNCTION dailies.generation_publish(
    _request uuid, _resource text, _holder text, _fence bigint, _key text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to publish');
    INSERT INTO dailies.generations (resource, fence, key) VALUES (_resource, _fence, _key)
    ON CONFLICT (resource, fence) DO UPDATE SET key = excluded.key;
    RETURN dailies.answer(_request, 'null');
END $$;

CREATE OR REPLACE FUNCTION dailies.generation_history(_resource text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(json_build_array(fence, key) ORDER BY fence), '[]')::text
    FROM dailies.generations WHERE resource = _resource
$$;

CREATE OR REPLACE FUNCTION dailies.video_register(_request uuid, _tenant text, _video text, _media_key text)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    film dailies.videos;
    moment double precision := dailies.clock();
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    INSERT INTO dailies.videos (tenant, video, media_key, created_at, updated_at)
    VALUES (_tenant, _video, _media_key, moment, moment) ON CONFLICT DO NOTHING;
    SELECT * INTO STRICT film FROM dailies.videos WHERE tenant = _tenant AND video = _video;
    RETURN dailies.answer(_request, row_to_json(film)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.video_get(_tenant text, _video text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    film dailies.videos;
BEGIN
    SELECT * INTO film FROM dailies.videos WHERE tenant = _tenant AND video = _video;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('tenant %s has no video %s', _tenant, _video));
    END IF;
    RETURN row_to_json(film)::text;
END $$;

CREATE OR REPLACE FUNCTION dailies.video_all(_tenant text, _state text, _limit integer) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(film)), '[]')::text FROM (
        SELECT * FROM dailies.videos WHERE tenant = _tenant AND (_state IS NULL OR state = _state)
        ORDER BY created_at DESC, video LIMIT _limit
    ) AS film
$$;

-- The state machine of videos, as dailies.ledger.records has it.
CREATE OR REPLACE FUNCTION dailies.video_leads(_origin text, _target text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT CASE _origin
        WHEN 'uploaded' THEN _target IN ('processing', 'error')
        WHEN 'processing' THEN _target IN ('awaiting_layout', 'ready', 'error')
        WHEN 'awaiting_layout' THEN _target IN ('processing', 'inferring', 'error')
        WHEN 'inferring' THEN _target IN ('ready', 'error')
        WHEN 'ready' THEN _target IN ('processing', 'inferring', 'error')
        WHEN 'error' THEN _target IN ('processing', 'inferring')
        ELSE false
    END
$$;

-- Name by name, and byte by byte what dailies.canonical makes of it: names in the order of their code points.
CREATE OR REPLACE FUNCTION dailies.merged(_old text, _new text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT '{' || coalesce(string_agg(to_json(key)::text || ':' || value::text, ',' ORDER BY key COLLATE "C"), '') || '}'
    FROM (
        SELECT key, value FROM json_each(_new::json)
        UNION ALL
        SELECT key, value FROM json_each(_old::json)
        WHERE key NOT IN (SELECT json_object_keys(_new::json))
    ) AS every
$$;

-- A change of state is a job's: the job is locked, before the lease, because its event comes among the job's others.
-- The version names the change, so that a video that comes back to a state tells it again.
CREATE OR REPLACE FUNCTION dailies.video_update(
    _request uuid, _resource text, _holder text, _fence bigint, _tenant text, _video text, _state text, _code text,
    _error text, _metadata text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    owner text := (SELECT runs.job FROM dailies.runs WHERE run_id = _holder ORDER BY created_at DESC LIMIT 1);
    before dailies.videos;
    film dailies.videos;
    subject text := _tenant || '/' || _video;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM 1 FROM dailies.jobs WHERE id = owner FOR NO KEY UPDATE;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to change a video');
    SELECT * INTO before FROM dailies.videos WHERE tenant = _tenant AND video = _video FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('there is no %s to change: register it first', _resource));
    ELSIF before.state <> _state AND NOT dailies.video_leads(before.state, _state) THEN
        PERFORM dailies.refuse(
            'illegal_transition', format('%s is %s and cannot become %s now', _resource, before.state, _state));
    ELSIF before.state <> _state AND owner IS NULL THEN
        PERFORM dailies.refuse(
            'missing', format('%s is the run of no job, so it cannot change %s', _holder, _resource));
    END IF;
    UPDATE dailies.videos SET
        version = version + (_state IS NOT NULL AND state <> _state)::integer,
        error_code = CASE WHEN _state IS NULL THEN error_code ELSE _code END,
        error = CASE WHEN _state IS NULL THEN error ELSE _error END,
        state = coalesce(_state, state),
        metadata = dailies.merged(metadata, _metadata),
        updated_at = dailies.clock()
    WHERE tenant = _tenant AND video = _video RETURNING * INTO film;
    IF film.version <> before.version THEN
        PERFORM dailies.write_event(
            owner, 'dailies.video.' || film.state, subject, subject || ':' || film.version,
            '{"error_code":' || to_json(film.error_code) || ',"job":' || to_json(owner)
            || ',"state":' || to_json(film.state) || ',"tenant":' || to_json(film.tenant)
            || ',"version":' || film.version || ',"video":' || to_json(film.video) || '}');
    END IF;
    RETURN dailies.answer(_request, row_to_json(film)::text);
END $$;
