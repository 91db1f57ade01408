"""Adapters in a tiny module: what they train, what they compute, and how they leave it."""

import copy

import pytest
import torch

from agentvision.errors import ModelError, RecipeError, RunError
from agentvision.lora import (
    adapter_off,
    adapter_parameters,
    add_adapter,
    is_adapted,
    load_adapter,
    plain_parameters,
    save_adapter,
    targets_of,
)
from agentvision.recipe.lora import Lora
from agentvision.recipe.schema import KL, Algorithm
from agentvision.train.forward import SampledTokens
from agentvision.train.reference import AdapterReference, CopiedReference

from .train.conftest import BANNED, pixels, tiny_model
from .train.test_update import examples, gradients, make_updater

SETTINGS = Lora(rank=4, alpha=12.0)


def adapted(settings=SETTINGS, *, std=0.2, seed=1):
    """A model with an adapter that does something: its B is no longer zero."""
    model = tiny_model()
    add_adapter(model, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model):
            if ".lora_B." in name:
                parameter.normal_(std=std, generator=generator)
    return model


def logits(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 90, (2, 7), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_a_new_adapter_changes_nothing_and_is_all_that_can_be_trained():
    plain, model = tiny_model(), adapted(std=0.0)
    assert is_adapted(model) and not is_adapted(plain)
    assert torch.equal(logits(model), logits(plain))
    assert not model.training
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".lora_" in name for name in trainable)
    assert (
        len(trainable) == len(list(adapter_parameters(model))) == 2 * 7 * 2
    )  # A and B, seven layers a block, two blocks
    assert all("language_model" in name for name in trainable)


def test_merged_weights_compute_what_the_adapter_does_and_change_nothing_in_the_module():
    model, plain = adapted(), tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    merged = dict(plain_parameters(model))
    assert merged.keys() == dict(plain.named_parameters()).keys()
    assert not torch.allclose(logits(model), logits(plain), atol=1e-2)
    plain.load_state_dict(merged)
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_without_its_adapter_it_is_the_model_that_it_was():
    model, plain = adapted(), tiny_model()
    with adapter_off(model):
        assert torch.equal(logits(model), logits(plain))
        assert all(p.requires_grad for _, p in adapter_parameters(model))
    assert not torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize(
    ("targets", "ends"),
    [
        (("q_proj",), {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}),
        (("mlp.up_proj", "layers.1.self_attn.o_proj"), {
            "layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.1.self_attn.o_proj",
        }),
        (("visual.qkv",), {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}),
        (("visual.merger.mlp.0",), {"merger.mlp.0"}),
    ],
)  # fmt: skip
def test_targets_are_ends_of_names(targets, ends):
    settings = Lora(targets=targets)
    found = {name.split(".", 2)[2] for name in targets_of(tiny_model(), settings)}
    assert found == ends
    assert settings.of_language_alone == (not targets[0].startswith("visual."))
    trained = {name for name, p in adapted(settings).named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(ends)


def test_a_name_that_both_parts_have_is_the_language_models():
    assert all("language_model" in name for name in targets_of(tiny_model(), Lora(targets=("gate_proj",))))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("q_prj", "Did you mean 'q_proj'"),
        ("visual.qvk", "vision tower.* Did you mean 'visual.qkv'"),
        ("lm_head", "no linear"),
    ],
)
def test_a_target_that_is_no_layer_names_near_ones(target, says):
    with pytest.raises(ModelError, match=says):
        targets_of(tiny_model(), Lora(targets=(target,)))


def test_an_adapter_is_written_as_peft_reads_it(tmp_path):
    from peft import PeftModel

    model = adapted()
    save_adapter(model, tmp_path, source="some/model")
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-6, rtol=0)
    again = tiny_model()
    add_adapter(again, SETTINGS)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_another_adapter_or_a_broken_one_is_refused(tmp_path):
    save_adapter(adapted(), tmp_path, source="some/model")
    other = tiny_model()
    add_adapter(other, Lora(rank=2))
    with pytest.raises(RunError, match=r"not the one of model\.lora"):
        load_adapter(other, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="cannot be read"):
        load_adapter(adapted(), tmp_path)


def adapted_updater(**options):
    updater = make_updater(algorithm=Algorithm(clip=0.2), lr=1e-2, **options)
    model = updater.model
    add_adapter(model, SETTINGS)
    updater.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return updater


