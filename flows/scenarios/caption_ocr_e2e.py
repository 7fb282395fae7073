"""caption-ocr-e2e: captions read again by ten at once, from damaged frames, and by runs that are killed."""

from __future__ import annotations

import random
from typing import Any

from prefect import flow

from flows import caption_ocr, crop_and_infer, process_video
from tasks._step import Step
from tasks.caption_ocr_scenario import killed_while_recording, one_damaged_frame, ten_at_once, undisturbed
from tasks.caption_parts import COMPUTE_POINTS, Starts
from tasks.scenario import Mode, scenario

LANES = 3
STEPS = [step for step in vars(caption_ocr).values() if isinstance(step, Step)]
POINTS = sorted([point for step in STEPS for point in step.points] + list(COMPUTE_POINTS))
RECORDING = [point for point in POINTS if point.startswith("record_readings:")]
PRELOADED = (__name__, process_video.__name__, crop_and_infer.__name__)


@flow(name="caption-ocr-e2e", persist_result=False, timeout_seconds=1800)
def caption_ocr_e2e(mode: Mode = "quick", site: str = "local", seed: int = 0) -> Any:
    """Prove that reading captions again loses nothing, whoever reads at the same time and whatever dies.

    Args:
        mode: quick (one crash point, about a minute) or full (all of them).
        site: Where: 'local', or the name of a 'Dailies site' block that is open to scenarios and serves nothing else.
        seed: Drives every random choice; the journal names it, to replay a run.
    """
    points = POINTS if mode == "full" else [random.Random(seed).choice(RECORDING)]
    with scenario("caption-ocr-e2e", seed, {"mode": mode}, site, PRELOADED) as run, Starts(run) as starts:
        read = undisturbed(run, starts)
        beside = [killed_while_recording.submit(run, read, starts, points, LANES), one_damaged_frame.submit(run, read)]
        ten_at_once(run, read, starts)
        for part in beside:
            part.result()
        run.journal.metric("executions", starts.all if starts.known else None)
    return run.state
