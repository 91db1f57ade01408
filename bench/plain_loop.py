"""The baseline of `make bench`: multi-turn GRPO for the tiny VisionThink job, written with transformers alone.

What one writes without a framework: `model.generate` for each rollout and turn (`rows=1`) or for all rows of a turn
at once, left-padded (`rows=None`); the conversation's ids are kept and appended to; then one padded forward pass,
log-probs gathered from full logits, one AdamW step. Environment, prompts and rewards are the framework's, so that both
sides do one job. It writes no metrics or trajectories, has no deadlines, budgets or checkpoints, and prepares each
picture only once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from agentvision.env import Environment
from agentvision.images import ImageStore
from agentvision.rewards import Rewards
from agentvision.types import (
    Group,
    ImageHash,
    Message,
    ParsedTurn,
    ParseProblem,
    Sample,
    StopReason,
    Trajectory,
    Turn,
    View,
    ViewPart,
)

IMAGE_PAD = "<|image_pad|>"


@dataclass(eq=False)
class Episode:
    """One rollout: its conversation as ids, which of them the model sampled, and the pictures in their order."""

    sample: Sample
    env: Environment
    messages: list[Message] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stop: StopReason | None = None
    answer: str | None = None

    @property
    def images(self) -> list[ImageHash]:
        return [view.image for view in self.views]

    def trajectory(self, rollout: int) -> Trajectory:
        """What the rewards read."""
        return Trajectory(
            sample=replace(self.sample, images=()),
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            views=tuple(self.views),
            stop=self.stop or StopReason.ENV_ERROR,
            answer=self.answer,
            rollout=rollout,
        )


@dataclass(frozen=True)
class Row:
    """One trajectory in the update."""

    ids: list[int]
    sampled: list[bool]
    images: list[ImageHash]
    advantage: float


@dataclass(frozen=True)
class PlainStep:
    """What a step did and took."""

    rollout_s: float
    reward_s: float
    update_s: float
    groups: list[Group]
    tokens: int
    """In all conversations, images included."""
    loss: float
    grad_norm: float


class PlainLoop:
    """The loop. `rows` conversations go through one `generate`; None is all that are at work."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        optimizer: torch.optim.Optimizer,
        rewards: Rewards,
        *,
        make_env: Callable[[ImageStore], Environment],
        banned_ids: Sequence[int],
        stop_ids: Sequence[int],
        group_size: int,
        max_tokens: int,
        grad_clip: float,
        rows: int | None = 1,
    ) -> None:
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.optimizer, self.rewards, self.make_env = optimizer, rewards, make_env
        self.banned, self.stop_ids = list(banned_ids), list(stop_ids)
        self.group_size, self.grad_clip, self.rows = group_size, grad_clip, rows
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        self.generation = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            suppress_tokens=self.banned,
            max_new_tokens=max_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.store = ImageStore()
        self.prepared: dict[ImageHash, tuple[Tensor, Tensor]] = {}

    async def step(self, samples: Sequence[Sample]) -> PlainStep:
        """Roll out a group of each sample, score the groups, take one step of the optimizer."""
        began = time.perf_counter()
        groups = await self.rollout(samples)
        rolled = time.perf_counter()
        scored = [await self.rewards.score(self.as_group(episodes)) for episodes in groups]
        rewarded = time.perf_counter()
        loss, norm = self.update(self.with_advantages(groups, scored))
        ended = time.perf_counter()
        tokens = sum(len(episode.ids) for episodes in groups for episode in episodes)
        return PlainStep(rolled - began, rewarded - rolled, ended - rewarded, scored, tokens, loss, norm)

    # --- rollout ------------------------------------------------------------------------------------------------------

    async def rollout(self, samples: Sequence[Sample]) -> list[list[Episode]]:
        """The episodes of each sample's group, turn after turn until all have ended."""
        self.model.eval()
        self.store, self.prepared = ImageStore(), {}
        groups = [[await self.open(sample, k) for k in range(self.group_size)] for sample in samples]
        episodes = [episode for group in groups for episode in group]
        while working := [episode for episode in episodes if episode.stop is None]:
            size = self.rows or len(working)
            for first in range(0, len(working), size):
                batch = working[first : first + size]
                for episode, ids in zip(batch, self.generate(batch), strict=True):
                    await self.take(episode, ids)
        return groups

    async def open(self, sample: Sample, seed: int) -> Episode:
        """Begin an episode: the system turn, the first view, the question."""
        episode = Episode(sample, self.make_env(self.store))
        shown = await episode.env.reset(sample, seed=seed)
        self.show(episode, shown.messages, shown.views)
        return episode

    async def take(self, episode: Episode, ids: list[int]) -> None:
        """Enter what the model said, and what its tool answered."""
        episode.ids += ids
        episode.sampled += [True] * len(ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        message = Message("assistant", (text,))
        episode.messages.append(message)
        if ids[-1] not in self.stop_ids:
            unfinished = ParsedTurn(problem=ParseProblem.UNCLOSED)
            episode.turns.append(Turn(text, unfinished, tokens=len(ids)))
            episode.stop = StopReason.LENGTH
            return
        result = await episode.env.step(message)
        episode.turns.append(replace(result.turn, tokens=len(ids)))
        episode.stop, episode.answer = result.stop, result.answer
        if result.observation is not None:
            self.show(episode, result.observation.messages, result.observation.views)

    def show(self, episode: Episode, messages: Sequence[Message], views: Sequence[View]) -> None:
        """Append messages by the model's chat template; the line break closes the model's own turn before them."""
        by_index = {view.index: view for view in views}
        chat = [{"role": message.role, "content": _content(message)} for message in messages]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for index in [index for message in messages for index in message.views]:
            text = text.replace(IMAGE_PAD, "\0" * by_index[index].tokens, 1)
        text = ("\n" if episode.ids else "") + text.replace("\0", IMAGE_PAD)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        episode.ids += ids
        episode.sampled += [False] * len(ids)
        episode.messages += messages
        episode.views += views

    @torch.no_grad()
    def generate(self, episodes: Sequence[Episode]) -> list[list[int]]:
        """The model's next turn in each conversation, its end token included if it sampled one."""
        inputs = self.inputs([e.ids for e in episodes], [h for e in episodes for h in e.images], left=True)
        output = self.model.generate(**inputs, generation_config=self.generation)
        return [self.until_stop(ids) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def until_stop(self, ids: list[int]) -> list[int]:
        """The ids up to and including the first that ends a turn; what follows is padding."""
        return ids[: next((k for k, i in enumerate(ids, start=1) if i in self.stop_ids), len(ids))]

    def inputs(self, ids: Sequence[list[int]], images: Sequence[ImageHash], *, left: bool) -> dict[str, Any]:
        """The model's inputs, padded on one side."""
        width = max(map(len, ids))
        input_ids = torch.full((len(ids), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(input_ids)
        for k, row in enumerate(ids):
            place = slice(width - len(row), width) if left else slice(len(row))
            input_ids[k, place] = torch.tensor(row)
            mask[k, place] = 1
        pixels = [self.pixels(image) for image in images]
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "mm_token_type_ids": (input_ids == self.image_id).int(),
            "pixel_values": torch.cat([values for values, _ in pixels]),
            "image_grid_thw": torch.cat([grid for _, grid in pixels]),
        }

    def pixels(self, image: ImageHash) -> tuple[Tensor, Tensor]:
        """Patches and grid of a picture, prepared once."""
        if image not in self.prepared:
            made = self.image_processor(images=[self.store.get(image)], return_tensors="pt")
            self.prepared[image] = made["pixel_values"], made["image_grid_thw"]
        return self.prepared[image]

    # --- rewards and update -------------------------------------------------------------------------------------------

    def as_group(self, episodes: Sequence[Episode]) -> Group:
        trajectories = tuple(episode.trajectory(k) for k, episode in enumerate(episodes))
        return Group(trajectories[0].sample, trajectories)

    def with_advantages(self, groups: Sequence[Sequence[Episode]], scored: Sequence[Group]) -> list[Row]:
        """(R - mean) / (std + 1e-6) within each group; groups whose rewards are all equal are left out."""
        rows: list[Row] = []
        for episodes, group in zip(groups, scored, strict=True):
            valid = [(e, t.reward) for e, t in zip(episodes, group.trajectories, strict=True) if t.reward is not None]
            rewards = [reward for _, reward in valid]
            if len(valid) < 2 or max(rewards) - min(rewards) < 1e-9:
                continue
            mean, scale = statistics.fmean(rewards), statistics.stdev(rewards) + 1e-6
            rows += [Row(e.ids, e.sampled, e.images, (reward - mean) / scale) for e, reward in valid]
        return rows

    def update(self, rows: Sequence[Row]) -> tuple[float, float]:
        """One step on VisionThink's Eq. 3; the loss before it and the norm of the gradient."""
        if not rows:
            return 0.0, 0.0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        logprobs, mask = self.logprobs(rows)
        # One update a step: the old log-probs are these very ones, and clipping cannot act.
        loss = self.loss(logprobs, logprobs.detach(), mask, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        return loss.item(), float(norm)

    def loss(self, logprobs: Tensor, old: Tensor, mask: Tensor, rows: Sequence[Row]) -> Tensor:
        """Mean over a trajectory's own tokens, then over trajectories; all tensors (B, T-1)."""
        advantages = torch.tensor([row.advantage for row in rows])[:, None]
        ratio = torch.exp(logprobs - old)
        surrogate = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        return ((surrogate * mask).sum(1) / mask.sum(1)).mean()

    def logprobs(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """(B, T-1) the log-prob of each next token under the distribution sampled from, and which the model sampled."""
        inputs = self.inputs([row.ids for row in rows], [h for row in rows for h in row.images], left=False)
        logits = self.model(**inputs, use_cache=False).logits[:, :-1].float()
        logits = logits.index_fill(2, torch.tensor(self.banned), torch.finfo(torch.float32).min)
        targets = inputs["input_ids"][:, 1:, None]
        logprobs = torch.log_softmax(logits, dim=-1).gather(2, targets)[:, :, 0]
        width = targets.shape[1]
        mask = torch.tensor([row.sampled[1:] + [False] * (width + 1 - len(row.ids)) for row in rows])
        return logprobs.masked_fill(~mask, 0.0), mask


def _content(message: Message) -> str | list[dict[str, str]]:
    """A message as transformers' chat templates take it."""
    if message.role == "system":
        return message.text
    return [{"type": "image"} if isinstance(p, ViewPart) else {"type": "text", "text": p} for p in message.parts]
