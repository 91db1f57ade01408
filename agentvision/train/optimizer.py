"""AdamW and its learning rate. The rate is a function of the step alone, so a schedule has no state to save."""

from __future__ import annotations

import math

import torch
from torch import nn

from agentvision.recipe.schema import Optimizer as OptimizerSettings


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over what is trainable; weight decay on matrices and embeddings, none on biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas)


def learning_rate(step: int, settings: OptimizerSettings, *, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then constant, or towards 0 after the last step."""
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    done = min(1.0, (step - warmup) / max(steps - warmup, 1))
    factor = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.lr * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
