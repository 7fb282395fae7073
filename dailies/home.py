"""Where the embedded defaults live: one folder, ``$DAILIES_HOME``."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    return Path(os.environ.get("DAILIES_HOME") or Path.home() / ".dailies").expanduser().resolve()
