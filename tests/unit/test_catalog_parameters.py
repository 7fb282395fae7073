"""`dailies catalog update` and the flow update-catalog: the same names, defaults, bounds, words and meaning.

They cannot be made of one source: the flow says all of it in its signature and its docstring, where Prefect reads it,
and the command line answers before Prefect is imported.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
from prefect.utilities.callables import parameter_schema
from typer.testing import CliRunner

from dailies.catalog.update import Update
from flows import update_catalog as flow
from services import catalog as command
from services import cli

pytestmark = pytest.mark.unit

FLOW = parameter_schema(flow.update_catalog).model_dump_for_openapi()["properties"]
CALLED = {"timeout": "timeout_s", "gpu": "device"}
# A catalogue of the command line's is known by its folder, and the command waits for a lease as long as one can last.
FLOWS_OWN = {"tenant", "catalog", "as_of", "page", "keep_staging", "patience_s"}
SAID_OTHERWISE = {"prod", "gpu", "site"}


def options() -> dict[str, tuple[Any, Any]]:
    """Of the command: what is said of each, and its default."""
    hints = get_type_hints(cli.update_catalog, include_extras=True)
    defaults = inspect.signature(cli.update_catalog).parameters
    return {name: (get_args(hint)[1], defaults[name].default) for name, hint in hints.items() if get_args(hint)[1:]}


OPTIONS = options()


def test_the_command_has_all_that_the_flow_has_and_no_more():
    assert {CALLED.get(name, name) for name in OPTIONS} == FLOW.keys() - FLOWS_OWN


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"prod", "gpu"}))
def test_an_option_has_the_default_and_the_bounds_of_the_flows(name):
    option, default = OPTIONS[name]
    told = FLOW[CALLED.get(name, name)]
    assert default == told.get("default", inspect.Parameter.empty)
    bounds = {"minimum": option.min, "maximum": option.max}
    assert {key: bound for key, bound in bounds.items() if bound is not None} == {
        key: told[key] for key in bounds if key in told
    }


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - SAID_OTHERWISE))
def test_an_option_says_what_the_flow_says(name):
    """And may go on: a form shows which values there are, and the command line does not."""
    assert OPTIONS[name][0].help.startswith(FLOW[CALLED.get(name, name)]["description"].removesuffix("."))


def test_what_nobody_asked_for_is_the_same_for_an_update_that_is_made_by_hand():
    made = Update(Path(), "", 0)
    plain = {**vars(made), **vars(made.crawl)}
    shared = [name for name in FLOW if name in plain and name not in ("prod", "whitelist", "as_of")]
    assert len(shared) > 15
    assert {name: plain[name] for name in shared} == {name: FLOW[name]["default"] for name in shared}


ASKED: dict[str, Any] = {
    "whitelist": "hosts.json",
    "resume": False,
    "max_instances": 3,
    "max_channels": 4,
    "max_videos_pages": 5,
    "stop_after_pages": 6,
    "concurrency": 7,
    "timeout_s": 8.5,
    "allow_private": True,
    "rules": "original",
    "max_removed": 0.25,
    "model": "minilm",
    "device": "gpu",
    "nlist": 9,
    "neighbours": 10,
    "service": "process:serve",
}
WORDS = {
    "resume": ["--fresh"],
    "device": ["--gpu"],
    "allow_private": ["--allow-private"],
    "timeout_s": ["--timeout", "8.5"],
}


def by_command(monkeypatch: pytest.MonkeyPatch, prod: Path) -> tuple[Update, str]:
    taken: list[Any] = []
    monkeypatch.setattr(command, "update", lambda *asked: taken.append(asked) or 0)
    words = [word for name, value in ASKED.items() for word in WORDS.get(name, [f"--{name.replace('_', '-')}", value])]
    done = CliRunner().invoke(cli.app, ["catalog", "update", "--prod", str(prod), *map(str, words)])
    assert done.exit_code == 0, done.output
    ((asked, service, _, _, _),) = taken
    return asked, service


def by_flow(monkeypatch: pytest.MonkeyPatch, prod: Path) -> tuple[Update, str]:
    class Taken(Exception):
        pass

    def take(job: Any, update: Update, service: str) -> Update:
        raise Taken(update, service)

    monkeypatch.setattr(flow, "attempt", lambda update, ledger, claim: update)
    monkeypatch.setattr(flow, "next_generation", take)
    job = SimpleNamespace(site=SimpleNamespace(ledger=None), claim=None, job=SimpleNamespace(id="j"))
    with pytest.raises(Taken) as taken:
        inspect.unwrap(flow.update_catalog.fn)(job, tenant="acme", prod=str(prod), **ASKED)
    update, service = taken.value.args
    return update, service


def test_what_is_asked_for_means_the_same_to_both(monkeypatch, tmp_path):
    assert ASKED.keys() == {CALLED.get(name, name) for name in OPTIONS} - {"prod", "site"}
    typed, served = by_command(monkeypatch, tmp_path)
    run, also_served = by_flow(monkeypatch, tmp_path)
    assert (replace(typed, as_of=0), served) == (replace(run, as_of=0), also_served)
    plain = Update(tmp_path, "", 0)
    values, untouched = {**vars(run), **vars(run.crawl)}, {**vars(plain), **vars(plain.crawl)}
    assert [name for name in ASKED if name != "service" and values[name] == untouched[name]] == []
    assert served == ASKED["service"]
