"""For every test: nothing may be logged at ERROR unasked, and what was skipped is counted, with the reason."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _errors_are_expected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that logs at ERROR, in whichever logger, unless it says that it expects to.

    Caught where records are made: a handler would miss the loggers that do not propagate, some of Prefect's among them,
    and would be swept away whenever logging is set up anew.
    """
    make = logging.getLogRecordFactory()
    records: list[logging.LogRecord] = []

    def remember(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.levelno >= logging.ERROR:
            records.append(record)
        return record

    logging.setLogRecordFactory(remember)
    yield
    logging.setLogRecordFactory(make)
    if records and not request.node.get_closest_marker("expects_errors"):
        said = "\n".join(f"  {record.name}: {record.getMessage()}" for record in records)
        pytest.fail(f"logged at ERROR; mark the test expects_errors if it must:\n{said}", pytrace=False)


@pytest.fixture(scope="session")
def fast_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all layers: Prefect's client sends its events to the first server that a process has seen."""
    from tests.prefect_api import serving  # unit tests need no Prefect, which takes seconds to import

    with serving(tmp_path_factory.mktemp("prefect")) as url:
        yield url


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr) for report in skipped
    )
    terminalreporter.section(f"{len(skipped)} skipped", sep="-")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4d}  {reason.removeprefix('Skipped: ')}")
