"""The in-process policy while its weights change: nothing computed by older ones is used again."""

import asyncio
import copy
import threading

import pytest
import torch

from agentvision.errors import ModelError
from agentvision.policies.transformers import TransformersPolicy
from agentvision.policy import TrainablePolicy, VersionSpan

from .policy_cases import assert_exact, picture, recorded_logprobs, uncached_logprobs


async def test_nothing_computed_by_older_weights_is_used(changing, codec, talk):
    policy, change = changing
    old, sibling = talk(session="g/0", images=[picture()]), talk(session="g/1", images=[picture()])
    await old.turn(policy)
    await change()
    assert policy.version == 1
    old.reply(image=picture(3))
    await asyncio.gather(old.turn(policy), sibling.turn(policy))
    assert [[s.version for s in c.versions] for c in old.completions] == [[0], [1]]
    assert_exact(policy.model, codec, sibling)
    expected = uncached_logprobs(policy.model, codec, old)[len(old.completions[0].ids) :]
    torch.testing.assert_close(torch.tensor(old.completions[1].logprobs), expected, atol=1e-4, rtol=0)
    assert policy.stats.vision_images == 3


async def test_embeddings_outlive_the_weights_when_the_vision_tower_is_frozen(model, codec, talk):
    policy = TransformersPolicy(model, codec, vision_frozen=True)
    for session in ("a", "b"):
        t = talk(session=session, images=[picture()])
        await t.turn(policy)
        assert_exact(model, codec, t)
        await policy.weights_changed(policy.version + 1)
    assert policy.stats.vision_images == 1
    await policy.close()


async def test_a_turn_goes_on_under_new_weights(changing, codec, talk, head):
    policy, change = changing
    gate = threading.Event()

    def wait_in_the_middle(module, inputs, logits):
        if policy.stats.decode_steps == 3:
            gate.wait(20)

    policy.model.lm_head.register_forward_hook(wait_in_the_middle)
    t = talk(images=[picture()])
    turn = asyncio.create_task(t.turn(policy, max_tokens=10))
    while policy.stats.decode_steps < 3:
        await asyncio.sleep(0.005)
    before = copy.deepcopy(policy.model)
    await change()
    gate.set()
    completion = await turn
    assert len(completion.ids) == 10
    assert completion.versions == (VersionSpan(0, 0, 5), VersionSpan(1, 5, 10))
    assert [(s.version, len(s.ids)) for s in completion.segments] == [(0, 5), (1, 5)]
    assert policy.stats.prefill_calls == 2
    old, new = uncached_logprobs(before, codec, t), uncached_logprobs(policy.model, codec, t)
    recorded = recorded_logprobs(t)
    torch.testing.assert_close(recorded[:5], old[:5], atol=1e-4, rtol=0)
    torch.testing.assert_close(recorded[5:], new[5:], atol=1e-4, rtol=0)
    assert (old[5:] - new[5:]).abs().max() > 1e-2


async def test_a_copy_is_untouched_by_an_update_until_it_is_told(model, codec, talk):
    """The trainer's module is ruined while a turn is sampled, set right, said to be new, and ruined again at once."""
    mine = copy.deepcopy(model)
    before = copy.deepcopy(mine)
    policy = TransformersPolicy(mine, codec)
    assert not policy.samples_from_copy
    mine.model.visual.requires_grad_(False)
    policy.samples_from_copy = True
    assert policy.samples_from_copy and isinstance(policy, TrainablePolicy)
    own = dict(policy._network.model.named_parameters())
    assert {own[name] is p for name, p in mine.named_parameters() if p.requires_grad} == {False}
    assert own["model.visual.patch_embed.proj.weight"] is mine.model.visual.patch_embed.proj.weight, "frozen: shared"

    def ruin():
        with torch.no_grad():
            for p in mine.model.language_model.parameters():
                p.fill_(torch.nan)

    gate = threading.Event()

    def wait_in_the_middle(module, inputs, logits):
        if policy.stats.decode_steps == 3:
            gate.wait(20)

    policy._network.model.lm_head.register_forward_hook(wait_in_the_middle)
    t = talk(images=[picture()])
    turn = asyncio.create_task(t.turn(policy, max_tokens=10))
    while policy.stats.decode_steps < 3:
        await asyncio.sleep(0.005)
    ruin()
    mine.load_state_dict({name: 1.5 * p for name, p in before.state_dict().items()})
    new = copy.deepcopy(mine)
    changed = asyncio.create_task(policy.weights_changed(1))
    await asyncio.sleep(0.02)
    assert not changed.done(), "the copy cannot have been refreshed within a step of decoding"
    gate.set()
    await changed
    ruin()
    completion = await turn
    assert completion.versions == (VersionSpan(0, 0, 5), VersionSpan(1, 5, 10))
    recorded = recorded_logprobs(t)
    torch.testing.assert_close(recorded[:5], uncached_logprobs(before, codec, t)[:5], atol=1e-4, rtol=0)
    torch.testing.assert_close(recorded[5:], uncached_logprobs(new, codec, t)[5:], atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match="cannot go back"):
        policy.samples_from_copy = False
    await policy.close()
    with pytest.raises(RuntimeError, match="closed"):
        await policy.weights_changed(2)


async def test_weights_that_cannot_be_taken_over_are_told_to_the_trainer(model, codec, monkeypatch):
    policy = TransformersPolicy(copy.deepcopy(model), codec)
    policy.samples_from_copy = True

    def broken():
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(policy._network, "refresh", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        await policy.weights_changed(1)
    monkeypatch.undo()
    await policy.weights_changed(2)
    await policy.close()


async def test_a_copy_in_another_type_follows_the_weights(model, codec, talk):
    mine = copy.deepcopy(model)
    policy = TransformersPolicy(mine, codec, compute_dtype="bfloat16")
    for version in range(2):
        t = talk(session=f"{version}", images=[picture()])
        await t.turn(policy)
        error = (recorded_logprobs(t) - uncached_logprobs(mine, codec, t)).abs()
        assert 0 < error.mean() < 0.1
        assert {p.dtype for p in mine.parameters()} == {torch.float32}
        with torch.no_grad():
            mine.lm_head.weight.mul_(3.0)
        await policy.weights_changed(policy.version + 1)
    await policy.close()


def test_a_type_that_does_not_exist_is_a_clear_error(model, codec):
    with pytest.raises(ModelError, match="'bf61'"):
        TransformersPolicy(model, codec, compute_dtype="bf61")


async def test_a_model_left_in_training_mode_samples_in_evaluation_mode(changing, codec, talk):
    policy, _ = changing
    policy.model.train()
    t = talk()
    await t.turn(policy)
    assert not policy.model.training
    assert_exact(policy.model, codec, t)
