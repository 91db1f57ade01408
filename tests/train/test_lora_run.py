"""Whole runs that train an adapter: what moves, what is saved, and that they go on where they were cut off."""

import json

import pytest
import torch
from safetensors.torch import load_file

from agentvision import train
from agentvision.errors import ModelError
from agentvision.policies._model import load_model
from agentvision.tracking import read_metrics

from .run_cases import same, steady_metrics, weights

LORA = ("model.lora={rank: 4, alpha: 8}", "trainer.lr=1e-2")


@pytest.fixture
def recipe(recipe):
    return lambda *overrides: recipe(*LORA, *overrides)


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def logits(module):
    with torch.no_grad():
        return module(input_ids=torch.arange(5, 45)[None]).logits


def test_a_run_leaves_an_adapter_and_a_merged_model(recipe, small_model, tmp_path):
    from peft import PeftModel

    train(recipe("algorithm.kl.coef=0.01"), out=tmp_path / "run", quiet=True)
    out = tmp_path / "run"
    rows = read_metrics(out)
    assert all(row["logprob_diff_max"] < 1e-4 for row in rows), "trainer and sampler disagree"
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-9) and rows[2]["kl"] > 0
    saved = out / "checkpoints" / "step-000003" / "model"
    assert {path.name for path in saved.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert same(adapter(saved), adapter(out / "export" / "adapter"))
    assert any(tensor.abs().max() > 0 for name, tensor in adapter(saved).items() if "lora_B" in name)
    exported, first = weights(out / "export"), weights(small_model)
    assert exported.keys() == first.keys(), "the export's names are the hub's"
    moved = {name for name in first if not torch.equal(first[name], exported[name])}
    assert moved and all("language_model" not in name or "proj" in name for name in moved)
    assert not any("visual" in name for name in moved)
    theirs = PeftModel.from_pretrained(load_model(small_model, device="cpu"), out / "export" / "adapter")
    merged = load_model(out / "export", device="cpu")
    torch.testing.assert_close(logits(merged), logits(theirs), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(merged), logits(load_model(small_model, device="cpu")), atol=1e-3)
    config = json.loads((out / "export" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["base_model_name_or_path"] == str(small_model)


def test_a_run_that_is_cut_off_and_resumed_ends_in_the_weights_of_one_that_was_not(recipe, tmp_path):
    own = ("algorithm.kl.coef=0.01", "warm_start={steps: 2, batch_size: 2, lr: 1e-2}")
    whole = train(recipe(*own), out=tmp_path / "whole", quiet=True)
    first, *_ = read_metrics(tmp_path / "whole")
    assert first["kl"] == pytest.approx(0, abs=1e-9), "the reference is what the supervised stage left"
    started = adapter(tmp_path / "whole" / "warm_start" / "adapter")
    assert any(tensor.abs().max() > 0 for name, tensor in started.items() if "lora_B" in name)
    train(recipe(*own, "trainer.steps=1"), out=tmp_path / "cut", quiet=True)
    resumed = train(recipe(*own), out=tmp_path / "cut", resume=True, quiet=True)
    assert same(adapter(resumed.export / "adapter"), adapter(whole.export / "adapter"))
    assert same(weights(resumed.export), weights(whole.export))
    assert steady_metrics(tmp_path / "cut") == steady_metrics(tmp_path / "whole")


def test_rollouts_may_be_ahead_and_then_sample_from_a_copy_of_the_adapter_alone(recipe, tmp_path):
    result = train(recipe("trainer.max_staleness=1"), out=tmp_path / "run", quiet=True)
    assert result.steps == 3
    assert max(row["staleness_max"] for row in read_metrics(tmp_path / "run")) == 1


def test_an_exported_model_is_asked_without_an_adapter(recipe, tmp_path):
    from agentvision import build
    from agentvision.lora import is_adapted

    result = train(recipe("trainer.steps=1"), out=tmp_path / "run", quiet=True)
    asked = build.build_policy(recipe(), model=result.export)
    assert not is_adapted(asked.model)
    assert is_adapted(build.build_policy(recipe(), train=True).model)


def test_a_target_that_is_not_there_is_told_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(ModelError, match=r"Did you mean 'q_proj'"):
        train(recipe("model.lora.targets=[q_porj]"), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_copy_that_samples_shares_the_frozen_weights(recipe):
    from agentvision import build

    policy = build.build_policy(recipe(), train=True)
    policy.samples_from_copy = True
    copied = dict(policy._network.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        assert (copied[name] is parameter) == (".lora_" not in name)
