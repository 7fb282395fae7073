-- Takes back 20261121000006_messages.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.tenant_tier;
DROP FUNCTION IF EXISTS dailies.tenant_set_tier;
DROP FUNCTION IF EXISTS dailies.inbox_accept;
DROP FUNCTION IF EXISTS dailies.outbox_of;
DROP FUNCTION IF EXISTS dailies.outbox_mark;
DROP FUNCTION IF EXISTS dailies.outbox_delivered;
DROP FUNCTION IF EXISTS dailies.outbox_pending;
DROP FUNCTION IF EXISTS dailies.outbox_emit;
