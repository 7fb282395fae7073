"""What a person sees of a scenario in the Prefect UI: the checks, a summary, a timeline; and its final state."""

from __future__ import annotations

import base64
from typing import Any

from prefect import State
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.states import Completed, Failed

from dailies.scenarios.journal import Journal
from dailies.scenarios.picture import timeline_png
from dailies.scenarios.verdict import Verdict, check_table, reason, render_markdown


def publish_verdict(journal: Journal) -> None:
    create_table_artifact(check_table(journal), key=f"{journal.scenario}-checks", description=reason(journal))
    create_markdown_artifact(render_markdown(journal), key=f"{journal.scenario}-summary")
    show_png(timeline_png(journal), f"{journal.scenario}-timeline", "What happened when")


def show_png(png: bytes, key: str, description: str) -> None:
    """An image artifact takes an address; the picture itself can be one, so that no server has to be reached for it."""
    address = "data:image/png;base64," + base64.b64encode(png).decode()
    create_image_artifact(image_url=address, key=key, description=description)


def final_state(journal: Journal) -> State[Any]:
    verdict, why = Verdict(journal.status), reason(journal)
    match verdict:
        case Verdict.PASSED:
            return Completed(message=why)
        case Verdict.SKIPPED:
            return Completed(name="Skipped", message=why)
        case _:
            return Failed(name=verdict.capitalize(), message=why)
