-- Takes back 20261121000001_tables.sql, AND WITH IT EVERY ROW OF THE LEDGER. Without CASCADE for what is not ours: a
-- table that somebody else put into the schema, or hung on one of ours, stops it.

DROP TABLE IF EXISTS dailies.answers, dailies.videos, dailies.inbox, dailies.outbox, dailies.generations, dailies.calls,
    dailies.units, dailies.leases, dailies.runs, dailies.jobs, dailies.tenants;
DROP SCHEMA IF EXISTS dailies;
