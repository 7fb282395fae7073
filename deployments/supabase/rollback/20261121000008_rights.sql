-- Takes back 20261121000008_rights.sql: from here on the ledger serves nobody. No row is lost.

DROP POLICY IF EXISTS own_events ON dailies.outbox;
DROP POLICY IF EXISTS own_units ON dailies.units;
DROP POLICY IF EXISTS own_videos ON dailies.videos;
DROP POLICY IF EXISTS own_jobs ON dailies.jobs;
DROP POLICY IF EXISTS own_tenant ON dailies.tenants;
DROP FUNCTION IF EXISTS dailies.tenant;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA dailies FROM PUBLIC, authenticated, service_role;
REVOKE ALL ON ALL TABLES IN SCHEMA dailies FROM authenticated, service_role;
REVOKE ALL ON SCHEMA dailies FROM authenticated, service_role;

NOTIFY pgrst, 'reload schema';
