"""video-processing-e2e: an upload comes to its layout, and whatever breaks on the way is seen, mended and paid once."""

from __future__ import annotations

from typing import Any, cast

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.process_video import process_video
from tasks.bad_day import NO_VIDEO, bad_day, chosen
from tasks.scenario import Mode, scenario
from tasks.video_processing import break_it, executions, refuse_what_is_no_video, through_a_worker, undisturbed

AT_ONCE = 3
PARTS = {NO_VIDEO: refuse_what_is_no_video}


@flow(
    name="video-processing-e2e",
    persist_result=False,
    timeout_seconds=1800,
    task_runner=cast(Any, ThreadPoolTaskRunner(max_workers=AT_ONCE)),
)
def video_processing_e2e(mode: Mode = "quick", site: str = "local", faults: str = "", seed: int = 0) -> Any:
    """Prove that an upload comes to its layout, and that what breaks on the way is seen and mended.

    Args:
        mode: quick (about a minute: three faults that the seed chooses) or full (all of them, and a real worker).
        site: Where: 'local', or the name of a 'Dailies site' block that is open to scenarios and serves nothing else.
        faults: Which faults, by name, with commas between; by default what the mode says.
        seed: Drives every random choice; the journal names it, to replay a run.
    """
    names = chosen(faults, mode, seed)
    parameters = {"mode": mode, "faults": faults}
    with scenario("video-processing-e2e", seed, parameters, site, preload=(__name__,)) as run:
        # Its supervisor must be gone before the others' jobs are there: it would begin them itself.
        made = through_a_worker(run) if mode == "full" else {}
        first = undisturbed.submit(run)
        parts = {name: PARTS.get(name, break_it).with_options(task_run_name=name).submit(run, name) for name in names}
        made |= {name: part.result() for name, part in parts.items()}
        fix = "what is made must not depend on the attempt, the clock or the order: see DESIGN 3.8"
        for name, content in made.items():
            run.journal.expect(f"{name}: the files are an undisturbed run's", content, first.result(), fix)
        run.journal.metric("executions", executions(run))
        run.journal.metric("faults_fired", {fault.name: fault.fired for fault in run.journal.faults})
    return run.state


@flow(name="process-video-on-a-bad-day", persist_result=False)
def process_video_on_a_bad_day(tenant: str, media_key: str, site: str = "local", patience_s: float = 30.0) -> Any:
    """process-video as it is, on connections that break where this process's failpoints say so.

    Args:
        tenant: Whose upload it is.
        media_key: The upload, as TENANT/client/videos/VIDEO/FILE.
        site: The connections to use, and to break.
        patience_s: Seconds to wait while another run works on the same video.
    """
    with bad_day():
        return process_video.fn(tenant=tenant, media_key=media_key, site=site, patience_s=patience_s)
