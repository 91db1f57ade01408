import asyncio
import random

import pytest

from agentvision.policy import Completion, Request, SamplingParams
from agentvision.train.lockstep import Lockstep


class Recorder:
    """A batching policy that remembers what was submitted together."""

    trainable, codec, version = True, None, 0

    def __init__(self):
        self.batches = []

    def submit(self, requests):
        self.batches.append([r.session for r in requests])
        return [self.answer(r) for r in requests]

    async def answer(self, request):
        await asyncio.sleep(random.random() / 500)
        return Completion(request.session)

    async def release(self, session):
        pass


def request(session):
    return Request(session, "", (), (), (), None, SamplingParams())


async def episode(policy, name, turns):
    try:
        for _ in range(turns):
            await asyncio.sleep(random.random() / 500)  # a tool
            assert (await policy.complete(request(name))).text == name
    finally:
        await policy.release(name)


async def test_batches_are_all_live_episodes_in_the_order_of_their_names():
    for _ in range(3):
        inner = Recorder()
        policy = Lockstep(inner, episodes=4)
        await asyncio.gather(*(episode(policy, name, turns) for name, turns in zip("dbca", (1, 3, 2, 0), strict=True)))
        assert inner.batches == [["b", "c", "d"], ["b", "c"], ["b"]]


async def test_an_episode_that_is_cancelled_holds_nobody_up():
    inner = Recorder()
    policy = Lockstep(inner, episodes=2)
    first = asyncio.create_task(episode(policy, "a", 1))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(episode(policy, "b", 1))
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    if not first.done():  # b never began, so nobody released it
        await policy.release("b")
    await first
    assert inner.batches == [["a"]]


async def test_with_fewer_at_once_the_batches_still_depend_on_nothing_but_the_requests():
    turns = {"a": 2, "b": 1, "c": 3, "d": 1, "e": 0, "f": 2, "g": 1}
    seen = []
    for _ in range(5):
        inner, gate = Recorder(), asyncio.Semaphore(3)
        policy = Lockstep(inner, episodes=len(turns), at_once=3)

        async def gated(name, policy=policy, gate=gate):
            async with gate:
                await episode(policy, name, turns[name])

        await asyncio.wait_for(asyncio.gather(*(gated(name) for name in turns)), 10)
        assert max(map(len, inner.batches)) <= 3
        seen.append(inner.batches)
    assert seen[0] == [["a", "b", "c"], ["a", "c", "d"], ["c", "f", "g"], ["f"]]
    assert all(batches == seen[0] for batches in seen)
