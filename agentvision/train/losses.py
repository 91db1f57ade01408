"""The losses, as pure functions over the sampled tokens of a micro-batch.

All tensors are flat, `(N,)`: one entry a token that the model itself sampled, whatever rows they came from. A token's
share in the update is a weight made from *global* counts, so that a loss is a plain weighted sum, and the sums over
micro-batches and ranks are the loss of the whole batch, for every normalisation. User, tool and image tokens never
appear here: that is the indicator I(o_t) of VisionThink's Eq. 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossNorm = Literal["trajectory", "token", "constant"]
"""How tokens are averaged: per trajectory and then over trajectories (Eq. 3), over all tokens alike (DAPO), or by a
constant length (Dr. GRPO)."""

KLEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class LossCounts:
    """What one optimizer update is normalised by: counts over all its micro-batches and ranks.

    `trajectories` counts those that are in the loss (valid, with at least one sampled token), `tokens` their sampled
    tokens; `max_tokens` is the constant length of the norm "constant".
    """

    trajectories: int
    tokens: int
    max_tokens: int = 1


def token_weights(lengths_N: Tensor, *, counts: LossCounts, norm: LossNorm = "trajectory") -> Tensor:
    """The weight of each token in the update, `(N,)`; over the whole batch they sum to 1 (not for "constant").

    `lengths_N` is, for each token, the number of sampled tokens in its trajectory. "trajectory" is Eq. 3 of
    VisionThink: 1 / (trajectories · length).
    """
    if norm == "trajectory":
        return 1.0 / (lengths_N.to(torch.float32) * max(counts.trajectories, 1))
    if norm == "token":
        return torch.full_like(lengths_N, 1.0 / max(counts.tokens, 1), dtype=torch.float32)
    return torch.full_like(lengths_N, 1.0 / (max(counts.trajectories, 1) * counts.max_tokens), dtype=torch.float32)


def clipped_surrogate(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """-min(p·A, clip(p, 1 - clip_low, 1 + clip_high)·A) with p = exp(logprob - old), `(N,)` (PPO; Eq. 3)."""
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    return -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_N)


def is_clipped(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Which tokens the clipping has cut off from the gradient, `(N,)` bool."""
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    return ((advantages_N > 0) & (ratio_N > 1.0 + clip_high)) | ((advantages_N < 0) & (ratio_N < 1.0 - clip_low))


def kl_estimate(logprobs_N: Tensor, reference_N: Tensor, *, estimator: KLEstimator = "k3") -> Tensor:
    """An estimate of KL(policy || reference) from samples of the policy, `(N,)`.

    With d = reference - logprob: k1 = -d, k2 = d²/2, k3 = exp(d) - d - 1 (never negative, low variance).
    Source: J. Schulman, "Approximating KL Divergence".
    """
    difference_N = reference_N - logprobs_N
    if estimator == "k1":
        return -difference_N
    if estimator == "k2":
        return difference_N.square() / 2
    return torch.exp(difference_N) - difference_N - 1.0


@dataclass(frozen=True, slots=True)
class LossParts:
    """One micro-batch's share of the update. `loss` carries the gradient; the rest is detached, weighted and sums up."""

    loss: Tensor
    surrogate: Tensor
    kl: Tensor
    entropy: Tensor


def grpo_loss(
    logprobs_N: Tensor,
    entropy_N: Tensor,
    *,
    old_logprobs_N: Tensor,
    reference_N: Tensor | None,
    advantages_N: Tensor,
    weights_N: Tensor,
    importance_N: Tensor | None = None,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
    kl_estimator: KLEstimator = "k3",
    entropy_coef: float,
) -> LossParts:
    """Σ w · (clipped surrogate + kl_coef · KL - entropy_coef · entropy): VisionThink's Eq. 3, negated to be minimised.

    Without a reference the KL is 0. `entropy_N` is nats a token. `importance_N` are detached weights of the surrogate
    alone (see `correction`); the counts in `weights_N` are the same with and without them.
    """
    surrogate_N = clipped_surrogate(logprobs_N, old_logprobs_N, advantages_N, clip_low=clip_low, clip_high=clip_high)
    if importance_N is not None:
        surrogate_N = importance_N * surrogate_N
    surrogate = (weights_N * surrogate_N).sum()
    entropy = (weights_N * entropy_N).sum()
    loss = surrogate - entropy_coef * entropy if entropy_coef else surrogate
    kl = torch.zeros_like(surrogate)
    if reference_N is not None:
        kl = (weights_N * kl_estimate(logprobs_N, reference_N, estimator=kl_estimator)).sum()
        loss = loss + kl_coef * kl
    return LossParts(loss, surrogate.detach(), kl.detach(), entropy.detach())


def supervised_loss(logprobs_N: Tensor, *, weights_N: Tensor) -> Tensor:
    """Cross-entropy on the model's own tokens, with the same weights: -Σ w · logprob."""
    return -(weights_N * logprobs_N).sum()
