"""Engines that are made anew: a process has room for one at a time."""

import pytest
import torch

from agentvision.errors import ModelError, PluginError
from agentvision.policies._vllm_settings import in_the_recipes_words
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


async def test_the_engine_computes_with_as_many_threads_as_torch_was_told():
    """vLLM compares what it is told at two moments, and ends when that differs."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        policy = make_policy()
        await Talk(policy.codec).turn(policy)
        await policy.close()
    finally:
        torch.set_num_threads(before)


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
    ("said", "told"),
    [
        ("decreasing `max_model_len` when", "decreasing sampling.context_tokens when"),
        ("Decrease --kv-cache-memory-bytes, or", "Decrease policy.options.kv_cache_mib, or"),
        (
            "the KV cache; try gpu_memory_utilization",
            "the KV cache; try policy.options.memory_share (policy.options.kv_",
        ),
        ("a model of another revision", "a model of another revision"),
    ],
)
def test_what_vllm_says_of_its_arguments_is_told_by_the_recipes_keys(said, told):
    assert in_the_recipes_words(said).startswith(told)


SERVER = {"placement": "server", "endpoints": ["http://a:8000"]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": {"logprobs_mode": "raw_logprobs"}}, "logprobs_mode: cannot be set: exact ids"),
        ({"engine": {"logprobs-mode": "raw_logprobs"}}, "logprobs-mode: cannot be set"),
        ({"engine": {"max_model_len": 4}}, "set sampling.context_tokens instead"),
        ({"placement": "separate", "engine": {"max-model-len": 4}}, "set sampling.context_tokens instead"),
        (
            {"placement": "separate", "engine": {"uds": "/tmp/a"}},
            "engine.uds: cannot be set: servers that a run starts",
        ),
        ({"engine": {"data_parallel_size": 2}}, "policy.options.servers"),
        ({"engine": {"data_parallel_size": "two"}}, "data_parallel_size: must be a whole number from 1 up, not 'two'"),
        ({"engine": {"tensor_parallel_size": 0}}, "tensor_parallel_size: must be a whole number from 1 up, not 0"),
        (
            {"engine": {"tensor_parallel_size": [2]}},
            r"tensor_parallel_size: must be a whole number from 1 up, not \[2\]",
        ),
        ({"device": "gpu"}, "model.device: 'gpu' cannot be, torch sees no GPU here"),
        (
            {"placement": "separate", "servers": 2, "devices": ["0"]},
            r"options.devices: .*servers is 2, and this is for 1",
        ),
        ({"placement": "server", "endpoints": []}, "policy.placement: 'server' needs policy.endpoints"),
        ({"endpoints": ["http://a:8000"]}, "policy.endpoints: belongs to policy.placement 'server', .* is 'colocate'"),
        ({"servers": 2}, "policy.options.servers: belongs to policy.placement 'separate'"),
        ({"devices": ["0"]}, "policy.options.devices: belongs to policy.placement 'separate'"),
        ({"api_key_env": "HOME"}, "policy.options.api_key_env: belongs to policy.placement 'server'"),
        ({"weights_host": "10.0.0.1"}, "policy.options.weights_host: belongs to policy.placement 'server'"),
        ({**SERVER, "api_key_env": "NO_SUCH_KEY"}, "api_key_env: the environment variable 'NO_SUCH_KEY' is not set"),
        ({**SERVER, "engine": {"tensor_parallel_size": 2}}, "policy.options.engine: the servers run already"),
        ({**SERVER, "weights_host": "http://b"}, "weights_host: 'http://b' is no address"),
        ({**SERVER, "weights_host": ":8000"}, "weights_host: ':8000' is no address"),
        ({"placement": "server", "endpoints": ["http://me:secret@host"]}, "an address holds a password"),
        ({"placement": "server", "endpoints": ["me:secret@host"]}, "an address holds a password"),
        ({"placement": "server", "endpoints": ["http://me:secret@host:99999"]}, "an address holds a password"),
        ({"placement": "separate", "engine": {"ssl-keyfile": "/a"}}, "ssl-keyfile: cannot be set: servers that a run"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(options, says):
    with pytest.raises(PluginError, match=says) as told:
        VLLMPolicy.check(**options)
    assert "secret" not in str(told.value)


def test_servers_beside_a_trainer_with_several_gpus_are_told_theirs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with pytest.raises(PluginError, match=r"options.devices: .* needs them where there are several GPUs \(here 8\)"):
        VLLMPolicy.check(placement="separate")
    with pytest.raises(PluginError, match=r"devices.0: there is no device 4: .*'4,5,6,7'"):
        VLLMPolicy.check(placement="separate", devices=["4"])
    VLLMPolicy.check(placement="separate", devices=["3"])
    VLLMPolicy.check(placement="separate", device="cpu")


def test_recipes_check_tells_it_too():
    recipe = load_recipe("visionthink", profile="tiny", overrides=["policy.backend=vllm", "policy.placement=server"])
    (problem,) = problems(recipe)
    assert "needs policy.endpoints" in problem


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "http://", "http://:8000", "http:///v1", "http://h:99999", "http://h:port", "ftp://h", "unix://",
     "unix://relative.sock", "http://[::1", "", " http://h:8000", "http://h:8000?a=b"],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_told_before_anything_is_asked(url):
    with pytest.raises(PluginError, match=r"policy\.endpoints\.1: .* write http://HOST:PORT, or unix:///PATH"):
        VLLMPolicy.check(placement="server", endpoints=["http://a:8000", url])


def test_a_server_that_is_named_twice_is_told_and_two_behind_one_address_are_two():
    VLLMPolicy.check(
        placement="server", endpoints=["http://h/a", "http://h/b", "http://h:1", "unix:///a", "unix:///run/user@1/b"]
    )
    with pytest.raises(PluginError, match=r"policy\.endpoints\.1: .* is the same server as policy\.endpoints\.0"):
        VLLMPolicy.check(placement="server", endpoints=["http://h:8000", "http://H:8000/v1/"])


def test_all_of_it_is_told_at_once_each_with_its_key_and_where_it_is_from():
    options = ["policy.options.servers=2", "policy.options.engine.max_model_len=4", "model.device=cuda:9"]
    recipe = load_recipe("visionthink", profile="tiny", overrides=["policy.backend=vllm", *options])
    told = list(problems(recipe))
    keys = ["policy.options.servers", "model.device", "policy.options.engine.max_model_len"]
    assert [line.split(": ")[:2] for line in told] == [["override", key] for key in keys]
