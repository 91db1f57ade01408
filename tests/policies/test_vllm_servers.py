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

from agentvision.engine import lend
from agentvision.engine.endpoint import Endpoint
from agentvision.engine.lend import fetched
from agentvision.engine.pictures import Pictures
from agentvision.engine.pool import Pool
from agentvision.engine.probe import Gap, Probe
from agentvision.engine.types import EngineError, SyncError
from agentvision.lora import adapter_tensors, add_adapter, plain_parameters
from agentvision.policies.vllm import VLLMPolicy
from agentvision.recipe.lora import Lora

from ..engine.asks import ask_of
from ..engine.faulty_network import NETWORK_FAULTS, FaultyNetwork
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

    def make(*servers, lora=None, how="auto", answer_s=30.0):
        pictures = Pictures(codec.vision)
        endpoints = [Endpoint(server.url, codec=codec, pictures=pictures) for server in servers]
        pool = Pool(endpoints, look_s=0.05, answer_s=answer_s, patience_s=60.0)
        module = copy.deepcopy(model)
        if lora is not None:
            add_adapter(module, lora)
        made.append(VLLMPolicy(pool, codec, load=lambda: module, adapter=lora, lora=how))
        return made[-1]

    yield make
    for policy in made:
        await policy.close()


async def until(condition, *, within_s=60.0):
    stop = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < stop, "it did not come to pass"
        await asyncio.sleep(0.02)


async def test_servers_with_other_weights_are_named_where_they_are_brought_none(policy_over, codec, serve, caplog):
    servers = [serve(source="/models/a/export"), serve(source="the/base"), serve(), serve(source="runs/b/export")]
    servers[2].version = "40"
    policy = policy_over(*servers)
    policy._source = "runs/a/export"
    await policy.engine.ready()
    await until(lambda: len(policy.engine.controls()) == 4)
    for _ in range(2):
        await turns_of(policy, codec, 4)
    told = sorted(record.getMessage() for record in caplog.records if "what it says is theirs" in record.getMessage())
    assert [text.partition(" ")[0] for text in told] == sorted(server.url for server in servers[1:])
    assert any("was started with 'the/base'" in text for text in told)
    assert any("a training run brought it (version 40)" in text for text in told)


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


async def test_nothing_is_asked_before_the_probe_is_judged(policy_over, codec, serve, monkeypatch):
    server = serve()
    policy = policy_over(server)
    await policy.engine.ready()
    await policy.weights_changed(0)
    judge, asked = policy.proof.check, []

    async def slow(weights, control, model):
        await judge(weights, control, model)
        asked.append(len(server.turns))
        await asyncio.sleep(0.5)
        asked.append(len(server.turns))

    monkeypatch.setattr(policy.proof, "check", slow)
    brought = asyncio.create_task(policy.weights_changed(1))
    await until(lambda: asked)
    versions = asyncio.create_task(turns_of(policy, codec, 4))
    await brought
    assert await versions == {1} and asked[0] == asked[1]


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


async def test_turns_do_not_wait_for_one_whose_engine_hangs_as_it_takes_weights(policy_over, codec, serve):
    hangs = []

    def hang(name, tensor):
        if hangs:
            hangs.pop().hang_engine()
        return tensor

    servers = [serve(latency_s=lambda turn: 1.0), serve(latency_s=lambda turn: 1.0, spoil=hang)]
    policy = policy_over(*servers, answer_s=2.0)
    await both_serving(policy)
    await policy.weights_changed(0)
    change(policy.model)
    hangs.append(servers[1])
    turns = asyncio.create_task(turns_of(policy, codec, 8))
    await until(lambda: all(server.turns[1:] for server in servers))  # the first is the probe's
    brought = asyncio.create_task(policy.weights_changed(1))
    assert await asyncio.wait_for(turns, 60) <= {0, 1}
    await until(lambda: not hangs and not policy.engine._members[1].serving)
    assert not brought.done()
    servers[1].go_on()
    await brought
    await both_serving(policy)
    assert all(has(server, policy.model) for server in servers)


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


async def test_a_context_that_the_proof_does_not_fit_into_is_told_with_its_keys(policy_over, codec, serve):
    with pytest.raises(SyncError, match=r"cannot be asked: .* of the engine's 16; raise sampling\.context_tokens"):
        await policy_over(serve(max_model_len=16)).weights_changed(0)


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


# --- servers on other machines ------------------------------------------------------------------------------------------


@pytest.fixture
def distant(serve):
    """Servers that do not see this machine's memory; `fetches` is what they fetched."""

    class Fetches(list):
        def fetch(self, lent):
            self.append(lent)
            return fetched(lent)

    fetches = Fetches()

    def make(**options):
        return serve(**{"seeing": False, "fetched": fetches.fetch} | options)

    make.fetches = fetches
    return make


async def test_a_server_on_another_machine_is_brought_the_weights_over_the_network(policy_over, codec, serve, distant):
    near, far = serve(), distant()
    policy = policy_over(near, far)
    policy.delivery.sync.bucket_bytes = 64 << 10
    await both_serving(policy)
    for version in (0, 1):
        change(policy.model)
        await policy.weights_changed(version)
        assert policy.syncs_failed == 0 and has(near, policy.model) and has(far, policy.model)
        assert await turns_of(policy, codec, 6, name=f"v{version}/") == {version}
    parameters = list(policy.model.parameters())
    assert sum(lent["bytes"] for lent in distant.fetches) >= 2 * sum(p.nbytes for p in parameters)
    assert len({lent["token"] for lent in distant.fetches}) == 2 and not policy.delivery.sync.network._open


