-- Takes back 20261121000004_dispatch.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.dispatch_shown;
DROP FUNCTION IF EXISTS dailies.dispatch_unshown;
DROP FUNCTION IF EXISTS dailies.dispatch_jobs_of;
DROP FUNCTION IF EXISTS dailies.dispatch_give_up;
DROP FUNCTION IF EXISTS dailies.dispatch_waiting;
DROP FUNCTION IF EXISTS dailies.dispatch_bind;
DROP FUNCTION IF EXISTS dailies.dispatch_unbound;
DROP FUNCTION IF EXISTS dailies.dispatch_claim;
DROP FUNCTION IF EXISTS dailies.dispatch_candidates;
DROP FUNCTION IF EXISTS dailies.slots;
DROP FUNCTION IF EXISTS dailies.dispatch_rank;
DROP FUNCTION IF EXISTS dailies.dispatch_ranked;
