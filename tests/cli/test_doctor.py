"""What `agentvision doctor` prints: JSON that any reader takes, also of a patient whose numbers are none."""

from __future__ import annotations

import pytest

from agentvision import doctor
from agentvision._strict_json import strict_json
from agentvision.cli import main


def test_numbers_that_json_does_not_have_are_null(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    async def examine(recipe: object, *, on_check: object) -> doctor.Diagnosis:
        found = doctor.Finding("log-probs", False, "mean nan", {"mean": float("nan"), "max": float("inf"), "tokens": 3})
        return doctor.Diagnosis((found,), 1.0)

    monkeypatch.setattr(doctor, "examine", examine)
    with pytest.raises(SystemExit, match="1"):
        main(["doctor", "visionthink", "--profile", "tiny", "--json"])
    printed = capsys.readouterr().out
    assert strict_json(printed)["findings"]["log-probs"] == {
        "ok": False,
        "says": "mean nan",
        "mean": None,
        "max": None,
        "tokens": 3,
    }
