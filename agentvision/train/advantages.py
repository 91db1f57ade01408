"""Group-relative advantages (GRPO): each rollout is measured against the siblings of its own prompt.

Pure arithmetic over one group's rewards, in Python floats: a group has a handful of members, and what a member gets must
not depend on a device or a batch. An invalid reward (None, or not finite) is not a zero: its member leaves the baseline
and the loss, and its siblings get what they would have got without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

EQUAL_REWARDS = 1e-9
"""Rewards closer than this are equal: sums of the same parts in another order differ by rounding alone."""
LARGEST_REWARD = 1e150
"""The square of a larger one is no float."""


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """The advantages of one group.

    `advantages_G` is 0 for members that are not valid. A group that is not `kept` (fewer than two valid members) has no
    baseline; one without `signal` (not kept, or all valid totals equal) moves no weight and is worth resampling.
    """

    advantages_G: tuple[float, ...]
    valid_G: tuple[bool, ...]
    kept: bool
    signal: bool


def group_advantages(
    rewards_G: Sequence[float | None], *, normalise: bool = True, eps: float = 1e-6
) -> GroupAdvantages:
    """A_i = (R_i - mean R) / (std R + eps), mean and unbiased std over the valid members (GRPO; VisionThink, Eq. 3).

    `normalise=False` leaves the division out (Dr. GRPO). `rewards_G` holds the G totals of one prompt; None and
    values that are not finite, or too large to be squared, are invalid.
    """
    valid_G = tuple(reward is not None and abs(reward) <= LARGEST_REWARD for reward in rewards_G)
    values = [float(reward) for reward, valid in zip(rewards_G, valid_G, strict=True) if valid and reward is not None]
    nothing = (0.0,) * len(rewards_G)
    if len(values) < 2:
        return GroupAdvantages(nothing, valid_G, kept=False, signal=False)
    if max(values) - min(values) <= EQUAL_REWARDS:
        return GroupAdvantages(nothing, valid_G, kept=True, signal=False)
    mean = math.fsum(values) / len(values)
    scale = 1.0
    if normalise:
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        scale = math.sqrt(variance) + eps
    advantages = iter([(value - mean) / scale for value in values])
    return GroupAdvantages(
        tuple(next(advantages) if valid else 0.0 for valid in valid_G), valid_G, kept=True, signal=True
    )
