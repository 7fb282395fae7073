"""The configuration, without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from services.doctor.finding import Finding, Visit

HIDDEN = "********"
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"://\S*@|\b(authorization|bearer|basic)\b|(key|token|secret|password|passwd|sig|signature)[\"']?\s*[=:]",
    re.IGNORECASE,
)
CREDENTIALS = re.compile(r"://[^/\s]*@")


def configuration(_visit: Visit) -> Iterator[Finding]:
    ours = sorted(name for name in os.environ if name.startswith(("DAILIES_", "PREFECT_")))
    for name in ours:
        yield Finding("configuration", name, HIDDEN if secret(name, os.environ[name]) else os.environ[name])
    if not ours:
        yield Finding("configuration", "variables", "no DAILIES_… or PREFECT_… is set")


def secret(name: str, value: str) -> bool:
    return bool(SECRET_NAME.search(name) or SECRET_VALUE.search(value))


def hide_secrets(findings: Iterable[Finding]) -> list[Finding]:
    """Errors quote addresses, and addresses hold passwords: no finding may repeat what configuration hides."""
    ours = [(name, value) for name, value in os.environ.items() if name.startswith(("DAILIES_", "PREFECT_"))]
    # A word as short as "true" is in half of all sentences.
    hidden = sorted((value for name, value in ours if secret(name, value) and len(value) >= 6), key=len, reverse=True)

    def clean(text: str) -> str:
        for value in hidden:
            text = text.replace(value, HIDDEN)
        return CREDENTIALS.sub(f"://{HIDDEN}@", text)

    return [replace(finding, value=clean(finding.value), fix=clean(finding.fix)) for finding in findings]
