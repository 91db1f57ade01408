"""What an evaluation measures, as pure functions over scored trajectories.

Every number is over questions: one trajectory a question. Proportions carry the Wilson score interval, which keeps its
coverage at 0 and 1, where a bootstrap shrinks to a point; means (visual tokens, ratios of them) carry the percentile
bootstrap, resampled by question. An invalid verdict is neither right nor wrong: it leaves the accuracy and is counted.
"Called" means that a tool delivered a view; a failed call counts as none. Visual tokens are counted twice: *additive*
(every view shown) and *replacement* (a later view of an original takes the place of the one before).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agentvision.types import StopReason, TextSegment, Trajectory

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
RESAMPLES = 10_000
INTERVAL = (
    f"95 %: Wilson score for proportions, percentile bootstrap by question ({RESAMPLES:,} resamples, seeded) for means"
)
"""What the intervals are, as `results.json` says it."""


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


def needs_original(trajectory: Trajectory) -> bool | None:
    """Whether the question cannot be answered from the first view, where the data set knows."""
    value = trajectory.sample.meta.get("needs_original")
    return None if value is None else bool(value)


def text_tokens(trajectory: Trajectory) -> int:
    """Tokens of text that the model read and did not write."""
    return sum(len(s.ids) for s in trajectory.segments if isinstance(s, TextSegment) and not s.sampled)


def summarize(trajectories: Sequence[Trajectory], *, seed: int = 0) -> dict[str, Any]:
    """The numbers of `results.json` that come from trajectories; JSON values, None where nothing could be measured.

    `<name>_ci` is the interval of `<name>`, see `INTERVAL`. Tokens are means a question; `seed` is the bootstrap's.
    """
    easy = [t for t in trajectories if needs_original(t) is False]
    hard = [t for t in trajectories if needs_original(t) is True]
    formats = [score.value for t in trajectories if (score := t.scores.get("format")) is not None]
    additive = [t.visual_tokens_additive for t in trajectories]
    replacement = [t.visual_tokens_replacement for t in trajectories]
    full = [t.full_tokens for t in trajectories]
    known = [t for t in trajectories if t.full_tokens > 0]
    known_full = [t.full_tokens for t in known]
    estimates = {
        "accuracy": _accuracy(trajectories),
        "format": proportion(value == 1 for value in formats if value is not None),
        "call_rate": _call_rate(trajectories),
        "call_rate_easy": _call_rate(easy),
        "call_rate_hard": _call_rate(hard),
        "visual_tokens_additive": mean(additive, seed=seed),
        "visual_tokens_replacement": mean(replacement, seed=seed),
        "visual_tokens_full": mean(full, seed=seed),
        "accuracy_easy": _accuracy(easy),
        "accuracy_hard": _accuracy(hard),
        "accuracy_called": _accuracy([t for t in trajectories if t.looked_closer]),
        "accuracy_direct": _accuracy([t for t in trajectories if not t.looked_closer]),
        "visual_share_additive_macro": mean([t.visual_tokens_additive / t.full_tokens for t in known], seed=seed),
        "visual_share_replacement_macro": mean([t.visual_tokens_replacement / t.full_tokens for t in known], seed=seed),
        "visual_share_additive_weighted": ratio([t.visual_tokens_additive for t in known], known_full, seed=seed),
        "visual_share_replacement_weighted": ratio([t.visual_tokens_replacement for t in known], known_full, seed=seed),
        "text_tokens": mean([text_tokens(t) for t in trajectories], seed=seed),
        "output_tokens": mean([t.sampled_tokens for t in trajectories], seed=seed),
        "turns": mean([len(t.turns) for t in trajectories], seed=seed),
    }
    result: dict[str, Any] = {"n": len(trajectories)}
    for name, estimate in estimates.items():
        result[name] = estimate.value
        result[f"{name}_ci"] = estimate.ci
    stops = Counter(t.stop for t in trajectories)
    tools = Counter(
        "ok" if u.tool.ok else str(u.tool.error) for t in trajectories for u in t.turns if u.tool is not None
    )
    return result | {
        "n_easy": len(easy),
        "n_hard": len(hard),
        "invalid": sum(t.correct is None for t in trajectories),
        "stop": {str(reason): stops[reason] for reason in StopReason if stops[reason]},
        "tool_calls": dict(sorted(tools.items())),
        "parse_problems": dict(
            sorted(Counter(str(u.parsed.problem) for t in trajectories for u in t.turns if u.parsed.problem).items())
        ),
    }


def _accuracy(trajectories: Iterable[Trajectory]) -> Estimate:
    return proportion(t.correct for t in trajectories if t.correct is not None)


def _call_rate(trajectories: Iterable[Trajectory]) -> Estimate:
    return proportion(t.looked_closer for t in trajectories)
