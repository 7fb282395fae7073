-- Who may do what. A ledger is used with the service key, by workers; a tenant's own users read what is theirs.
--
-- Nobody else has a grant, and nobody else has a policy: either is enough to keep them out.

-- The tenant of whoever asks, as the project's auth put it into the token. Users cannot change app_metadata.
CREATE OR REPLACE FUNCTION dailies.tenant() RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT nullif(current_setting('request.jwt.claims', true), '')::json -> 'app_metadata' ->> 'tenant'
$$;

GRANT USAGE ON SCHEMA dailies TO authenticated, service_role;
REVOKE ALL ON ALL TABLES IN SCHEMA dailies FROM PUBLIC, anon, authenticated;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dailies FROM PUBLIC, anon, authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dailies TO service_role;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA dailies TO service_role;
GRANT SELECT ON dailies.tenants, dailies.jobs, dailies.units, dailies.outbox, dailies.videos TO authenticated;
GRANT EXECUTE ON FUNCTION dailies.tenant() TO authenticated;     -- the policies call it in their name

-- (SELECT …) is evaluated once a statement, not once a row.
DROP POLICY IF EXISTS own_tenant ON dailies.tenants;
CREATE POLICY own_tenant ON dailies.tenants FOR SELECT TO authenticated
    USING (tenant = (SELECT dailies.tenant()));
DROP POLICY IF EXISTS own_jobs ON dailies.jobs;
CREATE POLICY own_jobs ON dailies.jobs FOR SELECT TO authenticated
    USING (tenant = (SELECT dailies.tenant()));
DROP POLICY IF EXISTS own_videos ON dailies.videos;
CREATE POLICY own_videos ON dailies.videos FOR SELECT TO authenticated
    USING (tenant = (SELECT dailies.tenant()));
DROP POLICY IF EXISTS own_units ON dailies.units;
CREATE POLICY own_units ON dailies.units FOR SELECT TO authenticated
    USING (EXISTS (SELECT 1 FROM dailies.jobs WHERE jobs.id = job AND jobs.tenant = (SELECT dailies.tenant())));
DROP POLICY IF EXISTS own_events ON dailies.outbox;
CREATE POLICY own_events ON dailies.outbox FOR SELECT TO authenticated
    USING (EXISTS (SELECT 1 FROM dailies.jobs WHERE jobs.id = job AND jobs.tenant = (SELECT dailies.tenant())));

NOTIFY pgrst, 'reload schema';
