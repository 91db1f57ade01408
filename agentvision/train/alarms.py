"""Alarms: signs of collapse in the metrics of the last steps, each told once when it begins.

A sign is a pure function from the last rows of `metrics.jsonl` to a sentence, empty when all is well; the recipe's
`alarms` says how far it looks back and what counts. `Watch` keeps the rows and remembers what rang: an alarm that goes on
ringing is not repeated, and one that falls silent must stay so for as long as it looks back before it is told again. The
state of a watch is what it makes of the rows, so a resumed run shows it those that it has.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentvision.evaluate.metrics import proportion
from agentvision.recipe import alarms

Row: TypeAlias = Mapping[str, Any]
"""The flat metrics of one step."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that begins to ring after `step` steps. `stops`: the recipe wants the run to end."""

    name: str
    step: int
    text: str
    stops: bool


class Watch:
    """Watches a run, row by row. `tools`: whether the policy can call any; `past`: the rows of the steps before."""

    def __init__(self, settings: alarms.Alarms, *, tools: bool, past: Iterable[Row] = ()) -> None:
        signs: dict[str, tuple[Callable[[Sequence[Row], Any], str], alarms.Alarm]] = {
            "call_rate": (call_rate_pinned, settings.call_rate),
            "format_over_accuracy": (format_over_accuracy, settings.format_over_accuracy),
            "invalid": (many_invalid, settings.invalid),
            "one_answer": (one_answer, settings.one_answer),
            "no_signal": (no_signal, settings.no_signal),
            "judge_drift": (judge_drift, settings.judge_drift),
            "mismatch": (mismatch, settings.mismatch),
        }
        self._signs = {
            name: sign for name, sign in signs.items() if sign[1].mode != "off" and (tools or name != "call_rate")
        }
        self._rows: deque[Row] = deque(maxlen=max((limits.steps for _, limits in self._signs.values()), default=1))
        self._rang: dict[str, int] = {}
        for row in past:
            self.observe(row)

    def observe(self, row: Row) -> list[Alarm]:
        """The alarms that begin with this row."""
        self._rows.append(row)
        step, begun = row["step"], []
        for name, (sign, limits) in self._signs.items():
            rows = list(self._rows)[-limits.steps :]
            text = sign(rows, limits) if len(rows) == limits.steps else ""
            if not text:
                continue
            if name not in self._rang or step - self._rang[name] > limits.steps:
                begun.append(Alarm(name, step, text, stops=limits.mode == "stop"))
            self._rang[name] = step
        return begun


# --- the signs ------------------------------------------------------------------------------------------------------


def call_rate_pinned(rows: Sequence[Row], limits: alarms.CallRateAlarm) -> str:
    """The mean call rate is within `margin` of 0 or 1."""
    rates = _known(rows, "call_rate")
    if not rates:
        return ""
    rate = statistics.fmean(rates)
    if limits.margin < rate < 1 - limits.margin:
        return ""
    never = "the policy never looks closer" if rate < 0.5 else "the policy always looks closer"
    return f"{never}: its call rate over {len(rows)} steps is {rate:.3f}"


def format_over_accuracy(rows: Sequence[Row], limits: alarms.FormatAlarm) -> str:
    """The format has risen and the accuracy has fallen, both by `change` or more and neither by chance.

    The change is the Theil-Sen slope times the steps; its chance is Kendall's test for a trend. Both are of ranks and
    medians, so a single wild step moves neither.
    """
    from scipy.stats import kendalltau, theilslopes

    changes = []
    for name, sign in (("format", 1), ("accuracy", -1)):
        values = [sign * value for value in _known(rows, name)]
        if len(values) < len(rows) or len(set(values)) == 1:
            return ""
        trend: Any = theilslopes(values)
        chance: Any = kendalltau(range(len(values)), values, alternative="greater")
        change = float(trend.slope) * (len(values) - 1)
        if change < limits.change or chance.pvalue > limits.p:
            return ""
        changes.append(change)
    rise, fall = changes
    return f"format rose by {rise:.2f} while accuracy fell by {fall:.2f} over {len(rows)} steps"


def many_invalid(rows: Sequence[Row], limits: alarms.InvalidAlarm) -> str:
    """The mean share of trajectories without a valid reward is `share` or more."""
    shares = _known(rows, "invalid_share")
    share = statistics.fmean(shares) if shares else 0.0
    return f"{share:.0%} of the rewards of {len(rows)} steps are invalid" if share and share >= limits.share else ""


def one_answer(rows: Sequence[Row], limits: alarms.OneAnswerAlarm) -> str:
    """The commonest answer's mean share exceeds the commonest truth's by `excess` or more."""
    answers, truths = _known(rows, "answer_top_share"), _known(rows, "truth_top_share")
    if not answers or not truths:
        return ""
    answer, truth = statistics.fmean(answers), statistics.fmean(truths)
    if answer - truth < limits.excess:
        return ""
    return (
        f"different questions get one answer: {answer:.0%} over {len(rows)} steps, where one is right for {truth:.0%}"
    )


def no_signal(rows: Sequence[Row], limits: alarms.SignalAlarm) -> str:
    """In none of the steps had any group rewards that differ."""
    if not all(row["groups"] == row["groups_no_signal"] + row["groups_dropped"] for row in rows):
        return ""
    accuracies = _known(rows, "accuracy")
    seen = f" (accuracy {statistics.fmean(accuracies):.2f})" if accuracies else ""
    return f"no group of {len(rows)} steps had rewards that differ{seen}: nothing is learned"


def judge_drift(rows: Sequence[Row], limits: alarms.JudgeDriftAlarm) -> str:
    """Over the audited verdicts of these steps, agreement is below the bound, and so is its whole interval (Wilson)."""
    audited, agreed = (int(sum(row.get(f"judge/{name}", 0) for row in rows)) for name in ("audited", "agreed"))
    if audited < limits.audited:
        return ""
    found = proportion(k < agreed for k in range(audited))
    if found.high is None or found.high >= limits.agreement:
        return ""
    return f"the large judge agrees with {found.value:.0%} of {audited} audited verdicts, at most {found.high:.0%}"


def mismatch(rows: Sequence[Row], limits: alarms.MismatchAlarm) -> str:
    """The mean |Δ log-prob| between trainer and sampler is `logprob_diff` or more."""
    differences = _known(rows, "logprob_diff_mean")
    difference = statistics.fmean(differences) if differences else 0.0
    if difference < limits.logprob_diff:
        return ""
    return f"the trainer's log-probs differ from those sampled by {difference:.3f} nats a token over {len(rows)} steps"


def _known(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]
