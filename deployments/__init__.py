"""Where and when: what a Prefect server must know of us."""
