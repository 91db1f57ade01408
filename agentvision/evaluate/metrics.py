"""What an evaluation measures, as pure functions over scored trajectories.

Every number is over questions: one trajectory a question. Proportions carry the Wilson score interval, which keeps its
coverage at 0 and 1, where a bootstrap shrinks to a point; means (visual tokens, ratios of them) carry the percentile
bootstrap, resampled by question. What is measured, and on which episodes, is defined in `measures`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agentvision.measures import needs_original, trajectory_metrics, unbroken, verdicts
from agentvision.types import StopReason, TextSegment, Trajectory

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
RESAMPLES = 10_000
INTERVAL = (
    f"95 %: Wilson score for proportions, percentile bootstrap by question ({RESAMPLES:,} resamples, seeded) for means"
)
"""What the intervals are, as `results.json` says it."""
_PROPORTIONS = ("accuracy", "format", "call_rate")
"""How the names of measures begin whose values are true or false."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; all None when nothing was there to count."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def ci(self) -> list[float] | None:
        return None if self.low is None or self.high is None else [self.low, self.high]


def proportion(outcomes: Iterable[bool]) -> Estimate:
    """Share of true outcomes with the Wilson score interval (Wilson 1927, without continuity correction)."""
    kept = list(outcomes)
    n, hits = len(kept), sum(kept)
    if n == 0:
        return Estimate(None)
    p, z2 = hits / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and 1 the bound is exact; rounding must not push it past the estimate.
    return Estimate(p, 0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half)


def mean(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean with the percentile bootstrap interval, resampled by question."""
    return ratio(values, [1.0] * len(values), seed=seed)


def ratio(above: Sequence[float], below: Sequence[float], *, seed: int = 0) -> Estimate:
    """Σ above / Σ below over questions, with the percentile bootstrap interval; pairs are resampled together."""
    import numpy as np

    over, under = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if len(over) == 0 or under.sum() <= 0:
        return Estimate(None)
    rng = np.random.default_rng(seed)
    drawn: list[Any] = []
    for _ in range(0, RESAMPLES, 500):  # in blocks: 10,000 × n at once would be large
        picks = rng.integers(len(over), size=(500, len(over)))
        drawn.append(over[picks].sum(axis=1) / np.maximum(under[picks].sum(axis=1), 1e-12))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(float(over.sum() / under.sum()), float(low), float(high))


def text_tokens(trajectory: Trajectory) -> int:
    """Tokens of text that the model read and did not write."""
    return sum(len(s.ids) for s in trajectory.segments if isinstance(s, TextSegment) and not s.sampled)


def usage(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """What others counted, over all turns, broken episodes included: they were paid for too.

    What nobody told is not there; `unpriced` are the turns without a cost, where others have one.
    """
    told = [turn.usage for t in trajectories for turn in t.turns if turn.usage]
    sums = Counter[str]()
    for each in told:
        sums.update(each)
    if "cost_usd" in sums and (unpriced := sum("cost_usd" not in each for each in told)):
        sums["unpriced"] = unpriced
    return dict(sums)


def summarize(trajectories: Sequence[Trajectory], *, seed: int = 0) -> dict[str, Any]:
    """The numbers of `results.json` that come from trajectories; JSON values, None where nothing could be measured.

    `<name>_ci` is the interval of `<name>`, see `INTERVAL`. Tokens are means a question; `seed` is the bootstrap's.
    `broken` counts the episodes that are in none of the measures, and `invalid` those without a verdict, broken included.
    """
    counted = unbroken(trajectories)
    known = [t for t in counted if t.full_tokens > 0]
    additive = [t.visual_tokens_additive for t in known]
    replacement = [t.visual_tokens_replacement for t in known]
    full = [t.full_tokens for t in known]
    measured = trajectory_metrics(counted)
    estimates = {
        name: proportion(map(bool, values)) if name.startswith(_PROPORTIONS) else mean(values, seed=seed)
        for name, values in measured.items()
    } | {
        "accuracy_called": proportion(verdicts(t for t in counted if t.looked_closer)),
        "accuracy_direct": proportion(verdicts(t for t in counted if not t.looked_closer)),
        "visual_share_additive_macro": mean([a / f for a, f in zip(additive, full, strict=True)], seed=seed),
        "visual_share_replacement_macro": mean([r / f for r, f in zip(replacement, full, strict=True)], seed=seed),
        "visual_share_additive_weighted": ratio(additive, full, seed=seed),
        "visual_share_replacement_weighted": ratio(replacement, full, seed=seed),
        "text_tokens": mean([text_tokens(t) for t in counted], seed=seed),
    }
    result: dict[str, Any] = {"n": len(trajectories)}
    for name, estimate in estimates.items():
        result[name] = estimate.value
        result[f"{name}_ci"] = estimate.ci
    stops = Counter(t.stop for t in trajectories)
    turns = [turn for t in trajectories for turn in t.turns]
    tools = Counter("ok" if turn.tool.ok else str(turn.tool.error) for turn in turns if turn.tool is not None)
    problems = Counter(str(turn.parsed.problem) for turn in turns if turn.parsed.problem)
    return result | {
        "n_easy": sum(needs_original(t) is False for t in trajectories),
        "n_hard": sum(needs_original(t) is True for t in trajectories),
        "usage": usage(trajectories),
        "broken": len(trajectories) - len(counted),
        "invalid": sum(t.correct is None for t in trajectories),
        "stop": {str(reason): stops[reason] for reason in StopReason if stops[reason]},
        "tool_calls": dict(sorted(tools.items())),
        "parse_problems": dict(sorted(problems.items())),
    }
