"""Weights brought to the real engine: proven to have arrived, or an error and nothing sampled."""

import asyncio
import copy
import gc
import json
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch

from agentvision.engine import lend
from agentvision.engine.probe import gap_of
from agentvision.engine.sync import Sync, Weights, _carry, buckets
from agentvision.engine.types import BrokenNumbers, SyncError
from agentvision.lora import adapter_parameters, add_adapter
from agentvision.recipe.lora import Lora
from agentvision.train.batch import Example
from agentvision.types import TextSegment

from ..policies.vllm_cases import answers_of, make_policy, said_of, talk_of
from .asks import ask_of
from .faulty import FAULTS, Faulty
from .faulty_network import NETWORK_FAULTS, Distant, FaultyNetwork

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def policy():
    policy = make_policy()
    yield policy
    asyncio.run(policy.close())


def nudge(model, by=None):
    """Other weights, but no larger ones in the long run: rounding grows with them."""
    nudge.up = not nudge.up
    by = by or (1.02 if nudge.up else 1 / 1.02)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(by)


nudge.up = False


async def test_after_a_sync_the_engine_says_what_the_module_computes(policy):
    before = policy.version
    for _ in range(2):
        nudge(policy.model)
        await policy.weights_changed(before := before + 1)
        gap, versions = await answers_of(policy, [talk_of(policy, images=2), talk_of(policy, images=0)])
        assert gap < 1e-4 and versions == {before} and policy.version == before


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_found_before_anything_is_sampled_and_the_next_sync_heals(policy, fault):
    engine = Faulty(policy.engine, seed=FAULTS.index(fault))
    await answers_of(policy, [talk_of(policy, images=1)])  # something is cached
    for _ in range(3):
        version = policy.version + 1
        nudge(policy.model)
        weights = Weights.of(policy.model, version=version)
        await policy.engine.sample(policy.proof.probe.ask())
        engine.spoil(fault)
        with pytest.raises(SyncError):
            await policy.delivery.sync.send(weights, engine, partial(policy.proof.check, weights, engine, policy.model))
        assert engine.spoilt == fault
        await policy.weights_changed(version)
        gap, _ = await answers_of(policy, [talk_of(policy, images=1)])
        assert gap < 1e-4


async def test_a_fault_that_passes_is_mended_by_the_second_try_and_counted(policy, monkeypatch):
    engine = Faulty(policy.engine)
    monkeypatch.setattr(policy.engine, "controls", lambda: [engine])
    failed, version = policy.syncs_failed, policy.version
    nudge(policy.model)
    engine.spoil("flipped")
    await policy.weights_changed(version + 1)
    assert policy.syncs_failed == failed + 1 and policy.version == version + 1


async def test_a_fault_that_stays_keeps_the_version_and_stops_sampling(policy, monkeypatch):
    engine = Faulty(policy.engine)
    spoiling = engine.update_weights

    async def always(info):
        engine.spoil("dropped")
        await spoiling(info)

    version = policy.version
    with monkeypatch.context() as patch:
        patch.setattr(engine, "update_weights", always)
        patch.setattr(policy.engine, "controls", lambda: [engine])
        with pytest.raises(SyncError, match=r"1 did not arrive: model\."):
            await policy.weights_changed(version + 1)
        assert policy.version == version
        turn = asyncio.create_task(answers_of(policy, [talk_of(policy, images=0)]))
        await asyncio.sleep(0.5)
        assert not turn.done()
    await policy.weights_changed(version + 1)
    gap, _ = await turn
    assert gap < 1e-4


async def test_other_weights_under_the_right_digests_are_found_by_what_they_say(policy):
    """What digests cannot see: the tensors arrived, and the engine computes with something else."""
    version = policy.version + 1
    weights = Weights.of(policy.model, version=version)
    await policy.delivery.sync.send(weights, policy.engine)
    other = copy.deepcopy(policy.model)
    nudge(other, 1.05)
    with pytest.raises(SyncError, match="is not what the trainer's module computes"):
        await policy.proof.check(weights, policy.engine, other)
    await policy.weights_changed(version)


