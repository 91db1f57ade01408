"""The recipe's own rules: closed, frozen, documented; contradictions between sections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from agentvision.recipe import Recipe, differing_keys, resolved_yaml
from agentvision.recipe.parts import Plugin, RewardPart
from agentvision.recipe.schema import Section

from .conftest import Write, fails, load


def sections(kind: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for child in kind.__subclasses__():
        yield child
        yield from sections(child)


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_field_is_documented_and_every_section_closed_and_frozen(section: type[BaseModel]) -> None:
    assert section.__doc__
    assert [name for name, field in section.model_fields.items() if not field.description] == []
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["frozen"]


def test_a_recipe_cannot_be_changed(write: Write) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(write()).seed = 3  # type: ignore[misc]


def test_origins_are_no_part_of_equality(write: Write) -> None:
    assert load(write("seed: 1\n")) == load(write(), "seed=1")
    assert load(write("seed: 1\n")) != load(write(), "seed=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.top_p=0.9", "sampling.top_p: must be 1 to train, not 0.9"),
        ("sampling.top_k=5", "sampling.top_k: must be 0 to train, not 5"),
        ("sampling.temperature=0", "sampling.temperature: must be above 0 to train"),
        ("rewards=[]", "rewards: training needs at least one reward"),
        ("trainer.mini_batch_prompts=5", "must divide trainer.prompts_per_step (16), not 5"),
        ("protocol.style=plain", "env.tools: protocol.style 'plain' has no tool calls"),
        ("sampling.max_tokens=99999", "must not be above sampling.context_tokens (8192), not 99999"),
        ("model={min_pixels: 9, max_pixels: 4}", "model.min_pixels: must not be above model.max_pixels (4), not 9"),
        (
            "algorithm.correction.threshold=3",
            "correction.threshold: 3.0 does nothing: algorithm.correction.kind is 'none'",
        ),
        ("env.tools=[crop, crop]", "env.tools.1: 'crop' stands here twice"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(write: Write, override: str, message: str) -> None:
    assert message in fails(write(), overrides=[override])


def test_contradictions_are_told_together_and_placed(write: Write) -> None:
    message = fails(write("sampling:\n  top_p: 0.5\n  top_k: 3\n"))
    assert message.startswith("2 problems")
    assert "mine.yaml:3:10: sampling.top_p" in message
    assert "mine.yaml:4:10: sampling.top_k" in message


def test_what_only_training_forbids_is_allowed_without_training(write: Write) -> None:
    recipe = load(write(), "trainer.steps=0", "sampling.top_p=0.9", "sampling.temperature=0", "rewards=[]")
    assert recipe.sampling.top_p == 0.9


def test_a_plugin_is_written_by_name_or_with_parameters(write: Write) -> None:
    recipe = load(write("env: {tools: [crop, zoom: {factor: 2}, {a.b:c: null}, './x.py:y']}\n"))
    assert [(t.name, t.params) for t in recipe.env.tools] == [
        ("crop", {}),
        ("zoom", {"factor": 2}),
        ("a.b:c", {}),
        ("./x.py:y", {}),
    ]


def test_a_plugins_python_form_and_file_form_are_one() -> None:
    part = RewardPart(name="format", weight=0.5, params={"strict": True})
    assert part.model_dump() == {"format": {"weight": 0.5, "strict": True}}
    assert RewardPart.model_validate(part.model_dump()) == part
    assert Plugin(name="crop").model_dump() == {"crop": {}}


def test_one_column_may_stand_without_a_list(write: Write) -> None:
    fields = load(write(), "data.fields={question: problem, images: []}").data.fields
    assert (fields.question, fields.images) == (("problem",), ())


def test_importing_recipes_loads_no_heavy_library() -> None:
    import subprocess
    import sys

    code = "import sys, agentvision.recipe; print({'torch', 'transformers', 'datasets', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_recipe_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="training needs at least one reward"):
        Recipe.model_validate({"name": "x", "model": {"path": "m"}, "data": {"source": "d"}})


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        ("heavy", "3:21: rewards.1.format.weight: must be a number, or a map such as {initial: 0, "),
        ("'0.5'", "3:21: rewards.1.format.weight: must be a number"),
        ("true", "3:21: rewards.1.format.weight: must be a number"),
        ("{initial: 0, steps: 9}", "3:13: rewards.1.format.weight.final: is required"),
        ("{initial: 0, final: 1, steps: 0}", "3:51: rewards.1.format.weight.steps: must be greater than or equal to 1"),
        ("{initial: 0, final: a, steps: 9}", "3:41: rewards.1.format.weight.final: must be a number, not 'a'"),
        ("{initial: 0, final: 1, stpes: 9}", "3:44: rewards.1.format.weight.stpes: unknown key 'stpes'; did you mean"),
        ("{initial: 0, final: 1, steps: 9, shape: cosin}", "not 'cosin'; did you mean 'cosine'?"),
    ],
)
def test_a_weight_that_is_neither_a_number_nor_a_schedule(write: Write, weight: str, problem: str) -> None:
    message = fails(write(f"rewards: [accuracy,\n  {{format: {{weight: {weight}}}}}]\n"))
    assert problem in message


def test_a_weights_schedule_is_written_resolved_and_changed(write: Write) -> None:
    schedule = "{initial: 0, final: 0.5, steps: 100, shape: cosine}"
    recipe = load(write(), f"rewards.format.weight={schedule}", "rewards.format.weight.after=7")
    weight = {"initial": 0, "final": 0.5, "steps": 100, "after": 7, "shape": "cosine"}
    assert recipe.rewards[1].model_dump() == {"format": {"weight": weight}}
    assert load(write(resolved_yaml(recipe), base=False)) == recipe
    assert differing_keys(recipe, load(write())) == (
        "rewards.1.format.weight",
        *(f"rewards.1.format.weight.{key}" for key in sorted(weight)),
    )
    assert load(write(), f"rewards.format.weight={schedule}", "rewards.format.weight=2").rewards[1].weight == 2
