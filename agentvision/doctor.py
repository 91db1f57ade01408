"""A run's self-test, on the recipe's own questions and before the first step: `agentvision doctor`.

A few episodes are rolled out as training would, and what training trusts is checked on them: that the engine's ids are the
ledger's, that the module scores what was sampled as the engine said, that the engine has new weights and nothing old after
a sync, that the template keeps what was said before, and that the largest batch fits. The weights end as they began.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import torch

from agentvision import build
from agentvision.data import open_questions
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.probe import LOW_PRECISION_GAP, MEAN_GAP, Gap, gap_of
from agentvision.errors import AgentVisionError, exception_of, first_line
from agentvision.images import ImageStore
from agentvision.lora import adapter_parameters
from agentvision.preflight import preflight
from agentvision.recipe import Recipe
from agentvision.rollout import rollout_groups
from agentvision.tokens import token_count, trainer_ids
from agentvision.train.batch import Example, micro_batches
from agentvision.train.learner import Learner, make_accelerator, make_learner
from agentvision.types import ImageSegment, Segment, TextSegment, ToolError, Trajectory

QUESTIONS, ROLLOUTS = 4, 2
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is in order (None: it does not apply), and its numbers."""

    name: str
    ok: bool | None
    says: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which they were made."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def healthy(self) -> bool:
        return all(finding.ok is not False for finding in self.findings)


@dataclass(slots=True)
class _Patient:
    recipe: Recipe
    learner: Learner
    store: ImageStore
    trajectories: tuple[Trajectory, ...] = ()

    @property
    def examples(self) -> list[Example]:
        return [Example(t.segments, advantage=0.0) for t in self.trajectories if t.sampled_tokens]

    @property
    def limit(self) -> float:
        """Mean |Δ log-prob| up to which engine and module compute the same."""
        computed = self.recipe.policy.options.get("compute_dtype")
        dtype = getattr(torch, str(computed)) if computed else next(self.learner.model.parameters()).dtype
        return MEAN_GAP.get(dtype, LOW_PRECISION_GAP)

    def gap(self) -> Gap:
        temperature = self.recipe.sampling.temperature
        return gap_of(self.learner.model, self.learner.codec, self.examples, self.store, temperature=temperature)

    async def roll_out(self, seed: int) -> None:
        recipe, learner = self.recipe, self.learner
        samples = list(islice(open_questions(recipe, "train"), QUESTIONS))
        groups = [
            group
            async for group in rollout_groups(
                [(f"doctor{k}", sample) for k, sample in enumerate(samples)],
                size=ROLLOUTS,
                make_env=build.env_maker(recipe, store=self.store, vision=learner.codec.vision, tools=learner.tools),
                policy=learner.policy,
                store=self.store,
                sampling=build.sampling_of(recipe, seed=seed),
                limits=build.limits_of(recipe),
                tools=[tool.schema for tool in learner.tools],
            )
        ]
        self.trajectories = tuple(t for group in groups for t in group.trajectories)


Check = Callable[[_Patient], Awaitable[Finding]]


async def examine(recipe: Recipe, *, on_check: Callable[[str], None] = lambda name: None) -> Diagnosis:
    """Make what the recipe names, and check it. Raises what making it raises; a check that fails is a finding."""
    began = time.perf_counter()
    preflight(recipe, train=True)
    on_check("model and engine")
    learner = make_learner(recipe, make_accelerator(recipe), model=None, reference=None)
    patient = _Patient(recipe, learner, ImageStore())
    findings: list[Finding] = []
    try:
        await learner.policy.weights_changed(0)  # as a run begins: servers may have those of another
        for name, check in CHECKS.items():
            on_check(name)
            try:
                findings.append(await check(patient))
            except (AgentVisionError, RuntimeError, ValueError) as error:
                findings.append(Finding(name, False, f"{type(error).__name__}: {first_line(error)}"))
            if name == "rollouts" and findings[-1].ok is False:
                break  # the others look at what was rolled out
    finally:
        await learner.rewards.close()
        await learner.policy.close()
    return Diagnosis(tuple(findings), time.perf_counter() - began)


