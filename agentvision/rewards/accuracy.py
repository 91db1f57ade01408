"""Accuracy by rules: 1 when the answer is the ground truth's, else 0; invalid when that cannot be told.

`auto` asks whether the texts are the same, then whether they name the same option, number or formula, as far as the
truth is one. A recipe may name one rule, or several of which one must agree. Of a sample, `meta["answers"]` may hold
further accepted answers, `meta["options"]` the options of a multiple-choice question that does not list them, and
`meta["grading"]` the rule that `auto` stands for (a code such as "7E2" is no number, and only its data set knows).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

from agentvision.rewards.grading import EMPTY, anls, exact_match, normalise, options_of, same_choice, unwrap
from agentvision.rewards.maths import MathsError, MathsPool, looks_like_maths
from agentvision.rewards.quantities import same_quantity
from agentvision.types import Sample, Score, Trajectory

Rule: TypeAlias = Literal["auto", "exact", "number", "choice", "anls", "maths"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class Accuracy:
    """Grade the final answer by `rule`.

    `tolerance` is relative and for numbers (0.05 is ChartQA's relaxed accuracy); `min_similarity` is for `anls`;
    `maths_timeout_s` is what one comparison by math-verify may take.
    """

    rule: Rule | tuple[Rule, ...] = "auto"
    tolerance: float = 0.0
    min_similarity: float = 0.5
    maths_timeout_s: float = 5.0
    _pool: MathsPool = field(init=False, repr=False, compare=False)

    name: ClassVar[str] = "accuracy"
    judges_correctness: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 120.0

    def __post_init__(self) -> None:
        rules = (self.rule,) if isinstance(self.rule, str) else tuple(self.rule)
        if not rules or any(rule not in RULES for rule in rules):
            raise ValueError(f"rule is {self.rule!r}; it is one or more of {', '.join(RULES)}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance!r}; as a share of the truth it lies in [0, 1)")
        if not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity is {self.min_similarity!r}; it lies in (0, 1]")
        object.__setattr__(self, "_pool", MathsPool(timeout_s=self.maths_timeout_s))

    def grading_key(self, trajectory: Trajectory) -> Hashable:
        """Rollouts that gave one question the same answer are graded once."""
        return trajectory.sample.question, accepted_answers(trajectory.sample), trajectory.answer

    async def __call__(self, trajectory: Trajectory) -> Score:
        truths = accepted_answers(trajectory.sample)
        if not truths:
            return Score.invalid(f"sample {trajectory.sample.id!r} has no ground truth")
        if trajectory.answer is None or not unwrap(trajectory.answer):
            return Score(0.0, "no answer")
        options = options_in(trajectory.sample)
        rules = self._rules(trajectory.sample)
        verdicts: list[bool | None] = []
        try:
            for truth in truths:
                for rule in rules:
                    verdict = await agrees(
                        rule,
                        trajectory.answer,
                        truth,
                        options=options,
                        tolerance=self.tolerance,
                        min_similarity=self.min_similarity,
                        pool=self._pool,
                    )
                    if verdict:
                        return Score(1.0)
                    verdicts.append(verdict)
        except MathsError as error:
            return Score.invalid(str(error))
        if all(verdict is None for verdict in verdicts):
            return Score.invalid(f"ground truth {truths[0][:80]!r} cannot be graded by rule {', '.join(rules)}")
        return Score(0.0)

    def _rules(self, sample: Sample) -> tuple[Rule, ...]:
        """The rules to grade by: the recipe's, or under `auto` the one that the data set names for this question."""
        named = sample.meta.get("grading")
        if self.rule == "auto" and named in RULES:
            return (named,)
        return (self.rule,) if isinstance(self.rule, str) else self.rule


async def agrees(
    rule: Rule,
    answer: str,
    truth: str,
    *,
    options: Mapping[str, str] = EMPTY,
    tolerance: float = 0.0,
    min_similarity: float = 0.5,
    pool: MathsPool,
) -> bool | None:
    """Whether answer and truth are the same by one rule; None when the rule does not apply to the truth.

    Raises `MathsError` where mathematics is compared and no verdict is reached.
    """
    if exact_match(answer, truth):
        return True
    match rule:
        case "exact":
            return False
        case "number":
            return same_quantity(answer, truth, tolerance=tolerance)
        case "choice":
            return same_choice(answer, truth, options)
        case "anls":
            # A letter read wrongly may still be the word; a digit read wrongly is another number.
            return _digits(answer) == _digits(truth) and anls(answer, (truth,), threshold=min_similarity) > 0
        case "maths":
            return await pool.equal(answer, truth)
        case "auto":
            if same_choice(answer, truth, options) or same_quantity(answer, truth, tolerance=tolerance):
                return True
            return looks_like_maths(truth) and await pool.equal(answer, truth)


def _digits(text: str) -> list[str]:
    return [c for c in normalise(text) if c.isdigit()]


def accepted_answers(sample: Sample) -> tuple[str, ...]:
    """The ground truths of a sample, the first its `answer`; empty when it has none."""
    more = sample.meta.get("answers", ())
    truths = (sample.answer, *(more if isinstance(more, list | tuple) else ()))
    return tuple(dict.fromkeys(truth for truth in truths if isinstance(truth, str) and truth.strip()))


def options_in(sample: Sample) -> dict[str, str]:
    """A sample's options by letter: of `meta["options"]` (a list, or a map by letter), else of the question's text."""
    given = sample.meta.get("options")
    if isinstance(given, Mapping):
        return {str(letter).upper(): str(text) for letter, text in given.items()}
    if isinstance(given, list | tuple) and len(given) <= 26:
        return {chr(ord("A") + n): str(text) for n, text in enumerate(given)}
    return options_of(sample.question)
