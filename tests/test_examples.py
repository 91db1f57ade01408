"""Every example runs as its docstring says, and is short enough to read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs(path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_under_sixty_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_there_is_one_of_each_kind():
    assert {p.name for p in EXAMPLES} >= {"my_tool.py", "my_reward.py", "my_app.py"}