async def _rollouts(patient: _Patient) -> Finding:
    began = time.perf_counter()
    await patient.roll_out(seed=patient.recipe.seed)
    broken = [t for t in patient.trajectories if t.stop.broken]
    turns = sum(len(t.turns) for t in patient.trajectories)
    numbers = {
        "episodes": len(patient.trajectories),
        "turns": turns,
        "broken": len(broken),
        "seconds": time.perf_counter() - began,
    }
    if broken:
        first = broken[0]
        why = first.error.partition("\n")[0]
        says = f"{len(broken)} of {len(patient.trajectories)} episodes failed; the first: {first.stop}: {why}"
        return Finding("rollouts", False, says, numbers)
    calls = [turn.tool for t in patient.trajectories for turn in t.turns if turn.tool is not None]
    crashed = [tool for tool in calls if tool.error is ToolError.CRASHED]
    numbers |= {"tool_calls": len(calls), "tool_crashes": len(crashed)}
    if crashed:
        first = f"{crashed[0].call.name!r}: {exception_of(crashed[0].detail)}"
        says = f"{len(crashed)} of {len(calls)} tool calls crashed; the first, of {first}"
        return Finding("rollouts", False, says, numbers)
    return Finding("rollouts", True, f"{len(patient.trajectories)} episodes, {turns} turns", numbers)


async def _tokens(patient: _Patient) -> Finding:
    """The engine's own expansion of the prompt, and its grids, against the ledger's."""
    engine = getattr(patient.learner.policy, "engine", None)
    if not isinstance(engine, InProcessEngine):
        says = "the policy computes with the ledger's own ids, or its servers compare them at every turn"
        return Finding("tokens", None, says)
    codec, different = patient.learner.codec, 0
    for trajectory in patient.trajectories:
        told = await engine.expand(trajectory.segments, patient.store)
        grids = tuple(s.grid for s in trajectory.segments if isinstance(s, ImageSegment))
        different += told.ids != tuple(trainer_ids(trajectory.segments, codec.image_token_id)) or told.grids != grids
    total = len(patient.trajectories)
    says = f"the engine expands {total - different} of {total} conversations to the ledger's ids and grids"
    return Finding("tokens", not different, says, {"conversations": total, "different": different})


async def _logprobs(patient: _Patient) -> Finding:
    return _gap_finding("log-probs", patient, "of what was sampled")


async def _weights(patient: _Patient) -> Finding:
    """Other weights, the same questions: answers computed with anything old would show. Then the first weights again."""
    policy, model = patient.learner.policy, patient.learner.model
    version = policy.version
    moved = _norms(model) or [parameter for name, parameter in adapter_parameters(model) if ".lora_B." in name]
    if not moved:
        return Finding("weights", None, "the norms are frozen")
    kept = [parameter.detach().clone() for parameter in moved]
    try:
        with torch.no_grad():
            for parameter in moved:
                parameter.mul_(1.1).add_(0.01)  # an adapter begins with zeros
        await policy.weights_changed(version + 1)
        await patient.roll_out(seed=patient.recipe.seed)
        finding = _gap_finding("weights", patient, "after new weights")
        stale = {
            s.version for t in patient.trajectories for s in t.segments if isinstance(s, TextSegment) and s.sampled
        }
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, kept, strict=True):
                parameter.copy_(value)
        await policy.weights_changed(version)
    if stale != {version + 1}:
        return Finding(
            "weights", False, f"version {version + 1} was sent, and {sorted(stale)} sampled", finding.numbers
        )
    return finding


def _norms(model: Any) -> list[torch.nn.Parameter]:
    """A few small weights that every token's and every image's computation goes through: the first and the last norms."""
    language, visual = model.model.language_model, model.model.visual
    found = [language.norm.weight, language.layers[0].input_layernorm.weight, visual.blocks[0].norm1.weight]
    return [parameter for parameter in found if parameter.requires_grad]  # what is frozen may be kept by anyone


def _gap_finding(name: str, patient: _Patient, when: str) -> Finding:
    gap, limit = patient.gap(), patient.limit
    if not gap.tokens:
        return Finding(name, None, "nothing was sampled")
    numbers = {"tokens": gap.tokens, "mean": gap.mean, "max": gap.max, "limit": limit}
    says = (
        f"|Δ log-prob| {when}: mean {gap.mean:.2g}, max {gap.max:.2g} over {gap.tokens} tokens (mean at most {limit:g})"
    )
    return Finding(name, gap.mean <= limit, says, numbers)


