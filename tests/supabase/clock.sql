-- The contract's clock: time stands still until a test advances it.

CREATE SCHEMA tests;
CREATE TABLE tests.clock (now double precision NOT NULL);
INSERT INTO tests.clock VALUES (1000000);
GRANT USAGE ON SCHEMA tests TO service_role;
GRANT SELECT ON tests.clock TO service_role;
CREATE OR REPLACE FUNCTION dailies.clock() RETURNS double precision
LANGUAGE sql VOLATILE SET search_path = '' AS $$ SELECT now FROM tests.clock $$;
