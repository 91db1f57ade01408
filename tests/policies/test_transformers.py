"""The in-process policy: exact against the uncached forward pass, whatever the batch, the cache or the failure."""

import asyncio

import pytest
import torch

from agentvision.policies.transformers import TransformersPolicy

from .policy_cases import picture, recorded_logprobs, uncached_logprobs


@pytest.fixture
async def policy(model, codec):
    policy = TransformersPolicy(model, codec)
    yield policy
    await policy.close()


async def test_first_turn_equals_the_uncached_forward(policy, model, codec, talk):
    t = talk(images=[picture()])
    completion = await t.turn(policy)
    assert completion.ids
    torch.testing.assert_close(recorded_logprobs(t), uncached_logprobs(model, codec, t), atol=1e-4, rtol=0)


async def test_mixed_batch_equals_the_uncached_forward(policy, model, codec, talk):
    """Episodes with 0 to 2 images and 1 to 3 turns, finishing and going on side by side."""
    talks = [
        talk(session=f"s/{k}", seed=k, question="What " + "is it? " * (k % 5), images=[picture(k)] * (k % 2))
        for k in range(12)
    ]

    async def run(t, turns):
        for k in range(turns):
            await t.turn(policy, max_tokens=4 + 3 * k + turns, temperature=0.7 if turns == 2 else 1.0)
            if k + 1 < turns:
                t.reply(image=picture(100 + t.seed, width=64) if t.seed % 3 else None)
        await policy.release(t.session)

    await asyncio.gather(*(run(t, 1 + k % 3) for k, t in enumerate(talks)))
    for t in talks:
        expected = uncached_logprobs(model, codec, t, temperature=0.7 if t.turns == 2 else 1.0)
        torch.testing.assert_close(recorded_logprobs(t), expected, atol=1e-4, rtol=0)
