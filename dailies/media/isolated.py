"""The media functions as a child process runs them: paths and plain values in, plain values out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dailies.media.contact_sheet import contact_sheet
from dailies.media.probe import Probe, probe


def probe_file(path: str, accept_damaged: bool, progress: Callable[[float], None]) -> dict[str, Any]:
    return probe(Path(path), progress=progress, accept_damaged=accept_damaged).to_json()


def contact_sheet_file(path: str, described: str, out: str) -> int:
    return Path(out).write_bytes(contact_sheet(Path(path), Probe.from_json(json.loads(described))))
