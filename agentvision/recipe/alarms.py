"""The recipe's alarms: by which signs a run says that it is going wrong, and whether it then stops."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agentvision.recipe.parts import PositiveFloat, PositiveInt, Section, Share


class Alarm(Section):
    """One alarm."""

    mode: Literal["warn", "stop", "off"] = "warn"
    """`warn`: an event, a line and wandb's alert, once each time it begins. `stop`: also end the run, with a checkpoint."""
    steps: PositiveInt = 10
    """Steps that it looks back on."""


class CallRateAlarm(Alarm):
    """Always, or never, looking closer: nothing is left to choose from. Only where tools are on offer."""

    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    """How near to 0 or 1 the mean call rate must be."""


class FormatAlarm(Alarm):
    """Better form and worse answers: the policy collects the format reward at the cost of being right."""

    steps: Annotated[int, Field(ge=8)] = 20
    """Steps that it looks back on; trends of fewer than eight say nothing."""
    change: Share = 0.05
    """By how much the format must have risen, and the accuracy fallen."""
    p: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    """Both trends must be this unlikely by chance (Kendall's test, one-sided)."""


class InvalidAlarm(Alarm):
    """Trajectories without a valid reward: what is left is a biased sample. `trainer.max_invalid_share` stops at once."""

    steps: PositiveInt = 5
    """Steps that it looks back on."""
    share: Share = 0.1
    """Their mean share."""


class OneAnswerAlarm(Alarm):
    """Different questions, one answer."""

    excess: Share = 0.4
    """By how much the share of the commonest answer exceeds that of the commonest truth: always "yes" where half of the
    truths are "yes" is 0.5."""


class SignalAlarm(Alarm):
    """No group has rewards that differ: the policy learns nothing, because all is solved or all is lost."""

    steps: PositiveInt = 5
    """Steps in a row."""


class JudgeDriftAlarm(Alarm):
    """The large judge, asked about a share of what was decided before it, sees it otherwise."""

    agreement: Share = 0.9
    """Rings when the share in which both agree is below this with its whole 95 % interval."""
    audited: PositiveInt = 50
    """Audited verdicts that it takes to say so."""


class MismatchAlarm(Alarm):
    """The trainer finds other log-probs than were recorded at sampling: an engine that computes something else (stale
    weights or caches, other images), or rollouts too far behind the updates."""

    steps: PositiveInt = 5
    """Steps that it looks back on."""
    logprob_diff: PositiveFloat = 0.1
    """Nats: the mean of |Δ log-prob|. Rounding is 1e-6 in float32, 1e-2 in bfloat16."""


class Alarms(Section):
    """Signs of collapse, read off the metrics of the last steps."""

    call_rate: CallRateAlarm = CallRateAlarm()
    """The call rate is pinned at 0 or 1."""
    format_over_accuracy: FormatAlarm = FormatAlarm()
    """The format reward rises while the accuracy falls."""
    invalid: InvalidAlarm = InvalidAlarm()
    """Many rewards are invalid."""
    one_answer: OneAnswerAlarm = OneAnswerAlarm()
    """Answers converge on one text."""
    no_signal: SignalAlarm = SignalAlarm()
    """No group carries a signal."""
    judge_drift: JudgeDriftAlarm = JudgeDriftAlarm()
    """The judge's cheaper stages disagree with its large model."""
    mismatch: MismatchAlarm = MismatchAlarm()
    """Sampler and trainer disagree."""
