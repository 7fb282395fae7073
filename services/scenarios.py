"""Running a scenario from the command line."""

from __future__ import annotations

import importlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dailies.errors import BadInput, DailiesError
from dailies.home import home
from services import server
from services.progress import ticking

if TYPE_CHECKING:
    from prefect import Flow

SCENARIOS = {
    "caption-ocr-e2e": "flows.scenarios.caption_ocr_e2e:caption_ocr_e2e",
    "crop-infer-e2e": "flows.scenarios.crop_infer_e2e:crop_infer_e2e",
    "job-recovery": "flows.scenarios.job_recovery:job_recovery",
    "lock-contention": "flows.scenarios.lock_contention:lock_contention",
    "orchestrator-smoke": "flows.scenarios.orchestrator_smoke:orchestrator_smoke",
    "video-processing-e2e": "flows.scenarios.video_processing_e2e:video_processing_e2e",
}


def run(
    name: str,
    options: Mapping[str, str],
    pairs: Sequence[str],
    report: Path | None,
    say: Callable[[str], None],
) -> int:
    """The exit status of the verdict."""
    check_name(name)
    given = {**options, **dict(pair_of(pair) for pair in pairs)}
    flow = load(name)
    parameters = checked(flow, given)
    with ticking("looking for a Prefect server, or starting one"):
        url = server.connect(quiet=True)
    before = time.time()
    with ticking(f"{name}: see it at {url.removesuffix('/api')}/runs"):
        state = flow(**parameters, return_state=True)
    return conclude(name, state, before, report, say)


def check_name(name: str) -> None:
    if name not in SCENARIOS:
        raise BadInput(f"there is no scenario {name!r}: choose from {', '.join(sorted(SCENARIOS))}")


def pair_of(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise BadInput(f"-p needs KEY=VALUE, not {text!r}")
    return key, value


def load(name: str) -> Flow[..., Any]:
    module, function = SCENARIOS[name].split(":")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), function)
    return flow


def checked(flow: Flow[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The parameters as the flow will see them; a wrong one is named with what is wrong about it."""
    from prefect.exceptions import ParameterTypeError
    from pydantic import ValidationError

    known = flow.parameters.properties
    for name in given:
        if name not in known:
            raise BadInput(f"{flow.name} has no parameter {name!r}: it has {', '.join(known)}")
    log = logging.getLogger("prefect.flows")
    try:
        log.disabled = True  # it would say the same at length
        return flow.validate_parameters(dict(given))
    except (ValidationError, ParameterTypeError) as error:
        what = str(error).split("- ", 1)[-1]
        raise BadInput(f"a parameter of {flow.name} is wrong: {' '.join(what.split())}") from None
    finally:
        log.disabled = False


def conclude(name: str, state: Any, since: float, report: Path | None, say: Callable[[str], None]) -> int:
    from dailies.scenarios.journal import read
    from dailies.scenarios.verdict import Verdict, exit_code, reason

    path = home() / "runs" / "last" / f"{name}.json"
    if not path.exists() or path.stat().st_mtime < since:  # never an earlier run's verdict
        failure = state.result(raise_on_failure=False)
        known = isinstance(failure, DailiesError)
        raise failure if known else DailiesError(f"{name} left no journal: {state.message}")
    journal = read(path)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, report)
    say(f"{name}: {journal.status} in {journal.duration_s:.0f} s: {reason(journal)}")
    for stage, check in journal.every_check():
        if not check.passed:
            say(f"  failed ({stage}): {check.name}: expected {check.expected}, got {check.actual}. {check.fix}")
    say(f"  the journal is {report or path}")
    return exit_code(Verdict(journal.status))
