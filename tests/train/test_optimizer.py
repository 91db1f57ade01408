import pytest
from torch import nn

from agentvision.recipe.schema import Optimizer
from agentvision.train.optimizer import learning_rate, make_optimizer, set_learning_rate


def rates(steps, **settings):
    return [learning_rate(step, Optimizer(lr=1.0, **settings), steps=steps) for step in range(steps)]


def test_warm_up_is_linear_and_then_the_schedule_runs_towards_zero():
    assert rates(4, warmup_steps=2) == [0.5, 1.0, 1.0, 1.0]
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(4, schedule="cosine")[2] == pytest.approx(0.5)
    assert rates(6, warmup_steps=2, schedule="linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_weight_decay_spares_biases_and_norms_and_frozen_weights_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model, Optimizer(weight_decay=0.1))
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and [p.shape for p in decayed["params"]] == [(3, 3)]
    assert spared["weight_decay"] == 0 and len(spared["params"]) == 3
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
