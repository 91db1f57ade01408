"""The ratio penalty: what keeps a policy from always, or never, looking closer. A group reward.

With r = C_direct / (C_direct + C_high) over the *correct* trajectories of a group, "high" being those that a tool
delivered a view to, the rules are (VisionThink, arXiv 2507.13348, Eq. 5 and 6, and its ablations)

| rule       | who pays                                                                                        |
|------------|-------------------------------------------------------------------------------------------------|
| `paper`    | r < θ: who answered directly; r ≥ θ: who looked closer; right or wrong alike                    |
| `released` | only the right: who looked closer always, who answered directly if 0 < r < θ                    |
| `all`      | who looked closer, always: the constant price of a call                                         |
| `none`     | nobody                                                                                          |

When nobody is right, r is undefined: nobody pays by `paper` or `released`. A trajectory whose correctness is unknown
counts in no r, and these two rules let it go free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from agentvision.types import Group, Score, Trajectory


@dataclass(frozen=True)
class RatioPenalty:
    """−`amount` for those who pay by the rule, 0 for the others."""

    rule: Literal["paper", "released", "all", "none"] = "paper"
    threshold: float = 0.2
    amount: float = 0.1

    name: ClassVar[str] = "ratio_penalty"

    def __post_init__(self) -> None:
        if self.rule not in ("paper", "released", "all", "none"):
            raise ValueError(f"rule is {self.rule!r}; it is one of 'paper', 'released', 'all', 'none'")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold!r}; as a share it lies between 0 and 1")
        if not 0 <= self.amount < float("inf"):
            raise ValueError(f"amount is {self.amount!r}; it is what a trajectory loses, 0 or more")

    @property
    def needs_correctness(self) -> bool:
        return self.rule in ("paper", "released")

    async def __call__(self, group: Group) -> list[Score]:
        right = [t.looked_closer for t in group.trajectories if t.correct]
        r = right.count(False) / len(right) if right else None
        return [Score(-self.amount if self._pays(t, r) else 0.0) for t in group.trajectories]

    def _pays(self, t: Trajectory, r: float | None) -> bool:
        """Whether a trajectory pays, given its group's share r of direct answers among the right ones."""
        if self.rule == "all":
            return t.looked_closer
        if self.rule == "none" or r is None or t.correct is None:
            return False
        if self.rule == "paper":
            return t.looked_closer == (r >= self.threshold)
        return t.correct and (t.looked_closer or 0 < r < self.threshold)
