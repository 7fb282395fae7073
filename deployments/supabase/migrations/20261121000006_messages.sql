-- Events out and in, and tenants.

-- An event of a running job that is no state change. The job is locked, so that its events keep their order.
CREATE OR REPLACE FUNCTION dailies.outbox_emit(
    _request uuid, _resource text, _holder text, _fence bigint, _kind text, _occasion text, _data text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
    about text;
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    PERFORM dailies.hold(_resource, _holder, _fence, 'used to emit an event');
    SELECT subject INTO about FROM dailies.jobs WHERE id = dailies.job_of(_resource) FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM dailies.refuse('missing', format('there is no job %s', dailies.job_of(_resource)));
    END IF;
    PERFORM dailies.write_event(dailies.job_of(_resource), _kind, about, _occasion, _data);
    RETURN dailies.answer(_request, 'null');
END $$;

CREATE OR REPLACE FUNCTION dailies.outbox_pending(_limit integer) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(event)), '[]')::text FROM (
        SELECT * FROM dailies.outbox WHERE NOT delivered ORDER BY seq LIMIT _limit
    ) AS event
$$;

-- _ids is a JSON list. Locked in one order, for two relays may have delivered the same events.
CREATE OR REPLACE FUNCTION dailies.outbox_delivered(_request uuid, _ids text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    UPDATE dailies.outbox SET delivered = true WHERE seq IN (
        SELECT seq FROM dailies.outbox WHERE id IN (SELECT json_array_elements_text(_ids::json)) AND NOT delivered
        ORDER BY seq FOR NO KEY UPDATE);
    RETURN dailies.answer(_request, 'null');
END $$;

-- A number that another one follows whenever an event is committed or delivered. Not the newest seq alone: a lower one
-- may be committed after it. The newest thousand are enough, for they were all under way together.
CREATE OR REPLACE FUNCTION dailies.outbox_mark() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT hashtextextended(
        coalesce((SELECT max(seq) FROM dailies.outbox)::text, '') || ':' || coalesce(string_agg(seq::text, ','), ''), 0
    )::text
    FROM (SELECT seq FROM dailies.outbox WHERE NOT delivered ORDER BY seq DESC LIMIT 1000) AS newest
$$;

CREATE OR REPLACE FUNCTION dailies.outbox_of(_job text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(json_agg(row_to_json(outbox) ORDER BY seq), '[]')::text FROM dailies.outbox WHERE job = _job
$$;

CREATE OR REPLACE FUNCTION dailies.inbox_accept(_request uuid, _source text, _event text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    INSERT INTO dailies.inbox (source, id) VALUES (_source, _event) ON CONFLICT DO NOTHING;
    RETURN dailies.answer(_request, to_json(FOUND)::text);
END $$;

CREATE OR REPLACE FUNCTION dailies.tenant_set_tier(_request uuid, _tenant text, _tier text) RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known text := dailies.answered(_request);
BEGIN
    IF known IS NOT NULL THEN
        RETURN known;
    END IF;
    INSERT INTO dailies.tenants (tenant, tier) VALUES (_tenant, _tier)
    ON CONFLICT (tenant) DO UPDATE SET tier = excluded.tier;
    RETURN dailies.answer(_request, 'null');
END $$;

CREATE OR REPLACE FUNCTION dailies.tenant_tier(_tenant text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce((SELECT to_json(tier)::text FROM dailies.tenants WHERE tenant = _tenant), 'null')
$$;
