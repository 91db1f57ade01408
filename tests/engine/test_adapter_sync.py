"""An adapter brought to the real engine, alone: proven as weights are, in use, and a hundredth of their bytes."""

import asyncio

import pytest
import torch

from agentvision.engine.adapter import HELD, room_for
from agentvision.engine.sync import Weights
from agentvision.engine.types import SyncError
from agentvision.errors import PluginError
from agentvision.lora import adapter_off, adapter_parameters
from agentvision.policies._adapter import sends_adapter
from agentvision.recipe.lora import Lora

from ..policies.vllm_cases import answers_of, make_policy, said_of, talk_of
from .faulty import FAULTS, Faulty

pytestmark = pytest.mark.timeout(1200)
LORA = Lora(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def policy():
    policy = make_policy(adapter=LORA)
    yield policy
    asyncio.run(policy.close())


def draw(model, seed, std=0.1):
    """Another adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model):
            if ".lora_B." in name:
                parameter.normal_(std=std, generator=generator)


async def test_after_a_sync_the_engine_says_what_the_adapted_module_computes(policy):
    talks = [talk_of(policy, images=2), talk_of(policy, images=0)]
    gap, versions = await answers_of(policy, talks)
    assert gap < 1e-4 and versions == {0}, "a new adapter changes nothing, brought or not"
    for version in (1, 2):
        draw(policy.model, seed=version)
        kept = {name: p.clone() for name, p in policy.model.named_parameters()}
        await policy.weights_changed(version)
        gap, versions = await answers_of(policy, talks)
        assert gap < 1e-4 and versions == {version} and policy.version == version
        with adapter_off(policy.model):
            without, _ = await answers_of(policy, talks)
        assert without > 0.1, "the adapter is in use"
        assert all(torch.equal(p, kept[name]) for name, p in policy.model.named_parameters()), (
            "vLLM scaled the trainer's"
        )


async def test_only_the_adapter_travels(policy):
    draw(policy.model, seed=3)
    adapter = Weights.of(policy.model, version=9, adapter=True)
    merged = Weights.of(policy.model, version=9)
    sent = sum(tensor.nbytes for _, tensor in adapter.stream())
    whole = sum(tensor.nbytes for _, tensor in merged.stream())
    assert sent < whole / 20
    assert adapter.adapter == {"rank": 4, "alpha": 8.0} and merged.adapter is None
    assert not any("lora" in name or "base_layer" in name for name in merged.digests)
    await policy.weights_changed(policy.version + 1)
    assert HELD.tensors.keys() == adapter.digests.keys()


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_found_before_anything_is_sampled_and_the_next_sync_heals(policy, fault):
    engine = Faulty(policy.engine, seed=FAULTS.index(fault))
    await policy.weights_changed(policy.version + 1)
    await answers_of(policy, [talk_of(policy, images=1)])  # something is cached
    for seed in range(2):
        version = policy.version + 1
        draw(policy.model, seed=10 + seed)
        weights = Weights.of(policy.model, version=version, adapter=True)
        await policy.engine.sample(policy.proof.probe.ask(adapter=True))
        engine.spoil(fault)
        with pytest.raises(SyncError):
            await policy.delivery.sync.send(weights, engine)
            await policy.proof.check(weights, engine, policy.model)
        assert engine.spoilt == fault
        await policy.weights_changed(version)
        gap, _ = await answers_of(policy, [talk_of(policy, images=1)])
        assert gap < 1e-4


async def test_an_adapter_that_is_not_put_to_use_is_seen_by_the_probe(policy, monkeypatch):
    draw(policy.model, seed=20)
    monkeypatch.setattr(policy.proof.probe.__class__, "ask", lambda self, *, adapter, ask=policy.proof.probe.ask: ask())
    with pytest.raises(SyncError, match="every tensor arrived, but"):
        await policy.weights_changed(policy.version + 1)
    monkeypatch.undo()
    await policy.weights_changed(policy.version + 1)


async def test_turns_in_flight_go_on_under_the_new_adapter(policy):
    never = (policy.codec.image_token_id,)
    monkey = policy._codec.stop_ids
    policy._codec.stop_ids = never
    try:
        turn = asyncio.create_task(policy.complete(talk_of(policy, seed=5).request(max_tokens=600)))
        while not any(said_of(policy.engine)):
            await asyncio.sleep(0.01)
        draw(policy.model, seed=30, std=0.02)
        await policy.weights_changed(policy.version + 1)
        completion = await turn
    finally:
        policy._codec.stop_ids = monkey
    assert [span.version for span in completion.versions] == [policy.version - 1, policy.version]


async def test_whole_weights_are_refused_by_an_engine_for_adapters(policy):
    with pytest.raises(SyncError, match="takes adapters alone"):
        await policy.delivery.sync.send(Weights.of(policy.model, version=policy.version + 1), policy.engine)
    await policy.weights_changed(policy.version + 1)
    gap, _ = await answers_of(policy, [talk_of(policy)])
    assert gap < 1e-4


def test_an_engine_is_started_for_a_rank_that_it_knows():
    assert [room_for(rank) for rank in (1, 2, 8, 17, 512)] == [1, 8, 8, 32, 512]


def test_what_cannot_be_sent_as_it_is_is_merged_and_said(caplog):
    tower = Lora(targets=("q_proj", "visual.qkv"))
    assert sends_adapter(LORA, "auto") and not sends_adapter(LORA, "merged") and not sends_adapter(None, "adapter")
    assert not sends_adapter(tower, "auto") and "vision tower" in caplog.text
    assert not sends_adapter(Lora(rank=600), "auto") and "512 at most" in caplog.text
    with pytest.raises(PluginError, match="vision tower"):
        sends_adapter(tower, "adapter")
