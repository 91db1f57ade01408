"""The recipes that ship: the paper's rows with the paper's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvision.recipe import differing_keys, list_recipes, load_recipe, write_resolved

NAMES = {
    "visionthink",
    "visionthink-general",
    "qwen-rl",
    "qwen-rl-quarter",
    "penalty-all",
    "penalty-none",
    "vanilla",
    "down-sample",
}


def test_all_rows_ship_described_and_with_a_tiny_profile() -> None:
    known = list_recipes()
    assert set(known) == NAMES
    assert all(info.description and "tiny" in info.profiles for info in known.values())
    assert len({info.description for info in known.values()}) == len(NAMES)


@pytest.mark.parametrize("profile", [None, "tiny"])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_loads_from_anywhere_and_resolves_to_itself(
    name: str, profile: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name, profile=profile)
    assert recipe.name == name
    write_resolved(recipe, tmp_path / "recipe.resolved.yaml")
    assert load_recipe("./recipe.resolved.yaml") == recipe


def test_visionthink_has_the_papers_settings() -> None:
    recipe = load_recipe("visionthink")
    assert recipe.model.path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (recipe.env.first_view.scale, recipe.env.max_turns, recipe.env.max_images) == (0.5, 2, 2)
    assert [tool.name for tool in recipe.env.tools] == ["resize_image"]
    assert [part.model_dump() for part in recipe.rewards] == [
        {"judge": {"weight": 1.0, "model": "openai/gpt-4o"}},
        {"format": {"weight": 0.5}},
        {"ratio_penalty": {"weight": 1.0, "rule": "paper", "threshold": 0.2, "amount": 0.1}},
    ]
    algorithm, trainer = recipe.algorithm, recipe.trainer
    assert (algorithm.group_size, algorithm.clip, algorithm.kl.coef, algorithm.entropy) == (16, 0.2, 0.001, 0.001)
    assert (algorithm.kl.estimator, algorithm.loss_norm, algorithm.advantage_std) == ("k3", "trajectory", True)
    assert (trainer.prompts_per_step, trainer.mini_batch_prompts, trainer.lr) == (512, 32, 1e-6)
    assert (trainer.weight_decay, trainer.grad_clip, trainer.schedule, trainer.save_every) == (0.01, 1.0, "constant", 5)
    assert (recipe.sampling.temperature, recipe.sampling.top_p, recipe.sampling.max_tokens) == (1.0, 1.0, 8192)


@pytest.mark.parametrize("profile", [None, "tiny"])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("penalty-all", {"rewards.2.ratio_penalty.rule", "rewards.2.ratio_penalty.threshold"}),
        ("penalty-none", {"rewards.2.ratio_penalty"}),
        ("qwen-rl", {"env", "rewards"}),
        ("qwen-rl-quarter", {"env", "rewards"}),
    ],
)
def test_a_sibling_differs_from_visionthink_in_nothing_else(name: str, keys: set[str], profile: str | None) -> None:
    changed = differing_keys(load_recipe(name, profile=profile), load_recipe("visionthink", profile=profile))
    stray = {key for key in changed if not any(f"{key}.".startswith(f"{known}.") for known in keys)}
    assert stray == {"name", "description"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_tiny_profile_grades_by_rules_and_differs_in_no_other_reward(name: str) -> None:
    full, tiny = (load_recipe(name, profile=profile).rewards for profile in (None, "tiny"))
    assert (full[0].name, tiny[0].name) == ("judge", "accuracy")
    assert full[0].weight == tiny[0].weight and full[1:] == tiny[1:]


@pytest.mark.parametrize("profile", [None, "tiny"])
@pytest.mark.parametrize(("name", "scale"), [("vanilla", 1.0), ("down-sample", 0.5)])
def test_the_untrained_rows_train_nothing(name: str, scale: float, profile: str | None) -> None:
    recipe = load_recipe(name, profile=profile)
    assert recipe.trainer.steps == 0
    assert (recipe.env.first_view.scale, recipe.env.tools, recipe.env.max_turns) == (scale, (), 1)
    assert recipe.protocol.style == ("plain" if profile is None else "think")


def test_the_tiny_profile_needs_no_gpu_and_no_download() -> None:
    recipe = load_recipe("visionthink", profile="tiny")
    assert (recipe.model.path, recipe.model.dtype, recipe.data.source) == ("package://tiny-vlm", "float32", "glyphs")
    assert (recipe.data.path, recipe.data.eval.path, recipe.data.eval.split) == (None, None, "test")
