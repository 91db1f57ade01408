"""Training: pure maths (advantages, losses), the trainer's forward pass, the GRPO loop, the supervised stage.

The module itself can be called: `from agentvision import train; train(recipe, out="runs/mine")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agentvision._callable import callable_module

if TYPE_CHECKING:
    from agentvision.recipe import Recipe
    from agentvision.train.run import TrainResult


def train(recipe: Recipe, *, out: Path | str | None = None, resume: bool = False, quiet: bool = False) -> TrainResult:
    """Train a recipe's policy into the folder `out` (`runs/NAME` by default); see `agentvision.train.run.train`."""
    from agentvision.train import run

    return run.train(recipe, out=out, resume=resume, quiet=quiet)


callable_module(__name__, train)
