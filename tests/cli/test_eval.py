"""`agentvision eval` prints the numbers, writes them once, and fails in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentvision.cli import main

SCRIPTED = str(Path(__file__).parents[1] / "scripted.py")
RECIPE = f"""
name: small
model: {{path: none}}
policy: {{backend: "{SCRIPTED}:make"}}
data: {{source: glyphs, options: {{columns: 5, rows: 3}}}}
env: {{first_view: {{scale: 0.5}}, tools: [resize_image]}}
rewards: [accuracy, {{format: {{weight: 0.5}}}}]
evaluation: {{n: 20}}
profiles:
  few: {{evaluation: {{n: 4}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return str(path)


def runs(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error; the exit code is 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_numbers_are_printed_and_written(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    runs(["eval", recipe, "--n", "6", "--seed", "1", "--model", "somewhere", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "100.0 %" in printed
    assert "answered 6" in printed
    results = json.loads((out / "results.json").read_text())
    assert (results["n"], results["seed"], results["accuracy"], results["model"]) == (6, 1, 1.0, "somewhere")


def test_profile_and_overrides_reach_the_evaluation(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    runs(["eval", recipe, "env.first_view.scale=1.0", "--profile", "few", "--out", str(out), "--quiet"])
    assert capsys.readouterr().out == ""
    results = json.loads((out / "results.json").read_text())
    assert (results["n"], results["profile"], results["overrides"]) == (4, "few", ["env.first_view.scale"])


def test_results_are_not_overwritten(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert "not overwritten" in fails(["eval", recipe, "--out", str(tmp_path)], capsys)


def test_a_model_that_fails_everywhere_is_one_line(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "this model is broken" in fails(["eval", recipe, "--model", "broken", "--n", "2"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], 'Invalid value "-1" for --seed. Must be >= 0.'),
        (["--seed", str(2**63)], f"Must be < {2**63}."),
        (["--n", "0"], 'Invalid value "0" for --n. Must be >= 1.'),
        (["--n", "many"], 'unable to convert "many" into int'),
        (["--modle", "x"], "Unknown option: --modle"),
    ],
)
def test_a_wrong_option_is_one_line(
    recipe: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(["eval", recipe, *arguments], capsys)
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_recipe_and_profile_are_one_line_each(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.yaml" in fails(["eval", "nothing.yaml"], capsys)
    assert "few" in fails(["eval", recipe, "--profile", "fwe"], capsys)
