"""Everything wrong with a recipe that no model is needed for is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvision.errors import RecipeError
from agentvision.evaluate import evaluate
from agentvision.preflight import preflight, problems
from agentvision.recipe import load_recipe

PLUGINS = """
from pathlib import Path
from agentvision.tool import ToolContext, tool

class Marker:
    def __init__(self, color: str, width: int = 2) -> None:
        if width > 9:
            raise ValueError("too wide")

    @tool
    def mark(self, ctx: ToolContext) -> str:
        "Mark."
        return ""

@tool
def zoom(ctx: ToolContext) -> str:
    "Another zoom."
    return ""

class Backend:
    @classmethod
    def from_pretrained(cls, path: str, *, beams: int = 1, names: list[str] = (), dtype="auto", attn="auto", device="auto",
                        trust_remote_code=False, max_pixels=None, min_pixels=None):
        raise AssertionError("a model was loaded")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(PLUGINS)
    return tmp_path / "own.py"


def told(own: Path, *overrides: str) -> list[str]:
    """What is wrong with the tiny recipe on a backend that loads nothing; without where the values are from."""
    base = [f"policy={{backend: '{own}:Backend', options: {{compute_dtype: null}}}}"]
    changed = [text.replace("OWN", str(own)) for text in overrides]
    recipe = load_recipe("visionthink", profile="tiny", overrides=[*base, *changed])
    recipe = recipe.model_copy(
        update={"policy": recipe.policy.model_copy(update={"options": {
            k: v for k, v in recipe.policy.options.items() if k != "compute_dtype"
        }})}
    )  # fmt: skip
    return [line.partition("override: ")[2] or line for line in problems(recipe)]


def test_what_ships_is_in_order_on_the_backend_that_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of the judge; nobody is asked")
    preflight(load_recipe("visionthink"))
    preflight(load_recipe("visionthink", profile="tiny"))


def test_options_of_the_backend_that_ships_are_known_without_a_model() -> None:
    options = "policy.options={prefil_tokens: 1, compute_dtype: bfloat17, image_tokens: many}"
    lines = list(problems(load_recipe("visionthink", profile="tiny", overrides=[options])))
    assert len(lines) == 3
    assert any("policy.options.prefil_tokens: there is no setting" in x and "'prefill_tokens'" in x for x in lines)
    assert any("policy.options.compute_dtype: 'compute_dtype' must be 'bfloat16'" in line for line in lines)
    assert any("policy.options.image_tokens: 'image_tokens' must be a valid integer" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.path=package://tiny-vln", "model.path: no model 'tiny-vln' ships"),
        ("model.path=./nowhere", "model.path: there is no model folder './nowhere'"),
        ("policy.options.beams=two", "policy.options.beams: 'beams' must be a valid integer; not 'two'"),
        ("policy.options.beans=2", "policy.options.beans: there is no setting 'beans'. Did you mean 'beams'?"),
        ("policy.options.max_pixels=64", "policy.options.max_pixels: set model.max_pixels instead"),
        ("policy.options.path=./here", "policy.options.path: set model.path instead"),
        ("policy.options.names=[a, 3]", "policy.options.names: 'names.1' must be a valid string; not 3"),
        ("env.tools=[crpo]", "env.tools.0: there is no 'crpo' among the tools. Did you mean 'crop'?"),
        ("env.tools=[crop: {size: 2}]", "env.tools.0: tool 'crop' takes no parameters"),
        ("env.tools=[crop, 'OWN:Marker']", "env.tools.1: tool 'OWN:Marker': the setting 'color' is missing"),
        ("env.tools=['OWN:Marker': {color: red, width: thick}]", "env.tools.0: tool 'OWN:Marker': 'width' must be"),
        ("env.tools=['OWN:Marker': {color: red, width: 10}]", "cannot be made: ValueError: too wide"),
        ("env.tools=[zoom, 'OWN:zoom']", "env.tools.1: two tools are called 'zoom'"),
        ("protocol.system='{{ tols }}'", "protocol.system: the template cannot be rendered: UndefinedError"),
        ("protocol.tool_reply='{{ text }}'", "protocol.tool_reply: the template shows 0 of 1 views"),
        ("data.source=glyfs", "data.source: there is no 'glyfs' among the data"),
        ("data.options.colums=4", "data: the source 'glyphs' has no option 'colums'. Did you mean 'columns'?"),
        ("data.eval.options={colums: 4}", "data.eval: the source 'glyphs' has no option 'colums'"),
        ("data.path=./here", "data: the source 'glyphs' reads no path, not './here'"),
        ("rewards.format.wait=1", "rewards.1.format.wait: there is no setting"),
    ],
)
def test_one_mistake_is_one_line_with_its_key(own: Path, override: str, line: str) -> None:
    (found,) = told(own, override)
    assert found.replace(str(own), "OWN").find(line) >= 0


def test_mistakes_are_told_together_each_with_where_its_value_is_from(own: Path) -> None:
    lines = told(own, "env.tools=[crpo]", "protocol.system='{{ tols }}'", "rewards.format.wait=1", "model.path=./no")
    assert len(lines) == 4


def test_another_model_is_checked_in_place_of_the_recipes_and_none_where_none_is_loaded(tmp_path: Path) -> None:
    recipe = load_recipe("visionthink", profile="tiny", overrides=["model.path=./nowhere"])
    with pytest.raises(RecipeError, match=r"--model: there is no model folder './gone'"):
        preflight(recipe, model="./gone")
    preflight(recipe, own_policy=True)


def test_evaluation_begins_with_it(own: Path, tmp_path: Path) -> None:
    backend = f"policy={{backend: '{own}:Backend'}}"
    recipe = load_recipe("visionthink", profile="tiny", overrides=[backend, "protocol.system='{{ tols }}'"])
    with pytest.raises(RecipeError, match="'tols' is undefined"):
        evaluate(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["policy.placement=separate"], "policy.placement: the backend 'transformers' has none; leave it out, or"),
        (
            ["policy={backend: vllm, placement: server, endpoints: ['http://a:1', b]}"],
            "policy.endpoints.1: 'b' is no address; write http://HOST:PORT",
        ),
        (
            ["policy={backend: vllm, options: {max_images: 1}}"],
            "policy.options.max_images: must not be below env.max_images (2)",
        ),
    ],
)
def test_what_a_backend_cannot_do_is_told_at_its_key(overrides: list[str], line: str) -> None:
    (problem,) = problems(load_recipe("visionthink", profile="tiny", overrides=overrides))
    assert problem.partition("override: ")[2].startswith(line)
