"""Before anything is timed: the plain loop is right, and does what the framework does.

On rollouts of the framework: the same ids, log-probs equal to 1e-4, the same loss and gradient norm for one update, a
loss that the update lowers; and what `generate` sampled from is what the plain forward pass computes.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from plain_loop import Episode, PlainLoop, Row
from sides import FrameworkSide, PlainSide

from agentvision import build
from agentvision.images import ImageStore
from agentvision.rollout import rollout_groups
from agentvision.tokens import sampled_mask, trainer_ids, trainer_logprobs
from agentvision.train.batch import Example
from agentvision.types import TextSegment, Trajectory

TOLERANCE = 1e-4


class BenchError(Exception):
    """The two sides do not do the same."""


async def check(framework: FrameworkSide, plain: PlainSide, *, prompts: int = 4) -> dict[str, float]:
    """Compare the two sides on a few groups. Raises `BenchError`; returns the largest differences seen."""
    store = ImageStore()
    trajectories = await _rollouts(framework, store, prompts)
    rows = [_row(framework, t, k) for k, t in enumerate(trajectories)]
    plain.restart()
    loop = plain.loop
    loop.store, loop.prepared = store, {}
    same_ids = all(_ids(loop, t) == row.ids for t, row in zip(trajectories, rows, strict=True))
    _need(same_ids, "the plain loop encodes a conversation otherwise than the framework")
    loop.model.eval()
    with torch.no_grad():
        logprobs, mask = loop.logprobs(rows)
    recorded = torch.tensor([p for t in trajectories for s, p in _sampled(t) if s])
    seen = {"logprobs": float((logprobs[mask] - recorded).abs().max()), "generate": _generate_gap(loop, trajectories)}
    examples = [Example(t.segments, row.advantage) for t, row in zip(trajectories, rows, strict=True)]
    updater = framework.learner.updater
    updater.begin_step()
    stats = updater.reinforce(examples, partial(framework.learner.codec.pixels, store))
    loss, norm = loop.update(rows)
    loop.model.eval()
    with torch.no_grad():
        after = float(loop.loss(loop.logprobs(rows)[0], logprobs, mask, rows))
    seen |= {"loss": abs(loss - stats.loss), "grad_norm": abs(norm / stats.grad_norm - 1), "loss_change": after - loss}
    for name in ("logprobs", "generate", "loss", "grad_norm"):
        _need(seen[name] <= TOLERANCE * (10 if name == "grad_norm" else 1), f"{name} differ by {seen[name]:.2e}")
    _need(after < loss, f"the plain update raised its loss from {loss!r} to {after!r}")
    return seen


def _need(true: bool, otherwise: str) -> None:
    if not true:
        raise BenchError(f"the baseline is not the same job: {otherwise}")


async def _rollouts(framework: FrameworkSide, store: ImageStore, prompts: int) -> list[Trajectory]:
    recipe, learner = framework.recipe, framework.learner
    questions = framework.grpo.prompts._samples
    groups = rollout_groups(
        [(f"check{k}", questions[k]) for k in range(prompts)],
        size=recipe.algorithm.group_size,
        make_env=build.env_maker(recipe, store=store, vision=learner.codec.vision, tools=learner.tools),
        policy=learner.policy,
        store=store,
        sampling=build.sampling_of(recipe),
        tools=[tool.schema for tool in learner.tools],
    )
    return [t async for group in groups for t in group.trajectories if t.sampled_tokens]


def _row(framework: FrameworkSide, trajectory: Trajectory, place: int) -> Row:
    """The trajectory as the plain update takes it, with an advantage made up."""
    ids = trainer_ids(trajectory.segments, framework.learner.codec.image_token_id)
    images = [view.image for view in trajectory.views]
    return Row(ids, sampled_mask(trajectory.segments), images, 1.0 if place % 2 else -0.5)


def _sampled(trajectory: Trajectory) -> list[tuple[bool, float]]:
    segments = trajectory.segments
    return list(zip(sampled_mask(segments), trainer_logprobs(segments), strict=True))


def _ids(loop: PlainLoop, trajectory: Trajectory) -> list[int]:
    """The conversation as the plain loop encodes it, the model's turns taken as they were sampled."""
    episode: Any = Episode(trajectory.sample, env=None)  # type: ignore[arg-type]
    turns = iter([s.ids for s in trajectory.segments if isinstance(s, TextSegment) and s.sampled])
    views = {view.index: view for view in trajectory.views}
    pending: list[Any] = []
    for message in (*trajectory.messages, None):
        if message is not None and message.role != "assistant":
            pending.append(message)
            continue
        if pending:
            loop.show(episode, pending, [views[i] for m in pending for i in m.views])
            pending = []
        if message is not None:
            episode.ids += next(turns)
    return episode.ids


def _generate_gap(loop: PlainLoop, trajectories: list[Trajectory]) -> float:
    """The largest difference between log-probs in a left-padded `generate` and in the padded forward pass."""
    chosen = sorted(trajectories, key=lambda t: len(t.views))
    episodes = [Episode(t.sample, env=None, ids=_ids(loop, t), views=list(t.views)) for t in chosen[:2] + chosen[-2:]]  # type: ignore[arg-type]
    images = [h for e in episodes for h in e.images]
    inputs = loop.inputs([e.ids for e in episodes], images, left=True)
    settings = copy.deepcopy(loop.generation)
    settings.output_scores = settings.return_dict_in_generate = True
    with torch.no_grad():
        out = loop.model.generate(**inputs, generation_config=settings)
    said = [loop.until_stop(ids) for ids in out.sequences[:, inputs["input_ids"].shape[1] :].tolist()]
    scores = torch.stack(out.scores, dim=1).log_softmax(-1)
    rows = [Row(e.ids + ids, [False] * len(e.ids) + [True] * len(ids), e.images, 1.0) for e, ids in zip(episodes, said)]
    with torch.no_grad():
        logprobs, mask = loop.logprobs(rows)
    generated = [scores[k, range(len(ids)), ids] for k, ids in enumerate(said)]
    return float((logprobs[mask] - torch.cat(generated)).abs().max())
