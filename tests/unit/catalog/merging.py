"""What every test of a merge begins with: a staging of one host, and a production of twenty videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.catalog.rows import T0, add, instance, production, staging

NOW = T0 + 1000


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    path = staging(tmp_path / "staging.db", NOW)
    add(path, "instances", instance())
    return path


@pytest.fixture
def prod(tmp_path: Path) -> Path:
    return production(tmp_path / "catalog.db", videos=20)
