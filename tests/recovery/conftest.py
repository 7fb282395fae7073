"""`pytest tests/recovery --coverage`: which lines of the product a recovery has really passed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pytest_cov.plugin import CovPlugin

MEASURED = ("dailies", "tasks", "flows")
# Children that are forked leave without a word, and programs are Python of their own: what they ran counts as well. Who
# is killed can save nothing, and here many are. The file is one of its own: the layers that add up theirs keep it.
SETTINGS = """
[run]
data_file = {data}
parallel = true
patch = subprocess, fork, _exit
source = {source}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--coverage", action="store_true", help=f"report the line coverage of {', '.join(MEASURED)}")


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """Measured from before the first test until after the report. Who asked for ``--cov`` as well gets only that."""
    if not config.getoption("coverage") or config.pluginmanager.hasplugin("_cov"):
        return (yield)
    with TemporaryDirectory(prefix="coverage-") as folder:
        helping = hasattr(config, "workerinput")
        choose(config, Path(config.workerinput["recovery_coverage"]) if helping else written(Path(folder)))
        config.pluginmanager.register(CovPlugin(config.option, config.pluginmanager, start=not helping), "_cov")
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Whoever helps saves what it saw beside what the others did."""
    node.workerinput["recovery_coverage"] = node.config.option.cov_config


def written(folder: Path) -> Path:
    settings = folder / "coveragerc"
    settings.write_text(SETTINGS.format(data=folder / "coverage", source=",".join(MEASURED)))
    return settings


def choose(config: pytest.Config, settings: Path) -> None:
    config.option.cov_source = list(MEASURED)
    config.option.cov_config = str(settings)
