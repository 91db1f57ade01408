"""Multi-turn GRPO: rollout → reward → advantage → loss → step → sync, until the recipe's steps are done.

A step reads top to bottom in `GRPO.one_step`; what each line stands for lives in a module of its own (collect, advantages,
losses, update, checkpoint), and what stands around it (the run's folder, resuming, export) in `run`. Every rank of an
accelerate launch rolls out its own prompts with its own copy of the weights; the loss is normalised over all of them.

The rollouts of a step come from a `Pipeline`, which may begin them while the updates before still run.

A run can be repeated from its seed, and a killed one continued: prompts come from a cursor, sampling seeds from (seed,
step, prompt, rollout, turn), and everything else that changes stands in the checkpoint.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from agentvision import build
from agentvision.engine.ranks import raise_any, told_by_all
from agentvision.errors import AgentVisionError, TrainingStopped
from agentvision.evaluate.run import ask, evaluation_seed
from agentvision.images import ImageStore
from agentvision.policy import Policy
from agentvision.recipe import Recipe
from agentvision.rollout import rollout_groups
from agentvision.seeds import seed_for
from agentvision.tracking import flatten
from agentvision.train.advantages import group_advantages
from agentvision.train.batch import Example
from agentvision.train.checkpoint import Checkpoints
from agentvision.train.collect import Collected, ScoredGroup, collect
from agentvision.train.guard import BadImages, BadSteps, Interruption, engine_stops, may_be_the_weights, why_invalid
from agentvision.train.learner import Learner
from agentvision.train.lockstep import Batching, Lockstep
from agentvision.train.metrics import rollout_metrics, staleness_metrics, update_metrics
from agentvision.train.optimizer import learning_rate, set_learning_rate
from agentvision.train.pipeline import Batch, Pipeline
from agentvision.train.prompts import PromptStream
from agentvision.train.records import Records, groups_of_all_ranks
from agentvision.train.seeding import random_states, set_random_states
from agentvision.train.update import UpdateStats
from agentvision.types import Group, Sample, StopReason

T = TypeVar("T")

EVALUATED = (
    "reward",
    "accuracy",
    "format",
    "call_rate",
    "call_rate_easy",
    "call_rate_hard",
    "visual_tokens_additive",
    "visual_tokens_replacement",
)
"""Metrics of the evaluations between steps."""


@dataclass(slots=True)
class GRPO:
    """One process's share of a run, from its first step to its last."""

    recipe: Recipe
    learner: Learner
    accelerator: Accelerator
    prompts: PromptStream
    held_out: Sequence[Sample]
    """Questions of the evaluations between steps."""
    checkpoints: Checkpoints
    bad: BadSteps
    bad_images: BadImages
    records: Records
    interruption: Interruption
    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Prompts drawn by this rank in those steps; a step that is abandoned, or only begun, draws its prompts again."""
    moved: bool = False
    """Whether any step so far had a signal, and moved the weights."""
    saved: int = -1
    """The step of the newest checkpoint of this process."""
    torn: bool = False
    """Whether the weights are not to be saved: moved by half a step, or those of a policy that fails."""
    batches: Pipeline = field(init=False)
    """The rollouts of this step and of those that may be ahead of the weights."""

    def __post_init__(self) -> None:
        settings = self.recipe.trainer
        self.batches = Pipeline(self.roll, max_staleness=settings.max_staleness, steps=settings.steps)

    async def loop(self) -> None:
        """Train until the last step, a signal, or a reason to stop."""
        settings = self.recipe.trainer
        try:
            while self.step < settings.steps and not await self.is_interrupted():
                await self.one_step()
                if self.step == settings.steps or (settings.save_every and self.step % settings.save_every == 0):
                    await self.batches.meanwhile(self.save)
        finally:
            await self.batches.close()

    async def one_step(self) -> Collected:
        """One step, whole and recorded; what it rolled out."""
        settings = self.recipe.trainer
        began = time.perf_counter()
        # rollout and reward
        batch = await self.next_batch()
        waited = time.perf_counter()
        collected, store = batch.collected, batch.store
        await self.check_images(collected)
        await self.check_invalid(collected, store)
        # advantage
        groups = [examples_of(scored) for scored in collected.with_signal]
        # loss and step
        updating = time.perf_counter()
        self.records.progress.phase("update")
        rate = learning_rate(self.step, settings, steps=settings.steps)
        scheduled = self.learner.rewards.scheduled(self.step)  # weights of rewards
        if not settings.max_staleness:
            with engine_stops(self.step):
                await self.learner.policy.rest()
        updates = await self.batches.meanwhile(partial(self.update, groups, collected, store, rate))
        self.moved = self.moved or any(u.finite and u.tokens for u in updates)
        self.step, self.cursor, self.torn = self.step + 1, batch.cursor, False
        more = {"lr": rate, "weight": scheduled, "resample_rounds": collected.rounds - 1, "time_wait_s": waited - began}
        more |= {"time_rollout_s": collected.rollout_s, "time_reward_s": collected.reward_s}
        try:
            # sync
            with timed(more, "time_update_s", since=updating), timed(more, "time_step_s", since=began):
                await self.sync()
            more |= await self.evaluate()
        finally:  # whatever fails from here on: the step is done
            counts = self.learner.rewards.metrics()
            await self.batches.meanwhile(partial(self.record, collected, updates, store, more, counts))
        await self.check_alarms()
        return collected

    async def next_batch(self) -> Batch:
        """The rollouts of this step. A signal to any rank abandons those of all: `CancelledError`."""
        batch = None
        try:
            with self.interruption.may_cancel():
                batch = await self.batches.batch(self.step)
        except asyncio.CancelledError as cancelled:
            self.interruption.took(cancelled)
        if await self.is_interrupted() or batch is None:
            raise asyncio.CancelledError
        return batch

    async def is_interrupted(self) -> bool:
        """Whether a signal came to any rank: all ask at the same points, so that all end after the same step."""
        return await self.batches.meanwhile(self.interruption.came_to_any)

    async def sync(self) -> None:
        """Tell the policy of the new weights."""
        with engine_stops(self.step):
            await self.learner.policy.weights_changed(self.step)

    # --- the parts of a step ------------------------------------------------------------------------------------------

    async def roll(self, step: int) -> Batch:
        """Roll out and score the prompts of a step (counted from 0)."""
        recipe, learner, store = self.recipe, self.learner, ImageStore()
        done = 0

        def rollout(named: Sequence[tuple[str, Sample]], seed: int) -> AsyncIterator[Group]:
            size, at_once = recipe.algorithm.group_size, recipe.policy.concurrency
            policy: Policy = learner.policy
            if learner.lockstep and isinstance(policy, Batching):
                policy = Lockstep(policy, episodes=len(named) * size, at_once=at_once)
            return rollout_groups(
                named,
                size=size,
                make_env=build.env_maker(recipe, store=store, vision=learner.codec.vision, tools=learner.tools),
                policy=policy,
                store=store,
                sampling=build.sampling_of(recipe, seed=seed),
                limits=build.limits_of(recipe),
                tools=[tool.schema for tool in learner.tools],
                at_once=at_once,
            )

        def count(group: Group) -> None:
            nonlocal done
            done += len(group.trajectories)
            if step == self.step:
                self.records.progress.rollouts(done)

        collected = await collect(
            self.prompts,
            rollout=rollout,
            score=partial(learner.rewards.score, step=step),
            wanted=recipe.trainer.prompts_per_step // self.accelerator.num_processes,
            max_rounds=recipe.algorithm.resample.max_rounds,
            normalise=recipe.algorithm.advantage_std,
            seed=seed_for(recipe.seed, "step", step, self.accelerator.process_index),
            on_group=count,
        )
        return Batch(collected, store, self.prompts.cursor)

    def update(
        self, groups: list[list[Example]], collected: Collected, store: ImageStore, rate: float
    ) -> list[UpdateStats]:
        """The updates of one step: `epochs` passes over its groups in mini-batches."""
        learner, world = self.learner, self.accelerator.num_processes
        pixels = partial(learner.codec.pixels, store)
        size = (self.recipe.trainer.mini_batch_prompts or self.recipe.trainer.prompts_per_step) // world
        # A rank with fewer groups, or none, takes part with a spare example, so that no rank waits for it.
        ledgers = (t.segments for s in collected.groups for t in s.group.trajectories if t.sampled_tokens)
        spare = next((Example(segments, advantage=0.0) for segments in ledgers), None)
        mini_batches = max(told_by_all(-(-len(groups) // size)))
        set_learning_rate(learner.optimizer, rate)
        learner.updater.begin_step()
        algorithm = self.recipe.algorithm
        if algorithm.correction.kind != "none" and algorithm.epochs * mini_batches > 1:
            known = iter(learner.updater.with_proximal([e for group in groups for e in group], pixels, spare=spare))
            groups = [[next(known) for _ in group] for group in groups]
        results: list[UpdateStats] = []
        for epoch in range(algorithm.epochs):
            order = list(range(len(groups)))
            if epoch:
                random.Random(seed_for(self.recipe.seed, "epoch", self.step, epoch)).shuffle(order)
            for k in range(mini_batches):
                examples = [e for i in order[k * size : (k + 1) * size] for e in groups[i]]
                stats = learner.updater.reinforce(examples, pixels, spare=spare)
                results.append(stats)
                self.torn = self.torn or stats.finite
                if stats.finite:
                    self.bad.good()
                else:
                    self.records.event("skipped", step=self.step + 1, loss=stats.loss, grad_norm=stats.grad_norm)
                    self.bad.bad(f"step {self.step}: loss {stats.loss!r}, gradient norm {stats.grad_norm!r}")
        return results

    async def check_images(self, collected: Collected) -> None:
        """Count the questions whose images cannot be read; stop when they are more than the recipe allows."""
        groups = [scored.group for scored in collected.groups]
        bad = [t for t in (group.trajectories[0] for group in groups) if t.stop is StopReason.BAD_IMAGE]
        counts = await self.of_all((len(bad), len(groups), f"{bad[0].sample.id}: {bad[0].error}" if bad else ""))
        first = next((told for _, _, told in counts if told), "")
        self.bad_images.count(sum(c[0] for c in counts), sum(c[1] for c in counts), first)

    async def check_invalid(self, collected: Collected, store: ImageStore) -> None:
        """Stop when rewards (or episodes) fail more often than the recipe allows: the rest would be a biased sample.

        The trajectories of such a step are in the journal, to see why.
        """
        local = [t for scored in collected.groups for t in scored.group.trajectories]
        reasons = [why_invalid(t) for t in local if t.reward is None]
        counts = await self.of_all((len(reasons), len(local), sum(map(may_be_the_weights, local))))
        invalid, total, suspect = (sum(c[i] for c in counts) for i in range(3))
        limit = self.recipe.trainer.max_invalid_share
        if total and invalid > limit * total:
            seen = f"; the first: {reasons[0]}" if reasons else ""
            self.torn = suspect > 0  # those of a policy that diverged are not to become the newest checkpoint
            self.records.trajectories(local, step=self.step + 1, store=store)
            raise TrainingStopped(
                f"step {self.step}: {invalid} of {total} trajectories have no valid reward, more than "
                f"trainer.max_invalid_share={limit!r} allows{seen}"
            )

    async def check_alarms(self) -> None:
        """Stop when an alarm rings that the recipe wants to stop at. The step is done and its weights are good."""
        told = [f"alarms.{alarm.name}: {alarm.text}" for alarm in self.records.ringing if alarm.stops]
        if reasons := [reason for theirs in await self.of_all(told) for reason in theirs]:
            raise TrainingStopped(f"step {self.step}: {'; '.join(reasons)}")

    async def evaluate(self) -> dict[str, Any]:
        """Every so many steps: the policy on held-out questions, as `eval/…`; else nothing."""
        every = self.recipe.trainer.eval_every
        if not every or self.step % every or not self.accelerator.is_main_process:
            return {}
        began = time.perf_counter()
        self.records.progress.phase("evaluation")
        try:
            with self.interruption.may_cancel():
                asked = await ask(
                    self.recipe,
                    self.held_out,
                    policy=self.learner.policy,
                    tools=self.learner.tools,
                    rewards=self.learner.rewards,
                    seed=evaluation_seed(self.recipe),
                    step=self.step,
                )
        except asyncio.CancelledError as cancelled:  # a signal: the step is done all the same
            self.interruption.took(cancelled)
            return {}
        groups = [ScoredGroup(Group(t.sample, (t,)), group_advantages([t.reward])) for t in asked]
        measured = rollout_metrics(groups)
        return {"eval": {name: measured[name] for name in EVALUATED}, "time_eval_s": time.perf_counter() - began}

    def record(
        self,
        collected: Collected,
        updates: Sequence[UpdateStats],
        store: ImageStore,
        more: dict[str, Any],
        counts: Mapping[str, Any],
    ) -> None:
        """The step's numbers are of all ranks. `counts` are the rewards'."""
        counted = told_by_all(counts)
        groups = groups_of_all_ranks(collected.groups, store if self.records.shows(self.step) else None)
        if not self.accelerator.is_main_process:
            return
        metrics = {"step": self.step} | rollout_metrics(groups) | update_metrics(list(updates)) | more
        metrics |= staleness_metrics(groups, version=self.step - 1)
        metrics |= {
            "samples_per_s": sum(len(s.group.trajectories) for s in groups) / more["time_step_s"],
            "steps_skipped": self.bad.skipped,
            "bad_images": self.bad_images.bad,
        } | flatten(self.learner.rewards.summary(counted))
        self.records.step(metrics, groups, store)

    def save(self) -> Path:
        """Write a checkpoint of the run as it stands after `self.step` steps, once."""
        path = self.checkpoints.path(self.step)
        if self.saved == self.step:
            return path
        state = {
            "cursors": told_by_all(self.cursor),
            "moved": self.moved,
            "bad": {"skipped": self.bad.skipped, "in_a_row": self.bad.in_a_row},
        }
        error: AgentVisionError | None = None
        if self.accelerator.is_main_process:
            try:
                self.checkpoints.save(self.step, state | random_states(), self.learner.write)
            except AgentVisionError as raised:
                error = raised
        try:
            raise_any(error)
        except TrainingStopped:  # of weights that cannot be saved: whoever hears of it is not to try again
            self.torn = True
            raise
        self.saved = self.step
        self.records.event("saved", step=self.step, path=path.name)
        return path

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Continue where `save` left off, the learner having read its weights and its optimizer; then `sync`."""
        self.step = self.saved = step
        self.cursor = self.prompts.cursor = state["cursors"][self.accelerator.process_index]
        self.moved = state["moved"]
        self.bad.skipped, self.bad.in_a_row = state["bad"]["skipped"], state["bad"]["in_a_row"]
        set_random_states(state)

    async def of_all(self, value: T) -> list[T]:
        """Every rank's value. While they wait for one another, batches that are ahead go on."""
        return await self.batches.meanwhile(partial(told_by_all, value))


@contextmanager
def timed(into: dict[str, Any], name: str, *, since: float) -> Iterator[None]:
    """Write how long it has been since then, in seconds, however this ends."""
    try:
        yield
    finally:
        into[name] = time.perf_counter() - since


def examples_of(scored: ScoredGroup) -> list[Example]:
    """The valid members of a group, each with its advantage."""
    members = zip(scored.group.trajectories, scored.advantages.advantages_G, scored.advantages.valid_G, strict=True)
    return [Example(trajectory.segments, advantage) for trajectory, advantage, valid in members if valid]
