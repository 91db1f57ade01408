"""Several results in one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentvision.errors import RunError
from agentvision.evaluate.compare import markdown_table, read_results


def write(folder: Path, **values: object) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(values))
    return folder


def test_a_table_has_a_column_a_result_with_intervals_and_a_dash_for_what_is_missing(tmp_path: Path) -> None:
    one = write(tmp_path / "vanilla", n=500, accuracy=0.97, accuracy_ci=[0.95, 0.98], call_rate=None, seconds=12.34)
    two = write(tmp_path / "visionthink", n=500, accuracy=1, accuracy_ci=[0.99, 1], call_rate=0.5, call_rate_ci=None)
    assert markdown_table(read_results([one, two / "results.json"])) == (
        "| | vanilla | visionthink |\n"
        "|---|---|---|\n"
        "| questions | 500 | 500 |\n"
        "| accuracy | 97.0 % (95.0 % to 98.0 %) | 100.0 % (99.0 % to 100.0 %) |\n"
        "| call rate | – | 50.0 % |\n"
        "| seconds in all | 12.3 | – |\n"
    )
    assert "seconds" not in markdown_table(read_results([one, two]), measures=["accuracy", "call_rate"])


@pytest.mark.parametrize("text", ["", "[]", '{"n": 1}', None])
def test_what_is_not_a_result_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"results\.json"):
        read_results([tmp_path])
