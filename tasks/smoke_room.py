"""An update on a full disk: the limit is the kernel's, for all that a process writes while one stage of it lasts."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dailies.catalog.update import make_current, run_stage
from dailies.errors import DailiesError

STAGE, EVIDENCE = "DAILIES_SMOKE_NO_ROOM", "DAILIES_SMOKE_NO_ROOM_LOG"
PUBLISH = "publish"  # no stage: it happens in the run itself
ROOM = 64 * 1024  # less than any file of a generation
LITTLE = {"begin", "instances", "channels", "counts", "complete", PUBLISH}  # these need less, and find no room at all


def environment(stage: str, log: Path) -> dict[str, str]:
    return {STAGE: stage, EVIDENCE: str(log)}


def run_stage_without_room(stage: str, update: Mapping[str, Any], progress: Callable[[float], None]) -> dict[str, Any]:
    with little_room(stage):
        return run_stage(stage, update, progress)


def publish_without_room(*asked: Any) -> None:
    with little_room(PUBLISH):
        make_current(*asked)


@contextmanager
def little_room(stage: str) -> Iterator[None]:
    """What the stage then says is written down: without an error there was room enough, and no fault."""
    if stage != os.environ.get(STAGE):
        yield
        return
    usual, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if stage in LITTLE else ROOM, hard))
    try:
        yield
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, hard))
        note(error)
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, hard))


def note(error: Exception) -> None:
    path = Path(os.environ[EVIDENCE])
    path.parent.mkdir(parents=True, exist_ok=True)
    code = error.code if isinstance(error, DailiesError) else type(error).__name__
    with path.open("a") as file:
        file.write(f"{code}: {error}\n")
