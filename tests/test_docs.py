"""What the pages on rewards and recipes show runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agentvision import load_recipe
from agentvision.cli import main
from agentvision.preflight import problems
from agentvision.rewards import Rewards

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the rewards of the page on rewards as my_reward.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text("\n".join(blocks("rewards.md", "python")), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("page", ["rewards.md", "recipes.md", "training.md"])
def test_recipes_load_and_their_rewards_are_there(page: str, folder: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")
        recipe = load_recipe(f"./{number}.yaml")
        Rewards.from_config([part.model_dump() for part in recipe.rewards])
    assert page == "rewards.md" or number


def test_the_recipe_on_policies_is_in_order(tmp_path: Path) -> None:
    (text,) = blocks("policies.md", "yaml")
    (tmp_path / "asked.yaml").write_text(text, encoding="utf-8")
    assert not list(problems(load_recipe(str(tmp_path / "asked.yaml"))))


@pytest.mark.parametrize("text", blocks("rollouts.md", "yaml"))
def test_the_policies_on_rollouts_are_in_order(text: str, tmp_path: Path) -> None:
    whole = text if text.startswith("extends:") else f"extends: visionthink\nname: own\n{text}"
    (tmp_path / "own.yaml").write_text(whole, encoding="utf-8")
    for profile in (None, "tiny"):
        assert not list(problems(load_recipe(str(tmp_path / "own.yaml"), profile=profile)))


def test_the_commands_on_rewards_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks("rewards.md", "sh") for line in block.splitlines()]
    assert len(commands) >= 3
    for line in commands:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "agentvision"
        try:
            main(arguments)
        except SystemExit as end:
            assert not end.code, line
        assert capsys.readouterr().out, line
