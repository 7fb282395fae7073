"""A stage of an update on a full disk: the limit is the kernel's, for all that the process writes while it lasts."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dailies.catalog.update import run_stage

STAGE, EVIDENCE = "DAILIES_SMOKE_NO_ROOM", "DAILIES_SMOKE_NO_ROOM_LOG"
ROOM = 64 * 1024  # less than any file of a generation


def environment(stage: str, log: Path) -> dict[str, str]:
    return {STAGE: stage, EVIDENCE: str(log)}


def run_stage_without_room(stage: str, update: Mapping[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:
    """What the stage then says is written down: without an error there was room enough, and no fault."""
    if stage != os.environ.get(STAGE):
        return run_stage(stage, update, progress)
    usual, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        return run_stage(stage, update, progress)
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, hard))
        with Path(os.environ[EVIDENCE]).open("a") as file:
            file.write(f"{type(error).__name__}: {error}\n")
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, hard))
