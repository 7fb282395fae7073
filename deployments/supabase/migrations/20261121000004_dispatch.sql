-- Which job next, and the book of flow runs that attempts were given to. How urgent a job is, dailies.ledger.priority
-- says, in the client: here is what it needs to know, and the claim.

CREATE OR REPLACE FUNCTION dailies.dispatch_ranked() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(waiting)), '[]')::text FROM (
        SELECT jobs.*, tenants.tier, moment.now - jobs.created_at AS waited
        FROM (SELECT dailies.clock() AS now) AS moment, dailies.jobs LEFT JOIN dailies.tenants USING (tenant)
        WHERE state = 'QUEUED' AND available_at <= moment.now
            AND NOT EXISTS (SELECT 1 FROM dailies.runs WHERE runs.job = jobs.id AND runs.attempt = jobs.attempt)
    ) AS waiting
$$;

CREATE OR REPLACE FUNCTION dailies.dispatch_rank(_job text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    answer text;
BEGIN
    SELECT json_build_object('tier', tenants.tier, 'waited', dailies.clock() - created_at)::text INTO answer
    FROM dailies.jobs LEFT JOIN dailies.tenants USING (tenant) WHERE id = _job;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('there is no job %s', _job));
    END IF;
    RETURN answer;
END $$;

-- A slot is taken from the moment a job is claimed, not from when its run gets round to starting.
CREATE OR REPLACE FUNCTION dailies.slots() RETURNS TABLE (job text, tenant text)
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT jobs.id, jobs.tenant FROM dailies.jobs
    WHERE state = 'RUNNING' OR state = 'QUEUED' AND EXISTS (
        SELECT 1 FROM dailies.runs WHERE runs.job = jobs.id AND runs.attempt = jobs.attempt AND runs.ending = '')
$$;

-- Who has slots, and who might get the next one. Among jobs of one tenant with the same boosts the oldest ranks highest,
-- so the first few of each such group are all that can be next: the answer stays short however long the queue is.
CREATE OR REPLACE FUNCTION dailies.dispatch_candidates() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT json_build_object(
        'busy', (
            SELECT coalesce(json_object_agg(tenant, slots), '{}') FROM (
                SELECT tenant, count(*) AS slots FROM dailies.slots() GROUP BY tenant) AS taken),
        'waiting', (
            SELECT coalesce(json_agg(row_to_json(first)), '[]') FROM (
                SELECT id, attempt, jobs.tenant, tenants.tier, base, boost, aging, created_at,
                    moment.now - created_at AS waited,
                    row_number() OVER (PARTITION BY jobs.tenant, base, boost, aging ORDER BY created_at, id) AS place
                FROM (SELECT dailies.clock() AS now) AS moment, dailies.jobs LEFT JOIN dailies.tenants USING (tenant)
                WHERE state = 'QUEUED' AND available_at <= moment.now
                    AND NOT EXISTS (SELECT 1 FROM dailies.runs WHERE runs.job = jobs.id AND runs.attempt = jobs.attempt)
            ) AS first WHERE place <= 8)
    )::text
$$;

-- Claim the first of _wanted ([[job, attempt, tenant], …]) that fits. Dispatchers take turns: two who counted the same
-- free slot would both fill it.
CREATE OR REPLACE FUNCTION dailies.dispatch_claim(_request uuid, _wanted text, _total integer, _per_tenant integer)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    wish json;
    claimed dailies.jobs;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('dailies'), hashtext('dispatch'));
    FOR wish IN SELECT value FROM json_array_elements(_wanted::json)
    LOOP
        EXIT WHEN (SELECT count(*) FROM dailies.slots()) >= _total;
        CONTINUE WHEN (SELECT count(*) FROM dailies.slots() WHERE tenant = wish ->> 2) >= _per_tenant;
        SELECT * INTO claimed FROM dailies.jobs
        WHERE id = wish ->> 0 AND attempt = (wish ->> 1)::integer AND state = 'QUEUED' FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        INSERT INTO dailies.runs (job, attempt, created_at) VALUES (claimed.id, claimed.attempt, dailies.clock())
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN dailies.answer(_request, row_to_json(claimed)::text);
        END IF;
    END LOOP;
    RETURN dailies.answer(_request, 'null');
END $$;

CREATE OR REPLACE FUNCTION dailies.dispatch_unbound(_older_than double precision) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(jobs)), '[]')::text
    FROM dailies.jobs JOIN dailies.runs ON runs.job = jobs.id AND runs.attempt = jobs.attempt
    WHERE jobs.state = 'QUEUED' AND run_id = '' AND ending = '' AND runs.created_at <= dailies.clock() - _older_than
$$;

CREATE OR REPLACE FUNCTION dailies.dispatch_bind(_request uuid, _job text, _attempt integer, _run text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    UPDATE dailies.runs SET run_id = _run WHERE job = _job AND attempt = _attempt AND run_id = '';
    RETURN dailies.answer(_request, 'null');
END $$;

CREATE OR REPLACE FUNCTION dailies.dispatch_waiting(_older_than double precision) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(runs) ORDER BY runs.created_at), '[]')::text
    FROM dailies.runs JOIN dailies.jobs ON jobs.id = runs.job AND jobs.attempt = runs.attempt
    WHERE jobs.state = 'QUEUED' AND run_id <> '' AND ending = '' AND runs.created_at <= dailies.clock() - _older_than
$$;

-- With a _code it is final at once.
CREATE OR REPLACE FUNCTION dailies.dispatch_give_up(
    _request uuid, _job text, _attempt integer, _code text, _error text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    before dailies.jobs;
    given_up dailies.jobs;
    hopeless boolean;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    before := dailies.locked(_job);
    IF before.id IS NULL OR before.attempt <> _attempt OR before.state <> 'QUEUED' THEN
        RETURN dailies.answer(_request, 'null');
    END IF;
    hopeless := _code IS NOT NULL OR before.crashes + 1 >= before.max_attempts;
    UPDATE dailies.jobs SET state = CASE WHEN hopeless THEN 'FAILED' ELSE 'QUEUED' END,
        attempt = CASE WHEN hopeless THEN attempt ELSE attempt + 1 END, crashes = crashes + 1,
        error_code = CASE WHEN hopeless THEN coalesce(_code, 'timed_out') ELSE error_code END,
        error = CASE WHEN hopeless THEN coalesce(_error, 'its runs never started') ELSE error END,
        message = 'Its run never started', updated_at = dailies.clock()
    WHERE id = _job RETURNING * INTO given_up;
    PERFORM dailies.announce(given_up, true);
    PERFORM dailies.end_run(_job, _attempt, 'crashed');
    RETURN dailies.answer(_request, row_to_json(given_up)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.dispatch_jobs_of(_run text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(jobs.id), '[]')::text
    FROM dailies.jobs JOIN dailies.runs ON runs.job = jobs.id AND runs.attempt = jobs.attempt
    WHERE run_id = _run AND run_id <> ''
$$;

CREATE OR REPLACE FUNCTION dailies.dispatch_unshown() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(runs) ORDER BY created_at), '[]')::text
    FROM dailies.runs WHERE ending IN ('crashed', 'cancelled') AND NOT shown
$$;

CREATE OR REPLACE FUNCTION dailies.dispatch_shown(_request uuid, _job text, _attempt integer) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    UPDATE dailies.runs SET shown = true WHERE job = _job AND attempt = _attempt;
    RETURN dailies.answer(_request, 'null');
END $$;
