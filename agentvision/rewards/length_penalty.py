"""The length penalty: a turn that nears its token limit pays before the limit cuts it off.

DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), on the tokens y of the episode's longest turn:

    score =  0                                          y ≤ L_max − L_cache
            −(y − (L_max − L_cache)) / L_cache          in between
            −1                                          y ≥ L_max

The longest turn, not their sum: `sampling.max_tokens`, which is what cuts, holds for a turn; and a sum would charge for
looking closer, which takes a turn more and has a price of its own (`cost_penalty`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentvision.types import Score, Trajectory


@dataclass(frozen=True)
class LengthPenalty:
    """Falls from 0 to −1 over the last `cache_tokens` before `max_tokens` (the recipe's `sampling.max_tokens`).

    By default a fifth of `max_tokens`, as in DAPO (4,096 of 20,480).
    """

    max_tokens: int
    cache_tokens: int | None = None

    name: ClassVar[str] = "length_penalty"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens!r}; a turn has at least one")
        if self.cache_tokens is not None and not 1 <= self.cache_tokens <= self.max_tokens:
            raise ValueError(f"cache_tokens is {self.cache_tokens!r}; it lies between 1 and max_tokens")

    async def __call__(self, trajectory: Trajectory) -> Score:
        if any(turn.text and not turn.tokens for turn in trajectory.turns):
            return Score.invalid("the policy does not count the tokens of its turns")
        cache = self.cache_tokens or max(1, self.max_tokens // 5)
        longest = max((turn.tokens for turn in trajectory.turns), default=0)
        left = self.max_tokens - cache - longest
        return Score(min(max(left / cache, -1.0), 0.0))
