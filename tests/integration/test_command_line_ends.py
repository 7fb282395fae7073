"""What every command does alike: nothing is told to strangers, and Ctrl-C is answered."""

from __future__ import annotations

import os
import sys
from typing import Any
from unittest import mock

import pytest

from services import cli, demo

pytestmark = pytest.mark.integration


def test_nothing_is_told_to_prefects_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setattr(sys, "argv", ["dailies", "demo"])
    monkeypatch.setattr(demo, "run", lambda *asked: seen.update(os.environ) or 0)
    kept = {name: value for name, value in os.environ.items() if name not in cli.NOT_TRACKED}
    with mock.patch.dict(os.environ, kept, clear=True), pytest.raises(SystemExit):
        cli.main()
    assert (seen["DO_NOT_TRACK"], seen["PREFECT_SERVER_ANALYTICS_ENABLED"]) == ("1", "false")


@pytest.mark.parametrize(("error", "code", "said"), [(KeyboardInterrupt(), 130, "dailies: stopped\n"), (None, 0, "")])
def test_a_command_that_was_stopped_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Any, code: int, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["dailies", "demo"])
    monkeypatch.setattr(demo, "run", mock.Mock(side_effect=error, return_value=0))
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert (left.value.code, capsys.readouterr().err) == (code, said)
