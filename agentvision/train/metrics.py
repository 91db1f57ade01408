"""The numbers of one step, from its groups and its updates. Pure; names are those of `metrics.jsonl`.

Rollout numbers are means over all trajectories that were rolled out in the step, those of groups without a signal
included: they describe the policy, not what the loss happened to see.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from agentvision.train.collect import ScoredGroup
from agentvision.train.update import UpdateStats
from agentvision.types import StopReason, Trajectory


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None; None when there are none."""
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if known else None


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    """What the policy did and what it earned."""
    trajectories = [t for scored in groups for t in scored.group.trajectories]
    stops = Counter(t.stop for t in trajectories)
    errors = Counter(turn.tool.error for t in trajectories for turn in t.turns if turn.tool and turn.tool.error)
    problems = Counter(turn.parsed.problem for t in trajectories for turn in t.turns if turn.parsed.problem)
    names = sorted({name for t in trajectories for name in t.scores})
    share = 1 / max(len(trajectories), 1)
    easy, hard = _by_need(trajectories)
    rewards = [t.reward for t in trajectories]
    return {
        "reward": mean(rewards),
        "accuracy": mean(t.correct for t in trajectories),
        "format": mean(_well_formed(t) for t in trajectories),
        "call_rate": mean(t.looked_closer for t in trajectories),
        "call_rate_easy": mean(t.looked_closer for t in easy),
        "call_rate_hard": mean(t.looked_closer for t in hard),
        "accuracy_easy": mean(t.correct for t in easy),
        "accuracy_hard": mean(t.correct for t in hard),
        "visual_tokens_additive": mean(t.visual_tokens_additive for t in trajectories),
        "visual_tokens_replacement": mean(t.visual_tokens_replacement for t in trajectories),
        "visual_tokens_full": mean(t.full_tokens for t in trajectories),
        "turns": mean(len(t.turns) for t in trajectories),
        "tokens_sampled": mean(t.sampled_tokens for t in trajectories),
        "tokens_sampled_max": max((t.sampled_tokens for t in trajectories), default=0),
        "reward_std": mean(_spread(scored) for scored in groups),
        "invalid_share": sum(reward is None for reward in rewards) * share,
        "groups": len(groups),
        "groups_no_signal": sum(s.advantages.kept and not s.advantages.signal for s in groups),
        "groups_dropped": sum(not s.advantages.kept for s in groups),
        **{f"reward/{name}": mean(t.scores[name].value for t in trajectories if name in t.scores) for name in names},
        "stop": {reason.value: stops[reason] * share for reason in StopReason},
        "tool_error": {error.value: count * share for error, count in sorted(errors.items())},
        "parse_problem": {problem.value: count * share for problem, count in sorted(problems.items())},
    }


def update_metrics(updates: Sequence[UpdateStats]) -> dict[str, Any]:
    """What the updates of one step did: means over those that were made; the mismatch is the first's, of fresh weights."""
    done = [u for u in updates if u.finite]
    tokens = sum(u.tokens for u in updates)
    first = updates[0] if updates else UpdateStats()
    return {
        "loss": mean(u.loss for u in done),
        "kl": mean(u.kl for u in done),
        "entropy": mean(u.entropy for u in done),
        "clip_share": sum(u.clipped for u in updates) / tokens if tokens else None,
        "grad_norm": mean(u.grad_norm for u in done),
        "ratio_max": max((u.ratio_max for u in updates), default=None),
        "logprob_diff_mean": first.logprob_diff_sum / first.tokens if first.tokens else None,
        "logprob_diff_max": first.logprob_diff_max if first.tokens else None,
        "update_tokens": tokens,
        "updates": len(done),
        "updates_skipped": len(updates) - len(done),
    }


def _by_need(trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], list[Trajectory]]:
    """Those whose question is known to be answerable from the first view, and those that need the original."""

    def where(wanted: bool) -> list[Trajectory]:
        return [t for t in trajectories if t.sample.meta.get("needs_original") is wanted]

    return where(False), where(True)


def _well_formed(trajectory: Trajectory) -> float | None:
    """The format reward's score where the recipe has one, else whether every turn was in the grammar."""
    if "format" in trajectory.scores:
        return trajectory.scores["format"].value
    in_grammar = all(turn.parsed.problem is None for turn in trajectory.turns)
    return float(trajectory.stop is StopReason.ANSWERED and in_grammar)


def _spread(scored: ScoredGroup) -> float | None:
    values = [r for r in scored.group.rewards_G if r is not None]
    return statistics.stdev(values) if len(values) > 1 else None
