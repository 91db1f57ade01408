"""Rewards that fail in every way: an invalid score with its reason, and nothing else."""

import asyncio
import fractions
import re
import threading
import time

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.rewards import Accuracy, Rewards, WeightedPart, reward
from agentvision.types import Score


def constant(value, name="constant", **settings):
    return reward(name=name, **settings)(lambda trajectory: value)


async def score(group, *parts):
    return (await Rewards(parts).score(group)).trajectories


release = threading.Event()


@pytest.fixture(autouse=True, scope="module")
def _let_hanging_threads_go():
    yield
    release.set()


def raise_(error):
    raise error


async def swallow_cancellation(_):
    for _ in range(3):
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            continue


async def cancel_itself(_):
    asyncio.current_task().cancel()
    await asyncio.sleep(1)


async def exit_(_):
    raise SystemExit(3)


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no")


FAULTS = {
    "raises": (lambda s: raise_(ValueError("bad input")), r"raised ValueError: bad input \(test_faults.py:\d+\)"),
    "raises StopIteration": (lambda s: next(iter(())), "StopIteration"),
    "raises the unprintable": (lambda s: raise_(Unprintable()), "Unprintable"),
    "raises at length": (lambda s: raise_(ValueError("x" * 10_000)), "raised ValueError: x{300} "),
    "recurses": (lambda s: (f := lambda: f())(), "RecursionError"),
    "exits": (lambda s: raise_(SystemExit(3)), "exit|SystemExit"),
    "exits on the loop": (exit_, "exit|SystemExit"),
    "raises cancelled": (lambda s: raise_(asyncio.CancelledError()), "cancelled itself|CancelledError"),
    "cancels itself": (cancel_itself, "cancelled itself"),
    "hangs": (lambda s: release.wait(30), "deadline: Faulty did not finish within 0.3 s"),
    "hangs on the loop": (lambda s: asyncio.sleep(30), "deadline: Faulty did not finish within 0.3 s"),
    "cannot be cancelled": (swallow_cancellation, "deadline"),
    "nan": (lambda s: float("nan"), "returned nan, which is not finite"),
    "inf": (lambda s: float("inf"), "returned inf"),
    "nan in a score": (lambda s: Score(float("nan")), "returned nan"),
    "text in a score": (lambda s: Score("1"), "returned '1', not a number"),
    "text": (lambda s: "1.0", "returned '1.0', not a number"),
    "None": (lambda s: None, "returned None, not a number"),
    "list": (lambda s: [1.0], "returned a list, not a number"),
    "complex": (lambda s: 1j, "returned a complex, not a number"),
    "beyond floats": (lambda s: 10**400, "int that is no float"),
    "object": (lambda s: object(), "returned a object, not a number"),
    "no such argument": (lambda: 1, "TypeError"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_an_invalid_score_with_its_reason(trajectory, group, fault):
    function, reason = FAULTS[fault]
    timeout_s = 0.3 if "deadline" in reason else 20.0

    class Faulty:
        def __call__(self, trajectory):
            return function(trajectory)

    members = group(trajectory("blue"), trajectory("red"))
    started = time.monotonic()
    for broken in (Faulty(), reward(name="Faulty")(function)):
        scored = await score(
            members, WeightedPart(Accuracy()), WeightedPart(broken, name="Faulty", timeout_s=timeout_s)
        )
        assert [t.correct for t in scored] == [True, False]
        assert [t.scores["accuracy"].value for t in scored] == [1.0, 0.0]
        assert [t.reward for t in scored] == [None, None]
        for t in scored:
            assert not t.scores["Faulty"].valid
            assert re.search(reason, t.scores["Faulty"].reason), t.scores["Faulty"].reason
            assert len(t.scores["Faulty"].reason) < 400
    assert time.monotonic() - started < 20


GROUP_FAULTS = {
    "raises": (lambda g: raise_(KeyError("k")), "KeyError"),
    "hangs": (lambda g: release.wait(30), "deadline"),
    "too few": (lambda g: [1.0], "returned 1 scores for 2 trajectories"),
    "too many": (lambda g: [1.0] * 3, "returned 3 scores for 2 trajectories"),
    "none": (lambda g: [], "returned 0 scores"),
    "a number": (lambda g: 1.0, "instead of a list of 2 scores"),
    "text of the right length": (lambda g: "ab", "instead of a list"),
    "a map": (lambda g: {0: 1, 1: 2}, "instead of a list"),
    "None": (lambda g: None, "returned None instead"),
    "nan inside": (lambda g: [1.0, float("nan")], "entry 1: returned nan"),
    "text inside": (lambda g: ["high", 0], "entry 0: returned 'high'"),
}


@pytest.mark.parametrize("fault", GROUP_FAULTS)
async def test_a_group_reward_that_fails_is_invalid_for_all(trajectory, group, fault):
    function, reason = GROUP_FAULTS[fault]

    class Faulty:
        def __call__(self, group):
            return function(group)

    members = group(trajectory("blue"), trajectory("red"))
    decorated = reward(name="Faulty")(lambda group: function(group))
    for broken in (Faulty(), decorated):
        scored = await score(
            members, WeightedPart(Accuracy()), WeightedPart(broken, timeout_s=0.3 if fault == "hangs" else 20.0)
        )
        assert [t.reward for t in scored] == [None, None]
        assert [t.correct for t in scored] == [True, False]
        for t in scored:
            assert reason in t.scores["Faulty"].reason


async def test_a_group_reward_may_call_one_member_invalid(trajectory, group):
    @reward
    def half(group):
        return [Score.invalid("not this one"), True]

    scored = await score(group(trajectory("x"), trajectory("y")), WeightedPart(half))
    assert [t.reward for t in scored] == [None, 1.0]


async def test_cancelling_from_outside_gets_through(trajectory, group):
    @reward
    async def hang(trajectory):
        await asyncio.sleep(60)

    task = asyncio.create_task(score(group(trajectory("x")), WeightedPart(hang)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_blocking_rewards_leave_the_loop_free(trajectory, group):
    beat = threading.Event()

    async def tick():
        while True:
            await asyncio.sleep(0.01)
            beat.set()

    @reward
    def slow(trajectory):
        beat.clear()
        return beat.wait(20)

    ticking = asyncio.create_task(tick())
    scored = await score(group(trajectory("x"), trajectory("y")), WeightedPart(slow))
    ticking.cancel()
    assert [t.reward for t in scored] == [1, 1]


async def test_numbers_of_other_kinds_are_numbers(trajectory, group):
    import numpy

    for value, want in [
        (True, 1.0),
        (False, 0.0),
        (2, 2.0),
        (fractions.Fraction(1, 2), 0.5),
        (numpy.float32(0.5), 0.5),
    ]:
        [t] = await score(group(trajectory("x")), WeightedPart(constant(value)))
        assert t.reward == want
        assert type(t.scores["constant"].value) is float


values = st.one_of(st.none(), st.floats(-1e6, 1e6), st.booleans())


@hypothesis.settings(deadline=None)
@given(
    st.lists(st.tuples(st.lists(values, min_size=3, max_size=3), st.sampled_from([0.0, 1.0, -0.5, 2.0])), max_size=4)
)
async def test_the_total_is_the_weighted_sum_or_none(trajectory, group, table):
    parts = [
        WeightedPart(
            reward(name=f"r{n}")(lambda trajectory, column=tuple(column): column[trajectory.rollout]), weight=weight
        )
        for n, (column, weight) in enumerate(table)
    ]
    members = group(*(trajectory("x", rollout=r) for r in range(3)))
    for r, t in enumerate(await score(members, *parts)):
        cells = [(column[r], weight) for column, weight in table if weight]
        want = None if any(v is None for v, _ in cells) else sum(float(v) * w for v, w in cells)
        assert t.reward == (want if want is None else pytest.approx(want))
