"""The policy over two servers: both are brought the trainer's weights, and one that has not got them gets no turns.

The servers are fakes that take real tensors and digest them, so what proves a sync is the real proof; what they say of a
turn is no model's, so the probe's comparison of log-probs is left to `test_real_server.py`.
"""

import asyncio
import copy
import time
from contextlib import ExitStack

import pytest
import torch

from agentvision.engine.endpoint import Endpoint
from agentvision.engine.pictures import Pictures
from agentvision.engine.pool import Pool
from agentvision.engine.probe import Gap, Probe
from agentvision.engine.types import SyncError
from agentvision.policies.vllm import VLLMPolicy

from ..engine.asks import ask_of
from ..engine.vllm_server import VllmServer
from .policy_cases import Talk, picture


@pytest.fixture
def serve(codec):
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            VllmServer(image_token_id=codec.image_token_id, stop_id=codec.stop_ids[0], **options)
        )


@pytest.fixture
async def policy_over(model, codec, monkeypatch):
    made = []
    monkeypatch.setattr(Probe, "gap", lambda self, model, sampled: Gap(len(sampled.ids), 0.0, 0.0))

    def make(*servers):
        pictures = Pictures(codec.vision)
        endpoints = [Endpoint(server.url, codec=codec, pictures=pictures) for server in servers]
        pool = Pool(endpoints, look_s=0.05, answer_s=5.0, patience_s=60.0)
        module = copy.deepcopy(model)
        made.append(VLLMPolicy(pool, codec, load=lambda: module))
        return made[-1]

    yield make
    for policy in made:
        await policy.close()


async def until(condition, *, within_s=60.0):
    stop = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < stop, "it did not come to pass"
        await asyncio.sleep(0.02)


async def both_serving(policy):
    await policy.engine.ready()
    await until(lambda: len(policy.engine.controls()) == 2)


def has(server, module):
    parameters = dict(module.named_parameters())
    return server.tensors.keys() == parameters.keys() and all(
        torch.equal(server.tensors[name], parameter) for name, parameter in parameters.items()
    )


def change(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)


async def turns_of(policy, codec, count, *, name="t", images=()):
    talks = [Talk(codec, session=f"{name}{k}", group=f"{name}{k}", seed=k, images=images) for k in range(count)]
    completions = await asyncio.gather(*(policy.complete(talk.request()) for talk in talks))
    return {span.version for completion in completions for span in completion.versions}


async def test_new_weights_come_to_both_and_the_next_turns_are_of_them(policy_over, codec, serve):
    servers = [serve(), serve()]
    policy = policy_over(*servers)
    await both_serving(policy)
    for version in (0, 1):  # a run brings its first weights too
        change(policy.model)
        await policy.weights_changed(version)
        assert policy.version == version and policy.syncs_failed == 0
        assert all(has(server, policy.model) and server.version == str(version) for server in servers)
        assert await turns_of(policy, codec, 6, name=f"v{version}/") == {version}
    assert all(len(server.turns) > 2 for server in servers), "turns of the probe and of episodes went to both"


async def test_the_first_turn_waits_for_servers_that_are_late(policy_over, codec, serve):
    servers = [serve(), serve()]
    for server in servers:
        server.die()
    policy = policy_over(*servers)
    brought = asyncio.create_task(policy.weights_changed(0))
    await asyncio.sleep(0.3)
    assert not brought.done()
    for server in servers:
        await asyncio.to_thread(server.start)
    await brought
    assert await turns_of(policy, codec, 4) == {0}
    await until(lambda: all(has(server, policy.model) for server in servers))


async def test_one_that_fails_its_sync_gets_no_turns_and_is_brought_the_weights_when_it_is_back(
    policy_over, codec, serve
):
    broken = []

    def spoil(name, tensor):
        return tensor + 1 if broken and name == broken[0] else tensor

    servers = [serve(), serve(spoil=spoil)]
    policy = policy_over(*servers)
    await both_serving(policy)
    await policy.weights_changed(0)
    broken.append(next(iter(dict(policy.model.named_parameters()))))
    change(policy.model)
    await policy.weights_changed(1)
    assert policy.version == 1 and policy.syncs_failed >= 2, "it is tried once more before it is given up"
    before = len(servers[1].turns)
    assert await turns_of(policy, codec, 8) == {1}
    assert len(servers[1].turns) == before
    assert servers[1].paused, "it samples nothing from weights that nobody knows"
    broken.clear()
    await until(lambda: not servers[1].paused)
    assert has(servers[1], policy.model) and servers[1].version == "1"
    await until(lambda: policy.engine._is_able(policy.engine._members[1]))
    await turns_of(policy, codec, 8, name="later ")
    assert len(servers[1].turns) > before


async def test_one_that_was_started_again_is_brought_what_the_trainer_sent_last(policy_over, codec, serve):
    """What it sent, though its module has moved on since."""
    servers = [serve(), serve()]
    policy = policy_over(*servers)
    await both_serving(policy)
    await policy.weights_changed(0)
    sent = copy.deepcopy(policy.model)
    change(policy.model)
    servers[0].die()
    servers[0].start()
    await until(lambda: servers[0].version == "0" and not servers[0].paused)
    assert has(servers[0], sent) and not has(servers[0], policy.model)
    await both_serving(policy)
    assert await turns_of(policy, codec, 6) == {0}


async def test_a_sync_that_all_fail_is_an_error_and_keeps_the_version(policy_over, codec, serve):
    servers = [serve(spoil=lambda name, tensor: tensor * 0) for _ in range(2)]
    policy = policy_over(*servers)
    await both_serving(policy)
    with pytest.raises(SyncError, match="arrived changed"):
        await policy.weights_changed(3)
    assert policy.version == 0


async def test_an_image_is_encoded_once_for_all_servers(policy_over, codec, serve, monkeypatch):
    servers = [serve(), serve()]
    policy = policy_over(*servers)
    await both_serving(policy)
    made = []
    encode = Pictures._encode
    monkeypatch.setattr(Pictures, "_encode", lambda *args: (made.append(args[2]), encode(*args))[1])
    talk = Talk(codec, images=[picture(1)])
    for control in policy.engine.controls():
        await control.sample(ask_of(talk))
    await turns_of(policy, codec, 6, images=[picture(1)])
    assert all(server.turns for server in servers) and made == [talk.views[0].image]
