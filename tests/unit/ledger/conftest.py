"""The contract is no test module by its name, and yet its assertions are to say what differs."""

import pytest

pytest.register_assert_rewrite("tests.unit.ledger.contract")
