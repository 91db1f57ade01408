"""Counts add up."""

from __future__ import annotations

from functools import reduce
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from agentvision.chat import Usage

reasons = st.dictionaries(st.sampled_from(["timeout", "empty", "server_error"]), st.integers(1, 9))
usages = st.builds(
    Usage,
    calls=st.integers(0, 99),
    attempts=st.integers(0, 99),
    prompt_tokens=st.integers(0, 10**9),
    cost_usd=st.integers(0, 99).map(float),
    faults=reasons,
    failures=reasons,
)


@given(st.lists(usages, max_size=5), usages)
def test_usage_adds_over_models_and_subtracts_over_time(parts, more):
    total = reduce(add, parts, Usage())
    assert total.calls == sum(part.calls for part in parts)
    for reason in {name for part in parts for name in part.faults}:
        assert total.faults[reason] == sum(part.faults.get(reason, 0) for part in parts)
    assert total + more - more == total and total - total == Usage()
