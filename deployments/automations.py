"""The automations of automations.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import Automation, AutomationCore

FILE = Path(__file__).with_name("automations.yaml")
OURS = "dailies: "


class NoBlock(LookupError):
    pass


def declared() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["automations"]
    return found


def wanted(client: SyncPrefectClient) -> dict[str, AutomationCore]:
    """Those that can be made: an action's block is on the server."""
    made = {}
    for entry in declared():
        try:
            made[entry["name"]] = made_of(client, entry)
        except NoBlock:
            continue
    return made


def made_of(client: SyncPrefectClient, entry: dict[str, Any]) -> AutomationCore:
    actions = [with_block_id(client, action) for action in entry["actions"]]
    return AutomationCore.model_validate({**entry, "actions": actions})


def with_block_id(client: SyncPrefectClient, action: dict[str, Any]) -> dict[str, Any]:
    """A file names a block, the server wants its id, which is another one on every server."""
    if "block" not in action:
        return action
    rest = {name: value for name, value in action.items() if name != "block"}
    return {**rest, "block_document_id": str(block_id(client, action["block"]))}


def block_id(client: SyncPrefectClient, name: str) -> UUID:
    for found in client.read_block_documents(include_secrets=False, limit=200):
        if found.name == name and found.block_schema is not None and "notify" in found.block_schema.capabilities:
            return found.id
    raise NoBlock(name)


def present(client: SyncPrefectClient) -> dict[str, Automation]:
    return {found.name: found for found in client.read_automations() if found.name.startswith(OURS)}


def drift(client: SyncPrefectClient) -> list[str]:
    here, there = wanted(client), present(client)
    named = {entry["name"] for entry in declared()}
    lines = [f"automation {name!r} is missing" for name in here.keys() - there.keys()]
    lines += [f"automation {name!r} is on the server but not in the file" for name in there.keys() - named]
    for name in here.keys() & there.keys():
        lines += [f"automation {name!r}: its {what} is another one" for what in differences(here[name], there[name])]
    return sorted(lines)


def differences(should: AutomationCore, is_: Automation) -> Iterator[str]:
    """A switched-off automation is the site's own decision."""
    for what in ("description", "trigger", "actions"):
        if comparable(getattr(should, what)) != comparable(getattr(is_, what)):
            yield what


def comparable(value: Any) -> Any:
    """Without the ids that the server gives to triggers. Not as JSON: a set has no order, and its JSON has one."""
    match value:
        case list():
            return [comparable(item) for item in value]
        case str() | None:
            return value
        case _:
            return value.model_dump(exclude={"id"})


def notes(client: SyncPrefectClient) -> list[str]:
    missing = [entry for entry in declared() if entry["name"] not in wanted(client)]
    return [
        f"automation {entry['name']!r} is left out: save a notification block named {action['block']!r} first"
        for entry in missing
        for action in entry["actions"]
        if "block" in action
    ]


def apply(client: SyncPrefectClient) -> None:
    here, there = wanted(client), present(client)
    named = {entry["name"] for entry in declared()}
    for name, automation in here.items():
        if name not in there:
            client.create_automation(automation)
        elif any(differences(automation, there[name])):
            changed = automation.model_copy(update={"enabled": there[name].enabled})
            client.update_automation(there[name].id, changed)
    for name in there.keys() - named:
        client.delete_automation(there[name].id)