@pytest.mark.parametrize("fault", NETWORK_FAULTS)
async def test_a_fault_of_the_network_is_found_and_the_next_sync_over_it_heals(policy, monkeypatch, fault):
    sync = Sync(bucket_bytes=1 << 20)
    with FaultyNetwork(seed=NETWORK_FAULTS.index(fault)) as network:
        engine = Distant(policy.engine, network, buckets=8)
        for _ in range(2):
            nudge(policy.model)
            weights = Weights.of(policy.model, version=policy.version + 1)
            for _ in range(
                3
            ):  # a machine that is away for as long as a stall may last breaks a sync before the fault is made
                engine.spoil(fault)
                with monkeypatch.context() as patch:
                    patch.setattr(lend, "STALL_S", 1.0 if fault == "stalled" else lend.STALL_S)
                    told = "arrived changed" if fault == "flipped" else "the trainer at 127.0.0.1"
                    with pytest.raises(SyncError, match=told):
                        await sync.send(weights, engine)
                if network.spoilt:
                    break
            assert network.spoilt == fault
            await sync.send(weights, engine, partial(policy.proof.check, weights, engine, policy.model))
            policy._version = weights.version
            gap, _ = await answers_of(policy, [talk_of(policy, images=1)])
            assert gap < 1e-4


async def test_nothing_is_sampled_before_the_probe_is_judged(policy, monkeypatch):
    """Turns in flight wait for it, and go on under weights that are proven; under those that are not they never do."""
    version = policy.version + 1
    turns = [asyncio.create_task(policy.engine.sample(_endless(policy, k))) for k in range(2)]
    while len(policy.engine._running) < 2:
        await asyncio.sleep(0.01)
    await policy.engine.pause()  # at once: none of them is to end before the sync
    judge, said = policy.proof.check, []

    async def slow(weights, control, model):
        with suppress(SyncError):
            await judge(weights, control, model)
        waiting = [ticket.said for ticket in policy.engine._arrived]
        await asyncio.sleep(0.5)
        assert not policy.engine._running and waiting == [ticket.said for ticket in policy.engine._arrived]
        said.append(len(waiting))
        if len(said) == 1:
            raise SyncError("this try is not proven")

    nudge(policy.model)
    with monkeypatch.context() as patch:
        patch.setattr(policy.proof, "check", slow)
        await policy.weights_changed(version)
    assert said == [2, 2]
    for turn in turns:
        spans = (await turn).versions
        assert {span.version for span in spans} <= {version - 1, version}


async def heals(policy, version):
    """New weights come through at the first try, and are what is sampled from."""
    nudge(policy.model)
    failed = policy.syncs_failed
    await policy.weights_changed(version)
    assert policy.syncs_failed == failed
    gap, _ = await answers_of(policy, [talk_of(policy, images=1)])
    assert gap < 1e-4


async def test_an_update_that_was_left_in_the_middle_does_not_bar_the_next(policy):
    """Nor does what its layers had of it stay: they would take themselves for full before they are."""
    version = policy.version + 1
    nudge(policy.model)
    await policy.engine.pause()
    await policy.engine.start_weight_update()
    for bucket in islice(buckets(Weights.of(policy.model, version=version).stream(), 1 << 20), 5):
        await policy.engine.update_weights({"tensors": bucket})
    await heals(policy, version)


async def test_what_a_worker_cannot_load_is_told_and_the_next_sync_heals(policy):
    other = torch.nn.ModuleDict({"no_such_part": torch.nn.Linear(3, 3)})
    version = policy.version + 1
    with pytest.raises(SyncError, match=rf"version {version} did not get to worker 0: \w+: .*no_such_part"):
        await policy.delivery.sync.send(Weights.of(other, version=version), policy.engine)
    await heals(policy, version)


