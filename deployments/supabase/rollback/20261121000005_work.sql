-- Takes back 20261121000005_work.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.video_update;
DROP FUNCTION IF EXISTS dailies.merged;
DROP FUNCTION IF EXISTS dailies.video_leads;
DROP FUNCTION IF EXISTS dailies.video_all;
DROP FUNCTION IF EXISTS dailies.video_get;
DROP FUNCTION IF EXISTS dailies.video_register;
DROP FUNCTION IF EXISTS dailies.generation_history;
DROP FUNCTION IF EXISTS dailies.generation_publish;
DROP FUNCTION IF EXISTS dailies.call_reap;
DROP FUNCTION IF EXISTS dailies.call_orphans;
DROP FUNCTION IF EXISTS dailies.call_become;
DROP FUNCTION IF EXISTS dailies.call_intend;
DROP FUNCTION IF EXISTS dailies.unit_of;
DROP FUNCTION IF EXISTS dailies.unit_complete;
DROP FUNCTION IF EXISTS dailies.unit_begin;
DROP FUNCTION IF EXISTS dailies.unit_find;
