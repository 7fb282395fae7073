"""What a scenario saw: its checks, faults and figures, written so that another machine can judge and replay it.

A journal is written even when the scenario blew up, so nothing that a scenario puts into it may stop it from being
written: values that JSON has no word for are turned into text.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import numbers
import os
import platform
import re
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal, NoReturn, TypeGuard, TypeVar

from dailies.canonical import canonical_json, write_atomically
from dailies.errors import BadInput, Missing

FAULT_LANE = "faults"
_PATH_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_Row = TypeVar("_Row", bound="Check | Fault | Mark")


@dataclass
class Check:
    """One invariant, held against what was seen; ``fix`` is the likely remedy when it fails."""

    name: str
    passed: bool
    expected: Any = None
    actual: Any = None
    fix: str = ""


@dataclass
class Fault:
    """Something broken on purpose; it counts as fired only with evidence."""

    name: str
    armed: bool = True
    fired: int = 0
    evidence: str = ""


@dataclass
class Mark:
    """A moment of the run, or a span of it, in seconds since the start."""

    t: float
    lane: str
    what: str
    until: float | None = None


def expect(name: str, actual: Any, expected: Any, fix: str = "") -> Check:
    """Equal, and known: a value that was never measured (None, NaN) equals nothing."""
    return Check(name, _known(actual) and bool(actual == expected), expected, actual, fix)


def expect_at_most(name: str, actual: float | None, limit: float, fix: str = "") -> Check:
    return Check(name, _finite(actual) and bool(actual <= limit), f"≤ {limit}", actual, fix)


def expect_at_least(name: str, actual: float | None, limit: float, fix: str = "") -> Check:
    return Check(name, _finite(actual) and bool(actual >= limit), f"≥ {limit}", actual, fix)


def _known(value: Any) -> bool:
    return value is not None and not _has_nan(value)


def _has_nan(value: Any) -> bool:
    """Looks inside too: ``[nan] == [nan]`` is true in Python when both are the same object."""
    if isinstance(value, Mapping):
        return any(map(_has_nan, value.values()))
    if isinstance(value, list | tuple | Set):
        return any(map(_has_nan, value))
    return isinstance(value, float) and math.isnan(value)


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


@functools.cache
def commit(file: Path = Path(__file__)) -> str:
    """The commit of the source tree that this file belongs to, ``-dirty`` when it was edited since.

    Elsewhere what ``DAILIES_COMMIT`` says, which an image sets; or nothing.
    """
    folder, name = file.resolve().parent, file.name
    # An installed copy inside somebody's repository is not that repository's source.
    if not _git(folder, "ls-files", "--error-unmatch", name):
        return os.environ.get("DAILIES_COMMIT", "")
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    packages = {name: _package_version(name) for name in ("dailies", "prefect")}
    system = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "kernel": platform.release()}
    return tuple((packages | system).items())


def versions() -> dict[str, str]:
    return dict(_versions())


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Journal:
    """The whole record of one run of a scenario. Its methods may be called from several threads at once."""

    scenario: str
    seed: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: str = ""
    commit: str = field(default_factory=commit)
    versions: dict[str, str] = field(default_factory=versions)
    started: str = field(default_factory=_now)
    duration_s: float = 0.0
    steady_state: dict[str, list[Check]] = field(default_factory=lambda: {"before": [], "after": []})
    faults: list[Fault] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    timeline: list[Mark] = field(default_factory=list)
    skipped: str | None = None
    error: str | None = None
    smoke: dict[str, Any] = field(default_factory=dict)
    """The same in the words of the orchestrator's smoke test, which others read; only where it is set."""
    _zero: float = field(default_factory=time.monotonic, init=False, repr=False, compare=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for part in (self.scenario, self.run_id):
            if not _PATH_PART.fullmatch(part):
                raise BadInput(f"{part!r} cannot name a scenario or a run: letters, digits, dots and dashes only")

    def elapsed(self) -> float:
        return round(time.monotonic() - self._zero, 3)

    def add(self, *checks: Check) -> None:
        with self._lock:
            self.checks.extend(checks)

    def steady(self, when: Literal["before", "after"], *checks: Check) -> None:
        with self._lock:
            self.steady_state[when].extend(checks)

    def check(
        self, name: str, passed: object, expected: Any = True, actual: Any | EllipsisType = ..., fix: str = ""
    ) -> Check:
        """Passes for ``True`` alone: a list of findings is true when it is bad, and None was never computed."""
        seen = passed if actual is ... else actual
        made = Check(name, passed is True and _known(seen), expected, seen, fix)
        self.add(made)
        return made

    def expect(self, name: str, actual: Any, expected: Any, fix: str = "") -> Check:
        made = expect(name, actual, expected, fix)
        self.add(made)
        return made

    def expect_at_most(self, name: str, actual: float | None, limit: float, fix: str = "") -> Check:
        made = expect_at_most(name, actual, limit, fix)
        self.add(made)
        return made

    def fault(self, name: str, fired: int = 0, evidence: str = "") -> Fault:
        """The first call arms it; every later one adds what was seen of it."""
        with self._lock:
            fault = next((known for known in self.faults if known.name == name), None)
            if fault is None:
                fault = Fault(name)
                self.faults.append(fault)
            fault.fired += fired
            fault.evidence = "; ".join(filter(None, (fault.evidence, evidence)))
            if fired:
                self.mark(FAULT_LANE, name)
            return fault

    def mark(self, lane: str, what: str, since: float | None = None) -> float:
        """A moment on the picture, or the span from ``since`` until now; returns now."""
        now = self.elapsed()
        made = Mark(now, lane, what) if since is None else Mark(since, lane, what, until=now)
        with self._lock:
            self.timeline.append(made)
        return now

    @contextmanager
    def span(self, lane: str, what: str) -> Iterator[None]:
        since = self.elapsed()
        try:
            yield
        finally:
            self.mark(lane, what, since)

    def metric(self, name: str, value: Any) -> None:
        with self._lock:
            self.metrics[name] = value

    def artifact(self, reference: str | Path) -> None:
        with self._lock:
            self.artifacts.append(str(reference))

    def skip(self, reason: str) -> None:
        if not reason.strip():
            raise BadInput("a scenario is skipped for a reason: say which")
        self.skipped = reason

    def every_check(self) -> list[tuple[str, Check]]:
        """All checks with where they belong: ``before``, ``run`` or ``after``, in the order of the run."""
        stages = [
            ("before", self.steady_state["before"]),
            ("run", self.checks),
            ("after", self.steady_state["after"]),
        ]
        return [(stage, check) for stage, checks in stages for check in checks]

    def to_json(self) -> bytes:
        with self._lock:
            content = {part.name: plain(getattr(self, part.name)) for part in fields(self) if part.init}
        for mark in content["timeline"]:
            if mark["until"] is None:
                del mark["until"]
        if not content["smoke"]:
            del content["smoke"]
        return canonical_json(content) + b"\n"

    def write(self, home: Path) -> Path:
        """The run's own report first: ``runs/last`` never names a run that has none."""
        content = self.to_json()
        report = home / "runs" / self.scenario / self.run_id / "report.json"
        write_atomically(report, [content])
        write_atomically(home / "runs" / "last" / f"{self.scenario}.json", [content])
        return report


def plain(value: Any) -> Any:
    """The nearest JSON value. What JSON cannot say becomes text, so that evidence is never refused for its type."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name)) for part in fields(value)}
    return plain(str(value))


def read(path: Path) -> Journal:
    """The journal in this file, checked field by field; ``BadInput`` in one line when it is something else."""
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
        return _journal(content)
    except FileNotFoundError:
        raise Missing(f"no journal at {path}") from None
    except (OSError, ValueError, TypeError, LookupError, RecursionError, BadInput) as why:
        raise BadInput(f"{path} is not a scenario's journal: {str(why).splitlines()[0]}") from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


_SHAPE: dict[str, type | tuple[type, ...]] = {
    "scenario": str,
    "run_id": str,
    "status": str,
    "seed": int,
    "commit": str,
    "versions": dict,
    "started": str,
    "duration_s": (int, float),
    "steady_state": dict,
    "faults": list,
    "checks": list,
    "metrics": dict,
    "artifacts": list,
    "error": (str, type(None)),
    "parameters": dict,
    "timeline": list,
    "skipped": (str, type(None)),
    "smoke": dict,
}


def _journal(content: Any) -> Journal:
    if not isinstance(content, dict):
        raise BadInput("it holds no JSON object")
    # What others than us may leave out, because it only helps to replay and to draw.
    content = {"parameters": {}, "timeline": [], "skipped": None, "smoke": {}} | content
    values = {name: _typed(content[name], kind, name) for name, kind in _SHAPE.items() if _present(content, name)}
    steady = values["steady_state"]
    values["steady_state"] = {
        when: _rows(Check, steady[when]) for when in ("before", "after") if _present(steady, when)
    }
    values["faults"] = _rows(Fault, values["faults"])
    values["checks"] = _rows(Check, values["checks"])
    values["timeline"] = _rows(Mark, values["timeline"])
    return Journal(**values)


def _present(content: Mapping[str, Any], name: str) -> bool:
    if name not in content:
        raise BadInput(f"it has no {name!r}")
    return True


def _typed(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        raise BadInput(f"its {name!r} is a {type(value).__name__}")
    return value


_ROW_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "passed": bool,
    "fix": str,
    "armed": bool,
    "fired": int,
    "evidence": str,
    "t": (int, float),
    "lane": str,
    "what": str,
    "until": (int, float, type(None)),
}


def _rows(kind: type[_Row], raw: Sequence[Any]) -> list[_Row]:
    return [_row(kind, item) for item in _typed(raw, list, f"list of {kind.__name__.lower()}s")]


def _row(kind: type[_Row], raw: Any) -> _Row:
    values = {}
    for part in fields(kind):
        if part.name == "until" and "until" not in raw:
            continue
        _present(_typed(raw, dict, kind.__name__.lower()), part.name)
        values[part.name] = _typed(raw[part.name], _ROW_TYPES.get(part.name, object), part.name)
    return kind(**values)
