"""The self-test finds what is wrong, and changes nothing."""

import json
from dataclasses import replace

import pytest
import torch

from agentvision import doctor
from agentvision.cli import main
from agentvision.doctor import examine
from agentvision.images import ImageStore
from agentvision.policies.transformers import TransformersPolicy
from agentvision.recipe import load_recipe


def tiny(*overrides):
    return load_recipe("visionthink", profile="tiny", overrides=overrides)


def named(diagnosis):
    return {finding.name: finding for finding in diagnosis.findings}


async def test_a_sound_recipe_is_in_order():
    diagnosis = await examine(tiny())
    found = named(diagnosis)
    assert diagnosis.healthy and list(found) == list(doctor.CHECKS)
    assert found["rollouts"].numbers["episodes"] == 8
    assert found["log-probs"].ok and found["weights"].ok and found["memory"].ok
    assert found["tokens"].ok is None  # the policy computes with the ledger's own ids


async def test_a_tool_that_crashes_is_told(monkeypatch):
    made = doctor.make_learner

    def crashes(ctx, **arguments):
        raise KeyError("a bug")

    def with_a_bug(*arguments, **options):
        learner = made(*arguments, **options)
        learner.tools[:] = [replace(tool, function=crashes) for tool in learner.tools]
        return learner

    monkeypatch.setattr(doctor, "make_learner", with_a_bug)
    found = named(await examine(tiny()))["rollouts"]
    assert found.ok is False and found.numbers["tool_crashes"] == found.numbers["tool_calls"] > 0
    assert found.says.endswith("tool calls crashed; the first, of 'resize_image': KeyError: 'a bug'")


async def test_the_weights_end_as_they_began(monkeypatch):
    seen = []
    made = doctor.make_learner

    def keep(*arguments, **options):
        learner = made(*arguments, **options)
        seen.append((learner.model, {n: p.detach().clone() for n, p in learner.model.named_parameters()}))
        return learner

    monkeypatch.setattr(doctor, "make_learner", keep)
    await examine(tiny())
    ((model, before),) = seen
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


async def test_an_engine_that_says_other_log_probs_is_found(monkeypatch):
    complete = TransformersPolicy._completion

    async def off(self, ticket):
        completion = await complete(self, ticket)
        return replace(completion, logprobs=tuple(p - 0.2 for p in completion.logprobs))

    monkeypatch.setattr(TransformersPolicy, "_completion", off)
    diagnosis = await examine(tiny())
    assert not diagnosis.healthy and named(diagnosis)["log-probs"].ok is False


async def test_an_engine_that_keeps_what_old_weights_computed_is_found(monkeypatch):
    async def only_the_version(self, version):
        self._version = version

    # It says the new version and keeps prefixes of the old weights.
    monkeypatch.setattr(TransformersPolicy, "weights_changed", only_the_version)
    diagnosis = await examine(tiny())
    assert named(diagnosis)["weights"].ok is False


async def test_episodes_that_fail_end_the_examination(monkeypatch):
    async def fail(self, request):
        raise RuntimeError("no answer today")

    monkeypatch.setattr(TransformersPolicy, "complete", fail)
    (finding,) = (await examine(tiny())).findings
    assert finding.ok is False and "no answer today" in finding.says


async def test_a_batch_that_does_not_fit_is_told_with_the_remedy(monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr("agentvision.train.forward.SampledTokens.forward", full)
    monkeypatch.setattr(doctor, "gap_of", lambda *a, **k: doctor.Gap(1, 0.0, 0.0))
    finding = named(await examine(tiny()))["memory"]
    assert finding.ok is False and "trainer.micro_batch_tokens" in finding.says


async def test_where_nothing_was_sampled_there_is_no_batch_to_try():
    finding = await doctor.CHECKS["memory"](doctor._Patient(tiny(), None, ImageStore()))
    assert finding.ok is None and "nothing was sampled" in finding.says


def test_the_command_prints_json_and_its_exit_code_says_whether_all_is_well(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "visionthink", "--profile", "tiny", "--json"])
    assert not end.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] and told["findings"]["log-probs"]["ok"]
    monkeypatch.setitem(doctor.CHECKS, "rollouts", _broken)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "visionthink", "--profile", "tiny"])
    assert end.value.code == 1
    assert "FAILED" in capsys.readouterr().out


async def _broken(patient):
    return doctor.Finding("rollouts", False, "broken")


@pytest.mark.slow
async def test_vllm_is_in_order():
    diagnosis = await examine(tiny("policy.backend=vllm", "policy.options={'kv_cache_mib': 64}"))
    found = named(diagnosis)
    assert diagnosis.healthy, [f.says for f in diagnosis.findings]
    assert found["tokens"].ok and found["tokens"].numbers["conversations"] == 8
