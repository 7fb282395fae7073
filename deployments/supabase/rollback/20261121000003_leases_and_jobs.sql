-- Takes back 20261121000003_leases_and_jobs.sql. No row is lost.

DROP FUNCTION IF EXISTS dailies.job_recover;
DROP FUNCTION IF EXISTS dailies.job_control;
DROP FUNCTION IF EXISTS dailies.job_resume;
DROP FUNCTION IF EXISTS dailies.job_pause;
DROP FUNCTION IF EXISTS dailies.job_cancel;
DROP FUNCTION IF EXISTS dailies.job_hand_back;
DROP FUNCTION IF EXISTS dailies.job_paused;
DROP FUNCTION IF EXISTS dailies.job_failed;
DROP FUNCTION IF EXISTS dailies.job_done;
DROP FUNCTION IF EXISTS dailies.ended;
DROP FUNCTION IF EXISTS dailies.ending;
DROP FUNCTION IF EXISTS dailies.job_start;
DROP FUNCTION IF EXISTS dailies.job_all;
DROP FUNCTION IF EXISTS dailies.job_get;
DROP FUNCTION IF EXISTS dailies.job_submit;
DROP FUNCTION IF EXISTS dailies.lease_holder;
DROP FUNCTION IF EXISTS dailies.lease_sweep;
DROP FUNCTION IF EXISTS dailies.lease_release;
DROP FUNCTION IF EXISTS dailies.lease_renew;
DROP FUNCTION IF EXISTS dailies.lease_acquire;
