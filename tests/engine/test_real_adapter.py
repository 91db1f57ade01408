"""A real server is brought an adapter: under its name, and without a file."""

import pytest
import torch

from agentvision.engine.probe import gap_of
from agentvision.lora import adapter_off, adapter_parameters
from agentvision.recipe.lora import Lora
from agentvision.train.batch import Example

from ..policies.vllm_cases import make_policy, talk_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


async def gap_to(policy, talk):
    completion = await policy.complete(talk.request())
    example = Example((*talk.segments, *completion.segments), advantage=0.0)
    return gap_of(policy.model, policy.codec, [example], talk.store).max, {s.version for s in completion.versions}


async def test_a_server_samples_with_each_adapter_that_it_is_brought():
    policy = make_policy(placement="separate", adapter=Lora(rank=4, alpha=8.0), engine={"enforce_eager": True})
    try:
        for version in (1, 2):
            with torch.no_grad():
                for name, parameter in adapter_parameters(policy.model):
                    if ".lora_B." in name:
                        parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(version))
            await policy.weights_changed(version)
            for images in (0, 2):
                gap, versions = await gap_to(policy, talk_of(policy, images=images))
                assert gap < 1e-4 and versions == {version}
        with adapter_off(policy.model):
            gap, _ = await gap_to(policy, talk_of(policy))
        assert gap > 0.1, "the adapter is in use"
    finally:
        await policy.close()
