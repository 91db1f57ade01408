import asyncio
import random

import pytest

from agentvision.train.collect import collect
from agentvision.train.prompts import PromptStream
from agentvision.types import Group, Sample, StopReason, Trajectory

SAMPLES = [Sample(str(i), "?") for i in range(100)]


def group_of(sample, rewards, name=""):
    trajectories = [Trajectory(sample, (), (), (), StopReason.ANSWERED, reward=r) for r in rewards]
    return Group(sample, tuple(trajectories), name)


def world(rewards_of, log=None):
    """A rollout that finishes groups in random order, and a scorer that is slower for some than for others."""

    async def rollout(named, seed):
        if log is not None:
            log.append(([name for name, _ in named], seed))
        for name, sample in random.sample(list(named), len(named)):
            await asyncio.sleep(0)
            yield group_of(sample, [None, None], name)

    async def score(group):
        await asyncio.sleep(random.random() / 1000)
        return group_of(group.sample, rewards_of(int(group.sample.id)), group.name)

    return {"rollout": rollout, "score": score, "normalise": True}


async def test_groups_without_a_signal_are_replaced_by_fresh_prompts():
    log = []
    found = await collect(
        PromptStream(SAMPLES, seed=0), **world(lambda i: [0.0, float(i % 2)], log), wanted=4, max_rounds=50, seed=1
    )
    assert len(found.with_signal) == 4
    assert found.rounds == len(log) > 1
    names = [name for round_, _ in log for name in round_]
    assert len(set(names)) == len(names) == len(found.groups)
    assert len({seed for _, seed in log}) == len(log)


async def test_the_order_is_that_of_the_prompts_whoever_finishes_first():
    orders = []
    for _ in range(3):
        found = await collect(
            PromptStream(SAMPLES, seed=3), **world(lambda i: [0.0, 1.0]), wanted=8, max_rounds=0, seed=1
        )
        orders.append([s.group.sample.id for s in found.groups])
    assert orders[0] == orders[1] == orders[2] == [s.id for s in PromptStream(SAMPLES, seed=3).take(8)]


async def test_rounds_are_bounded():
    found = await collect(PromptStream(SAMPLES, seed=0), **world(lambda i: [1.0, 1.0]), wanted=4, max_rounds=2, seed=1)
    assert found.rounds == 3 and not found.with_signal and len(found.groups) == 12


async def test_groups_with_invalid_members_keep_a_signal_only_among_the_valid():
    found = await collect(
        PromptStream(SAMPLES, seed=0), **world(lambda i: [None, 0.0, 1.0]), wanted=2, max_rounds=0, seed=1
    )
    assert len(found.with_signal) == 2
    found = await collect(
        PromptStream(SAMPLES, seed=0), **world(lambda i: [None, None, 1.0]), wanted=2, max_rounds=0, seed=1
    )
    assert not found.with_signal and not any(s.advantages.kept for s in found.groups)


async def test_a_cancelled_collection_leaves_no_task_behind():
    hanging = asyncio.Event()

    async def score(group):
        await hanging.wait()
        return group

    parts = world(lambda i: []) | {"score": score}
    task = asyncio.create_task(collect(PromptStream(SAMPLES, seed=0), **parts, wanted=3, max_rounds=0, seed=1))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
