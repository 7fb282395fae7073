"""Workers that crash, freeze and come back, on Supabase, against the embedded ledger's model."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dailies.errors import Fenced, Held, IllegalTransition
from dailies.ledger.interface import Ledger
from dailies.ledger.supabase import SupabaseLedger
from tests.supabase.conftest import CLEAN, DatabaseClock
from tests.supabase.servers import instead
from tests.unit.ledger.contract.world import Clock
from tests.unit.ledger.test_machine import SETTINGS, LedgerMachine

pytestmark = [pytest.mark.supabase, pytest.mark.slow]


@pytest.fixture
def machine(one_ledger: SupabaseLedger, database: psycopg.Connection) -> type[LedgerMachine]:
    class SupabaseMachine(LedgerMachine):
        def open(self) -> tuple[Ledger, Clock]:
            database.execute(CLEAN)
            return one_ledger, DatabaseClock(database)

        def close(self) -> None:
            """The next one begins by emptying it."""

    return SupabaseMachine


def test_whatever_workers_do_the_ledger_on_supabase_stays_what_the_model_says(machine):
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=8, stateful_step_count=30))


DEFECTS = {
    "gives an old fence out again": ("take", "known.fence + 1", "known.fence"),
    "recovers in silence": ("job_recover", "PERFORM dailies.tell_recovery(job, 'started');", "NULL;"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_machine_catches_a_function_that(machine, database, defect):
    quickly = settings(SETTINGS, max_examples=100, stateful_step_count=30, phases=[Phase.generate], print_blob=False)
    with (
        instead(database, *DEFECTS[defect]),
        pytest.raises((AssertionError, Fenced, Held, IllegalTransition)),
    ):
        run_state_machine_as_test(machine, settings=quickly)
