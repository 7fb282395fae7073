"""transcribe-media as workers must not have it, for job-recovery to find out: it breaks the product where it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from prefect import flow

from dailies.ledger.sqlite.jobs import SqliteJobs
from dailies.ledger.sqlite.units import SqliteUnits
from flows import transcribe_media

LOOK_S = 0.2


@flow(name="transcribe-media-that-is-tied-deaf-and-forgetful", persist_result=False)
def tied_deaf_and_forgetful(
    tenant: str,
    media_key: str,
    engine: str = "dtmf",
    language: str | None = None,
    track: int | None = None,
    parallel: int = 2,
    site: str = "local",
    patience_s: float = 30.0,
) -> Any:
    """It dies with its worker, does not hand its job back when it is told to stop, and finds no unit again."""
    threading.Thread(target=die_with, args=[os.getppid()], daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteJobs, "hand_back", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        patch.setattr(SqliteUnits, "find", lambda *_: None)
        return transcribe_media.transcribe_media.fn(
            tenant=tenant,
            media_key=media_key,
            engine=engine,
            language=language,
            track=track,
            parallel=parallel,
            site=site,
            patience_s=patience_s,
        )


def die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)
