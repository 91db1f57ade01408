"""The strict format reward: 1 for an episode that kept the grammar from its first turn to its answer, else 0.

A tool call counts only when it parsed, validated and ran; one bad turn on the way is enough for 0, also when the model
mended it. Half a point in the paper's recipe (its weight there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agentvision.types import Score, StopReason, Trajectory, Turn


@dataclass(frozen=True)
class Format:
    """1 when every turn is well formed, every tool call ran, and the last turn answered; else 0 with the reason."""

    name: ClassVar[str] = "format"

    async def __call__(self, trajectory: Trajectory) -> Score:
        if trajectory.stop is not StopReason.ANSWERED or not trajectory.turns:
            return Score(0.0, f"ended by {trajectory.stop.value}")
        *earlier, last = trajectory.turns
        for number, turn in enumerate(earlier, start=1):
            problem = _problem_of_call(turn)
            if problem:
                return Score(0.0, f"turn {number}: {problem}")
        if last.parsed.problem is not None:
            return Score(0.0, f"turn {len(trajectory.turns)}: {last.parsed.problem.value}")
        if last.parsed.answer is None or trajectory.answer is None:
            return Score(0.0, f"turn {len(trajectory.turns)}: no answer")
        return Score(1.0)


def _problem_of_call(turn: Turn) -> str:
    """What is wrong with a turn before the last, which must be a tool call that ran; empty when nothing is."""
    if turn.parsed.problem is not None:
        return turn.parsed.problem.value
    if turn.parsed.call is None or turn.tool is None:
        return "no tool call"
    return "" if turn.tool.error is None else f"tool call: {turn.tool.error.value}"