async def test_a_turn_of_broken_numbers_fails_alone_and_not_the_sync(policy, monkeypatch):
    turns = [asyncio.create_task(policy.engine.sample(_endless(policy, k))) for k in range(3)]
    while len(policy.engine._running) < 3:
        await asyncio.sleep(0.01)
    read, broken = policy.engine._sampled, []

    def read_or_break(ticket, output):
        if not broken:
            broken.append(ticket)
            raise BrokenNumbers("nan")
        return read(ticket, output)

    with monkeypatch.context() as patch:
        patch.setattr(policy.engine, "_sampled", read_or_break)
        nudge(policy.model)
        await policy.weights_changed(policy.version + 1)
    results = await asyncio.gather(*turns, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["BrokenNumbers", "Sampled", "Sampled"]


async def test_turns_in_flight_go_on_under_new_weights_and_say_so(policy):
    """Their images were found in the prefix cache, which is reset under them."""
    version = policy.version
    for k in range(4):
        await policy.engine.sample(replace(_endless(policy, k), max_tokens=4))
    before = [policy.engine.sample(_endless(policy, k)) for k in range(4)]
    turns = [asyncio.create_task(turn) for turn in before]
    while len(policy.engine._running) < 4 or not all(said_of(policy.engine)):
        await asyncio.sleep(0.01)
    nudge(policy.model)
    await policy.weights_changed(version + 1)
    mixed = 0
    for k, turn in enumerate(turns):
        sampled = await turn
        talk = talk_of(policy, images=k % 3, seed=k)
        if len(sampled.versions) == 2:  # the part under the new weights has their log-probs
            mixed += 1
            start = sampled.versions[1].start
            told = TextSegment(sampled.ids[:start])
            turn = TextSegment(sampled.ids[start:], sampled=True, logprobs=sampled.logprobs[start:])
            example = Example((*talk.segments, told, turn), advantage=0.0)
            assert gap_of(policy.model, policy.codec, [example], talk.store).max < 1e-4
        assert len(sampled.ids) == TURN_TOKENS
        assert [span.version for span in sampled.versions] in ([version, version + 1], [version + 1])
        assert sampled.versions[0].start == 0 and sampled.versions[-1].end == TURN_TOKENS
    assert mixed


TURN_TOKENS = 600


def _endless(policy, k):
    """A turn that nothing ends before its limit."""
    return replace(ask_of(talk_of(policy, images=k % 3, seed=k)), stop_ids=(), max_tokens=TURN_TOKENS)


async def test_an_adapter_may_travel_within_the_weights(policy):
    """For an engine that was started for no adapter: what is merged is what the module computes, with both parts apart."""
    adapted = copy.deepcopy(policy.model)
    add_adapter(adapted, Lora(rank=4, targets=("q_proj", "visual.qkv")))
    with torch.no_grad():
        for name, parameter in adapter_parameters(adapted):
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    weights = Weights.of(adapted, version=policy.version + 1)
    await policy.delivery.sync.send(weights, policy.engine)
    await policy.proof.check(weights, policy.engine, adapted)
    sampled = await policy.engine.sample(policy.proof.probe.ask())
    assert policy.proof.probe.gap(policy.model, sampled).mean > 1e-2, "the adapter is in use"
    await policy.weights_changed(policy.version + 1)


def test_buckets_hold_what_fits_and_a_large_tensor_is_alone():
    tensors = [(str(k), torch.zeros(n)) for k, n in enumerate((10, 10, 100, 5, 5))]
    assert [[name for name, _ in bucket] for bucket in buckets(tensors, 80)] == [["0", "1"], ["2"], ["3", "4"]]


class Told:
    """A control that took the weights, and says so; what it computes with is up to the test."""

    def __init__(self, weights, *, loaded):
        self.weights, self.loaded = weights, loaded

    async def call_worker(self, method):
        told = {"agentvision_received": json.dumps(self.weights.digests), "agentvision_loaded": str(self.loaded)}
        return [told.get(method, "")]

    async def version(self):
        return str(self.weights.version)

    async def nothing(self, *args):
        pass

    pause = resume = start_weight_update = update_weights = finish_weight_update = nothing


async def test_a_bucket_is_left_too_when_a_sync_is_cancelled_as_it_is_copied():
    copying, go_on, left = threading.Event(), threading.Event(), []

    class Slow:
        @contextmanager
        def carry(self, bucket):
            copying.set()
            assert go_on.wait(20)
            yield {}
            left.append(bucket)

    bucket = [("a", torch.ones(1))]
    carrying = asyncio.create_task(_carry(bucket, Slow(), Told(None, loaded=0)))
    await asyncio.to_thread(copying.wait)
    carrying.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await carrying
    assert left == [bucket]


async def test_an_engine_that_keeps_rows_is_held_to_them():
    model = torch.nn.Linear(3, 2)
    first, second = (Weights.of(model, version=v) for v in (1, 2))
    sync = Sync()
    control = Told(first, loaded=first.rows)
    await sync._prove(first, control)
    control.weights, control.loaded = second, second.rows + 1
    with pytest.raises(SyncError, match="are not made of them"):
        await sync._prove(second, control)


async def test_what_is_known_of_an_engine_goes_with_it():
    """Another may come to lie where it lay."""
    weights = Weights.of(torch.nn.Linear(3, 2), version=1)
    sync = Sync()
    control = Told(weights, loaded=weights.rows)
    await sync._prove(weights, control)
    assert list(sync.keeps_rows.values()) == [{0: True}]
    del control
    gc.collect()
    assert not sync.keeps_rows


async def test_an_engine_that_packs_its_weights_is_not():
    model = torch.nn.Linear(3, 2)
    first, second = (Weights.of(model, version=v) for v in (1, 2))
    sync = Sync()
    await sync._prove(first, control := Told(first, loaded=5))
    control.weights, control.loaded = second, 6
    await sync._prove(second, control)
