"""Who goes first: the tier, then the age."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dailies.ledger.priority import Aging, age_boost, priority, priority_tags, tier_of

pytestmark = pytest.mark.unit

HOUR = 3600.0
TIERS = st.sampled_from(["free", "premium", "enterprise", "demo", "trial", "active", "gold", "", None])
AGES = st.floats(-1e6, 1e9)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
RULES = st.builds(Aging, enabled=st.booleans(), per_hour=st.floats(0, 1000), cap=st.floats(0, 1000))


@pytest.mark.parametrize(("tier", "base"), [("free", 50), ("premium", 70), ("enterprise", 90)])
def test_each_tier_has_its_base(tier, base):
    assert priority(tier) == base


@pytest.mark.parametrize("name", ["demo", "trial"])
def test_demo_and_trial_are_free(name):
    assert tier_of(name) == "free"
    assert priority(name) == 50


def test_active_is_premium():
    assert tier_of("active") == "premium"
    assert priority("active") == 70


@pytest.mark.parametrize("name", ["gold", "", "   ", None, "free!", "PREMIUMS", "50"])
def test_whatever_is_unknown_is_free(name):
    assert tier_of(name) == "free"
    assert priority(name) == 50


@pytest.mark.parametrize("name", ["Premium", " premium\n", "PREMIUM", " Active "])
def test_a_tier_is_known_however_it_is_written(name):
    assert tier_of(name) == "premium"


@pytest.mark.parametrize(
    ("hours", "boost"), [(0, 0), (0.5, 0.5), (1, 1), (7, 7), (19.99, 19.99), (20, 20), (21, 20), (1000, 20), (-3, 0)]
)
def test_a_job_gains_one_an_hour_up_to_twenty(hours, boost):
    assert age_boost(hours * HOUR) == pytest.approx(boost)


def test_a_rank_is_a_whole_number_and_an_hour_counts_when_it_is_full():
    assert [priority("free", hours * HOUR) for hours in (0, 0.99, 1, 1.5, 2, 30)] == [50, 50, 51, 51, 52, 70]
    assert isinstance(priority("free", 0.5 * HOUR, boost=0.25), int)


def test_aging_can_be_switched_off():
    off = Aging(enabled=False)
    assert age_boost(100 * HOUR, off) == 0
    assert priority("free", 100 * HOUR, aging=off) == 50


def test_aging_can_be_made_faster_and_higher():
    fast = Aging(per_hour=10, cap=45)
    assert priority("free", 2 * HOUR, aging=fast) == 70
    assert priority("free", 100 * HOUR, aging=fast) == 95


@pytest.mark.parametrize(("boost", "rank"), [(0, 50), (5, 55), (-20, 30), (0.9, 50), (1000, 100), (-1000, 0)])
def test_a_custom_boost_is_added_and_clamped(boost, rank):
    assert priority("free", boost=boost) == rank


@pytest.mark.parametrize(("base", "rank"), [(0, 0), (10, 10), (99, 99), (-5, 0), (500, 100)])
def test_a_base_of_its_own_overrides_the_tiers(base, rank):
    assert priority("enterprise", base=base) == rank


def test_base_age_and_boost_add_up():
    assert priority("enterprise", 3 * HOUR, base=10, boost=4) == 17


def test_an_enterprise_job_that_waited_is_at_the_top_and_no_higher():
    assert priority("enterprise", 20 * HOUR) == 100
    assert priority("enterprise", 5 * HOUR, boost=50) == 100


def test_a_free_job_that_waited_longest_ties_with_a_premium_one_that_just_came():
    assert priority("free", 20 * HOUR) == priority("premium")


def test_tags_say_what_a_person_filters_by():
    assert priority_tags("acme", "active", 73) == ["tenant:acme", "tier:premium", "priority:73", "age-boosting:enabled"]
    assert priority_tags("acme", None, 50, Aging(enabled=False))[1:] == [
        "tier:free",
        "priority:50",
        "age-boosting:disabled",
    ]
    assert priority_tags("acme", "free", 50, Aging())[-1] == "age-boosting:enabled"


@given(TIERS, AGES, NUMBERS, st.none() | NUMBERS, RULES)
def test_a_rank_is_never_outside_0_to_100(tier, waited, boost, base, aging):
    assert priority(tier, waited, boost=boost, base=base, aging=aging) in range(101)


@given(TIERS, AGES, AGES, st.floats(-200, 200), st.none() | st.floats(-200, 200), RULES)
def test_waiting_never_lowers_a_rank(tier, one, other, boost, base, aging):
    sooner, later = sorted((one, other))
    ranks = [priority(tier, waited, boost=boost, base=base, aging=aging) for waited in (sooner, later)]
    assert ranks == sorted(ranks)


@given(AGES, RULES)
def test_the_boost_of_age_is_between_nothing_and_its_cap(waited, aging):
    assert 0 <= age_boost(waited, aging) <= aging.cap


@given(TIERS, AGES)
def test_equally_old_jobs_are_ranked_by_their_tier(tier, waited):
    assert priority("free", waited) <= priority(tier, waited) <= priority("enterprise", waited)
