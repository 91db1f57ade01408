"""Engines that are made anew: a process has room for one at a time."""

import pytest
import torch

from agentvision.errors import ModelError, PluginError
from agentvision.policies.vllm import VLLMPolicy
from agentvision.preflight import problems
from agentvision.recipe import load_recipe
from agentvision.tokens import trainer_ids

from .policy_cases import Talk, picture
from .vllm_cases import make_policy


async def test_the_recipes_limits_on_pixels_are_the_engines_and_so_is_the_checkpoints_type():
    policy = make_policy(max_pixels=64 * 64, dtype="auto")
    assert policy.engine._engine.vllm_config.model_config.dtype == torch.float32
    talk = Talk(policy.codec, images=[picture(0, width=160, height=96)])
    told = await policy.engine.expand(talk.segments, talk.store)
    await policy.close()
    assert list(told.ids) == trainer_ids(talk.segments, policy.codec.image_token_id)


def test_a_setting_that_vllm_does_not_know_is_named():
    with pytest.raises(PluginError, match=r"vLLM has no argument 'max_num_batched_token'\. Did you mean"):
        make_policy(engine={"max_num_batched_token": 1})


def test_a_context_that_cannot_hold_the_proof_of_new_weights_is_told():
    with pytest.raises(PluginError, match=r"sampling\.context_tokens is 100, and policy\.backend 'vllm' needs \d+"):
        make_policy(context_tokens=100)


def test_vllm_that_is_not_installed_is_told_with_the_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    with pytest.raises(ModelError, match=r"agentvision\[vllm\]"):
        make_policy()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": {"logprobs_mode": "raw_logprobs"}}, "logprobs_mode cannot be set: exact ids"),
        ({"engine": {"max_model_len": 4}}, "set sampling.context_tokens instead"),
        ({"engine": {"data_parallel_size": 2}}, "policy.options.servers"),
        ({"engine": {"logprobs-mode": "raw_logprobs"}}, "logprobs_mode cannot be set"),
        ({"engine": {"tensor_parallel_size": "two"}}, "tensor_parallel_size is 'two'; take a whole number"),
        ({"engine": {"data-parallel-size": 0}}, "data_parallel_size is 0; take a whole number"),
        ({"servers": 2}, "servers belongs to policy.placement 'separate', and the placement is 'colocate'"),
        ({"placement": "server", "endpoints": ["http://a"], "devices": ["0"]}, "devices belongs to .*'separate'"),
        ({"device": "gpu"}, "torch sees no GPU here"),
        ({"placement": "separate", "servers": 2, "devices": ["0"]}, "servers is 2 and policy.options.devices is for 1"),
        ({"placement": "server", "endpoints": ["localhost:8000"]}, "is no address; write http://host:8000"),
        ({"weights_host": "10.0.0.1"}, "weights_host belongs to policy.placement 'server'"),
        ({"placement": "server", "endpoints": ["http://a"], "weights_host": "http://b"}, "'http://b' is no address"),
        ({"placement": "server", "endpoints": ["http://me:secret@host"]}, "an address holds a password"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(options, says):
    with pytest.raises(PluginError, match=says) as told:
        VLLMPolicy.check(**options)
    assert "secret" not in str(told.value)


def test_recipes_check_tells_it_too():
    recipe = load_recipe("visionthink", profile="tiny", overrides=["policy.backend=vllm", "policy.placement=server"])
    (problem,) = problems(recipe)
    assert "needs policy.endpoints" in problem
