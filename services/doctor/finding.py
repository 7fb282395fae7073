"""A finding, whoever examined, and how it is shown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from dailies.errors import DailiesError


@dataclass(frozen=True)
class Finding:
    """``ok`` None is information, neither good nor bad."""

    area: str
    name: str
    value: str
    ok: bool | None = None
    fix: str = ""


@dataclass
class Visit:
    """What all examinations are told: the site to look at, and the Prefect server once it is found."""

    site: str
    deadline: float
    url: str = ""
    answers: bool = False


class Examination(threading.Thread):
    """A daemon: one that hangs keeps neither the others nor the end of the process waiting."""

    def __init__(self, area: str, findings: Callable[[], Iterable[Finding]]) -> None:
        super().__init__(name=area, daemon=True)
        self._findings = findings
        self._found: list[Finding] = []

    def run(self) -> None:
        try:
            for finding in self._findings():
                self._found.append(finding)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is what doctor was asked to find out
            self._found.append(Finding(self.name, "examination", one_line(error), False))

    def result(self, deadline: float) -> list[Finding]:
        self.join(max(0.0, deadline - time.monotonic()))
        found = [*self._found]
        if self.is_alive():
            found.append(Finding(self.name, "examination", "no answer in time", False, "see whether it answers at all"))
        return found


def healthy(findings: Iterable[Finding]) -> bool:
    return not any(finding.ok is False for finding in findings)


def to_json(findings: list[Finding]) -> str:
    return json.dumps({"ok": healthy(findings), "findings": [asdict(finding) for finding in findings]}, indent=2)


def render(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", padding=(0, 2, 0, 0))
    for heading in ("", "area", "what", "found"):
        table.add_column(heading, overflow="fold")
    marks = {True: Text("ok", "green"), False: Text("BAD", "bold red"), None: Text("·", "dim")}
    for number, finding in enumerate(findings):
        first = number == 0 or findings[number - 1].area != finding.area
        found = Text(finding.value)
        if finding.fix:
            found.append(f"\n→ {finding.fix}", "yellow")
        table.add_row(marks[finding.ok], Text(finding.area if first else "", "bold"), Text(finding.name), found)
    return table


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, DailiesError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""
