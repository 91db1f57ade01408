"""`agentvision recipes`: list, show, check."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvision.cli import main
from agentvision.recipe import load_recipe


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `agentvision recipes …`."""
    code = 0
    try:
        main(["recipes", *arguments])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_names_every_recipe_with_its_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 8
    assert all(line.endswith("[profiles: tiny]") for line in lines)
    assert any(line.startswith("visionthink-general  ") for line in lines)


def test_show_prints_a_recipe_that_loads_to_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "show", "visionthink", "--profile", "tiny", "seed=3")
    path = tmp_path / "shown.yaml"
    path.write_text(out)
    assert code == 0
    assert load_recipe(path) == load_recipe("visionthink", profile="tiny", overrides=["seed=3"])
    assert "# override" in out and "# profile tiny, visionthink.yaml:" in out


@pytest.mark.parametrize("name", ["visionthink", "vanilla", "penalty-all"])
def test_what_ships_is_in_order(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = run(capsys, "check", name)
    assert (code, out, err) == (0, f"{name}: in order (with profile tiny)\n", "")


def test_check_tells_everything_wrong_in_every_profile_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: visionthink\nprofiles: {tiny: {sed: 1}, other: {policy: {backend: transformer}}}\n")
    code, out, err = run(capsys, "check", str(path), "env.tools=[resize_imag]")
    assert (code, out) == (2, "")
    assert "sed: unknown key 'sed'; did you mean 'seed'?" in err
    assert "mine.yaml:2: policy.backend: there is no 'transformer' among the policies. Did you mean" in err
    assert err.count("override: env.tools.0: there is no 'resize_imag'") == 1
    assert "Traceback" not in err


def test_what_is_wrong_in_every_profile_is_told_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: visionthink\nsed: 1\ntrainer: {lr: .nan}\nprofiles: {other: {env: {max_turns: 0}}}\n")
    code, _, err = run(capsys, "check", str(path))
    assert code == 2
    assert err.startswith("error: 3 problems in the recipe:\n")
    for once in ("unknown key 'sed'", "'.nan' is not a finite", "env.max_turns: must be"):
        assert err.count(once) == 1
    assert "must be a number, not None" not in err


def test_check_finds_plugins_that_are_missing_or_refuse_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "rewards.ratio_penalty.rule=strict",
        "rewards.format.wait=1",
        "data.source=glyfs",
        "model.path=package://tiny-vln",
        "warm_start={steps: 1, data: {source: ./gone.py:x}}",
    ]
    code, _, err = run(capsys, "check", "visionthink", "--profile", "tiny", *overrides)
    lines = err.removeprefix("error: ").splitlines()
    assert code == 2
    assert [line.split(": ")[:2] for line in lines] == [
        ["override", "model.path"],
        ["override", "data.source"],
        ["override", "warm_start.data.source"],
        ["override", "rewards.1.format.wait"],
        ["override", "rewards.2.ratio_penalty.rule"],
    ]


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_wrong_recipe_is_told_on_stderr_with_code_2(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = run(capsys, command, "visionthink", "algorithm.clp=1")
    assert (code, out) == (2, "")
    assert err.startswith("error: override:1:11: algorithm.clp: unknown key 'clp'; did you mean 'clip'?\n")
    assert run(capsys, command, "visionthnk")[0] == 2
