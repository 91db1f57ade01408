"""Rewards: what scores a trajectory or a group, and how scores add up to the number that trains.

Write a function and mark it `@reward`, or a class with an async `__call__`; name it in a recipe as a plug-in, a dotted
path or `./file.py:name`. Shipped: `accuracy` (rules), `format` (the grammar, strictly), `ratio_penalty` (VisionThink).
"""

from agentvision.rewards.accuracy import Accuracy
from agentvision.rewards.base import FunctionReward, GroupReward, Reward, reward
from agentvision.rewards.compose import Rewards, WeightedPart
from agentvision.rewards.format import Format
from agentvision.rewards.maths import MathsError, MathsPool
from agentvision.rewards.ratio_penalty import RatioPenalty

__all__ = [
    "Accuracy",
    "Format",
    "FunctionReward",
    "GroupReward",
    "MathsError",
    "MathsPool",
    "RatioPenalty",
    "Reward",
    "Rewards",
    "WeightedPart",
    "reward",
]
