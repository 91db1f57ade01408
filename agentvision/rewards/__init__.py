"""Rewards: what scores a trajectory or a group, and how scores add up to the number that trains.

Write a function and mark it `@reward`, or a class with an async `__call__`; name it in a recipe as a plug-in, a dotted
path or `./file.py:name`. Shipped: `accuracy` (rules), `format` (the grammar, strictly), `ratio_penalty` (VisionThink),
and what shapes a policy beyond the paper: `cost_penalty`, `length_penalty`, `tool_error_penalty`.
"""

from agentvision.rewards.accuracy import Accuracy
from agentvision.rewards.base import FunctionReward, GroupReward, Reward, reward
from agentvision.rewards.compose import Rewards, WeightedPart
from agentvision.rewards.cost_penalty import CostPenalty
from agentvision.rewards.format import Format
from agentvision.rewards.length_penalty import LengthPenalty
from agentvision.rewards.maths import MathsError, MathsPool
from agentvision.rewards.ratio_penalty import RatioPenalty
from agentvision.rewards.schedule import Schedule
from agentvision.rewards.tool_error_penalty import ToolErrorPenalty

__all__ = [
    "Accuracy",
    "CostPenalty",
    "Format",
    "FunctionReward",
    "GroupReward",
    "LengthPenalty",
    "MathsError",
    "MathsPool",
    "RatioPenalty",
    "Reward",
    "Rewards",
    "Schedule",
    "ToolErrorPenalty",
    "WeightedPart",
    "reward",
]
