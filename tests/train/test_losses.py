import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.train.losses import (
    LossCounts,
    clipped_surrogate,
    grpo_loss,
    is_clipped,
    kl_estimate,
    supervised_loss,
    token_weights,
)

NORMS = ["trajectory", "token", "constant"]


def make(lengths, seed=0):
    """Per-trajectory lists of (logprob, old, reference, entropy) and an advantage each."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        logprobs = -torch.rand(length, generator=generator, dtype=torch.float64) * 3
        noise = torch.randn(3, length, generator=generator, dtype=torch.float64) * 0.3
        rows.append((logprobs, logprobs + noise[0], logprobs + noise[1], noise[2].abs()))
    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64).tolist()
    return rows, advantages


def oracle(rows, advantages, *, norm, max_tokens, low=0.2, high=0.3, beta=0.05, alpha=0.01):
    """Eq. 3 token by token, in Python floats."""
    per_trajectory, total_tokens = [], 0
    for (logprobs, old, reference, entropy), advantage in zip(rows, advantages, strict=True):
        values = []
        for lp, o, r, h in zip(logprobs.tolist(), old.tolist(), reference.tolist(), entropy.tolist(), strict=True):
            ratio = math.exp(lp - o)
            clipped = min(max(ratio, 1 - low), 1 + high)
            kl = math.exp(r - lp) - (r - lp) - 1
            values.append(-(min(ratio * advantage, clipped * advantage) - beta * kl + alpha * h))
        per_trajectory.append(values)
        total_tokens += len(values)
    if norm == "trajectory":
        return sum(sum(v) / len(v) for v in per_trajectory) / len(per_trajectory)
    if norm == "token":
        return sum(sum(v) for v in per_trajectory) / total_tokens
    return sum(sum(v) for v in per_trajectory) / (len(per_trajectory) * max_tokens)


def loss_of(rows, advantages, *, norm, counts):
    lengths = torch.cat([torch.full((len(r[0]),), len(r[0])) for r in rows])
    advantages_N = torch.cat(
        [torch.full((len(r[0]),), a, dtype=torch.float64) for r, a in zip(rows, advantages, strict=True)]
    )
    logprobs, old, reference, entropy = (torch.cat([r[i] for r in rows]) for i in range(4))
    return grpo_loss(
        logprobs,
        entropy,
        old_logprobs_N=old,
        reference_N=reference,
        advantages_N=advantages_N,
        weights_N=token_weights(lengths, counts=counts, norm=norm).double(),
        clip_low=0.2,
        clip_high=0.3,
        kl_coef=0.05,
        entropy_coef=0.01,
    )


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    cut=st.integers(0, 8),
    norm=st.sampled_from(NORMS),
    seed=st.integers(0, 999),
)
def test_the_sum_over_micro_batches_is_the_slow_oracles_loss(lengths, cut, norm, seed):
    rows, advantages = make(lengths, seed)
    counts = LossCounts(trajectories=len(lengths), tokens=sum(lengths), max_tokens=16)
    expected = oracle(rows, advantages, norm=norm, max_tokens=16)
    whole = loss_of(rows, advantages, norm=norm, counts=counts).loss.item()
    parts = [(rows[:cut], advantages[:cut]), (rows[cut:], advantages[cut:])]
    summed = sum(loss_of(r, a, norm=norm, counts=counts).loss.item() for r, a in parts if r)
    assert whole == pytest.approx(expected, abs=1e-6)
    assert summed == pytest.approx(expected, abs=1e-6)


def test_the_gradient_is_zero_exactly_where_a_token_is_clipped():
    logprobs = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.01], requires_grad=True)
    old = torch.zeros(5)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    clipped_surrogate(logprobs, old, advantages, clip_low=0.2, clip_high=0.2).sum().backward()
    clipped = is_clipped(logprobs, old, advantages, clip_low=0.2, clip_high=0.2)
    assert clipped.tolist() == [True, False, False, True, False]
    assert (logprobs.grad == 0).tolist() == clipped.tolist()


def test_on_policy_the_surrogates_gradient_is_the_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.7, -0.3])
    clipped_surrogate(logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2).sum().backward()
    assert logprobs.grad is not None and torch.allclose(logprobs.grad, -advantages)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_k3_is_never_negative_and_zero_for_equal_models(differences):
    logprobs = torch.zeros(len(differences), dtype=torch.float64)
    reference = torch.tensor(differences, dtype=torch.float64)
    assert (kl_estimate(logprobs, reference) >= -1e-12).all()
    assert (kl_estimate(reference, reference) == 0).all()


def test_k3_estimates_the_divergence_without_bias():
    torch.manual_seed(0)
    p, q = torch.randn(6).log_softmax(0), torch.randn(6).log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for estimator in ("k1", "k3"):
        expected = (p.exp() * kl_estimate(p, q, estimator=estimator)).sum()
        assert expected == pytest.approx(exact.item(), abs=1e-6)


def test_without_a_reference_the_kl_is_zero_and_costs_nothing():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    parts = grpo_loss(
        logprobs, torch.ones(2), old_logprobs_N=logprobs.detach(), reference_N=None, advantages_N=torch.ones(2),
        weights_N=torch.full((2,), 0.5), clip_low=0.2, clip_high=0.2, kl_coef=1.0, entropy_coef=0.0,
    )  # fmt: skip
    assert parts.kl.item() == 0 and parts.loss.item() == pytest.approx(-1.0) and parts.entropy.item() == 1.0


def test_the_supervised_loss_is_the_mean_cross_entropy_of_each_trajectory():
    lengths = torch.tensor([1, 3, 3, 3])
    weights = token_weights(lengths, counts=LossCounts(trajectories=2, tokens=4))
    loss = supervised_loss(torch.tensor([-2.0, -1.0, -2.0, -3.0]), weights_N=weights)
    assert loss.item() == pytest.approx((2.0 + 2.0) / 2)
