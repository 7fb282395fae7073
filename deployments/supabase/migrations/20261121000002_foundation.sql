-- What every function of the ledger stands on.
--
-- READ COMMITTED lets others commit between two statements of one transaction, so who decides first locks. The order is
-- everywhere the same, and nobody waits against it:
--     the request → the dispatch → the lease on job:<id> → the job → its runs → other leases, by name
-- The clock is read after whatever had to be waited for. Arguments begin with _ and are never mistaken for columns.
-- Every function answers JSON as text: no limit on rows is put on it, and nothing on the way reads numbers into doubles.

-- The only clock. Not now(): that is when the transaction began, before it waited for its locks.
CREATE OR REPLACE FUNCTION dailies.clock() RETURNS double precision
LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT extract(epoch FROM clock_timestamp())::double precision
$$;

-- A refusal. PT409 and its like are PostgREST's way to name the HTTP status; the detail names the error of Dailies.
CREATE OR REPLACE FUNCTION dailies.refuse(_code text, _message text, _more json DEFAULT '{}') RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = CASE _code WHEN 'missing' THEN 'PT404' WHEN 'bad_input' THEN 'PT400' WHEN 'transient' THEN 'PT503'
            ELSE 'PT409' END,
        MESSAGE = _message,
        DETAIL = json_build_object('code', _code, 'more', _more)::text;
END $$;

-- The answer that this request got before, if its reply was lost. One that is still under way is waited for.
CREATE OR REPLACE FUNCTION dailies.answered(_request uuid) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(_request::text, 0));
    RETURN (SELECT answer FROM dailies.answers WHERE request = _request);
END $$;

CREATE OR REPLACE FUNCTION dailies.answer(_request uuid, _answer text) RETURNS text
LANGUAGE sql SET search_path = '' AS $$
    INSERT INTO dailies.answers (request, answer, at) VALUES (_request, coalesce(_answer, 'null'), dailies.clock())
    RETURNING answer
$$;

