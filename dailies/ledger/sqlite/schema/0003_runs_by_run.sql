CREATE INDEX runs_by_run ON runs (run_id);
