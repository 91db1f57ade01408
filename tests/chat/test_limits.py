"""Rates and money, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.chat import CostCeiling
from agentvision.chat.limits import WINDOW_S, Budget, Rate
from tests.chat.conftest import VirtualLoop


def take_all(per_minute: float, asked: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """When each amount was let through, if it was asked for at the given time; in order."""
    passed: list[tuple[float, float]] = []

    async def take(rate: Rate, at: float, amount: float) -> None:
        await asyncio.sleep(at)
        taken = await rate.take(amount)
        passed.append((taken.at, amount))

    async def main() -> None:
        rate = Rate(per_minute)
        await asyncio.gather(*[take(rate, at, amount) for at, amount in asked])

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return passed


def fits(before: list[tuple[float, float]], at: float, amount: float, per_minute: float) -> bool:
    recent = sum(a for t, a in before if t > at - WINDOW_S)
    return recent + amount <= per_minute or not recent


@settings(max_examples=60, deadline=None)
@given(
    per_minute=st.integers(1, 20),
    asked=st.lists(
        st.tuples(st.integers(0, 150), st.integers(1, 25)), min_size=1, max_size=25, unique_by=lambda a: a[0]
    ),
)
def test_a_rate_is_kept_in_any_minute_and_nobody_waits_longer_than_it_takes(per_minute, asked):
    asked = sorted(asked, key=lambda entry: entry[0])
    passed = take_all(per_minute, asked)
    assert [amount for _, amount in passed] == [amount for _, amount in asked], "first come, first served"
    free = 0.0
    for index, (at, amount) in enumerate(passed):
        assert fits(passed[:index], at, amount, per_minute)
        earliest = max(free, asked[index][0])
        moments = [earliest, *(t + WINDOW_S for t, _ in passed[:index] if t + WINDOW_S > earliest)]
        assert at == next(moment for moment in moments if fits(passed[:index], moment, amount, per_minute))
        free = at


def test_a_corrected_estimate_makes_room(virtual):
    async def main() -> float:
        rate = Rate(100)
        taken = await rate.take(100)
        rate.correct(taken, 10)
        await rate.take(90)
        first = asyncio.get_running_loop().time()
        rate.correct(taken, 60)  # more than thought: the next waits for it
        await rate.take(1)
        second = asyncio.get_running_loop().time()
        rate.correct(taken, 1000)  # its minute is over
        await rate.take(99)
        assert (first, second) == (0.0, WINDOW_S)
        return asyncio.get_running_loop().time()

    assert virtual(main()) == WINDOW_S


def test_a_wait_for_a_rate_ends_when_it_has_no_use(virtual):
    async def main() -> float:
        rate = Rate(1)
        await rate.take(1)
        loop = asyncio.get_running_loop()

        def check() -> None:
            if loop.time() >= 5:
                raise LookupError

        waiting = [asyncio.ensure_future(rate.take(1, check=check)) for _ in range(3)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, LookupError) for result in results)
        return loop.time()

    assert virtual(main()) <= 6


async def test_the_ceiling_is_never_passed_and_used_up_before_it_refuses():
    budget = Budget(1.0)
    spent: list[float] = []
    out = 0

    async def request() -> None:
        nonlocal out
        async with budget.hold(1 / 4):
            out += 1
            assert out <= 4, "five at a time could cost 1.25"
            await asyncio.sleep(0)
            out -= 1
            budget.spent_usd += 1 / 64
            spent.append(1 / 64)

    results = await asyncio.gather(*[request() for _ in range(200)], return_exceptions=True)
    refused = [result for result in results if isinstance(result, CostCeiling)]
    assert len(spent) + len(refused) == 200 and budget.spent_usd <= 1.0
    assert len(spent) == 49, "at 48/64 another may cost a quarter, at 49/64 it could pass the ceiling"
    assert refused[0].reason == "cost_ceiling" and "max_cost_usd=1" in str(refused[0])


async def test_what_is_out_is_set_free_when_a_request_fails():
    budget = Budget(1.0)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with budget.hold(1.0):
                raise RuntimeError
    async with budget.hold(1.0):
        pass