async def _template(patient: _Patient) -> Finding:
    """Whether the template writes a conversation's beginning in the same way when more has been said."""
    codec = patient.learner.codec
    longer = [t for t in patient.trajectories if len(t.turns) > 1]
    if not longer:
        return Finding("template", None, "no episode had a second turn")
    kept = sum(codec.keeps_prefix(t.messages) for t in longer)
    says = f"{kept} of {len(longer)} conversations begin, written anew, as they were when the turns were sampled"
    if kept < len(longer):
        says += (
            "; the template rewrites earlier turns: exact here, where the ledger keeps them, and not by a chat server"
        )
    return Finding("template", True, says, {"conversations": len(longer), "kept": kept})


async def _memory(patient: _Patient) -> Finding:
    """Forward and backward over the largest micro-batch that the recipe allows."""
    recipe, learner = patient.recipe, patient.learner
    if not patient.examples:
        return Finding("memory", None, "nothing was sampled, so there is nothing to make a batch of")
    if not recipe.trainer.max_staleness:
        await learner.policy.rest()  # as in a step; this check is the last
    longest = max(patient.examples, key=lambda e: token_count(e.segments))
    row = _lengthened(longest.segments, recipe.sampling.context_tokens, recipe.sampling.max_tokens)
    tokens = max(learner.updater.micro_batch_tokens, recipe.sampling.context_tokens)
    count = max(1, tokens // token_count(row))
    config = learner.model.config
    batch = micro_batches(
        [Example(row, advantage=0.0)] * count,
        max_tokens=tokens,
        merge=learner.codec.vision.merge,
        share=False,
        hidden=config.get_text_config().hidden_size,
    )[0]
    device = learner.updater.accelerator.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    learner.model.train()
    try:
        scored = learner.updater.scorer(
            batch.to(device), lambda image: learner.codec.pixels(patient.store, image), None
        )
        learner.updater.accelerator.backward((scored.logprobs * 0.0).sum())
    except torch.OutOfMemoryError as error:
        fix = "lower trainer.micro_batch_tokens, or set model.gradient_checkpointing"
        return Finding("memory", False, f"{tokens} tokens do not fit: {first_line(error)}; {fix}", {"tokens": tokens})
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
        learner.model.eval()
    seconds = time.perf_counter() - began
    trained = sum(p.nbytes for p in learner.model.parameters() if p.requires_grad)
    later = 2 * trained if not learner.optimizer.state else 0  # AdamW's two moments, made at the first step
    numbers = {"tokens": batch.ids.numel(), "seconds": seconds, "optimizer_gib": later / _GIB}
    says = f"{batch.ids.numel()} tokens in one pass, {seconds:.1f} s"
    if not on_gpu:
        return Finding("memory", True, says, numbers)
    peak = torch.cuda.max_memory_allocated(device) + later
    total = torch.cuda.get_device_properties(device).total_memory
    says += f"; {peak / _GIB:.1f} GiB with the optimizer, of {total / _GIB:.1f}"
    gc.collect()
    return Finding("memory", peak < total, says, numbers | {"peak_gib": peak / _GIB, "total_gib": total / _GIB})


def _lengthened(segments: Sequence[Segment], context_tokens: int, max_tokens: int) -> tuple[Segment, ...]:
    """The conversation with a last turn as long as the recipe allows."""
    last = segments[-1]
    room = max(1, min(max_tokens, context_tokens - token_count(segments[:-1])))
    ids = cast("TextSegment", last).ids
    return (*segments[:-1], TextSegment((ids * (room // len(ids) + 1))[:room], sampled=True, logprobs=(0.0,) * room))


CHECKS: Mapping[str, Check] = {
    "rollouts": _rollouts,
    "tokens": _tokens,
    "log-probs": _logprobs,
    "template": _template,
    "weights": _weights,
    "memory": _memory,
}
"""In this order: `weights` rolls out anew, and the others look at what `rollouts` did."""
