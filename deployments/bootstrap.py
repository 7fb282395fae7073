"""Bring a Prefect server to what the files here say; with --check, only say how it differs.

`python -m deployments.bootstrap [--check] [--json]`. Safe to run again: what is there already is updated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from deployments import automations, block_types, flow_deployments, pools

# In this order: a deployment needs its pool, an automation may need a block.
PARTS = (block_types, pools, flow_deployments, automations)


def drift(client: SyncPrefectClient) -> list[str]:
    """Every difference between server and files, in words."""
    return [line for part in PARTS for line in part.drift(client)]


def apply(client: SyncPrefectClient) -> list[str]:
    """Create and update; returns what was different before."""
    changes = drift(client)
    for part in PARTS:
        part.apply(client)
    return changes


def notes(client: SyncPrefectClient) -> list[str]:
    """What is not as the files say for a reason that is the site's to change."""
    return [*flow_deployments.notes(), *automations.notes(client)]


@contextmanager
def unreachable_in_one_line() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        sys.exit(f"the Prefect server at {get_current_settings().api.url} does not answer: {error}")
    except httpx.HTTPStatusError as error:
        said = f"{error.response.status_code} {error.response.reason_phrase}"
        sys.exit(f"{get_current_settings().api.url} answered {said}: is it a Prefect API? Its address ends in /api")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.bootstrap", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something differs")
    parser.add_argument("--json", action="store_true", help="print the differences as a JSON list")
    options = parser.parse_args()
    if not get_current_settings().api.url:
        sys.exit("no Prefect server is configured: set PREFECT_API_URL, or use `dailies up`")
    with unreachable_in_one_line(), get_client(sync_client=True) as client:
        lines = drift(client) if options.check else apply(client)
        left = lines if options.check else drift(client)
        asides = notes(client)
    said = [f"changed: {line}" for line in lines if line not in left] + [f"drift: {line}" for line in left]
    said = said or ["nothing to change"]
    said += [f"note: {aside}" for aside in asides]
    sys.stdout.write(json.dumps(lines) if options.json else "\n".join(said))
    sys.stdout.write("\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
