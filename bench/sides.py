"""The two sides of `make bench`: the framework's own GRPO loop, a step at a time, and the plain loop on that job."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from plain_loop import PlainLoop

from agentvision import build
from agentvision.data import open_questions
from agentvision.recipe import Recipe
from agentvision.rewards import Rewards
from agentvision.run_folder import CHECKPOINTS
from agentvision.seeds import seed_for
from agentvision.tokens import token_count
from agentvision.tracking import read_metrics
from agentvision.train.checkpoint import Checkpoints
from agentvision.train.grpo import GRPO
from agentvision.train.guard import BadImages, BadSteps, Interruption
from agentvision.train.learner import freeze, make_accelerator, make_learner
from agentvision.train.optimizer import make_optimizer
from agentvision.train.prompts import PromptStream
from agentvision.train.records import Records
from agentvision.train.seeding import seed_everything
from agentvision.types import Trajectory


@dataclass(frozen=True)
class StepCost:
    """One step of one side. Seconds are the clock's; `cpu_s` is the process's, over all its threads."""

    seconds: float
    cpu_s: float
    rollout_s: float
    reward_s: float
    update_s: float
    trajectories: int
    sampled_tokens: int
    tokens: int
    """In all trajectories, prompts and images included."""
    update_tokens: int
    """Sampled tokens in the loss: those of groups with a signal."""
    accuracy: float
    call_rate: float


def _cost(clock: tuple[float, float], phases: tuple[float, float, float], groups: list[list[Trajectory]],
          tokens: int) -> StepCost:  # fmt: skip
    everything = [t for group in groups for t in group]
    rewards = [[t.reward for t in group if t.reward is not None] for group in groups]
    signal_ = [len(r) > 1 and max(r) - min(r) > 1e-9 for r in rewards]
    return StepCost(
        *clock,
        *phases,
        trajectories=len(everything),
        sampled_tokens=sum(t.sampled_tokens for t in everything),
        tokens=tokens,
        update_tokens=sum(t.sampled_tokens for g, s in zip(groups, signal_, strict=True) if s for t in g),
        accuracy=sum(bool(t.correct) for t in everything) / len(everything),
        call_rate=sum(t.looked_closer for t in everything) / len(everything),
    )


class FrameworkSide:
    """`GRPO.one_step` as `agentvision train` runs it, metrics and trajectories included."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        seed_everything(recipe.seed)
        accelerator = make_accelerator(recipe)
        self.learner = make_learner(recipe, accelerator, model=None, reference=None)
        self.start = {name: tensor.clone() for name, tensor in self.learner.model.state_dict().items()}
        out.mkdir(parents=True)
        self.grpo = GRPO(
            recipe=recipe,
            learner=self.learner,
            accelerator=accelerator,
            prompts=PromptStream(open_questions(recipe, "train"), seed=recipe.seed),
            held_out=[],
            checkpoints=Checkpoints(out / CHECKPOINTS, keep=1),
            bad=BadSteps(recipe.trainer.max_bad_steps),
            bad_images=BadImages(recipe.data.max_bad_share),
            records=Records.open(out, recipe, quiet=True),
            interruption=Interruption(),
        )

    async def warm_up(self) -> None:
        """One step, so that nothing is done for the first time while it is timed."""
        await self.step(0)

    async def step(self, number: int) -> StepCost:
        """The step on the `number`-th batch of prompts, from the starting weights."""
        self.grpo.prompts.cursor = number * self.recipe.trainer.prompts_per_step
        self.learner.model.load_state_dict(self.start)
        self.learner.optimizer.state.clear()
        await self.learner.policy.weights_changed(0)
        began, cpu = time.perf_counter(), time.process_time()
        collected = await self.grpo.one_step()
        clock = time.perf_counter() - began, time.process_time() - cpu
        row = read_metrics(self.out)[-1]
        groups = [list(scored.group.trajectories) for scored in collected.groups]
        return _cost(
            clock,
            (row["time_rollout_s"], row["time_reward_s"], row["time_update_s"]),
            groups,
            sum(token_count(t.segments) for group in groups for t in group),
        )

    async def close(self) -> None:
        await self.learner.policy.close()


class PlainSide:
    """The plain loop with a model of its own. `rows` as in `PlainLoop`."""

    def __init__(self, recipe: Recipe, framework: FrameworkSide, *, rows: int | None) -> None:
        from transformers import AutoModelForImageTextToText

        self.recipe = recipe
        codec = framework.learner.codec
        model = AutoModelForImageTextToText.from_pretrained(build.model_path(recipe.model.path), dtype=torch.float32)
        freeze(model, recipe.model.freeze)
        self.start = framework.start
        self.prompts = PromptStream(open_questions(recipe, "train"), seed=recipe.seed)
        tools = build.build_tools(recipe)
        self.loop = PlainLoop(
            model,
            codec.tokenizer,
            codec.image_processor,
            make_optimizer(model, recipe.trainer),
            Rewards(framework.learner.rewards.parts),
            make_env=lambda store: build.env_maker(recipe, store=store, vision=codec.vision, tools=tools)(),
            banned_ids=codec.banned_ids,
            stop_ids=codec.stop_ids,
            group_size=recipe.algorithm.group_size,
            max_tokens=recipe.sampling.max_tokens,
            grad_clip=recipe.trainer.grad_clip,
            rows=rows,
        )

    def restart(self) -> None:
        """Take the starting weights and a fresh optimizer."""
        self.loop.model.load_state_dict(self.start)
        self.loop.optimizer.state.clear()

    async def warm_up(self) -> None:
        """One small step, so that nothing is done for the first time while it is timed."""
        self.restart()
        await self.loop.step(self.prompts.take(1))

    async def step(self, number: int) -> StepCost:
        """The step on the `number`-th batch of prompts, from the starting weights."""
        prompts = self.recipe.trainer.prompts_per_step
        self.prompts.cursor = number * prompts
        self.restart()
        torch.manual_seed(seed_for(self.recipe.seed, number))
        began, cpu = time.perf_counter(), time.process_time()
        done = await self.loop.step(self.prompts.take(prompts))
        clock = time.perf_counter() - began, time.process_time() - cpu
        groups = [list(group.trajectories) for group in done.groups]
        return _cost(clock, (done.rollout_s, done.reward_s, done.update_s), groups, done.tokens)
