"""What we connect to, as Prefect blocks: settings with descriptions, and ``open()`` for the thing itself."""
