"""What a recipe says reaches the objects made from it."""

import pytest

from agentvision import build
from agentvision.errors import PluginError
from agentvision.recipe import load_recipe

TOOLS = """
from agentvision import tool
from agentvision.tool import ToolContext, ToolResult

@tool(timeout_s=2)
def patient(ctx: ToolContext) -> ToolResult:
    \"\"\"Look around.\"\"\"
    return ToolResult("seen")
"""


def test_a_tool_keeps_its_own_limit_and_takes_the_recipes_where_it_has_none(tmp_path):
    (tmp_path / "mine.py").write_text(TOOLS)
    found = build.build_tools(
        load_recipe(
            "visionthink",
            profile="tiny",
            overrides={"env.tools": ["resize_image", f"{tmp_path}/mine.py:patient"], "env.tool_timeout_s": 7},
        )
    )
    assert {tool.name: tool.timeout_s for tool in found} == {"resize_image": 7, "patient": 2}


def test_two_tools_of_one_name_are_refused(tmp_path):
    (tmp_path / "mine.py").write_text(TOOLS.replace("patient", "zoom"))
    recipe = load_recipe("visionthink", profile="tiny", overrides={"env.tools": ["zoom", f"{tmp_path}/mine.py:zoom"]})
    with pytest.raises(PluginError, match="two tools are called 'zoom'"):
        build.build_tools(recipe)
