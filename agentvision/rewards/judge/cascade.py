"""Who decides: rules where they can, then a small judge where it is sure, then the large one.

The small judge is sure when all its samples stand at the same end (≤ .25 or ≥ .75; of a binary template: say the same).
A share of what was decided before the large judge is also sent to it, picked by the hash of the case, so that it is the
same share in every process and run. The audit measures: its verdict changes no score, or a reward would depend on whether
it was looked at. That agreement is too low is for the run's alarm `judge_drift` to say, which sees all processes.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from statistics import fmean

from agentvision.rewards.judge.asker import Asker
from agentvision.rewards.judge.case import Case
from agentvision.rewards.judge.counts import Counts
from agentvision.rewards.judge.rules import Rules
from agentvision.rewards.judge.verdict import Verdict

SURE = 0.25
"""A score is sure when it is no further than this from 0 or 1."""


@dataclass(frozen=True)
class Cascade:
    """The stages, of which only the large judge must be there."""

    large: Asker
    counts: Counts
    rules: Rules | None = None
    small: Asker | None = None
    samples: int = 2
    audit_share: float = 0.0

    @property
    def askers(self) -> tuple[Asker, ...]:
        return (self.large,) if self.small is None else (self.small, self.large)

    async def __call__(self, case: Case) -> Verdict:
        """The verdict, with the name of who gave it."""
        verdict = await self._cheaply(case)
        if verdict is None:
            return await self.large(case)
        if is_audited(case, self.audit_share):
            await self._audit(case, verdict)
        return verdict

    async def _cheaply(self, case: Case) -> Verdict | None:
        """A verdict without the large judge, or None: nobody is sure."""
        if self.rules is not None and (verdict := await self.rules(case)) is not None:
            return verdict
        if self.small is None:
            return None
        asked = (self.small(case, sample=n) for n in range(self.samples))
        return settled(await asyncio.gather(*asked))

    async def _audit(self, case: Case, verdict: Verdict) -> None:
        large = await self.large(case)
        if large.score is None or verdict.score is None:
            self.counts.add(audit_invalid=1)
            return
        agreed = (large.score >= 0.5) == (verdict.score >= 0.5)
        self.counts.add(**{"audited": 1, f"audited_{verdict.by}": 1, "agreed": agreed, f"agreed_{verdict.by}": agreed})


def settled(verdicts: list[Verdict]) -> Verdict | None:
    """The samples' mean when all of them are sure of the same; else None."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    if len(scores) < len(verdicts) or not scores:
        return None
    if max(scores) <= SURE or min(scores) >= 1 - SURE:
        return replace(verdicts[0], score=fmean(scores))
    return None


def is_audited(case: Case, share: float) -> bool:
    """Whether this case is of the audited share: the same answer everywhere and always."""
    text = "\0".join((case.question, *case.truths, case.answer))
    draw = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return draw < share * 2**64
