"""From a journal to a verdict, by rules that cannot be argued with, and to what people read.

The verdict is computed from the checks and faults each time; a journal's ``status`` only records it.
"""

from __future__ import annotations

import shlex
from enum import StrEnum
from typing import Any

from dailies.canonical import canonical_json
from dailies.scenarios.journal import Check, Fault, Journal, plain
from dailies.scenarios.picture import timeline_png

__all__ = ["Verdict", "check_table", "conclude", "exit_code", "judge", "reason", "render_markdown", "timeline_png"]

CLIP = 200


class Verdict(StrEnum):
    PASSED = "passed"
    VIOLATED = "violated"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"
    ERROR = "error"


_EXIT_CODES = {
    Verdict.PASSED: 0,
    Verdict.VIOLATED: 1,
    Verdict.ERROR: 2,
    Verdict.INCONCLUSIVE: 3,
    Verdict.SKIPPED: 4,
}


def exit_code(verdict: Verdict) -> int:
    return _EXIT_CODES[verdict]


def judge(journal: Journal) -> Verdict:
    """The worst that is true. A broken invariant counts even when the fault never fired; silence never passes."""
    return _judge(journal)[0]


def reason(journal: Journal) -> str:
    """Why ``judge`` says what it says, in one line."""
    return _judge(journal)[1]


def conclude(journal: Journal) -> Verdict:
    """Call once, at the very end, clean-up included: fixes the duration and the status."""
    journal.duration_s = journal.elapsed()
    verdict = judge(journal)
    journal.status = verdict.value
    return verdict


def _judge(journal: Journal) -> tuple[Verdict, str]:
    if journal.error is not None:
        return Verdict.ERROR, _one_line(journal.error) or "an error without a message"
    if broken := [check.name for check in _failed(journal)]:
        return Verdict.VIOLATED, f"{len(broken)} of {_checks(len(journal.every_check()))} failed: {', '.join(broken)}"
    if journal.skipped is not None:
        return Verdict.SKIPPED, _one_line(journal.skipped)
    if doubt := _doubt(journal):
        return Verdict.INCONCLUSIVE, doubt
    fired = sum(fault.fired for fault in journal.faults)
    return Verdict.PASSED, f"{_checks(len(journal.every_check()))} held, faults fired {fired}×"


def _doubt(journal: Journal) -> str:
    """Why green checks would prove nothing here."""
    for fault in journal.faults:
        if fault.armed and fault.fired < 1:
            return f"the fault {fault.name!r} never fired"
        if fault.armed and not fault.evidence.strip():
            return f"the fault {fault.name!r} is said to have fired, without evidence"
    if not journal.checks:
        return "nothing was checked"
    for when in ("before", "after"):
        if not journal.steady_state[when]:
            return f"the steady state was not checked {when} the fault"
    return ""


def _failed(journal: Journal) -> list[Check]:
    return [check for _, check in journal.every_check() if check.passed is not True]


def _checks(count: int) -> str:
    return "1 check" if count == 1 else f"{count} checks"


def check_table(journal: Journal) -> list[dict[str, str]]:
    """One row a check: the failed ones first, then what the scenario is about, then the steady state around it."""
    rows = sorted(journal.every_check(), key=lambda row: (row[1].passed is True, row[0] != "run"))
    return [
        {
            "result": "passed" if check.passed is True else "FAILED",
            "check": check.name,
            "stage": stage,
            "expected": _text(check.expected),
            "actual": _text(check.actual),
            "likely fix": "" if check.passed is True else check.fix,
        }
        for stage, check in rows
    ]


def replay(journal: Journal) -> str:
    """The command that runs the same again."""
    words = ["dailies", "scenario", journal.scenario, "--seed", str(journal.seed)]
    for name, value in sorted(journal.parameters.items()):
        if name != "seed":
            words += ["-p", f"{name}={_text(value, clip=None)}"]
    return shlex.join(words)


def render_markdown(journal: Journal) -> str:
    """A summary for people: what failed and what to do about it comes first."""
    verdict, why = _judge(journal)
    sections = [
        f"# {journal.scenario}: {verdict.value}",
        f"{_cell(why)}.",
        _facts(journal),
        f"Run it again:\n\n```\n{replay(journal)}\n```",
        _section("Failed checks", [_failure(check) for check in _failed(journal)]),
        _section("Faults", [_fault(fault) for fault in journal.faults]),
        _section("Metrics", _metrics(journal)),
        _section("Checks that held", [f"- {_cell(name)}" for name in _held(journal)]),
        _section("Artifacts", [f"- {_code(each)}" for each in journal.artifacts]),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _facts(journal: Journal) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(journal.versions.items()) if version)
    return "\n".join(
        [
            f"- seed {journal.seed}, run {_code(journal.run_id)}",
            f"- started {journal.started}, took {journal.duration_s:.1f} s",
            f"- commit {_code(journal.commit or 'unknown')}; {versions}",
        ]
    )


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def _failure(check: Check) -> str:
    fix = f" Likely fix: {_cell(check.fix)}." if check.fix else ""
    return f"- **{_cell(check.name)}**: expected {_code(check.expected)}, got {_code(check.actual)}.{fix}"


def _fault(fault: Fault) -> str:
    state = f"fired {fault.fired}×" if fault.fired else "never fired" if fault.armed else "not armed"
    return f"- **{_cell(fault.name)}** {state}: {_cell(fault.evidence) or 'no evidence'}"


def _metrics(journal: Journal) -> list[str]:
    rows = [f"| {_cell(name)} | {_cell(_text(value))} |" for name, value in sorted(journal.metrics.items())]
    return ["| metric | value |", "|---|---|", *rows] if rows else []


def _held(journal: Journal) -> list[str]:
    return [f"{check.name} ({stage})" for stage, check in journal.every_check() if check.passed is True]


def _text(value: Any, clip: int | None = CLIP) -> str:
    value = plain(value)
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return text if clip is None or len(text) <= clip else text[: clip - 1] + "…"


def _code(value: Any) -> str:
    return f"`{_one_line(_text(value)).replace('`', chr(39)) or ' '}`"


def _cell(text: str) -> str:
    """Evidence may hold anything; it must not open a column or a line of its own."""
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())
