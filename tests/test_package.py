"""The package as users meet it: its names, its folders, its imports."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import agentvision

ROOT = Path(agentvision.__file__).parent.parent


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", agentvision.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(agentvision, name))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        agentvision.nothing  # noqa: B018


@pytest.mark.parametrize("first", ["import agentvision.train.losses", "from agentvision import train", "pass"])
def test_modules_that_are_functions_too_are_both_in_any_order_of_imports(first):
    run(
        f"{first}\n"
        "from agentvision import tool, train, evaluate, ToolContext, ToolResult\n"
        "from agentvision.train.losses import clipped_surrogate\n"
        "import agentvision.tool\n"
        "assert callable(train) and callable(evaluate)\n"
        "@tool\ndef look(ctx: ToolContext) -> ToolResult:\n    'Look.'\n    return ToolResult()\n"
        "assert isinstance(look, agentvision.tool.Tool)\n"
    )


def test_importing_it_imports_nothing_heavy():
    heavy = ("torch", "transformers", "litellm", "openai", "wandb", "datasets", "scipy")
    out = run(
        "import sys, agentvision, agentvision.cli, agentvision.recipe, agentvision.env, agentvision.rewards\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert out.strip() == "[]"


def test_the_core_names_no_tool_policy_or_recipe():
    for path in (ROOT / "agentvision").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for plugin in ("tools", "policies"):
            assert f"from agentvision.{plugin}" not in text, path
            assert f"import agentvision.{plugin}" not in text, path
        if path.parent.name not in ("cli", "tiny"):  # the tiny model is made for that recipe
            assert 'load_recipe("' not in text, path


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="an installed package has no pyproject.toml")
def test_every_folder_of_code_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    moved = {"tools": "agentvision.tools", "policies": "agentvision.policies", "recipes": "agentvision.recipes"}
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "agentvision").rglob("__init__.py")}
    assert set(settings["packages"]) == folders | set(moved.values())
