"""A tiny random Qwen2.5-VL and conversations for it."""

import copy

import pytest
import torch

from agentvision.policies.transformers import TransformersPolicy

from .policy_cases import Talk


@pytest.fixture(scope="session")
def model(codec):
    from agentvision.tiny.config import tiny_config, tiny_model

    config = tiny_config(codec.tokenizer)
    config.text_config.vocab_size = codec.vocab_size
    return tiny_model(config, seed=1).eval()


@pytest.fixture
def talk(codec):
    """Make a `Talk` with this session's codec."""

    def make(**options):
        return Talk(codec, **options)

    return make


@pytest.fixture
async def policy(model, codec):
    policy = TransformersPolicy(model, codec)
    yield policy
    await policy.close()


@pytest.fixture
def head(model):
    """Let a test change the logits: `head(lambda logits: …)`; undone afterwards."""
    hooks = []

    def change(function):
        hooks.append(model.lm_head.register_forward_hook(lambda module, inputs, logits: function(logits)))

    yield change
    for hook in hooks:
        hook.remove()


@pytest.fixture
async def changing(model, codec):
    """A policy over a copy of the model, and a function that changes the copy's weights."""
    mine = copy.deepcopy(model)
    policy = TransformersPolicy(mine, codec)

    async def change():
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in mine.parameters():
                p.add_(0.1 * p.std().nan_to_num(0.0) * torch.randn(p.shape, generator=generator))
        await policy.weights_changed(policy.version + 1)

    yield policy, change
    await policy.close()
