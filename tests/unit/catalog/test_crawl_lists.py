"""The list of a host that lies: what it says of another's channels changes nothing of its own."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dailies.catalog.crawl_lists import Channels, Reader, Tally
from dailies.catalog.crawl_options import Crawl
from dailies.catalog.gathering import Gathering
from tests.unit.catalog.rows import HOST, add, instance, rows, staging

pytestmark = pytest.mark.unit
OWN = 3


class Door:
    """Answers with the pages of one list."""

    host, base = HOST, f"https://{HOST}"

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    async def get(self, path: str, start: int, count: int, **query: str) -> dict[str, Any]:
        return {"total": len(self.items), "data": self.items[start : start + count]}


def channel(number: int, host: str | None = HOST) -> dict[str, Any]:
    name = f"channel_{number}" if host in (HOST, None) else f"stranger_{number}"
    return {"id": number, "name": name, "displayName": name.title(), "host": host}


def own(host: str | None = HOST) -> list[dict[str, Any]]:
    return [channel(number, host) for number in range(1, OWN + 1)]


def strangers(*hosts: str) -> list[dict[str, Any]]:
    return [channel(number, host) for host in hosts for number in range(1, OWN + 1)]


def read(path: Path, items: list[Any], **options: Any) -> Tally:
    add(staging(path), "instances", instance())
    tally = Tally()
    with closing(Gathering(path)) as gathering:
        reader = Reader(Door(items), gathering, Crawl(**options), tally)  # type: ignore[arg-type]
        asyncio.run(reader.read(Channels(HOST)))
    return tally


def kept(path: Path) -> list[tuple[Any, ...]]:
    return rows(path, "SELECT channel_id, instance_domain, channel_name, display_name FROM channels ORDER BY 1, 2")


ALL = [(str(number), HOST, f"channel_{number}", f"Channel_{number}") for number in range(1, OWN + 1)]


@pytest.mark.parametrize("page", [2, 3, 4, 50])
@pytest.mark.parametrize(
    "items",
    [
        own() + strangers("b.example"),
        strangers("b.example") + own(),
        strangers("b.example", "c.example") + own() + strangers("d.example"),
        [one for pair in zip(own(), strangers("b.example"), strict=True) for one in pair],
        own(None) + strangers("b.example"),
        own() + [{**one, "isLocal": False} for one in own(None)],
    ],
    ids=["behind", "before", "around", "between", "behind those that name no host", "behind, and without a name"],
)
def test_a_strangers_channel_of_the_same_number_takes_nothing_from_the_hosts_own(
    tmp_path: Path, page: int, items: list[Any]
) -> None:
    tally = read(tmp_path / "staging.db", items, page=page)
    assert kept(tmp_path / "staging.db") == ALL
    assert (tally.channels_done, tally.refused) == (OWN, 0)
    assert rows(tmp_path / "staging.db", "SELECT status, whole FROM crawl_progress") == [("done", 1)]


@pytest.mark.parametrize("host", ["\ud800", "x" * 100_000, {"a": HOST}, 7, "no host"])
def test_a_host_that_is_none_costs_that_channel_alone(tmp_path: Path, host: Any) -> None:
    tally = read(tmp_path / "staging.db", [*own(), {**channel(1), "host": host}], page=2)
    assert kept(tmp_path / "staging.db") == ALL
    assert (tally.channels_done, tally.refused) == (OWN, 1)
    ((whole, tail),) = rows(tmp_path / "staging.db", "SELECT whole, tail FROM crawl_progress")
    assert whole == 0
    assert len(tail) < 1000, "what the next page is joined on to is no place for what a host made up"


@pytest.mark.parametrize("host", [HOST.upper(), f"{HOST}:443", f"{HOST}."])
def test_another_spelling_of_its_own_name_makes_no_stranger(tmp_path: Path, host: str) -> None:
    tally = read(tmp_path / "staging.db", [{**one, "host": host} for one in own()], page=2, max_channels=OWN)
    assert kept(tmp_path / "staging.db") == ALL
    assert tally.channels_done == OWN
