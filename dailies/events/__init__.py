"""Getting events out of the outbox to whoever listens: at least once, in order for each job."""
