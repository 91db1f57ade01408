"""Tools: schema from the function, strict arguments, and tools with state."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.errors import PluginError
from agentvision.tool import (
    ToolContext,
    ToolResult,
    call_tool,
    tool,
    tools_of,
)
from agentvision.types import ToolCall, ToolError

from .tool_cases import call, context, measure

# --- schema ---------------------------------------------------------------------------------------------------------


def test_the_schema_is_compact_and_comes_from_types_and_docstring():
    assert measure.schema == {
        "type": "function",
        "function": {
            "name": "measure",
            "description": "Measure a region, in the unit asked for.",
            "parameters": {
                "type": "object",
                "properties": {
                    "box": {
                        "description": "Where to measure, in pixels.",
                        "type": "array",
                        "items": {"type": "number"},
                        "minItems": 4,
                        "maxItems": 4,
                    },
                    "unit": {"type": "string", "enum": ["px", "cm"], "default": "px"},
                    "image": {"type": "integer", "minimum": 1, "default": 1},
                    "title": {"type": "string", "description": "What to call it."},
                    "weight": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
                    "count": {"type": "integer", "default": 0},
                },
                "required": ["box"],
            },
        },
    }


def test_the_schema_is_the_same_in_every_process():
    code = "import json; from agentvision.tools import zoom; print(json.dumps(zoom.schema))"
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True, env={"PYTHONHASHSEED": h}
        ).stdout
        for h in ("1", "2")
    }
    assert len(outs) == 1


def test_numpy_and_sphinx_docstrings_are_read_too(capsys: pytest.CaptureFixture[str]):
    @tool
    def by_numpy(ctx: ToolContext, a: int) -> str:
        """Do it.

        Parameters
        ----------
        a
            How often.
        """
        return ""

    @tool
    def by_sphinx(ctx: ToolContext, a: int) -> str:
        """Do it.

        :param a: How often.
        """
        return ""

    for made in (by_numpy, by_sphinx):
        assert made.description == "Do it."
        assert made.schema["function"]["parameters"]["properties"]["a"]["description"] == "How often."
    assert capsys.readouterr().err == ""


def test_parameters_may_be_called_like_anything():
    @tool
    def odd(ctx: ToolContext, schema: str, copy: int, model_config: int = 3, self_: int = 1) -> str:
        """Odd names."""
        return f"{schema} {copy} {model_config} {self_}"

    assert odd.arguments.validate({"schema": "s", "copy": 1}) == {
        "schema": "s",
        "copy": 1,
        "model_config": 3,
        "self_": 1,
    }


def test_variants_are_made_by_replacing():
    other = replace(measure, name="other", timeout_s=3.0)
    assert other.schema["function"]["name"] == "other" and measure.schema["function"]["name"] == "measure"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(ctx: ToolContext):\n    return 1", "no docstring"),
        ("def f():\n    'x'", "first parameter"),
        ("def f(a: int):\n    'x'", "first parameter"),
        ("def f(ctx: ToolContext, a):\n    'x'", "'a' has no type"),
        ("def f(ctx: ToolContext, *a: int):\n    'x'", "plain parameters"),
        ("def f(ctx: ToolContext, a: 'Nowhere'):\n    'x'", "cannot be read"),
        ("def f(ctx: ToolContext, box: int):\n    '''x\n\n    Args:\n        bax: y\n    '''", "Did you mean 'box'"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_the_fix(source: str, message: str):
    space: dict[str, Any] = {"ToolContext": ToolContext}
    exec(source, space)
    with pytest.raises(PluginError, match=message):
        tool(space["f"])


def test_a_type_without_a_schema_is_named():
    @tool
    def strange(ctx: ToolContext, lock: threading.Thread) -> str:
        """Strange."""
        return ""

    with pytest.raises(PluginError, match=r"strange.*no JSON schema"):
        _ = strange.schema


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_must_be_a_time(timeout_s: float):
    with pytest.raises(PluginError, match="timeout_s"):
        tool(timeout_s=timeout_s)(measure.function)


# --- arguments ------------------------------------------------------------------------------------------------------


async def test_arguments_arrive_as_their_types():
    outcome = await call(measure, box=[1, 2.5, 3, 4], unit="cm", weight=2)
    assert outcome.record.text == "Box(x0=1.0, y0=2.5, x1=3.0, y1=4.0) cm 1 None 2.0 0"
    assert outcome.record.ok and outcome.record.seconds > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "measure needs the argument 'box'."),
        ({"box": [1, 2, 3]}, "at least 4 items"),
        ({"box": [1, 2, 3, "4"]}, "'box.3'"),
        ({"box": [1, 2, 3, True]}, "'box.3'"),
        ({"box": {"x0": 1}}, "'box'"),
        ({"box": [0, 0, 9, float("nan")]}, "'box.3'"),
        ({"box": [0, 0, 9, 10**400]}, "box"),
        ({"box": [0, 0, 9, 9], "image": "1"}, "'image'"),
        ({"box": [0, 0, 9, 9], "image": 1.0}, "'image'"),
        ({"box": [0, 0, 9, 9], "image": True}, "'image'"),
        ({"box": [0, 0, 9, 9], "image": 0}, "greater than or equal to 1"),
        ({"box": [0, 0, 9, 9], "count": 1.5}, "'count'"),
        ({"box": [0, 0, 9, 9], "weight": "2"}, "'weight'"),
        ({"box": [0, 0, 9, 9], "unit": "inch"}, "'px' or 'cm'"),
        ({"box": [0, 0, 9, 9], "boxx": 1}, "measure has no argument 'boxx'. Did you mean 'box'?"),
        ({"box": [0, 0, 9, 9], "title": "\ud800"}, "not valid JSON"),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(arguments: dict[str, Any], message: str):
    outcome = await call(measure, **arguments)
    assert outcome.result is None and outcome.record.error is ToolError.BAD_ARGUMENTS
    assert message in outcome.record.text
    outcome.record.text.encode()
    assert "pydantic" not in outcome.record.text


async def test_every_problem_is_named_and_long_values_are_cut():
    text = (await call(measure, unit="x" * 10_000, count="y", other=1)).record.text
    assert all(name in text for name in ("box", "unit", "count", "other")) and len(text) < 600


async def test_nesting_that_breaks_a_parser_is_a_wrong_argument():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert (await call(measure, box=deep)).record.error is ToolError.BAD_ARGUMENTS


UNUSED = context()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(["box", "unit", "image", "title", "weight", "x"]), json_values))
def test_any_json_is_an_outcome(arguments: dict[str, Any]):
    record = asyncio.run(call(measure, UNUSED, **arguments)).record
    assert record.error in (None, ToolError.BAD_ARGUMENTS)
    record.text.encode()


async def test_an_unknown_tool_names_the_nearest():
    outcome = await call_tool({"measure": measure}, ToolCall("mesure", {}), context())
    assert outcome.record.error is ToolError.UNKNOWN_TOOL
    assert outcome.record.text == "There is no tool 'mesure'. Did you mean 'measure'?"


# --- tools with state -----------------------------------------------------------------------------------------------


class Notebook:
    def __init__(self) -> None:
        self.lines: list[str] = []

    @tool
    def write(self, ctx: ToolContext, line: str) -> str:
        """Write a line."""
        self.lines.append(line)
        return f"{len(self.lines)} lines"

    @tool
    async def read(self, ctx: ToolContext) -> str:
        """Read all lines."""
        return " / ".join(self.lines)


async def test_methods_are_the_tools_of_an_instance():
    one, two = Notebook(), Notebook()
    assert [t.name for t in tools_of(one)] == ["write", "read"]
    assert "self" not in json.dumps(one.write.schema)
    await call(one.write, line="a")
    await call(two.write, line="b")
    assert (await call(one.read)).record.text == "a" and (await call(two.read)).record.text == "b"


def test_what_has_no_tools_is_refused():
    assert tools_of(measure) == (measure,)
    with pytest.raises(PluginError, match="neither a tool"):
        tools_of(object())


async def test_callable_objects_and_context_are_passed_through():
    @tool
    async def seed(ctx: ToolContext) -> str:
        """Tell the seed."""
        return str(ctx.seed)

    assert (await call(seed, context(seed=5))).record.text == "5"
    assert not hasattr(context(), "sample")


async def test_drawing_on_a_view_changes_nothing_but_what_the_tool_shows():
    @tool
    def blacken(ctx: ToolContext) -> ToolResult:
        """Paint it black."""
        picture = ctx.image(1)
        picture.paste((0, 0, 0), (0, 0, *picture.size))
        return ToolResult(images=(ctx.show(picture, of=1),))

    ctx = context()
    before = ctx.image(1).tobytes()
    outcome = await call(blacken, ctx)
    assert outcome.result.images[0].image.getextrema() == ((0, 0),) * 3
    assert ctx.image(1).tobytes() == before
