"""What the work is, in plain Python. Nothing in here knows Prefect."""