def test_an_update_moves_the_adapter_alone():
    updater = adapted_updater()
    before = {name: p.clone() for name, p in updater.model.named_parameters()}
    for _ in range(2):  # A has no gradient as long as B is zero
        updater.reinforce(examples(), pixels)
    moved = {name for name, p in updater.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_" in name}


def test_gradients_are_those_of_w_plus_ba():
    """By autograd over merged weights: dL/dB = s · dL/dW · Aᵀ, and dL/dA = s · Bᵀ · dL/dW."""
    updater = adapted_updater()
    updater.model.load_state_dict(adapted().state_dict())
    found, _ = gradients(updater, examples())
    plain = make_updater(algorithm=Algorithm(clip=0.2))
    plain.model.load_state_dict(dict(plain_parameters(updater.model)))
    whole, _ = gradients(plain, examples())
    scale = SETTINGS.alpha / SETTINGS.rank
    own = dict(updater.model.named_parameters())
    for name in [n for n in found if ".lora_A." in n]:
        other = name.replace(".lora_A.", ".lora_B.")
        dw = whole[name.replace(".lora_A.default.", ".")]
        torch.testing.assert_close(found[name], scale * own[other].T @ dw, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[other], scale * dw @ own[name].T, atol=1e-5, rtol=1e-4)


def test_checkpointed_activations_give_the_same_gradients():
    """Frozen embeddings have no gradient, and a block whose inputs have none must be recomputed all the same."""
    wanted, found = (adapted_updater() for _ in range(2))
    for updater in (wanted, found):
        updater.model.load_state_dict(adapted().state_dict())
    found.model.gradient_checkpointing_enable()
    (one, _), (other, _) = (gradients(updater, examples()) for updater in (wanted, found))
    assert one.keys() == other.keys() and len(one) == 28
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5)


def test_the_reference_is_a_plain_copy_of_the_model_at_no_copy():
    copied = CopiedReference(SampledTokens(tiny_model(), temperature=1.0, banned_ids=BANNED))
    updater = adapted_updater()
    updater.algorithm = Algorithm(clip=0.2, kl=KL(coef=0.1))
    under = AdapterReference(updater.scorer, updater.model)
    updater.model.load_state_dict(adapted().state_dict())
    updater.reference = copied
    wanted, stats = gradients(updater, examples())
    updater.reference = under
    found, own = gradients(updater, examples())
    assert stats.kl > 1e-3 and own.kl == pytest.approx(stats.kl, rel=1e-6)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_a_reference_may_be_an_adapter_of_earlier():
    model = adapted()
    scorer = SampledTokens(model, temperature=1.0, banned_ids=BANNED)
    earlier = CopiedReference(scorer)
    reference = AdapterReference(scorer, model)
    reference.take(model)
    now = copy.deepcopy(adapted(seed=2).state_dict())
    model.load_state_dict(now)
    updater = make_updater()
    batches, _ = updater._plan(examples(), None)
    with torch.no_grad():
        for batch in batches:
            wanted = earlier(batch, pixels).logprobs
            assert torch.equal(reference(batch, pixels).logprobs, wanted)
            assert not torch.allclose(scorer(batch, pixels).logprobs, wanted, atol=1e-2)
    assert all(torch.equal(value, now[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.lora.rank=0", "lora.rank"),
        ("model.lora.dropout=1.0", "lora.dropout"),
        ("model.lora.targets=[]", "lora.targets"),
        ("model.lora.alfa=2", "Did you mean|did you mean"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(override, says):
    from agentvision import load_recipe

    with pytest.raises(RecipeError, match=says):
        load_recipe("visionthink", profile="tiny", overrides=[override])


@pytest.mark.parametrize(
    ("frozen", "target"), [("vision", "qkv"), ("projector", "mlp.0"), ("projector", "2"), ("projector", "merger.mlp.2")]
)
def test_what_is_frozen_cannot_be_adapted(frozen, target):
    from agentvision import load_recipe

    overrides = [f"model.lora.targets=[visual.{target}]", f"model.freeze=[{frozen}]"]
    with pytest.raises(RecipeError, match=rf"adapts what model\.freeze keeps: '{frozen}'"):
        load_recipe("visionthink", profile="tiny", overrides=overrides)
    other = "vision" if frozen == "projector" else "projector"
    load_recipe("visionthink", profile="tiny", overrides=[overrides[0], f"model.freeze=[{other}]"])
