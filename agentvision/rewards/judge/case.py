"""One thing to be judged: is this answer to this question right, given these truths?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from agentvision.protocol import IMAGE_MARK
from agentvision.rewards.accuracy import Rule
from agentvision.rewards.grading import options_of, unwrap
from agentvision.rewards.judge.marks import visible


@dataclass(frozen=True)
class Case:
    """Two cases that are equal get one verdict."""

    question: str
    truths: tuple[str, ...]
    """Accepted answers, the ground truth first."""
    answer: str
    grading: Rule | None = None
    """The rule that the data set names for this question; then it says all there is to say."""

    @classmethod
    def of(
        cls, *, question: str, truth: str, answer: str, accepted: tuple[str, ...] = (), grading: Rule | None = None
    ) -> Case:
        r"""As a judge reads it: without image marks, answer and truths out of their `\boxed{}`, no truth twice."""
        truths = dict.fromkeys(unwrap(each) for each in (truth, *accepted))
        text = question.replace(IMAGE_MARK, "").strip()
        return cls(text, tuple(each for each in truths if visible(each).strip()), unwrap(answer), grading)

    @cached_property
    def options(self) -> dict[str, str]:
        """The options of a multiple-choice question, by letter; empty of another question."""
        return options_of(self.question)
