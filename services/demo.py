"""What exists, shown on a clip that it makes itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dailies.errors import DailiesError
from dailies.home import home
from services import scenarios, server
from services.progress import ticking

TENANT, VIDEO = "demo", "first-dailies"
KEY = f"{TENANT}/client/videos/{VIDEO}/clip.mp4"


def run(seconds: int, say: Callable[[str], None]) -> int:
    with ticking("looking for a Prefect server, or starting one"):
        ui = server.connect(quiet=True).removesuffix("/api")
    ingest(seconds, say)
    say("\nNow the same under fire: workers killed, holders frozen and revived, two flows on one video.")
    code = scenarios.run("lock-contention", {"mode": "quick"}, [], None, say)
    tell_recovery(say)
    say(f"\nEverything above is in the Prefect UI: {ui}/runs (the server goes when nobody has used it for ten minutes)")
    return code


def ingest(seconds: int, say: Callable[[str], None]) -> None:
    from blocks.site import open_site
    from dailies.media.sample import make_clip
    from flows.ingest_media import ingest_media

    with ticking(f"making a clip of {seconds} s"):
        path = home() / "media" / KEY
        clip = path if path.exists() else make_clip(path, seconds)
    say(f"clip           {clip}")
    with ticking("ingest-media: digest, probe, contact sheet"):
        state: Any = ingest_media(tenant=TENANT, media_key=KEY, return_state=True)
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, DailiesError):
        raise result
    site = open_site()
    job = site.ledger.jobs.all(limit=1)[0]
    units = site.ledger.units.of(job.id)
    say(f"job            {job.id}: {job.state}; units: {', '.join(f'{unit.step} {unit.state}' for unit in units)}")
    say(f"probe          {summary(json.loads(site.store.get(probe_key(site.store, result))))}")
    say(f"contact sheet  {home() / 'media' / result['contact_sheet']['key']}")


def probe_key(store: Any, result: dict[str, Any]) -> str:
    manifest = json.loads(store.get(result["manifest"]["key"]))
    return str(manifest["probe"]["artifacts"][0]["key"])


def summary(probe: dict[str, Any]) -> str:
    kinds = [f"{stream['codec']} {stream['kind']}" for stream in probe["streams"]]
    return f"{probe['decoded_us'] / 1e6:.2f} s of {probe['promised_us'] / 1e6:.2f} s decoded, {', '.join(kinds)}"


def tell_recovery(say: Callable[[str], None]) -> None:
    from dailies.scenarios.journal import read

    metrics = read(home() / "runs" / "last" / "lock-contention.json").metrics
    delay = metrics.get("worker_death_to_running_s")
    if delay is not None:
        say(f"  a killed worker's job was running again after {delay:.1f} s, and its finished unit was not redone")
    writes = metrics.get("stale_writes")
    if writes:
        landed = f"{writes['landed']} of {writes['tried']} late writes landed"
        say(f"  {writes['trials']} holders were frozen past their lease and revived: {landed}")
