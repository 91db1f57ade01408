"""Importance weights against loops over floats: what is measured is raw, what is used is bounded, and neither has a gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentvision.train.correction import (
    effective_share,
    importance_weights,
    is_bounded,
    log_importance,
    mismatch,
)
from agentvision.train.losses import grpo_loss

logprob = st.floats(-8, 0, width=32)
trajectories = st.lists(st.lists(st.tuples(logprob, logprob), min_size=1, max_size=5), min_size=1, max_size=4)


def flat(rows):
    """(proximal, recorded, owners) of trajectories of (proximal, recorded) pairs."""
    pairs = [(p, r, k) for k, row in enumerate(rows) for p, r in row]
    proximal, recorded, owners = zip(*pairs, strict=True)
    return torch.tensor(proximal), torch.tensor(recorded), torch.tensor(owners)


def oracle(rows, *, kind, level, threshold):
    """(raw ratio, weight) of each token, in Python floats."""
    found = []
    for row in rows:
        own = [p - r for p, r in row]
        for difference in own if level == "token" else [sum(own)] * len(own):
            ratio = math.exp(difference)
            if kind == "truncated":
                weight = min(ratio, threshold)
            else:
                weight = ratio if 1 / threshold <= ratio <= threshold else 0.0
            found.append((ratio, weight))
    return found


@given(
    trajectories, st.sampled_from(["truncated", "masked"]), st.sampled_from(["token", "sequence"]), st.floats(1.1, 9)
)
def test_weights_and_what_is_measured_are_those_of_a_loop(rows, kind, level, threshold):
    proximal, recorded, owners = flat(rows)
    ratios = log_importance(proximal, recorded, owners, level=level)
    expected = oracle(rows, kind=kind, level=level, threshold=threshold)
    if any(abs(abs(math.log(ratio)) - math.log(threshold)) < 1e-4 for ratio, _ in expected):
        return  # on the edge rounding decides
    weights = importance_weights(ratios, kind=kind, threshold=threshold)
    assert weights.tolist() == pytest.approx([w for _, w in expected], rel=1e-4)
    bounded = is_bounded(ratios, kind=kind, threshold=threshold)
    assert bounded.tolist() == [w != ratio for ratio, w in expected]
    found = mismatch(proximal, recorded, ratios)
    raw = [ratio for ratio, _ in expected]
    differences = [abs(p - r) for row in rows for p, r in row]
    assert found.tokens == len(raw)
    assert (found.ratio_sum, found.ratio_max, found.ratio_min) == pytest.approx(
        (sum(raw), max(raw), min(raw)), rel=1e-4
    )
    assert (found.diff_sum, found.diff_max) == pytest.approx((sum(differences), max(differences)), abs=1e-4)
    share = effective_share(tokens=found.tokens, ratio_sum=found.ratio_sum, ratio_square_sum=found.ratio_square_sum)
    assert share == pytest.approx(sum(raw) ** 2 / (len(raw) * sum(r * r for r in raw)), rel=1e-3)
    assert share is not None and 1 / len(raw) - 1e-6 <= share <= 1 + 1e-6


def test_the_gradient_is_the_surrogates_times_a_constant_weight():
    proximal, recorded, owners = flat([[(-1.0, -1.5), (-2.0, -0.5)], [(-0.5, -0.6)]])
    advantages, shares = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([0.25, 0.25, 0.5])

    def gradient(importance):
        logprobs = proximal.clone().requires_grad_()
        ratios = log_importance(logprobs, recorded, owners, level="token")
        weights = importance_weights(ratios, kind="truncated", threshold=1.2) if importance else None
        parts = grpo_loss(
            logprobs, torch.zeros(3), old_logprobs_N=proximal, reference_N=None, advantages_N=advantages,
            weights_N=shares, importance_N=weights, clip_low=0.2, clip_high=0.2, kl_coef=0.0, entropy_coef=0.0,
        )  # fmt: skip
        parts.loss.backward()
        return logprobs.grad

    weights = torch.tensor([1.2, math.exp(-1.5), math.exp(0.1)])
    assert torch.allclose(gradient(importance=False), -shares * advantages)
    assert torch.allclose(gradient(importance=True), -shares * advantages * weights)


def test_the_weighted_gradient_is_that_of_the_target_policy_on_average():
    """Tokens of μ, weighted, estimate the policy gradient under the trainer's distribution; unweighted they do not."""
    torch.manual_seed(0)
    target = torch.randn(5, dtype=torch.float64).requires_grad_()
    sampler = (target.detach() + torch.tensor([0.4, -0.4, 0.2, 0.0, -0.1])).log_softmax(0)
    rewards = torch.randn(5, dtype=torch.float64)
    logprobs = target.log_softmax(0)
    (exact,) = torch.autograd.grad(-(logprobs.exp() * rewards).sum(), target, retain_graph=True)

    def expected(weights):
        """Over all five tokens, each with its probability of being sampled: no noise to average out."""
        parts = grpo_loss(
            logprobs, torch.zeros(5), old_logprobs_N=logprobs.detach(), reference_N=None, advantages_N=rewards,
            weights_N=sampler.exp(), importance_N=weights, clip_low=0.2, clip_high=0.2, kl_coef=0.0, entropy_coef=0.0,
        )  # fmt: skip
        (found,) = torch.autograd.grad(parts.loss, target, retain_graph=True)
        return found

    ratios = log_importance(logprobs, sampler, torch.arange(5), level="token")
    assert torch.allclose(expected(importance_weights(ratios, kind="truncated", threshold=10.0)), exact)
    assert not torch.allclose(expected(None), exact, atol=1e-2)


def test_extreme_ratios_stay_finite():
    proximal, recorded, owners = flat([[(0.0, -30.0)] * 60, [(-30.0, 0.0)] * 60])
    for level in ("token", "sequence"):
        ratios = log_importance(proximal, recorded, owners, level=level)
        for kind in ("truncated", "masked"):
            weights = importance_weights(ratios, kind=kind, threshold=2.0)
            assert torch.isfinite(weights).all() and weights.max() <= 2
        found = mismatch(proximal, recorded, ratios)
        assert math.isfinite(found.ratio_sum) and math.isfinite(found.ratio_square_sum)
        assert found.diff_max == 30.0


def test_a_log_prob_that_is_not_a_number_is_not_hidden_by_the_mask():
    proximal = torch.tensor([math.nan, -1.0], requires_grad=True)
    ratios = log_importance(proximal, torch.tensor([-1.0, -1.0]), torch.tensor([0, 0]), level="token")
    parts = grpo_loss(
        proximal, torch.zeros(2), old_logprobs_N=proximal.detach(), reference_N=None, advantages_N=torch.ones(2),
        weights_N=torch.full((2,), 0.5), importance_N=importance_weights(ratios, kind="masked", threshold=2.0),
        clip_low=0.2, clip_high=0.2, kl_coef=0.0, entropy_coef=0.0,
    )  # fmt: skip
    assert math.isnan(parts.loss.item())
