"""The settings under which every Prefect process of ours runs."""

from __future__ import annotations

import os

SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
}
NOT_TRACKED = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED")


def environment(**more: str) -> dict[str, str]:
    """What the user has set wins over our defaults, and ``more`` over both."""
    return {**SETTINGS, **os.environ, **more}
