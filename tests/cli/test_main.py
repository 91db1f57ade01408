"""The command itself: help that costs nothing, its version, errors of the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentvision import __version__
from agentvision.cli import main

COMMANDS = (
    "train",
    "eval",
    "run",
    "report",
    "tools",
    "tools list",
    "tools try",
    "rewards",
    "recipes",
    "recipes list",
    "recipes show",
    "recipes check",
)
HEAVY = ("torch", "transformers", "litellm", "wandb", "datasets", "openai", "numpy", "PIL", "pydantic", "httpx")
CHECK = f"""
import contextlib, io, resource, sys, time

def spent(usage=resource.getrusage):
    return usage(resource.RUSAGE_SELF).ru_utime + usage(resource.RUSAGE_SELF).ru_stime

import cyclopts
before = spent()
from agentvision.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    for command in {COMMANDS!r}:
        try:
            main([*command.split(), "--help"])
        except SystemExit as exit_:
            assert not exit_.code, command
print(sorted(set({HEAVY!r}) & set(sys.modules)), (spent() - before) / before)
"""


def test_help_imports_nothing_heavy_and_costs_little_beside_the_interpreters_own_start() -> None:
    for _ in range(3):  # one of them on a machine that has time
        done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
        imported, _, ratio = done.stdout.rpartition(" ")
        assert imported == "[]"
        if float(ratio) < 4:
            return
    pytest.fail("the help of all commands costs more than four starts of the interpreter with cyclopts")


def test_without_arguments_it_says_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert not exit_.value.code
    out = capsys.readouterr().out
    assert all(f"{command.split()[0]} " in out for command in COMMANDS)


def test_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'Unknown command "trian". Did you mean "train"?'),
        (["train"], 'Command "train" parameter --recipe requires an argument.'),
    ],
)
def test_a_mistyped_command_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_ctrl_c_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentvision.recipe.load_recipe", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["doctor", "visionthink"])
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(KeyboardInterrupt):
        main(["doctor", "visionthink", "--debug"])
