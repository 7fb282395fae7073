-- Leases, and the life of a job.

CREATE OR REPLACE FUNCTION dailies.lease_acquire(_request uuid, _resource text, _holder text, _ttl double precision)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    -- A run that lost its job may be alive, and gets nothing more. Locked, so that a cancel comes before or after.
    PERFORM 1 FROM dailies.runs WHERE run_id = _holder AND ending <> 'ended' FOR SHARE;
    IF EXISTS (SELECT 1 FROM dailies.runs WHERE run_id = _holder AND ending IN ('crashed', 'cancelled'))
        AND NOT EXISTS (SELECT 1 FROM dailies.runs WHERE run_id = _holder AND ending = '')
    THEN
        PERFORM dailies.refuse('fenced', format('run %s has lost its job, so it cannot lease %s', _holder, _resource));
    END IF;
    RETURN dailies.answer(_request, row_to_json(dailies.take(_resource, _holder, _ttl))::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.lease_renew(
    _request uuid, _resource text, _holder text, _fence bigint, _ttl double precision) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    lease dailies.leases;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    UPDATE dailies.leases SET expires_at = dailies.clock() + _ttl
    WHERE resource = _resource AND fence = _fence AND holder = _holder AND expires_at > dailies.clock()
    RETURNING * INTO lease;
    IF NOT FOUND THEN
        PERFORM dailies.over(_resource, _holder, _fence, 'renewed');
    END IF;
    RETURN dailies.answer(_request, row_to_json(lease)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.lease_release(_request uuid, _resource text, _holder text, _fence bigint)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    UPDATE dailies.leases SET holder = NULL WHERE resource = _resource AND fence = _fence AND holder = _holder;
    IF NOT FOUND THEN
        PERFORM dailies.over(_resource, _holder, _fence, 'released');
    END IF;
    RETURN dailies.answer(_request, 'null');
END $$;

-- A lease that somebody is busy with is left for the next sweep: waiting for several would be against the order.
CREATE OR REPLACE FUNCTION dailies.lease_sweep(_request uuid) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    ended text;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    WITH dead AS (
        SELECT * FROM dailies.leases WHERE holder IS NOT NULL AND expires_at <= dailies.clock()
        ORDER BY resource FOR NO KEY UPDATE SKIP LOCKED
    ), freed AS (
        UPDATE dailies.leases AS lease SET holder = NULL, fence = lease.fence + 1
        FROM dead WHERE lease.resource = dead.resource
    )
    SELECT coalesce(json_agg(row_to_json(dead)), '[]')::text INTO ended FROM dead;
    RETURN dailies.answer(_request, ended);
END $$;

CREATE OR REPLACE FUNCTION dailies.lease_holder(_resource text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce((
        SELECT row_to_json(lease)::text FROM dailies.leases AS lease
        WHERE resource = _resource AND holder IS NOT NULL AND expires_at > dailies.clock()), 'null')
$$;

CREATE OR REPLACE FUNCTION dailies.job_submit(
    _request uuid, _id text, _tenant text, _kind text, _subject text, _params text, _deployment text,
    _max_attempts integer, _base double precision, _boost double precision, _aging boolean, _key text, _digest text,
    _run text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    job dailies.jobs;
    moment double precision := dailies.clock();
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    INSERT INTO dailies.jobs (id, tenant, kind, subject, params, deployment, state, max_attempts, base, boost, aging,
                              idempotency_key, request_digest, created_at, updated_at, available_at)
    VALUES (_id, _tenant, _kind, _subject, _params, _deployment, 'QUEUED', _max_attempts, _base, _boost, _aging,
            _key, _digest, moment, moment, moment)
    ON CONFLICT (tenant, idempotency_key) DO NOTHING
    RETURNING * INTO job;
    IF NOT FOUND THEN
        SELECT * INTO STRICT job FROM dailies.jobs WHERE tenant = _tenant AND idempotency_key = _key;
        IF job.request_digest <> _digest THEN
            PERFORM dailies.refuse(
                'idempotency_conflict',
                format('idempotency key %s was used for another request (job %s)', _key, job.id));
        END IF;
        RETURN dailies.answer(_request, row_to_json(job)::text);
    END IF;
    IF _run <> '' THEN
        INSERT INTO dailies.runs (job, attempt, run_id, created_at) VALUES (_id, 1, _run, moment);
    END IF;
    PERFORM dailies.announce(job);
    RETURN dailies.answer(_request, row_to_json(job)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_get(_job text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    job dailies.jobs;
BEGIN
    SELECT * INTO job FROM dailies.jobs WHERE id = _job;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('there is no job %s', _job));
    END IF;
    RETURN row_to_json(job)::text;
END $$;

CREATE OR REPLACE FUNCTION dailies.job_all(_state text, _limit integer) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(job)), '[]')::text FROM (
        SELECT * FROM dailies.jobs WHERE _state IS NULL OR state = _state ORDER BY created_at DESC, id LIMIT _limit
    ) AS job
$$;

CREATE OR REPLACE FUNCTION dailies.job_start(
    _request uuid, _job text, _attempt integer, _run text, _ttl double precision) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    lease dailies.leases;
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    lease := dailies.take('job:' || _job, _run, _ttl);
    PERFORM 1 FROM dailies.jobs WHERE id = _job FOR NO KEY UPDATE;
    -- Locked, so that no dispatcher writes another run down while this one takes the attempt.
    PERFORM 1 FROM dailies.runs WHERE runs.job = _job AND attempt = _attempt AND run_id IN ('', _run) FOR NO KEY UPDATE;
    IF FOUND THEN
        UPDATE dailies.jobs SET state = 'RUNNING', fence = lease.fence, control = '', updated_at = dailies.clock()
        WHERE id = _job AND attempt = _attempt AND dailies.leads(state, 'RUNNING') RETURNING * INTO job;
    END IF;
    IF NOT FOUND THEN
        PERFORM dailies.cannot_become(_job, 'RUNNING');
    END IF;
    UPDATE dailies.runs SET run_id = _run WHERE runs.job = _job AND attempt = _attempt;
    PERFORM dailies.announce(job);
    RETURN dailies.answer(_request, json_build_object('job', row_to_json(job), 'lease', row_to_json(lease))::text);
END $$;

-- A running job under its lease, which is about to leave RUNNING.
CREATE OR REPLACE FUNCTION dailies.ending(_resource text, _holder text, _fence bigint, _target text)
RETURNS dailies.jobs
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    job dailies.jobs;
BEGIN
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to end its job');
    SELECT * INTO job FROM dailies.jobs WHERE id = dailies.job_of(_resource) FOR NO KEY UPDATE;
    IF NOT FOUND OR job.state <> 'RUNNING' THEN
        PERFORM dailies.cannot_become(dailies.job_of(_resource), _target);
    END IF;
    RETURN job;
END $$;

-- Its event, the lease given back, and the attempt's run ended by itself.
CREATE OR REPLACE FUNCTION dailies.ended(_request uuid, _job dailies.jobs, _attempt integer) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM dailies.announce(_job);
    UPDATE dailies.leases SET holder = NULL WHERE resource = 'job:' || _job.id;
    PERFORM dailies.end_run(_job.id, _attempt, 'ended');
    RETURN dailies.answer(_request, row_to_json(_job)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_done(_request uuid, _resource text, _holder text, _fence bigint, _result text)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    before dailies.jobs;
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    before := dailies.ending(_resource, _holder, _fence, 'DONE');
    UPDATE dailies.jobs SET state = 'DONE', result = _result, message = 'Done', control = '', error_code = '',
        error = '', updated_at = dailies.clock()
    WHERE id = before.id RETURNING * INTO job;
    RETURN dailies.ended(_request, job, before.attempt);
END $$;

-- Without _retry_in it is final. One that was told to pause pauses: what failed was its last step before that.
CREATE OR REPLACE FUNCTION dailies.job_failed(
    _request uuid, _resource text, _holder text, _fence bigint, _code text, _error text, _retry_in double precision)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    before dailies.jobs;
    job dailies.jobs;
    target text := 'FAILED';
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    before := dailies.ending(
        _resource, _holder, _fence, CASE WHEN _retry_in IS NULL THEN 'FAILED' ELSE 'QUEUED' END);
    IF _retry_in IS NOT NULL AND before.crashes + 1 < before.max_attempts THEN
        target := CASE before.control WHEN 'pause' THEN 'PAUSED' ELSE 'QUEUED' END;
    END IF;
    UPDATE dailies.jobs SET state = target, error_code = _code, error = _error, crashes = crashes + 1, control = '',
        attempt = CASE target WHEN 'QUEUED' THEN attempt + 1 ELSE attempt END,
        message = CASE target WHEN 'FAILED' THEN 'Failed' WHEN 'PAUSED' THEN 'Paused'
            ELSE 'Trying again: ' || _error END,
        available_at = CASE WHEN _retry_in IS NULL THEN available_at ELSE dailies.clock() + _retry_in END,
        updated_at = dailies.clock()
    WHERE id = before.id RETURNING * INTO job;
    RETURN dailies.ended(_request, job, before.attempt);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_paused(_request uuid, _resource text, _holder text, _fence bigint) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    before dailies.jobs;
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    before := dailies.ending(_resource, _holder, _fence, 'PAUSED');
    UPDATE dailies.jobs SET state = 'PAUSED', message = 'Paused', control = '', updated_at = dailies.clock()
    WHERE id = before.id RETURNING * INTO job;
    RETURN dailies.ended(_request, job, before.attempt);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_hand_back(
    _request uuid, _resource text, _holder text, _fence bigint, _why text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    before dailies.jobs;
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    before := dailies.ending(_resource, _holder, _fence, 'QUEUED');
    UPDATE dailies.jobs SET state = 'QUEUED', message = _why, control = '', attempt = attempt + 1,
        available_at = dailies.clock(), updated_at = dailies.clock()
    WHERE id = before.id RETURNING * INTO job;
    RETURN dailies.ended(_request, job, before.attempt);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_cancel(_request uuid, _job text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.locked(_job);
    UPDATE dailies.jobs SET state = 'CANCELED', message = 'Canceled', control = '', updated_at = dailies.clock()
    WHERE id = _job AND dailies.leads(state, 'CANCELED') RETURNING * INTO job;
    IF NOT FOUND THEN
        PERFORM dailies.cannot_become(_job, 'CANCELED');
    END IF;
    PERFORM dailies.announce(job);
    PERFORM dailies.end_run(job.id, job.attempt, 'cancelled');
    RETURN dailies.answer(_request, row_to_json(job)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_pause(_request uuid, _job text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.locked(_job);
    UPDATE dailies.jobs SET control = 'pause', updated_at = dailies.clock()
    WHERE id = _job AND state = 'RUNNING' RETURNING * INTO job;
    IF FOUND THEN
        RETURN dailies.answer(_request, row_to_json(job)::text);
    END IF;
    UPDATE dailies.jobs SET state = 'PAUSED', message = 'Paused', updated_at = dailies.clock()
    WHERE id = _job AND dailies.leads(state, 'PAUSED') RETURNING * INTO job;
    IF NOT FOUND THEN
        PERFORM dailies.cannot_become(_job, 'PAUSED');
    END IF;
    PERFORM dailies.announce(job);
    PERFORM dailies.end_run(job.id, job.attempt, 'cancelled');
    RETURN dailies.answer(_request, row_to_json(job)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_resume(_request uuid, _job text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    job dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.locked(_job);
    UPDATE dailies.jobs SET state = 'QUEUED', attempt = attempt + 1, message = '', updated_at = dailies.clock()
    WHERE id = _job AND state = 'PAUSED' RETURNING * INTO job;
    IF NOT FOUND THEN
        PERFORM dailies.cannot_become(_job, 'QUEUED');
    END IF;
    PERFORM dailies.announce(job);
    RETURN dailies.answer(_request, row_to_json(job)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.job_control(_resource text, _holder text, _fence bigint) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    job dailies.jobs;
BEGIN
    SELECT * INTO job FROM dailies.jobs WHERE id = dailies.job_of(_resource);
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('there is no job %s', dailies.job_of(_resource)));
    ELSIF job.state = 'CANCELED' THEN
        RETURN to_json('cancel'::text)::text;
    ELSIF NOT EXISTS (
        SELECT 1 FROM dailies.leases WHERE resource = _resource AND fence = _fence AND holder = _holder
    ) THEN
        PERFORM dailies.refuse('fenced', format('the lease of %s on job %s is over', _holder, job.id));
    END IF;
    RETURN to_json(job.control)::text;
END $$;

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
        PERFORM dailies.end_run(job.id, job.attempt - 1, 'crashed');    -- it may have moved on to the next one already
        PERFORM dailies.end_run(job.id, job.attempt, 'crashed');
        recovered := recovered || row_to_json(job);
    END LOOP;
    RETURN dailies.answer(_request, array_to_json(recovered)::text);
END $$;
