"""The main job on the model that ships: it reads, it calls without knowing when to, and GRPO teaches it when."""

from __future__ import annotations

from statistics import mean

import pytest

from agentvision.evaluate import evaluate
from agentvision.recipe import load_recipe
from agentvision.tracking import read_metrics
from agentvision.train import train

pytestmark = pytest.mark.slow


def recipe(name, **overrides):
    return load_recipe(name, profile="tiny", overrides={"model.device": "cpu", **overrides})


def test_the_shipped_model_reads_what_can_be_read_and_no_more():
    result = evaluate(recipe("down-sample"), n=96, seed=5)
    assert result.metrics["accuracy_easy"] >= 0.9
    assert result.metrics["accuracy_hard"] <= 0.25, "small type is gone in the first view: only guesses are left"


def test_grpo_learns_when_to_look_closer(tmp_path):
    steps = 24
    train(
        recipe("visionthink", **{"trainer.steps": steps, "trainer.eval_every": 0, "trainer.save_every": 0, "seed": 1}),
        out=tmp_path,
        quiet=True,
    )
    rows = read_metrics(tmp_path)

    def gap(part):
        return mean(row["call_rate_hard"] - row["call_rate_easy"] for row in part)

    assert abs(gap(rows[:4])) < 0.35, "the warm start does not know yet"
    assert gap(rows[-4:]) > 0.6
