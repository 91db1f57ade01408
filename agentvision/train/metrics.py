"""The numbers of one step, from its groups and its updates. Pure; names are those of `metrics.jsonl`.

Rollout numbers are means over all trajectories that were rolled out in the step, those of groups without a signal
included: they describe the policy, not what the loss happened to see. What they measure is defined in `measures`.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from agentvision.measures import trajectory_metrics
from agentvision.rewards.grading import normalise
from agentvision.train.collect import ScoredGroup
from agentvision.train.correction import effective_share
from agentvision.train.update import UpdateStats
from agentvision.types import Group, StopReason, TextSegment


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None; None when there are none, or their sum is more than a float holds."""
    known = [float(value) for value in values if value is not None]
    try:
        return statistics.fmean(known) if known else None
    except OverflowError:
        return None


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, Any]:
    """What the policy did and what it earned."""
    trajectories = [t for scored in groups for t in scored.group.trajectories]
    stops = Counter(t.stop for t in trajectories)
    errors = Counter(turn.tool.error for t in trajectories for turn in t.turns if turn.tool and turn.tool.error)
    problems = Counter(turn.parsed.problem for t in trajectories for turn in t.turns if turn.parsed.problem)
    names = sorted({name for t in trajectories for name in t.scores})
    share = 1 / max(len(trajectories), 1)
    measured = {name: mean(values) for name, values in trajectory_metrics(trajectories).items()}
    rewards = [t.reward for t in trajectories]
    return {
        "reward": mean(rewards),
        **measured,
        "output_tokens_max": max((t.sampled_tokens for t in trajectories), default=0),
        "reward_std": mean(_spread(scored) for scored in groups),
        "broken_share": sum(t.stop.broken for t in trajectories) * share,
        "invalid_share": sum(reward is None for reward in rewards) * share,
        "groups": len(groups),
        "groups_no_signal": sum(s.advantages.kept and not s.advantages.signal for s in groups),
        "groups_dropped": sum(not s.advantages.kept for s in groups),
        **answer_shares(scored.group for scored in groups),
        **{f"reward/{name}": mean(t.scores[name].value for t in trajectories if name in t.scores) for name in names},
        "stop": {reason.value: stops[reason] * share for reason in StopReason},
        "tool_error": {error.value: count * share for error, count in sorted(errors.items())},
        "parse_problem": {problem.value: count * share for problem, count in sorted(problems.items())},
    }


def answer_shares(groups: Iterable[Group]) -> dict[str, float | None]:
    """Over the different questions of a step whose truth is known: the shares of the commonest answer and truth.

    A question counts once, however often it was rolled out; texts are compared as `exact_match` compares them.
    """
    questions = {group.sample.id: group for group in groups if group.sample.answer is not None}
    if not questions:
        return {"answer_top_share": None, "truth_top_share": None}
    answers: defaultdict[str, float] = defaultdict(float)
    for group in questions.values():
        given = Counter(normalise(t.answer) for t in group.trajectories if t.answer is not None)
        for text, count in given.items():
            answers[text] += count / len(group.trajectories)
    truths = Counter(normalise(group.sample.answer or "") for group in questions.values())
    return {
        "answer_top_share": max(answers.values(), default=0) / len(questions),
        "truth_top_share": max(truths.values()) / len(questions),
    }


def staleness_metrics(groups: Iterable[ScoredGroup], *, version: int) -> dict[str, float | None]:
    """By how many steps the weights that sampled the tokens in the loss were behind `version`, which learns from them.

    Mean and maximum over sampled tokens of groups with a signal; 0 where rollouts and updates take turns.
    """
    lags: Counter[int] = Counter()
    for scored in groups:
        for trajectory in scored.group.trajectories if scored.advantages.signal else ():
            for segment in trajectory.segments:
                if isinstance(segment, TextSegment) and segment.sampled:
                    lags[version - segment.version] += len(segment.ids)
    total = lags.total()
    return {
        "staleness_mean": sum(lag * count for lag, count in lags.items()) / total if total else None,
        "staleness_max": max(lags, default=None),
    }


def update_metrics(updates: Sequence[UpdateStats]) -> dict[str, Any]:
    """What the updates of one step did: means over those that were made.

    `logprob_diff` and `importance` compare what the trainer computes with the weights of the step's beginning with what was
    recorded at sampling, raw: `importance_ess` is the effective sample size as a share, `importance_bounded_share` what the
    correction then truncated or masked.
    """
    done = [u for u in updates if u.finite]
    tokens = sum(u.tokens for u in updates)
    known = [u for u in updates if u.measured]
    measured = sum(u.measured for u in known)
    ratio_sum, square_sum = sum(u.importance_sum for u in known), sum(u.importance_square_sum for u in known)
    return {
        "loss": mean(u.loss for u in done),
        "kl": mean(u.kl for u in done),
        "entropy": mean(u.entropy for u in done),
        "clip_share": sum(u.clipped for u in updates) / tokens if tokens else None,
        "grad_norm": mean(u.grad_norm for u in done),
        "ratio_max": max((u.ratio_max for u in updates), default=None),
        "logprob_diff_mean": sum(u.logprob_diff_sum for u in known) / measured if measured else None,
        "logprob_diff_max": max((u.logprob_diff_max for u in known), default=None),
        "importance_mean": ratio_sum / measured if measured else None,
        "importance_max": max((u.importance_max for u in known), default=None),
        "importance_min": min((u.importance_min for u in known), default=None),
        "importance_ess": effective_share(tokens=measured, ratio_sum=ratio_sum, ratio_square_sum=square_sum),
        "importance_bounded_share": sum(u.bounded for u in updates) / tokens if tokens else None,
        "update_tokens": tokens,
        "updates": len(done),
        "updates_skipped": len(updates) - len(done),
    }


def _spread(scored: ScoredGroup) -> float | None:
    values = [r for r in scored.group.rewards_G if r is not None]
    try:
        return statistics.stdev(values) if len(values) > 1 else None
    except OverflowError:
        return None
