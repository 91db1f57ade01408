"""`@reward`: functions of every kind, and how a reward says what it scores."""

import functools
import subprocess
import sys

import pytest

from agentvision import types
from agentvision.rewards import Accuracy, RatioPenalty, reward
from agentvision.rewards.base import reward_name, takes_group
from agentvision.types import Group, Score, Trajectory


@reward
def brief(trajectory: Trajectory, *, limit: int = 4) -> float:
    return float(len(trajectory.answer or "") <= limit)


@reward
async def brief_async(trajectory: Trajectory) -> bool:
    return len(trajectory.answer or "") <= 4


@reward
def first_only(group: Group):
    return [t.rollout == 0 for t in group.trajectories]


@reward
async def first_only_async(g: "Group") -> list[Score]:
    return [Score(float(t.rollout == 0)) for t in g.trajectories]


async def test_functions_become_rewards(trajectory):
    assert await brief(trajectory("blue")) == Score(1.0)
    assert await brief_async(trajectory("purple")) == Score(0.0)
    assert await brief.configure(limit=6)(trajectory("purple")) == Score(1.0)
    assert await brief(trajectory("purple")) == Score(0.0)


async def test_functions_of_groups_become_group_rewards(trajectory, group):
    members = group(trajectory("x", rollout=0), trajectory("x", rollout=1))
    assert await first_only(members) == [Score(1.0), Score(0.0)]
    assert await first_only_async(members) == [Score(1.0), Score(0.0)]


async def test_settings_of_the_decorator(trajectory):
    @reward(name="strict", timeout_s=1.5, judges_correctness=True)
    def f(trajectory):
        return Score.invalid("no idea")

    assert (f.name, f.timeout_s, f.judges_correctness) == ("strict", 1.5, True)
    assert await f(trajectory("x")) == Score.invalid("no idea")


class ByAnnotation:
    def __call__(self, them: types.Group):
        return []


class ByName:
    def __call__(self, group):
        return []


class Single:
    def __call__(self, group: Trajectory):
        return 1


@pytest.mark.parametrize(
    ("target", "group"),
    [
        (ByAnnotation(), True),
        (ByName(), True),
        (Single(), False),
        (RatioPenalty(), True),
        (RatioPenalty, True),
        (ByName, True),
        (Single, False),
        (Accuracy, False),
        (type("NoCall", (), {}), False),
        (Accuracy(), False),
        (first_only_async, True),
        (brief, False),
        (lambda group: [], True),
        (lambda t: 1, False),
        (lambda: 1, False),
        (functools.partial(lambda a, group: [], 1), True),
        (len, False),
        (print, False),
    ],
)
def test_the_first_parameter_says_what_is_scored(target, group):
    assert takes_group(target) is group


def test_names():
    assert reward_name(brief) == "brief"
    assert reward_name(Accuracy()) == "accuracy"
    assert reward_name(Single()) == "Single"
    assert reward_name(functools.partial(print)) == "partial"
    assert reward(lambda t: 1).name == "<lambda>"


IMPORTS = """
import asyncio, subprocess, sys, time
import agentvision.types
started = time.process_time()
import agentvision.rewards
seconds = time.process_time() - started
heavy = {"torch", "transformers", "pydantic", "numpy", "PIL", "rapidfuzz", "sympy", "math_verify"} & set(sys.modules)
print(seconds, *heavy)
"""


def test_the_import_is_light():
    """Its own part; nothing of a library is imported before it is needed."""
    command = [sys.executable, "-c", IMPORTS]
    for _ in range(3):
        seconds, *heavy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert heavy == []
        if float(seconds) < 0.3:  # of a processor: 0.04 on a slow one; the rest is room for a busy one
            return
    pytest.fail(f"{seconds} s of a processor")
