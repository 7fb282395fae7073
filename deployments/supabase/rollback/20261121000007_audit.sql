-- Takes back 20261121000007_audit.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.version;
DROP FUNCTION IF EXISTS dailies.audit;
