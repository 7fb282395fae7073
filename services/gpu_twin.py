"""Running a scenario's GPU twin, which is a deployment on the work pool ``gpu``."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dailies.compute.modal_token import token_is_missing
from dailies.errors import BadInput
from dailies.home import home
from dailies.scenarios.journal import Journal
from dailies.scenarios.verdict import Verdict, conclude, exit_code, reason
from services import server
from services.progress import ticking
from services.scenarios import check_name

TWINS = {"quick": "gpu-smoke", "full": "gpu-nightly"}


def run(name: str, mode: str, report: Path | None, say: Callable[[str], None]) -> int:
    """The exit status of its verdict. Where nobody can pay for it, it is skipped, with the reason on record."""
    check_name(name)
    if mode not in TWINS:
        raise BadInput(f"there is no mode {mode!r}: choose from {', '.join(TWINS)}")
    if why := token_is_missing():
        return skip(f"{name}-gpu", why, report, say)
    deployment = f"{name}/{TWINS[mode]}"
    with ticking("looking for a Prefect server, or starting one"):
        url = server.connect(quiet=True)
    with ticking(f"{deployment}: see it at {url.removesuffix('/api')}/runs"):
        state = ended(deployment)
    say(f"{deployment}: {state.name}: {state.message}")
    return exit_code(verdict_of(state))


def skip(name: str, why: str, report: Path | None, say: Callable[[str], None]) -> int:
    journal = Journal(scenario=name, seed=0)
    journal.skip(why)
    verdict = conclude(journal)
    path = journal.write(home())
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, report)
    say(f"{name}: {verdict}: {reason(journal)}")
    return exit_code(verdict)


def ended(deployment: str) -> Any:
    from prefect.deployments import arun_deployment

    return asyncio.run(arun_deployment(deployment, as_subflow=False)).state


def verdict_of(state: Any) -> Verdict:
    """The other way round of ``tasks.verdict.final_state``."""
    if state.is_completed():
        return Verdict.SKIPPED if state.name == "Skipped" else Verdict.PASSED
    try:
        return Verdict(state.name.lower())
    except ValueError:
        return Verdict.ERROR
