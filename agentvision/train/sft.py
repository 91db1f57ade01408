"""Supervised turns: the stage before GRPO that shows a model the grammar and what can be seen.

A demonstration is what the model should say in each turn of an episode. It is rolled through the real environment by a
policy that recites it, so the ledger it makes (tool turns, images, template) is exactly what the model will meet when it
samples; the loss is the cross-entropy of its own turns alone. Data sources write demonstrations in a method
`demonstration(sample, *, look, seed)`, or samples bring theirs in `meta["demonstration"]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from agentvision import build
from agentvision.errors import DataError
from agentvision.images import ImageStore
from agentvision.policy import Completion, Request, SamplingParams
from agentvision.recipe import Recipe
from agentvision.rollout import MakeEnv, run_episode
from agentvision.seeds import seed_for
from agentvision.tokens import Codec
from agentvision.train.batch import Example
from agentvision.train.guard import BadSteps, Interruption, engine_stops
from agentvision.train.learner import Learner
from agentvision.train.optimizer import learning_rate, make_optimizer, set_learning_rate
from agentvision.train.prompts import PromptStream
from agentvision.train.update import UpdateStats
from agentvision.types import Sample, StopReason, Trajectory

Demonstrate = Callable[[Sample, bool, int], Sequence[str]]
"""From a sample, whether to look closer, and a seed, to the model's turns."""


class _Reciter:
    """A policy that says given turns, with the ids that a model would have to sample for them."""

    trainable = False
    version = 0

    def __init__(self, codec: Codec, turns: Sequence[str]) -> None:
        self.codec: Codec | None = codec
        self._codec, self._turns = codec, turns

    async def complete(self, request: Request) -> Completion:
        if request.turn >= len(self._turns):
            raise DataError(
                f"the episode asks for turn {request.turn + 1} and the demonstration has {len(self._turns)}"
            )
        text = self._turns[request.turn]
        ids = (*self._codec.encode_text(text), self._codec.stop_ids[0])
        return Completion(text, ids=ids, logprobs=(0.0,) * len(ids))

    async def release(self, session: str) -> None:
        """Nothing is kept."""

    async def close(self) -> None:
        """Nothing is open."""


async def demonstrate(
    sample: Sample, turns: Sequence[str], *, codec: Codec, make_env: MakeEnv, store: ImageStore
) -> Trajectory:
    """Roll a demonstration through the environment. Raises `DataError` when the episode does not go as it says."""
    trajectory = await run_episode(
        sample, env=make_env(), policy=_Reciter(codec, turns), store=store, sampling=SamplingParams()
    )
    if trajectory.stop is not StopReason.ANSWERED or len(trajectory.turns) != len(turns):
        why = trajectory.error.splitlines()[0] if trajectory.error else f"it ended as {trajectory.stop.value!r}"
        raise DataError(f"the demonstration of {sample.id!r} cannot be carried out: {why}; its turns: {list(turns)!r}")
    return trajectory


def demonstrator(questions: Sequence[Sample]) -> Demonstrate:
    """How these questions are demonstrated. Raises `DataError` when they are not."""
    method: Any = getattr(questions, "demonstration", None)
    if method is not None:
        return lambda sample, look, seed: method(sample, look=look, seed=seed)
    if "demonstration" in questions[0].meta:
        return lambda sample, look, seed: sample.meta["demonstration"]
    raise DataError(
        "warm_start.data: this source writes no demonstrations: it needs a method demonstration(sample, *, look, seed), or "
        "meta['demonstration'] (the model's turns) in each sample"
    )


@dataclass(slots=True)
class WarmStart:
    """The supervised stage of one run. Interrupted, it starts over: it is short, and the same from the same seed."""

    recipe: Recipe
    learner: Learner
    questions: Sequence[Sample]
    interruption: Interruption
    on_step: Callable[[int, UpdateStats], None]
    rank: int = 0
    world: int = 1

    async def run(self) -> None:
        """Train for `warm_start.steps` updates; the policy is not told. Raises `TrainingStopped` when they are not finite."""
        settings = self.recipe.warm_start
        if settings is None:
            return
        learner = self.learner
        optimizer = make_optimizer(learner.model, settings)
        updater = replace(
            learner.updater,
            optimizer=learner.updater.accelerator.prepare(optimizer),
            grad_clip=settings.grad_clip,
            reference=None,
        )
        show = demonstrator(self.questions)
        seed = seed_for(self.recipe.seed, "warm start")
        prompts = PromptStream(self.questions, seed=seed, rank=self.rank, world=self.world)
        bad = BadSteps(self.recipe.trainer.max_bad_steps)
        with engine_stops(0):
            await learner.policy.rest()  # no turn is asked for before the end
        for step in range(settings.steps):
            if self.interruption.came_to_any():
                raise asyncio.CancelledError
            store = ImageStore()
            samples = prompts.take(settings.batch_size // self.world)
            with self.interruption.may_cancel_alone():
                examples = await self._examples(samples, show, store, seed_for(seed, step, self.rank))
            set_learning_rate(updater.optimizer, learning_rate(step, settings, steps=settings.steps))
            updater.begin_step()
            stats = updater.imitate(examples, partial(learner.codec.pixels, store))
            if stats.finite:
                bad.good()
            else:
                bad.bad(f"warm start, step {step}: loss {stats.loss!r}")
            self.on_step(step + 1, stats)

    async def _examples(
        self, samples: Sequence[Sample], show: Demonstrate, store: ImageStore, seed: int
    ) -> list[Example]:
        """Direct answers and looks at even odds, whatever the question needs: the choice is left for GRPO to learn."""
        learner = self.learner
        make_env = build.env_maker(self.recipe, store=store, vision=learner.codec.vision, tools=learner.tools)
        work: list[Awaitable[Trajectory]] = []
        for k, sample in enumerate(samples):
            own = seed_for(seed, k)
            turns = show(sample, bool(own & 1), own)
            work.append(demonstrate(sample, turns, codec=learner.codec, make_env=make_env, store=store))
        return [Example(trajectory.segments) for trajectory in await asyncio.gather(*work)]
