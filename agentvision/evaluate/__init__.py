"""Evaluation on held-out questions: `run` asks them, `metrics` measures, `compare` puts results side by side.

The module itself can be called: `from agentvision import evaluate; evaluate(recipe, model="runs/mine/export")`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentvision._callable import callable_module

if TYPE_CHECKING:
    from agentvision.evaluate.run import EvalResult
    from agentvision.policy import Policy
    from agentvision.recipe import Recipe


def evaluate(
    recipe: Recipe,
    *,
    model: str | Path | None = None,
    n: int | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    policy: Policy | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> EvalResult:
    """Ask the recipe's held-out questions and measure the answers; see `agentvision.evaluate.run.evaluate`."""
    from agentvision.evaluate import run

    return run.evaluate(recipe, model=model, n=n, seed=seed, out=out, policy=policy, on_done=on_done)


callable_module(__name__, evaluate)
