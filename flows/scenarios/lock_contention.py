"""lock-contention: a lease has one holder at a time, whatever is killed, frozen or kept busy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, tags
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from pydantic import PositiveFloat, PositiveInt

from dailies import failpoints
from flows.ingest_media import ingest_media
from tasks.contention import (
    freeze_and_revive,
    keep_while_busy,
    kill_the_holder,
    race,
    recover_ingest,
    refuse_misuse,
    two_flows_one_video,
)
from tasks.scenario import TENANT, Mode, scenario

SIZES: dict[str, dict[str, int]] = {
    "quick": {"contenders": 8, "rounds": 5, "trials": 20, "kills": 1, "load": 8},
    "full": {"contenders": 48, "rounds": 20, "trials": 1000, "kills": 10, "load": 60},
}
# A living holder must be able to renew on a busy machine, with a thread spinning beside it for the interpreter lock.
HEALTHY_TTL_S = 2.0


@flow(name="lock-contention", persist_result=False, timeout_seconds=1800)
def lock_contention(
    mode: Mode = "quick",
    site: str = "local",
    contenders: PositiveInt | None = None,
    rounds: PositiveInt | None = None,
    ttl: PositiveFloat = 0.4,
    seed: int = 0,
) -> Any:
    """Prove that a lease has one holder at a time, and that a job survives its worker.

    Args:
        mode: quick (about half a minute) or full (1,000 freezes).
        site: Where: 'local', or the name of a 'Dailies site' block that is open to scenarios and serves nothing else.
        contenders: How many processes race for one lease; by default what the mode says.
        rounds: How often each of them must get it.
        ttl: For how long a frozen holder keeps its lease, in seconds.
        seed: Drives every random choice; the journal names it, to replay a run.
    """
    size = SIZES[mode]
    parameters = {"mode": mode, "contenders": contenders, "rounds": rounds, "ttl": ttl}
    with scenario("lock-contention", seed, parameters, site, preload=(__name__,)) as run:
        # What waits for other processes goes first, beside the rest; but not beside a thousand trials: it is timed.
        # And where there is one ledger only, its supervisor must be gone before anybody else's leases expire there.
        recovering = recover_ingest.submit(run)
        if mode == "full" or not run.has_a_ledger_of_its_own:
            recovering.wait()
        busy = keep_while_busy.submit(run, HEALTHY_TTL_S)
        sharing = two_flows_one_video.submit(run, run_ingest, size["load"])
        race(run, contenders or size["contenders"], rounds or size["rounds"], ttl)
        kill_the_holder(run, size["kills"], HEALTHY_TTL_S)
        freeze_and_revive(run, size["trials"], ttl)
        refuse_misuse(run)
        busy.result()
        undisturbed, recovered = sharing.result(), recovering.result()
        drawn = undisturbed["contact_sheet"]["sha256"]
        run.journal.expect(
            "recover: the contact sheet is an undisturbed run's", recovered["contact_sheet"]["sha256"], drawn
        )
    return run.state


def run_ingest(site: str, keys: list[str], patience: float, api_url: str, pool: str, faults: str, log: Path) -> None:
    """In a child that was forked with Prefect loaded: the settings are those of now, not of the import."""
    failpoints.arm(faults, log)
    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), tags(pool):
        for key in keys:
            ingest_media(tenant=TENANT, media_key=key, site=site, patience_s=patience, return_state=True)
