"""The tool-error penalty: each call that failed by the model's own mistake costs something, up to a cap.

    score = −min(amount · failed calls, cap)

The format reward forgives none and counts no further; this one says that two mistakes are worse than one, and the cap
that an episode with many of them is not worse than having no chance. A mistake is one that the model could have helped:
a tool that is not there, arguments that do not fit, a call that the tool asks to mend, images beyond the budget. A tool
that fails, crashes or is late is nobody's lesson; `errors` chooses otherwise. Turns that are no call at all, because
they do not parse, are the format reward's affair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from agentvision.types import Score, ToolError, Trajectory

MISTAKES = (ToolError.UNKNOWN_TOOL, ToolError.BAD_ARGUMENTS, ToolError.RETRY, ToolError.IMAGE_BUDGET)
"""Errors that the model could have helped."""


@dataclass(frozen=True)
class ToolErrorPenalty:
    """−`amount` for each failed call whose error is one of `errors`; all of them together cost at most `cap`."""

    amount: float = 0.1
    cap: float = 0.3
    errors: Sequence[ToolError] = MISTAKES

    name: ClassVar[str] = "tool_error_penalty"

    def __post_init__(self) -> None:
        for name in ("amount", "cap"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is what a trajectory loses, 0 or more")

    async def __call__(self, trajectory: Trajectory) -> Score:
        errors = [turn.tool.error for turn in trajectory.turns if turn.tool and turn.tool.error]
        failed = [error for error in errors if error in self.errors]
        return Score(0.0 - min(self.amount * len(failed), self.cap), ", ".join(failed))
