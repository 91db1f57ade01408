"""The judge as a reward: `judge: {model: openai/gpt-4o, weight: 1.0}`."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

from agentvision.rewards.accuracy import RULES, accepted_answers, options_in
from agentvision.rewards.grading import options_of
from agentvision.rewards.judge.judge import Judge
from agentvision.rewards.judge.settings import JudgeSettings
from agentvision.types import Sample, Score, Trajectory


class JudgeReward:
    """1 when the final answer means the ground truth, 0 when not, as a judge says; invalid when no judge can be had.

    The judge sees the question, the truths and what stands inside `<answer>`: never the prompt of the agent, never the
    image. Settings are those of `JudgeSettings`.
    """

    name: ClassVar[str] = "judge"
    judges_correctness: ClassVar[bool] = True
    timeout_s: ClassVar[float] = 3600.0
    """Of one trajectory, waiting for all others before it included; requests have deadlines of their own."""

    def __init__(self, **settings: Any) -> None:
        self.judge = Judge.from_config(settings)

    # Settings are shown, checked and suggested by name although they come in one map.
    __signature__ = inspect.signature(JudgeSettings)

    def grading_key(self, trajectory: Trajectory) -> Hashable:
        """Rollouts that gave one question the same answer are judged once."""
        return trajectory.sample.question, accepted_answers(trajectory.sample), trajectory.answer

    async def __call__(self, trajectory: Trajectory) -> Score:
        sample = trajectory.sample
        truths = accepted_answers(sample)
        if not truths:
            return Score.invalid(f"sample {sample.id!r} has no ground truth")
        named = sample.meta.get("grading")
        verdict = await self.judge(
            question=question_of(sample),
            truth=truths[0],
            accepted=truths[1:],
            answer=trajectory.answer,
            grading=named if named in RULES and named != "auto" else None,
        )
        if verdict.score is None:
            return Score.invalid(f"{verdict.by}: {verdict.reason}" if verdict.by else verdict.reason)
        return Score(verdict.score, verdict.by)

    def check(self) -> None:
        self.judge.check()

    def metrics(self) -> Mapping[str, float]:
        return self.judge.metrics()

    def summary(self, counts: Mapping[str, float]) -> Mapping[str, float]:
        return self.judge.summary(counts)

    async def close(self) -> None:
        await self.judge.close()


def question_of(sample: Sample) -> str:
    """The question with its options: a letter means nothing to a judge that does not see what it stands for."""
    options = options_in(sample)
    if not options or options_of(sample.question):
        return sample.question
    return "\n".join([sample.question, *(f"({letter}) {text}" for letter, text in options.items())])
