"""The resolved recipe loads again to an equal one and tells where each value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.recipe import Recipe, differing_keys, load_recipe, resolved_yaml, write_resolved
from agentvision.recipe.tree import parse, to_yaml

from .conftest import Write, load

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

SMALL: dict[str, Any] = {"name": "n", "model": {"path": "m"}, "data": {"source": "d"}, "rewards": ["accuracy"]}


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # 1, 1.0 and True differ


@settings(deadline=None)
@given(json_values)
def test_what_is_written_on_a_line_is_read_back_equal(value: Any) -> None:
    node, problems = parse(f"key: {to_yaml(value)}  # comment", "x")
    assert node is not None and not problems
    assert same(node.plain(), {"key": value})


@settings(max_examples=40, deadline=None)  # each is written to disk and read again
@given(options=st.dictionaries(st.text(), json_values, max_size=3), system=st.text(), name=st.text(min_size=1))
def test_a_resolved_recipe_loads_to_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], system: str, name: str
) -> None:
    recipe = Recipe.model_validate(
        SMALL
        | {
            "name": name,
            "data": {"source": "d", "options": options},
            "protocol": {"system": system},
            "rewards": [{name: {"weight": 2.0, **{k: v for k, v in options.items() if k != "weight"}}}],
        }
    )
    path = tmp_path_factory.getbasetemp() / "recipe.resolved.yaml"
    write_resolved(recipe, path)
    again = load_recipe(path)
    assert again == recipe
    assert differing_keys(again, recipe) == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["", " ", "a", "\ta", "a ", " - b", "#", "é", "---", "\x85", "\r"]), max_size=5))
def test_texts_of_several_lines_survive(lines: list[str]) -> None:
    recipe = Recipe.model_validate({**SMALL, "protocol": {"system": "\n".join(lines)}})
    node, problems = parse(resolved_yaml(recipe), "x")
    assert node is not None and not problems
    assert node.plain()["protocol"]["system"] == "\n".join(lines)


def test_a_template_of_several_lines_stays_readable(write: Write) -> None:
    text = resolved_yaml(load(write("protocol:\n  system: |\n    One: {{ x }}\n\n    Two\n")))
    assert '  system: "One' in text  # the last line break makes it no plain block
    text = resolved_yaml(load(write("protocol:\n  system: |-\n    One: {{ x }}\n\n    Two\n")))
    assert "  system: |-  # mine.yaml:3\n    One: {{ x }}\n\n    Two\n" in text


def test_each_value_says_where_it_came_from(write: Write) -> None:
    recipe = load(write("seed: 1\n"), "rewards.accuracy.weight=2", profile="tiny")
    lines = [line.split() for line in resolved_yaml(recipe).splitlines()]
    assert ["seed:", "1", "#", "mine.yaml:2"] in lines
    assert ["dtype:", "float32", "#", "profile", "tiny,", "base.yaml:12"] in lines
    assert ["weight:", "2.0", "#", "override"] in lines
    assert ["threshold:", "0.2", "#", "base.yaml:8"] in lines
    assert ["-", "resize_image:", "{}", "#", "base.yaml:4"] in lines
    assert ["entropy:", "0.0", "#", "default"] in lines


def test_every_value_is_there_and_no_origin_is_lost(write: Write) -> None:
    recipe = load(write())
    node, _ = parse(resolved_yaml(recipe), "x")
    assert node is not None
    assert node.plain() == recipe.model_dump(mode="json")


def test_differing_keys_name_what_a_resume_would_change(write: Write, tmp_path: Path) -> None:
    recipe = load(write())
    changed = load(write(), "trainer.lr=0.5", "rewards.format.weight=1", "env.tools=[]", "tracking.wandb={}")
    assert {"trainer.lr", "rewards.1.format.weight", "env.tools", "tracking.wandb"} <= set(
        differing_keys(recipe, changed)
    )
    assert differing_keys(recipe, load(write())) == ()
    tools = 'env.tools=[{"./my.py:Search": {k: 3}}, '
    one = load(write(), tools + "crop]")
    assert differing_keys(one, load(write(), tools + "zoom]")) == ("env.tools.1",)
    assert differing_keys(one, load(write(), tools + "crop, zoom]")) == ("env.tools.2",)
    assert differing_keys(one, load(write(), tools.rstrip(", ") + "]")) == ("env.tools.1",)
