"""How a weight moves during training: a pure function of the step, so that a resumed run goes on where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """`initial` for `after` steps, then towards `final` within `steps` steps, then `final`.

    With t = (step − after) / steps, cut to [0, 1], the weight is initial + (final − initial) · t (`linear`), or the same
    with (1 − cos πt) / 2 for t (`cosine`: it leaves and arrives gently).
    """

    initial: float
    final: float
    steps: int
    after: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.initial) and math.isfinite(self.final)):
            raise ValueError(f"a weight goes from {self.initial!r} to {self.final!r}; both are finite numbers")
        if self.steps < 1 or self.after < 0:
            raise ValueError(
                f"a weight moves within {self.steps!r} steps after {self.after!r}; at least 1 after at least 0"
            )

    def at(self, step: int) -> float:
        """The weight in force when `step` steps are done: `at(0)` is the first step's, `at(after + steps)` is `final`."""
        t = min(max((step - self.after) / self.steps, 0.0), 1.0)
        if self.shape == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return self.final if t == 1 else self.initial + (self.final - self.initial) * t
