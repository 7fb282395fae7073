"""Whether Modal may be asked at all: looked up without its client, which takes most of a second to import."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

HOW = "set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or run `modal token new`"


def token_is_missing() -> str:
    """What to do about it; empty where there is a token."""
    if os.environ.get("MODAL_TOKEN_ID") and os.environ.get("MODAL_TOKEN_SECRET"):
        return ""
    path = Path(os.environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml").expanduser()
    try:
        profiles = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        profiles = {}
    if any(isinstance(profile, dict) and profile.get("token_id") for profile in profiles.values()):
        return ""
    return f"no Modal token is configured: {HOW}"
