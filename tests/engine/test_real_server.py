"""The real vLLM behind an endpoint and a pool: one server of the tiny model, started once."""

import asyncio
import itertools
from contextlib import nullcontext

import httpx
import pytest
import torch

from agentvision.build import model_path
from agentvision.engine import sync
from agentvision.engine.carry import BySharedMemory
from agentvision.engine.endpoint import Endpoint
from agentvision.engine.launch import ServerPlan, Servers
from agentvision.engine.pool import Pool
from agentvision.engine.sync import Weights
from agentvision.engine.types import SyncError
from agentvision.policies._model import load_model
from agentvision.policies.vllm import VLLMPolicy
from agentvision.tokens import Codec, trainer_ids
from agentvision.types import Message, TextSegment

from ..policies.policy_cases import Talk, picture, recorded_logprobs, uncached_logprobs
from ..policies.vllm_cases import answers_of, talk_of
from .asks import ask_of
from .faulty_network import FaultyNetwork

TINY = model_path("package://tiny-vlm")
CPU_FLAGS = {
    # By its short name, "uni", vLLM takes "mp" instead, with a third process that imports everything once more.
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "limit_mm_per_prompt": {"image": 4, "video": 0},
}
CPU_ENV = {
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all servers take the same core
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    servers = Servers(ServerPlan(TINY, flags=CPU_FLAGS, env=CPU_ENV, logs=tmp_path_factory.mktemp("logs")))
    yield asyncio.run(servers.start())[0]
    asyncio.run(servers.close())


@pytest.fixture(scope="module")
def tiny():
    return Codec.from_pretrained(TINY)


async def two_turns(engine, codec, **changes):
    talk = Talk(codec, images=[picture(1, 160, 160)], question="What is it? " * 40)
    heard = []
    for turn in range(2):
        heard.append(await engine.sample(ask_of(talk, **changes)))
        talk.messages += (Message("assistant", (codec.decode(heard[-1].ids),)),)
        talk.segments += (TextSegment(heard[-1].ids, sampled=True, logprobs=heard[-1].logprobs),)
        talk.turns += 1
        if turn == 0:
            talk.reply(image=picture(2, 96, 64))
    return talk, heard


async def test_two_turns_with_two_images_are_those_of_the_trainers_forward_pass(url, tiny):
    endpoint = Endpoint(url, codec=tiny)
    info = await endpoint.probe()
    assert info.exact and info.control and info.max_model_len == 1024
    talk, (first, second) = await two_turns(endpoint, tiny, temperature=0.9)
    model = load_model(TINY, dtype=torch.float32, device="cpu", attn="sdpa", revision=None, trust_remote_code=False)
    expected = uncached_logprobs(model, tiny, talk, temperature=0.9)
    assert (recorded_logprobs(talk) - expected).abs().max() <= 1e-4
    assert second.cached_tokens >= 0.9 * first.prompt_tokens
    await endpoint.close()


async def test_a_pause_a_reset_and_a_resume_in_the_middle_of_a_turn(url, tiny):
    """Of a prompt that was found in the prefix cache: what vLLM itself keeps over a reset ends its engine."""
    endpoint = Endpoint(url, codec=tiny)
    talk, _ = await two_turns(endpoint, tiny)
    never = (tiny.image_token_id,)
    for _ in range(3):
        asked = asyncio.create_task(endpoint.sample(ask_of(talk, max_tokens=400, stop_ids=never)))
        await asyncio.sleep(0.5)
        if not asked.done():  # a busy machine's pause is too late
            break
    await endpoint.pause()
    await endpoint.reset_caches()
    assert not asked.done()
    await endpoint.check(timeout_s=30)
    await endpoint.resume()
    sampled = await asked
    assert len(sampled.ids) == 400 == len(sampled.logprobs)
    assert [(span.version, span.start, span.end) for span in sampled.versions] == [(0, 0, 400)]
    await endpoint.close()


async def test_a_turn_that_is_left_is_sampled_no_further(url, tiny):
    endpoint = Endpoint(url, codec=tiny)

    transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix://"))

    async def running():
        metrics = (await client.get("/metrics")).text
        (line,) = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")]
        return float(line.split()[-1])

    ask = ask_of(Talk(tiny), max_tokens=900, stop_ids=(tiny.image_token_id,))
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        asked = asyncio.create_task(endpoint.sample(ask))
        while await running() < 1:
            await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):  # it was not done yet
            await asked
        while await running() > 0:
            await asyncio.sleep(0.05)
    await endpoint.close()


