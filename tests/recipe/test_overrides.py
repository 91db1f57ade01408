"""`key.path=value`: what it reaches, and errors that point at its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.recipe import load_recipe
from agentvision.recipe.overrides import apply
from agentvision.recipe.problems import render
from agentvision.recipe.tree import parse

from .conftest import BASE, Write, fails, load


def test_values_are_yaml(write: Write) -> None:
    recipe = load(write(), "trainer.lr=1e-4", "model.freeze=[vision]", "description=no", "seed=3", "protocol.system=''")
    assert recipe.trainer.lr == 1e-4
    assert recipe.model.freeze == ("vision",)
    assert recipe.protocol.system == ""
    assert recipe.description == "no"


def test_a_value_may_hold_equals_signs(write: Write) -> None:
    assert load(write(), "description=a=b=c").description == "a=b=c"


def test_a_list_item_goes_by_index_or_by_the_plugins_name(write: Write) -> None:
    by_index = load(write(), "rewards.2.ratio_penalty.threshold=0.15")
    by_name = load(write(), "rewards.ratio_penalty.threshold=0.15")
    assert by_index == by_name
    assert by_name.rewards[2].params == {"rule": "paper", "threshold": 0.15}


def test_a_bare_plugin_gets_its_first_parameter(write: Write) -> None:
    recipe = load(write(), "rewards.accuracy.weight=2", "env.tools.resize_image.scale=0.5")
    assert recipe.rewards[0].weight == 2
    assert recipe.env.tools[0].params == {"scale": 0.5}


def test_a_map_is_laid_on_and_everything_else_replaces(write: Write) -> None:
    recipe = load(write(), "trainer={steps: 7}", "rewards=[format]", "tracking.wandb.project=p")
    assert (recipe.trainer.steps, recipe.trainer.prompts_per_step) == (7, 16)
    assert [part.name for part in recipe.rewards] == ["format"]
    assert recipe.tracking.wandb is not None
    assert recipe.tracking.wandb.project == "p"
    assert load(write(), "tracking={wandb: {}}", "tracking.wandb=null").tracking.wandb is None


def test_later_overrides_win_and_overrides_win_over_profiles(write: Write) -> None:
    assert load(write(), "trainer.steps=1", "trainer.steps=2", profile="tiny").trainer.steps == 2


def test_one_override_changes_the_data_of_training_and_evaluation() -> None:
    recipe = load_recipe("visionthink", profile="tiny", overrides=["data.source=handwriting"])
    assert (recipe.data.source, recipe.data.train.source, recipe.data.eval.source) == ("handwriting", None, None)


def test_a_mapping_of_values_needs_no_quoting(write: Write) -> None:
    values = {"model.path": Path("a: b/#c"), "seed": 4, "env.tools": ["x"], "description": "\U0001f600 \x7f null"}
    recipe = load_recipe(write(), overrides=values)
    assert recipe.model.path == "a: b/#c"
    assert (recipe.seed, recipe.description) == (4, "\U0001f600 \x7f null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("junk", "override:1:1: an override is key.path=value, not 'junk'"),
        ("=1", "'' is no key path"),
        ("a..b=1", "override:1:3: an override is key.path=value; 'a..b' is no key path"),
        ("seed=", "override:1:6: seed: the value is missing; write null"),
        ("seed=[1", "seed: this is not YAML"),
        ("env.tools=[a, *b]", "env.tools: this is not YAML"),
        ("algorithm.clp=1", "override:1:11: algorithm.clp: unknown key 'clp'; did you mean 'clip'?"),
        ("algoritm.clip=1", "override:1:1: algoritm: unknown key 'algoritm'; did you mean 'algorithm'?"),
        ("trainer.lr=fast", "override:1:12: trainer.lr: must be a number, not 'fast'"),
        ("seed.x=1", "seed: must be a whole number, not {'x': 1}"),
        ("rewards.9=format", "override:1:9: rewards.9: there is no item 9; the list has 3, counted from 0"),
        (
            "rewards.formt.weight=1",
            "override:1:9: rewards.formt.weight: no item here is called 'formt'; did you mean 'format'?",
        ),
        (
            "rewards.0.weight=2",
            "override:1:11: rewards.0.weight: item 0 is 'accuracy'; "
            "its settings are named after it: 0.accuracy.weight or accuracy.weight",
        ),
        ("rewards.1.accuracy.weight=2", "item 1 is 'format'"),
        ("env.tools.0.scale=1", "item 0 is 'resize_image'; its settings are named after it: 0.resize_image.scale or"),
        ("model={path: 'x', dtype: 3}", "override:1:26: model.dtype: must be 'auto'"),
        ("seed=1\nmodel: x", "override:1:13: seed: this is not YAML"),
    ],
)
def test_errors_point_at_the_overrides_text(write: Write, override: str, message: str) -> None:
    text = fails(write(), overrides=[override])
    assert message in text
    assert f"       | {override.replace(chr(10), ' ')}\n" in text


def test_the_second_overrides_error_has_its_number(write: Write) -> None:
    assert fails(write(), overrides=["seed=1", "seed=x"]).startswith("override:2:6: seed")


def test_a_name_that_stands_twice_wants_an_index(write: Write) -> None:
    path = write("rewards: [format, format]\n")
    message = fails(path, overrides=["rewards.format.weight=1"])
    assert "2 items here are called 'format'; name one by its index, such as 0" in message
    assert "mine.yaml:2:19: rewards.1: 'format' stands here twice" in message


def test_one_string_is_a_mistake_of_the_caller(write: Write) -> None:
    with pytest.raises(TypeError, match="not one string"):
        load_recipe(write(), overrides="seed=1")


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_applied_or_told_and_never_breaks(key: str, value: str) -> None:
    base, _ = parse(BASE, "base.yaml")
    assert base is not None
    tree, problems = apply(base, [f"{key}={value}", f"env.tools.resize_image.{key}={value}", f"rewards.0={value}"])
    assert all(problem.place is not None and problem.place.file == "override" for problem in problems)
    assert isinstance(render(problems), str)
    assert tree.plain()["name"] == "base" or key == "name"
