"""The evaluation that `make demo` ends with: the shipped model, in this process."""

import json

import pytest

from agentvision.cli import main


def test_the_shipped_model_is_evaluated_by_its_own_engine(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["eval", "visionthink", "--profile", "tiny", "--n", "4", "--out", str(tmp_path / "run")])
    assert not end.value.code
    told = capsys.readouterr().out
    assert "accuracy" in told and "tokens sent" not in told
    usage = json.loads((tmp_path / "run" / "results.json").read_text())["usage"]
    assert usage["prompt_tokens"] > usage["reused_tokens"] >= 0
