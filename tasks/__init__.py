"""The steps: each gives a function of ``dailies`` its name, retries, timeout and crash points."""