async def test_one_that_cannot_reach_the_trainer_says_so_and_the_others_go_on(policy_over, codec, distant, caplog):
    blocked = True

    def fetch(lent):
        return fetched({**lent, "port": 9} if blocked else lent)

    servers = [distant(), distant(fetched=fetch)]
    policy = policy_over(*servers)
    await both_serving(policy)
    change(policy.model)
    await policy.weights_changed(1)
    assert policy.version == 1 and has(servers[0], policy.model) and policy.syncs_failed >= 2
    assert await turns_of(policy, codec, 6) == {1}
    assert f"{servers[1].url} has not got version 1" in caplog.text
    assert "cannot reach the trainer at 127.0.0.1:9" in caplog.text and "weights_host" in caplog.text
    assert servers[1].paused, "it samples nothing from weights that nobody knows"
    blocked = False
    await until(lambda: policy.engine._is_able(policy.engine._members[1]))
    assert has(servers[1], policy.model)


@pytest.mark.parametrize("fault", NETWORK_FAULTS)
async def test_a_network_that_fails_once_costs_a_second_try(policy_over, codec, distant, monkeypatch, fault):
    with FaultyNetwork(seed=NETWORK_FAULTS.index(fault)) as network:

        def fetch(lent):
            with monkeypatch.context() as patch:
                if fault == "stalled" and not network.spoilt:
                    patch.setattr(lend, "STALL_S", 1.0)
                return fetched(network.detour({"lent": lent})["lent"])

        server = distant(fetched=fetch)
        policy = policy_over(server)
        policy.delivery.sync.bucket_bytes = 1 << 20
        for version in range(3):
            change(policy.model)
            network.spoil(fault)
            await policy.weights_changed(version)
            assert network.spoilt == fault and policy.syncs_failed == version + 1
            assert policy.version == version and has(server, policy.model)
            assert await turns_of(policy, codec, 2, name=f"v{version}/") == {version}


async def test_a_host_that_was_named_is_the_one_that_servers_are_told(policy_over, distant):
    policy = policy_over(distant())
    policy.delivery.sync.network.host = "localhost"
    await policy.weights_changed(0)
    assert {lent["host"] for lent in distant.fetches} == {"localhost"}


LORA = Lora(rank=4)


def holds(server, tensors):
    wanted = dict(tensors)
    return server.tensors.keys() == wanted.keys() and all(torch.equal(server.tensors[n], wanted[n]) for n in wanted)


async def test_an_adapter_alone_is_brought_and_turns_ask_for_it(serve, policy_over, codec):
    servers = serve(), serve()
    policy = policy_over(*servers, lora=LORA)
    await both_serving(policy)
    talk = Talk(codec, images=[picture()])
    await policy.complete(talk.request())
    assert not any("model" in turn.body for server in servers for turn in server.turns), "there is no adapter yet"
    await policy.weights_changed(1)
    assert all(holds(server, adapter_tensors(policy.model)) for server in servers)
    before = [len(server.turns) for server in servers]
    await policy.complete(talk.request())
    asked = [turn for server, k in zip(servers, before) for turn in server.turns[k:]]
    assert asked and all(turn.body["model"] == "agentvision-adapter" for turn in asked)


async def test_servers_without_adapters_get_merged_weights(serve, policy_over, codec, caplog):
    servers = serve(adapters="it was started without --enable-lora"), serve(adapters="the same")
    policy = policy_over(*servers, lora=LORA)
    await both_serving(policy)
    await policy.weights_changed(1)
    assert all(holds(server, plain_parameters(policy.model)) for server in servers)
    assert "No server takes an adapter (it was started without --enable-lora)" in caplog.text
    await policy.complete(Talk(codec).request())
    assert not any("model" in turn.body for server in servers for turn in server.turns)


async def test_a_server_without_adapters_among_others_gets_no_turns(serve, policy_over, codec):
    able, other = serve(), serve(adapters="it was started without --enable-lora")
    policy = policy_over(able, other, lora=LORA)
    await both_serving(policy)
    await policy.weights_changed(1)
    assert holds(able, adapter_tensors(policy.model)) and not other.tensors
    await turns_of(policy, codec, 8)
    assert able.turns and not other.turns and not policy.engine._is_able(policy.engine._members[1])


async def test_an_adapter_that_must_not_be_merged_is_an_error(serve, policy_over):
    policy = policy_over(serve(adapters="it was started without --enable-lora"), lora=LORA, how="adapter")
    with pytest.raises(EngineError, match="'adapter', and no server takes one: it was started without"):
        await policy.weights_changed(1)


async def test_a_server_that_comes_back_is_brought_the_adapter(serve, policy_over):
    servers = serve(), serve()
    policy = policy_over(*servers, lora=LORA)
    await both_serving(policy)
    await policy.weights_changed(1)
    servers[0].version, servers[0].tensors = "default", {}  # as one that was started again
    await until(lambda: holds(servers[0], adapter_tensors(policy.model)))
