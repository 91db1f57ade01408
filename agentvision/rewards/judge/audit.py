"""The audit: labelled answers, written for this project, on which a judge shows whether it can be trusted.

`audit.jsonl` holds a case a line: `id`, `family` (what it tries the judge with), `question`, `truth`, further `accepted`
answers where there are any, `answer`, its `label` (1 right, 0 wrong) and a `note` that says why. A verdict that is invalid
is neither right nor wrong: it leaves the rates and is counted. False positives matter most: training would find them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from agentvision.evaluate.metrics import Estimate, proportion
from agentvision.rewards.judge.verdict import Verdict


@dataclass(frozen=True, slots=True)
class AuditCase:
    """One answer and whether it is right."""

    id: str
    family: str
    question: str
    truth: str
    answer: str
    label: int
    note: str
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuditScores:
    """How often verdicts were right, each share with its 95 % interval (Wilson)."""

    cases: int
    accuracy: Estimate
    """Of the valid verdicts."""
    false_positives: Estimate
    """Wrong answers called right, of the wrong answers that got a valid verdict."""
    false_negatives: Estimate
    """Right answers called wrong, of the right answers that got a valid verdict."""
    invalid: Estimate
    """Of all verdicts."""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The scores over all cases and of each family; `mistakes` are the cases that got the wrong verdict, with it."""

    overall: AuditScores
    families: Mapping[str, AuditScores]
    mistakes: tuple[tuple[AuditCase, Verdict], ...]


@lru_cache(maxsize=1)
def audit_cases() -> tuple[AuditCase, ...]:
    """The cases that ship with the package."""
    text = files("agentvision.rewards.judge").joinpath("audit.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, text.split("\n")[:-1])  # `splitlines` would cut at the odd line ends that some cases hold
    return tuple(AuditCase(**{**row, "accepted": tuple(row.get("accepted", ()))}) for row in rows)


def score_audit(cases: Sequence[AuditCase], verdicts: Sequence[Verdict]) -> AuditResult:
    """Compare verdicts with labels, case by case; a graded score says "right" from 0.5 on."""
    judged = list(zip(cases, verdicts, strict=True))
    families = dict.fromkeys(case.family for case in cases)
    return AuditResult(
        overall=_scores(judged),
        families={name: _scores([pair for pair in judged if pair[0].family == name]) for name in families},
        mistakes=tuple(
            (case, verdict) for case, verdict in judged if verdict.valid and says_right(verdict) != case.label
        ),
    )


def says_right(verdict: Verdict) -> bool:
    return verdict.score is not None and verdict.score >= 0.5


def _scores(judged: Sequence[tuple[AuditCase, Verdict]]) -> AuditScores:
    valid = [(bool(case.label), says_right(verdict)) for case, verdict in judged if verdict.valid]
    return AuditScores(
        cases=len(judged),
        accuracy=proportion(said == label for label, said in valid),
        false_positives=proportion(said for label, said in valid if not label),
        false_negatives=proportion(not said for label, said in valid if label),
        invalid=proportion(not verdict.valid for _, verdict in judged),
    )
