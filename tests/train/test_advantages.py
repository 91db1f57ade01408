import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.train.advantages import group_advantages

rewards = st.floats(-10, 10, allow_nan=False)


@given(st.lists(rewards, min_size=2, max_size=16))
def test_advantages_are_the_papers_formula(rewards_G):
    result = group_advantages(rewards_G)
    if not result.signal:
        assert set(result.advantages_G) == {0.0}
        return
    mean, std = statistics.fmean(rewards_G), statistics.stdev(rewards_G)
    expected = [(r - mean) / (std + 1e-6) for r in rewards_G]
    assert result.advantages_G == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.lists(st.one_of(rewards, st.none(), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=16))
def test_invalid_members_do_not_move_their_siblings(rewards_G):
    with_invalid = group_advantages(rewards_G)
    valid = [r for r in rewards_G if r is not None and math.isfinite(r)]
    without = group_advantages(valid)
    kept = [a for a, ok in zip(with_invalid.advantages_G, with_invalid.valid_G, strict=True) if ok]
    assert kept == list(without.advantages_G)
    assert all(a == 0 for a, ok in zip(with_invalid.advantages_G, with_invalid.valid_G, strict=True) if not ok)
    assert (with_invalid.kept, with_invalid.signal) == (without.kept, without.signal)


def test_a_group_with_one_valid_member_is_dropped():
    result = group_advantages([1.0, None, None])
    assert not result.kept and not result.signal and result.advantages_G == (0.0, 0.0, 0.0)


def test_equal_totals_carry_no_signal_even_when_rounded_differently():
    result = group_advantages([0.1 + 0.2, 0.3, 0.3])
    assert result.kept and not result.signal and result.advantages_G == (0.0, 0.0, 0.0)


def test_without_normalisation_the_scale_of_the_rewards_stays():
    assert group_advantages([0.0, 3.0], normalise=False).advantages_G == (-1.5, 1.5)


def test_a_reward_too_large_to_be_squared_is_invalid_and_harms_nobody():
    found = group_advantages([1e308, -1e308, 0.0, 1.0])
    assert found.valid_G == (False, False, True, True)
    assert found.advantages_G == group_advantages([None, None, 0.0, 1.0]).advantages_G
    largest = group_advantages([1e150, -1e150])
    assert all(map(math.isfinite, largest.advantages_G)) and largest.signal
