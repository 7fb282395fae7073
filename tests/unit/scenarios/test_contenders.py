import threading

import pytest

from dailies.errors import TimedOut
from dailies.ledger.interface import Ledger
from dailies.ledger.records import Lease
from dailies.ledger.sqlite import SqliteLedger
from dailies.scenarios import contenders

pytestmark = pytest.mark.unit


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return SqliteLedger(tmp_path / "ledger.db")


def test_every_misuse_gets_the_code_that_the_scenario_expects(ledger):
    assert contenders.misuses(ledger) == contenders.MISUSE_CODES


def test_a_ledger_that_lets_strangers_release_is_noticed(ledger, monkeypatch):
    monkeypatch.setattr(ledger.leases, "release", lambda lease: None)
    assert contenders.misuses(ledger)["release by a non-owner"] == "no error"


def test_every_late_write_is_refused_after_a_takeover(ledger):
    job, lease, video = contenders.claim(ledger, "frozen", 0.01)
    contenders.succeed(ledger, job.id, video.resource, 5)
    assert [name for name, write in contenders.stale_writes(ledger, lease, video) if contenders.lands(write)] == []
    assert ledger.generations.current(video.resource) == "fresh"


def test_the_same_writes_land_while_the_lease_is_held(ledger):
    """The negative control: what is refused above is not refused always."""
    _, lease, video = contenders.claim(ledger, "healthy", 60)
    landed = [name for name, write in contenders.stale_writes(ledger, lease, video) if contenders.lands(write)]
    assert landed == [name for name, _ in contenders.stale_writes(ledger, lease, video)]


def test_a_takeover_that_never_comes_is_an_error_in_time(ledger):
    job, _, video = contenders.claim(ledger, "healthy", 60)
    with pytest.raises(TimedOut, match="was not recovered"):
        contenders.succeed(ledger, job.id, video.resource, 0.1)


def test_a_wait_ends_when_the_scenario_is_over():
    over = threading.Event()
    over.set()
    with pytest.raises(TimedOut, match="another part"):
        contenders.until(lambda: False, 60, "too late", over)


def test_unknown_leases_are_told_from_lost_ones(ledger):
    assert contenders.code_of(lambda: ledger.leases.release(Lease("nobody's", "me", 1, 0))) == "missing"
