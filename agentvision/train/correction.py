"""What drew the tokens and what the trainer makes of them: the gap measured, and corrected. Pure functions over tokens.

Tokens are drawn by the behaviour policy μ: an engine's kernels, perhaps with older weights; its log-probs are recorded.
The proximal policy is the trainer's own, with the weights that a step begins with. Decoupled, PPO's ratio new / proximal is
clipped around 1, and proximal / μ is a detached importance weight outside of the clipping:

    E_μ[ w · min(r·A, clip(r)·A) ]     r = new / proximal     w = proximal / μ, bounded

(Hilton et al. 2021, arXiv:2110.00641; for language models Fu et al. 2025, arXiv:2505.24298). A bounded w trades a little
bias for a finite variance: truncated at C (Ionides 2008, "Truncated Importance Sampling"), or without its outliers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["none", "truncated", "masked"]
Level = Literal["token", "sequence"]

_MOST = 300.0
"""Log-ratios are measured up to this: the square of the ratio is still a finite double."""


def log_importance(proximal_N: Tensor, recorded_N: Tensor, owners_N: Tensor, *, level: Level) -> Tensor:
    """log proximal / μ of each token, `(N,)`, detached; "sequence": of all sampled tokens of its trajectory.

    `owners_N` names each token's trajectory; all of its tokens must be there.
    """
    difference_N = (proximal_N - recorded_N).detach()
    if level == "token" or not len(owners_N):
        return difference_N
    return difference_N.new_zeros(int(owners_N.max()) + 1).index_add(0, owners_N, difference_N)[owners_N]


def importance_weights(log_importance_N: Tensor, *, kind: Kind, threshold: float) -> Tensor:
    """The weight of each token's policy gradient, `(N,)`.

    "truncated": min(ratio, C). "masked": the ratio where it is within [1/C, C], else 0. "none": 1.
    """
    if kind == "none":
        return torch.ones_like(log_importance_N)
    weights_N = log_importance_N.clamp(max=math.log(threshold)).exp()
    if kind == "truncated":
        return weights_N
    return weights_N.masked_fill(is_bounded(log_importance_N, kind=kind, threshold=threshold), 0.0)


def is_bounded(log_importance_N: Tensor, *, kind: Kind, threshold: float) -> Tensor:
    """Which tokens the correction gives another weight than their ratio, `(N,)` bool."""
    if kind == "none":
        return torch.zeros_like(log_importance_N, dtype=torch.bool)
    size_N = log_importance_N if kind == "truncated" else log_importance_N.abs()
    return size_N > math.log(threshold)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far the trainer's log-probs are from those recorded at sampling, before any bound; sums, maxima, minima."""

    tokens: int
    diff_sum: float
    """Σ |Δ log-prob|, token by token."""
    diff_max: float
    ratio_sum: float
    """Of the importance ratios; those of "sequence" count once a token."""
    ratio_square_sum: float
    ratio_max: float
    ratio_min: float


def mismatch(proximal_N: Tensor, recorded_N: Tensor, log_importance_N: Tensor) -> Mismatch:
    """Measure Δ = trainer - sampled, of one token at least; 0 up to rounding where the same weights sampled and all is well."""
    size_N = (proximal_N - recorded_N).detach().abs()
    ratio_N = log_importance_N.cpu().double().clamp(-_MOST, _MOST).exp()
    return Mismatch(
        tokens=size_N.numel(),
        diff_sum=float(size_N.sum()),
        diff_max=float(size_N.max()),
        ratio_sum=float(ratio_N.sum()),
        ratio_square_sum=float(ratio_N.square().sum()),
        ratio_max=float(ratio_N.max()),
        ratio_min=float(ratio_N.min()),
    )


def effective_share(*, tokens: int, ratio_sum: float, ratio_square_sum: float) -> float | None:
    """The effective sample size of importance weights, as a share: (Σw)² / (N Σw²) (Kish 1965); 1 when all are equal."""
    return ratio_sum**2 / (tokens * ratio_square_sum) if tokens and ratio_square_sum > 0 else None
