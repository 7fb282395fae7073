"""What orchestrator-smoke leaves for people: its logs, and the report in the words of the original's smoke test."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dailies.canonical import write_atomically
from dailies.events import schemas
from dailies.home import home
from dailies.ledger.records import Event
from dailies.scenarios.journal import Journal
from dailies.scenarios.verdict import Verdict, reason
from tasks import smoke_checks as checks
from tasks.scenario import Scenario
from tasks.smoke_catalogs import NOBODY, Ran
from tasks.smoke_rows import tables

LOGS = ("smoke.log", "worker.log", "whitelist-http.log")
LAST = "last-report.json"
WORKDIR = "workdir"
RUNNING = "dailies.job.running"


def folder_of(journal: Journal) -> Path:
    return home() / "runs" / journal.scenario / journal.run_id


def begin(journal: Journal) -> None:
    """What it says if the scenario dies on the way."""
    journal.smoke |= {
        "run_id": journal.run_id,
        "status": "running",
        "error": None,
        "host_count": 0,
        "checks": {},
        "timings_ms": {},
        "failure_scenarios": {},
        "metrics": {},
        "artifacts": [],
    }


def save(run: Scenario, keep_workdir: bool) -> None:
    """Before the scenario's folder goes: what its children said, and the catalogues if somebody wants them."""
    folder = folder_of(run.journal)
    folder.mkdir(parents=True, exist_ok=True)
    children = sorted((run.place / "logs").glob("*.log"))
    parts = [f"──── {path.stem} ────\n{path.read_text(errors='replace')}\n" for path in children]
    (folder / "worker.log").write_text("".join(parts))
    asked = run.place / "whitelist-http.log"
    (folder / "whitelist-http.log").write_bytes(asked.read_bytes() if asked.exists() else b"")
    if keep_workdir and (run.place / "catalogs").is_dir():
        shutil.copytree(run.place / "catalogs", folder / WORKDIR)


def finish(journal: Journal) -> None:
    """When the verdict is there. ``pass`` is said of nothing but a scenario that passed."""
    folder = folder_of(journal)
    passed = journal.status == Verdict.PASSED
    (folder / "smoke.log").write_text("".join(f"{line}\n" for line in told(journal)))
    artifacts = [str(folder / name) for name in (*LOGS, WORKDIR) if (folder / name).exists()]
    journal.smoke |= {
        "status": "pass" if passed else "fail",
        "error": None if passed else reason(journal),
        "artifacts": artifacts,
    }
    report = journal.write(home())
    write_atomically(folder.parent / LAST, [report.read_bytes()])


def told(journal: Journal) -> list[str]:
    """The run as it went, and then what was found."""
    marks = sorted(journal.timeline, key=lambda mark: mark.t)
    return [
        *(f"{mark.t:8.2f} action=mark lane={mark.lane!r} what={mark.what!r} until={mark.until}" for mark in marks),
        *(f"action=fault name={each.name!r} fired={each.fired} evidence={each.evidence!r}" for each in journal.faults),
        *(
            f"action=check passed={check.passed} stage={stage} name={check.name!r}"
            + ("" if check.passed else f" expected={check.expected!r} actual={check.actual!r} fix={check.fix!r}")
            for stage, check in journal.every_check()
        ),
        f"action=verdict status={journal.status} reason={reason(journal)!r}",
    ]


# ── the update that nothing befell ────────────────────────────────────────────────────────────────────────────────────


def say(journal: Journal, ran: Ran, hosts: int) -> None:
    """What the original's smoke test says of its main run, under the names that it has there."""
    old, staged, new = tables(ran.old), tables(ran.staging), tables(ran.new)
    totals = checks.totals(ran.folder, ran.meta)
    journal.smoke["host_count"] = hosts
    journal.smoke["checks"] |= {
        "ann_meta_total": {"expected": totals["embeddings"], "actual": totals["meta"]},
        **{f"duplicates.{table}": count for table, count in checks.duplicates(ran.new).items()},
        **{
            f"delta.{table}": {
                "expected": len(staged[table].keys() - old[table].keys()),
                "actual": len(new[table].keys() - old[table].keys()),
            }
            for table in old
        },
        "main.lock_released": ran.catalogue.holder == NOBODY,
        "main.integrity_check": checks.integrity(ran.new),
    }
    journal.smoke["timings_ms"] = {"worker_total": round(ran.seconds * 1000), "stages": stage_times(ran.events)}
    journal.smoke["metrics"] = {
        "before": checks.row_counts(ran.old),
        "after": checks.row_counts(ran.new),
        "staging": checks.row_counts(ran.staging),
    }


def stage_times(events: Sequence[Event]) -> dict[str, int]:
    """From the event before; of the first stage, from the start of the run."""
    times: dict[str, int] = {}
    last = next((event.time for event in events if event.type == RUNNING), None)
    for event in events:
        if event.type == schemas.CATALOG_STAGE and last is not None:
            times[str(event.data["stage"])] = round((event.time - last) * 1000)
            last = event.time
    return times