async def test_what_is_too_long_is_impossible_and_a_pool_says_so(url, tiny):
    pool = Pool([Endpoint(url, codec=tiny)])
    talk = Talk(tiny, question="x" * 3000)
    assert len(trainer_ids(talk.segments, tiny.image_token_id)) > 1024
    with pytest.raises(ValueError, match="room for -"):
        await pool.sample(ask_of(talk))
    await pool.close()


# --- new weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def policy(url, tiny):
    model = load_model(TINY, dtype=torch.float32, device="cpu", attn="sdpa", revision=None, trust_remote_code=False)
    policy = VLLMPolicy(Pool([Endpoint(url, codec=tiny)]), tiny, load=lambda: model)
    policy.delivery.sync.bucket_bytes = 1 << 20
    yield policy
    await policy.close()


@pytest.fixture(params=["shared memory", "network"])
def way(request, monkeypatch):
    """How the weights go: a worker that looks for memory that is gone takes the trainer for another machine's."""
    if request.param == "network":
        monkeypatch.setattr(sync, "shows", lambda nonce: nullcontext("of-another-machine"))
    return request.param


def change(policy):
    """Other weights than those that the server has, whoever brought them."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1 + 0.02 * torch.rand(()))


async def says_what_the_module_computes(policy):
    gap, versions = await answers_of(policy, [talk_of(policy, images=2), talk_of(policy, images=0)])
    assert gap < 1e-4 and versions == {policy.version}


async def test_after_a_sync_the_server_says_what_the_module_computes(policy, way, monkeypatch):
    told = []
    update = Endpoint.update_weights
    monkeypatch.setattr(Endpoint, "update_weights", lambda self, info: (told.append(info), update(self, info))[1])
    for version in (1, 2):
        change(policy)
        await policy.weights_changed(version)
        await says_what_the_module_computes(policy)
    assert policy.syncs_failed == 0 and len(told) > 6
    assert all(("lent" in info) == (way == "network") for info in told)


@pytest.mark.parametrize("fault", ["broken", "flipped"])
async def test_a_network_that_fails_in_the_middle_of_a_sync_costs_a_second_try(policy, monkeypatch, fault):
    monkeypatch.setattr(sync, "shows", lambda nonce: nullcontext("of-another-machine"))
    update = Endpoint.update_weights
    with FaultyNetwork() as network:
        buckets = itertools.count()

        def detoured(self, info):
            if next(buckets) == 5:
                network.spoil(fault)
            return update(self, network.detour(info))

        monkeypatch.setattr(Endpoint, "update_weights", detoured)
        change(policy)
        await policy.weights_changed(3)
    assert network.spoilt == fault and policy.syncs_failed == 1
    await says_what_the_module_computes(policy)


async def test_an_update_that_its_trainer_left_in_the_middle_does_not_bar_the_next(policy, way, url, tiny):
    change(policy)
    other = Endpoint(url, codec=tiny)
    await other.pause()
    await other.start_weight_update()
    for bucket in itertools.islice(sync.buckets(Weights.of(policy.model, version=4).stream(), 1 << 20), 5):
        with BySharedMemory().carry(bucket) as info:
            await other.update_weights(info)
    await other.close()
    change(policy)
    await policy.weights_changed(5)
    assert policy.syncs_failed == 0
    await says_what_the_module_computes(policy)


async def test_what_a_worker_cannot_load_is_told_and_the_next_sync_heals(policy, way, url, tiny):
    strange = torch.nn.ModuleDict({"no_such_part": torch.nn.Linear(3, 3)})
    other = Endpoint(url, codec=tiny)
    with pytest.raises(SyncError, match=r"version 6 did not get to worker 0: \w+: .*no_such_part"):
        await policy.delivery.sync.send(Weights.of(strange, version=6), other)
    await other.close()
    change(policy)
    await policy.weights_changed(7)
    assert policy.syncs_failed == 0
    await says_what_the_module_computes(policy)