CREATE OR REPLACE FUNCTION dailies.job_of(_resource text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT regexp_replace(_resource, '^job:', '')
$$;

-- Why a lease could not be used: said after the decision, never to decide.
CREATE OR REPLACE FUNCTION dailies.over(_resource text, _holder text, _fence bigint, _what text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    lease dailies.leases;
    reason text;
BEGIN
    SELECT * INTO lease FROM dailies.leases WHERE resource = _resource;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('%s was never leased, so it cannot be %s', _resource, _what));
    ELSIF lease.fence > _fence THEN
        reason := format('it was taken over (fence %s is past %s)', lease.fence, _fence);
    ELSIF lease.holder IS NULL THEN
        reason := 'it was released';
    ELSIF lease.holder <> _holder THEN
        reason := format('it belongs to %s', lease.holder);
    ELSIF lease.expires_at <= dailies.clock() THEN
        reason := 'it expired';
    ELSE
        reason := 'no such fence was given out';
    END IF;
    PERFORM dailies.refuse(
        'fenced', format('the lease of %s on %s cannot be %s: %s', _holder, _resource, _what, reason));
END $$;

-- What every fenced write begins with. The row stays locked until it commits: whoever wants to take over waits for it,
-- and one that waited for a takeover finds the new fence here. A current fence is enough, also past its ttl.
CREATE OR REPLACE FUNCTION dailies.hold(_resource text, _holder text, _fence bigint, _what text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM 1 FROM dailies.leases WHERE resource = _resource AND fence = _fence AND holder = _holder FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM dailies.over(_resource, _holder, _fence, _what);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION dailies.take(_resource text, _holder text, _ttl double precision) RETURNS dailies.leases
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    lease dailies.leases;
BEGIN
    INSERT INTO dailies.leases AS known (resource, holder, fence, expires_at)
    VALUES (_resource, _holder, 1, dailies.clock() + _ttl)
    ON CONFLICT (resource) DO UPDATE
        SET holder = excluded.holder, fence = known.fence + 1, expires_at = dailies.clock() + _ttl
        WHERE known.holder IS NULL OR known.expires_at <= dailies.clock()
    RETURNING known.* INTO lease;
    IF NOT FOUND THEN
        SELECT * INTO lease FROM dailies.leases WHERE resource = _resource;
        PERFORM dailies.refuse(
            'held',
            format('%s is held by %s', _resource, lease.holder),
            json_build_object('resource', _resource, 'by', lease.holder,
                              'expires_in', greatest(lease.expires_at - dailies.clock(), 0)));
    END IF;
    RETURN lease;
END $$;

-- The state machine, as dailies.ledger.records has it.
CREATE OR REPLACE FUNCTION dailies.leads(_origin text, _target text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT CASE _origin
        WHEN 'QUEUED' THEN _target IN ('RUNNING', 'PAUSED', 'FAILED', 'CANCELED')
        WHEN 'PAUSED' THEN _target IN ('QUEUED', 'CANCELED')
        WHEN 'RUNNING' THEN _target IN ('DONE', 'FAILED', 'CANCELED', 'PAUSED', 'QUEUED')
        ELSE false
    END
$$;

-- The job under the locks that a change of its state needs.
CREATE OR REPLACE FUNCTION dailies.locked(_job text) RETURNS dailies.jobs
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    job dailies.jobs;
    leased boolean;
BEGIN
    PERFORM 1 FROM dailies.leases WHERE resource = 'job:' || _job FOR NO KEY UPDATE;
    leased := FOUND;
    SELECT * INTO job FROM dailies.jobs WHERE id = _job FOR NO KEY UPDATE;
    IF NOT leased AND EXISTS (SELECT 1 FROM dailies.leases WHERE resource = 'job:' || _job) THEN
        -- Its very first lease was given out between the two: waiting for that one now would be against the order.
        PERFORM dailies.refuse('transient', format('job %s was started at this very moment', _job));
    END IF;
    RETURN job;
END $$;

CREATE OR REPLACE FUNCTION dailies.cannot_become(_job text, _target text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    job dailies.jobs;
BEGIN
    SELECT * INTO job FROM dailies.jobs WHERE id = _job;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('there is no job %s', _job));
    END IF;
    PERFORM dailies.refuse(
        'illegal_transition',
        format('job %s is %s in attempt %s and cannot become %s now', _job, job.state, job.attempt, _target));
END $$;

-- The same transition gives the same id as dailies.ledger.records.event_id, whoever computes it.
CREATE OR REPLACE FUNCTION dailies.event_id(_source text, _subject text, _kind text, _occasion text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT left(encode(sha256(convert_to(
        '[' || to_json(_source) || ',' || to_json(_subject) || ',' || to_json(_kind) || ',' || to_json(_occasion) || ']',
        'UTF8')), 'hex'), 32)
$$;

CREATE OR REPLACE FUNCTION dailies.write_event(_job text, _kind text, _subject text, _occasion text, _data text)
RETURNS void
LANGUAGE sql SET search_path = '' AS $$
    INSERT INTO dailies.outbox (id, source, type, subject, job, time, data)
    VALUES (dailies.event_id('dailies/ledger', _job, _kind, _occasion), 'dailies/ledger', _kind, _subject, _job,
            dailies.clock(), _data)
    ON CONFLICT (id) DO NOTHING
$$;

-- A state is entered at most once in an attempt, so (state, attempt) names the transition. Names in their order: the
-- data are the bytes that SQLite's ledger writes.
CREATE OR REPLACE FUNCTION dailies.announce(_job dailies.jobs, _recovery boolean DEFAULT false) RETURNS void
LANGUAGE sql SET search_path = '' AS $$
    SELECT dailies.write_event(
        _job.id, 'dailies.job.' || lower(_job.state), _job.subject, _job.attempt::text,
        '{"attempt":' || _job.attempt || ',"error_code":' || to_json(_job.error_code) || ',"job":' || to_json(_job.id)
        || ',"kind":' || to_json(_job.kind) || ',"message":' || to_json(_job.message)
        || ',"recovery":' || to_json(_recovery) || ',"state":' || to_json(_job.state)
        || ',"tenant":' || to_json(_job.tenant) || '}')
$$;

-- Write down how the attempt ended. One that ended by itself has told Prefect, and gives its leases back itself. From
-- any other one everything is taken that it still holds: it may be alive, and must not publish any more.
CREATE OR REPLACE FUNCTION dailies.end_run(_job text, _attempt integer, _ending text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    run text;
BEGIN
    UPDATE dailies.runs SET ending = _ending, shown = _ending = 'ended'
    WHERE job = _job AND attempt = _attempt AND ending = '' RETURNING run_id INTO run;
    IF FOUND AND _ending <> 'ended' THEN
        PERFORM 1 FROM dailies.leases WHERE holder = run ORDER BY resource FOR NO KEY UPDATE;
        UPDATE dailies.leases SET holder = NULL, fence = fence + 1 WHERE holder = run;
    END IF;
END $$;
