"""The cost penalty: looking costs what it costs, whatever the tool. A group reward, for it asks who was right.

    score = −price · V / U

V counts the visual tokens of every view that the episode was shown (additive: a view that came later replaces none). U
is what `price` buys: the tokens of the sample's images at full resolution, so that one look at the whole original costs
`price` and a crop of a tenth of it a tenth; or, with `per`, so many tokens, so that large images cost more than small
ones. The first view is paid for like any other; it costs all rollouts of a question the same, which their advantages do
not see. Where every look is at the original, `per: full_image` trains as `ratio_penalty: {rule: all}` does.

Only right answers pay, unless `charge: all`. Where nobody is right, the cheapest failure would otherwise be the best of
its group, and a policy would learn not to look exactly where its questions are hard. (The same for the length of an
answer: Arora and Zanette, arXiv 2502.04463.) Who is not known to be right goes free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from agentvision.types import Group, Score, Trajectory


@dataclass(frozen=True)
class CostPenalty:
    """−`price` for every `per` visual tokens shown to a right answer, or to any with `charge: all`."""

    price: float = 0.1
    per: int | Literal["full_image"] = "full_image"
    charge: Literal["correct", "all"] = "correct"

    name: ClassVar[str] = "cost_penalty"

    def __post_init__(self) -> None:
        if not 0 <= self.price < float("inf"):
            raise ValueError(f"price is {self.price!r}; it is what a trajectory loses, 0 or more")
        if self.per != "full_image" and (not isinstance(self.per, int) or self.per < 1):
            raise ValueError(f"per is {self.per!r}; it is a number of visual tokens, or 'full_image'")
        if self.charge not in ("correct", "all"):
            raise ValueError(f"charge is {self.charge!r}; it is 'correct' or 'all'")

    @property
    def needs_correctness(self) -> bool:
        return self.charge == "correct"

    async def __call__(self, group: Group) -> list[Score]:
        return [self._score(t) for t in group.trajectories]

    def _score(self, t: Trajectory) -> Score:
        shown = t.visual_tokens_additive
        if not shown or (self.charge == "correct" and not t.correct):
            return Score(0.0)
        unit = t.full_tokens if self.per == "full_image" else self.per
        if not unit:
            return Score.invalid("the environment does not say what its images cost at full resolution; set per")
        return Score(-self.price * shown / unit)
