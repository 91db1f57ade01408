"""Several training processes, each with an engine of its own: all are brought the weights, or all hear why not."""

import asyncio
import copy
import json
from contextlib import suppress

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from agentvision.engine.digest import rows_digest, tensor_digest
from agentvision.engine.probe import gap_of
from agentvision.engine.ranks import rank, told_by_all
from agentvision.engine.types import EngineError, EngineLost, Sampled, SyncError
from agentvision.errors import PluginError
from agentvision.policies.vllm import VLLMPolicy
from agentvision.policy import VersionSpan
from agentvision.tokens import Codec
from agentvision.train.batch import Example

from ..engine.faulty import Faulty
from ..launch import on_ranks

FAULTS = ("pause", "start_weight_update", "update_weights", "reset_caches", "sample_alone", "dropped", "lost")


class Taking:
    """An engine that takes weights and digests them, in this process; it fails once at what `fault` names."""

    def __init__(self):
        self.tensors, self.said, self.fault, self.going = {}, "default", "", True

    def controls(self):
        return [self]

    def _may_fail(self, step):
        if self.fault in (step, "lost"):
            kind, self.fault = (EngineLost if self.fault == "lost" else SyncError), ""
            raise kind(f"no {step}")

    async def pause(self):
        self.going = False
        self._may_fail("pause")

    async def resume(self):
        self.going = True

    async def start_weight_update(self):
        self._may_fail("start_weight_update")
        self.tensors.clear()

    async def update_weights(self, info):
        if len(self.tensors) > 2:  # in the middle
            self._may_fail("update_weights")
        self.tensors |= {name: tensor.clone() for name, tensor in info["tensors"]}
        if self.fault == "dropped":
            self.fault = ""
            self.tensors.popitem()

    async def finish_weight_update(self, version):
        self.said = str(version)

    async def call_worker(self, method):
        told = {
            "agentvision_received": json.dumps({name: tensor_digest(t) for name, t in self.tensors.items()}),
            "agentvision_loaded": str(rows_digest(self.tensors.values())),
            "agentvision_cached": "0",
        }
        return [told.get(method, "")]

    async def reset_caches(self):
        self._may_fail("reset_caches")

    async def version(self):
        return self.said

    async def sample_alone(self, ask):
        assert not self.going
        self._may_fail("sample_alone")
        return Sampled((5,), (-1.0,), (VersionSpan(int(self.said), 0, 1),), prompt_tokens=9, cached_tokens=0)


def shards(path):
    """Each fault on the second rank: all try again and have the weights, or all hear of an engine that is gone."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(9, 5 if k == 5 else 9) for k in range(6)))
    whole = copy.deepcopy(model)
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (2,)))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    engine = Taking()
    policy = VLLMPolicy(engine, Codec.from_pretrained(path), load=lambda: model)
    policy.delivery.sync.same_process, policy.delivery.sync.bucket_bytes = True, 400
    told = {}

    async def sync(version, fault):
        for module in (model, whole):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(1.0)
        engine.fault = fault if rank() == 1 else ""
        failed = policy.syncs_failed
        try:
            await policy.weights_changed(version)
        except EngineError as error:
            return type(error).__name__, str(error), policy.version
        parameters = dict(whole.named_parameters())
        assert policy.version == version and engine.going
        assert engine.tensors.keys() == parameters.keys()
        assert all(torch.equal(engine.tensors[name], parameter) for name, parameter in parameters.items())
        return policy.syncs_failed - failed

    async def all_faults():
        for version, fault in enumerate(("", *FAULTS, "")):
            told[version, fault] = await sync(version, fault)

    asyncio.run(all_faults())
    return told


@pytest.mark.timeout(1200)
def test_shards_are_gathered_in_lockstep_whatever_fails_on_one_rank(tmp_path):
    from agentvision.build import model_path

    first, second = on_ranks(shards, model_path("package://tiny-vlm"), folder=tmp_path, timeout_s=1100)
    for (version, fault), told in first.items():
        if fault == "lost":
            assert told == ("EngineLost", "rank 1: no pause", version - 1)
            assert second[version, fault] == ("EngineLost", "no pause", version - 1)
        else:
            assert told == second[version, fault] == (1 if fault else 0), fault


def colocated():
    """The real engine in each of two processes; what each has seen."""
    from .vllm_cases import make_policy, talk_of, waits

    world = distributed.group.WORLD
    with suppress_refusal() as refused:
        make_policy(engine={"tensor_parallel_size": 2})
    policy = make_policy()
    seen = {"refused": str(refused[0]), "ranks": [told_by_all(rank())], "gaps": []}
    faulty = Faulty(policy.engine)
    policy.engine.controls = lambda: [faulty]
    talks = [talk_of(policy, images=2, seed=rank()), talk_of(policy, images=0, seed=9)]

    def nudge(module):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.02)

    async def compare(module):
        gaps, versions = [], set()
        for talk in talks:
            said = await policy.complete(talk.request())
            versions |= {span.version for span in said.versions}
            gaps.append(gap_of(module, policy.codec, [Example((*talk.segments, *said.segments), 0.0)], talk.store).max)
        seen["gaps"].append((max(gaps), versions))

    async def body():
        await policy.weights_changed(0)
        await compare(policy.model)
        nudge(policy.model)
        if rank() == 1:
            faulty.spoil("flipped")
        await policy.weights_changed(1)
        await compare(policy.model)
        seen["failed"] = policy.syncs_failed

        update = faulty.update_weights

        async def always(info):
            faulty.spoil("dropped")
            await update(info)

        if rank() == 1:
            faulty.update_weights = always
        try:
            await policy.weights_changed(2)
        except SyncError as error:
            seen["said"] = str(error), policy.version
        turn = asyncio.create_task(policy.complete(talks[0].request()))
        seen["samples"] = not await waits(policy.engine, turn)
        faulty.update_weights = update
        whole = copy.deepcopy(policy.model)
        fully_shard(policy.model, mesh=distributed.init_device_mesh("cpu", (2,)))
        for version in (3, 4):
            nudge(policy.model)
            nudge(whole)
            if rank() == 1:
                faulty.spoil("reordered")
            await policy.weights_changed(version)
            await compare(whole)
        await turn
        await policy.close()

    asyncio.run(body())
    assert distributed.group.WORLD is world
    seen["ranks"].append(told_by_all(rank()))
    return seen


class suppress_refusal(suppress):
    """`PluginError`s, which it keeps."""

    def __init__(self):
        super().__init__(PluginError)
        self.kept = []

    def __enter__(self):
        return self.kept

    def __exit__(self, kind, error, trace):
        self.kept.append(error)
        return super().__exit__(kind, error, trace)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_process_has_an_engine_and_all_agree_on_its_weights(tmp_path):
    seen = on_ranks(colocated, folder=tmp_path, timeout_s=1100)
    for told in seen:
        assert "tensor_parallel_size: 2 cannot be: there are 2 training processes" in told["refused"]
        assert told["ranks"] == [[0, 1], [0, 1]], "the trainer's world outlives the engine"
        assert [versions for _, versions in told["gaps"]] == [{0}, {1}, {3}, {4}]
        assert max(gap for gap, _ in told["gaps"]) < 1e-4
        assert told["failed"] == 1 and told["samples"] is False
        said, version = told["said"]
        assert version == 1 and "1 did not arrive: model." in said
    assert seen[0]["said"][0].startswith("rank 1: ") and not seen[1]["said"][0].startswith("rank")
