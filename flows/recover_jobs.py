"""recover-jobs: the supervisor's sweep as a flow, for where no supervisor is running, or it is not to be trusted."""

from __future__ import annotations

from prefect import flow, get_run_logger
from pydantic import PositiveInt

from blocks.site import open_site
from dailies.ledger.records import Caps
from tasks.supervision import sweep


@flow(name="recover-jobs", timeout_seconds=50, persist_result=False)
def recover_jobs(site: str = "local", slots: PositiveInt = 2, slots_per_tenant: PositiveInt = 2) -> dict[str, int]:
    """Recover jobs whose worker died, dispatch what waits, deliver pending events: once.

    Args:
        site: The connections to use: 'local', or the name of a 'Dailies site' block.
        slots: How many jobs may run at once.
        slots_per_tenant: How many of them for one tenant.
    """
    swept = sweep(open_site(site), Caps(slots, slots_per_tenant))
    get_run_logger().info("action=sweep %s", swept)
    return swept.to_json()
