"""What is measured on trajectories: the one definition behind the metrics of training and the results of an evaluation.

A measure is the list of its values, one for each trajectory that counts for it: training reports the mean, an evaluation
its interval too. Truth values make proportions. An invalid verdict is neither right nor wrong and leaves the accuracy.
An episode that the policy, the data or the environment broke says nothing about the model, its costs included: it counts nowhere,
and how many there were is reported beside. "Called" means that a tool delivered a view; a failed call counts as none.
Visual tokens are counted twice: *additive* (every view shown) and *replacement* (a later view of an original takes the
place of the one before).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentvision.types import StopReason, Trajectory


def unbroken(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    return [t for t in trajectories if not t.stop.broken]


def needs_original(trajectory: Trajectory) -> bool | None:
    """Whether the question cannot be answered from the first view, where the data set knows."""
    value = trajectory.sample.meta.get("needs_original")
    return None if value is None else bool(value)


def trajectory_metrics(trajectories: Iterable[Trajectory]) -> dict[str, Sequence[float]]:
    """Each measure's values over the unbroken trajectories, in their order."""
    counted = unbroken(trajectories)
    easy = [t for t in counted if needs_original(t) is False]
    hard = [t for t in counted if needs_original(t) is True]
    return {
        "accuracy": verdicts(counted),
        "accuracy_easy": verdicts(easy),
        "accuracy_hard": verdicts(hard),
        "format": [formed for t in counted if (formed := _well_formed(t)) is not None],
        "call_rate": [t.looked_closer for t in counted],
        "call_rate_easy": [t.looked_closer for t in easy],
        "call_rate_hard": [t.looked_closer for t in hard],
        "visual_tokens_additive": [t.visual_tokens_additive for t in counted],
        "visual_tokens_replacement": [t.visual_tokens_replacement for t in counted],
        "visual_tokens_full": [t.full_tokens for t in counted],
        "output_tokens": [t.sampled_tokens for t in counted],
        "turns": [len(t.turns) for t in counted],
    }


def verdicts(trajectories: Iterable[Trajectory]) -> list[bool]:
    """Right or wrong, of those that have a verdict."""
    return [t.correct for t in trajectories if t.correct is not None]


def _well_formed(trajectory: Trajectory) -> bool | None:
    """What the format reward says where it was asked, else whether every turn was in the grammar."""
    if (score := trajectory.scores.get("format")) is not None:
        return None if score.value is None else score.value == 1
    in_grammar = all(turn.parsed.problem is None for turn in trajectory.turns)
    return trajectory.stop is StopReason.ANSWERED and in_grammar
