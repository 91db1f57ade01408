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
