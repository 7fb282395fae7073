-- Takes back 20261121000002_foundation.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.end_run;
DROP FUNCTION IF EXISTS dailies.announce;
DROP FUNCTION IF EXISTS dailies.write_event;
DROP FUNCTION IF EXISTS dailies.event_id;
DROP FUNCTION IF EXISTS dailies.cannot_become;
DROP FUNCTION IF EXISTS dailies.locked;
DROP FUNCTION IF EXISTS dailies.leads;
DROP FUNCTION IF EXISTS dailies.take;
DROP FUNCTION IF EXISTS dailies.hold;
DROP FUNCTION IF EXISTS dailies.over;
DROP FUNCTION IF EXISTS dailies.job_of;
DROP FUNCTION IF EXISTS dailies.answer;
DROP FUNCTION IF EXISTS dailies.answered;
DROP FUNCTION IF EXISTS dailies.refuse;
DROP FUNCTION IF EXISTS dailies.clock;
