"""A Prefect API without its background services, as fast as it gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import settings
from prefect.settings import get_current_settings, temporary_settings
from prefect.testing.utilities import prefect_test_harness

FAST = {
    settings.PREFECT_SERVER_ANALYTICS_ENABLED: False,
    settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    settings.PREFECT_LOGGING_TO_API_ENABLED: False,
    settings.PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
    settings.PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
    settings.PREFECT_API_BLOCKS_REGISTER_ON_START: False,
    settings.PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_FOREMAN_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED: False,
    settings.PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED: False,
}


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """Its address. No task runs and no events can be read from it."""
    with temporary_settings({settings.PREFECT_HOME: home, **FAST}), prefect_test_harness(server_startup_timeout=120):
        url = get_current_settings().api.url
        assert url
        yield url
