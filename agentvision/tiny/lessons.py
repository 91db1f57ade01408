"""Stage 2 of the tiny model: the language model alone learns to say what the visual tokens hold.

A lesson is one episode in the very frames of the recipes: an answer from the first view, from the original, or from the
first view with the tool at hand, which is called at even odds whatever the question needs: the choice is left for GRPO to
learn. Easy questions about first views come first; once the model finds there what a question names, it takes little to find
it in the original too. The vision tower stays as it learned to read, and its features are computed once a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from agentvision.data.questions import SceneQuestions
from agentvision.geometry import Affine
from agentvision.positions import mrope_positions
from agentvision.protocol import Protocol
from agentvision.tiny.reader import fast_bfloat16, picture, quarter
from agentvision.tokens import Codec, sampled_mask, trainer_ids
from agentvision.types import ImageSegment, Message, Sample, Segment, TextSegment, ToolCall, ToolRecord, View

_SETTINGS = {"tool": 0.6, "first": 0.2, "full": 0.2}
"""What is at hand in a lesson, and how often: the first view and the tool, the first view alone, the original alone."""

_SHAPES_SPARED = 0.5
"""Share of the questions about shapes that are left out: they are learned long before writing is."""


@dataclass(slots=True)
class Lessons:
    """Writes episodes about questions of some data sets, each picture once: what is learned must not be the picture."""

    codec: Codec
    data: Sequence[SceneQuestions]
    tools: Sequence[dict[str, Any]]
    features: dict[str, Tensor] = field(default_factory=dict)
    """(tokens, D) of each view, by its name."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def draw(self, model: Any, rng: np.random.Generator, count: int, *, easy: bool) -> list[tuple[Segment, ...]]:
        """Write `count` lessons about fresh pictures: ledgers whose sampled tokens are the turns to learn.

        If `easy`, they answer questions that the first view answers, from the first view.
        """
        picks = []
        while len(picks) < count:
            source = self.data[len(picks) % len(self.data)]
            sample = source[int(rng.integers(len(source)))]
            spared = sample.meta["kind"] in ("colour", "shape") and rng.random() < _SHAPES_SPARED
            if not (easy and sample.meta["needs_original"]) and not spared:
                picks.append((source, sample))
        full = [picture(sample) for _, sample in picks]
        self.features.clear()
        self.sizes.clear()
        for kind, shown in (("first", [quarter(p) for p in full]), ("full", full)):
            for (_, sample), view, found in zip(picks, shown, self._see(model, shown), strict=True):
                self.features[f"{sample.id}-{kind}"] = found
                self.sizes[f"{sample.id}-{kind}"] = view.size
        odds = [0.0, 1.0, 0.0] if easy else list(_SETTINGS.values())
        return [
            self._write(source, sample, str(rng.choice(list(_SETTINGS), p=odds)), look=bool(rng.random() < 0.5))
            for source, sample in picks
        ]

    def _see(self, model: Any, pictures: Sequence[Image.Image]) -> Sequence[Tensor]:
        made = self.codec.image_processor(images=list(pictures), return_tensors="pt")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            seen = model.model.get_image_features(made["pixel_values"], made["image_grid_thw"], return_dict=True)
        return [found.float() for found in seen.pooler_output]

    def _write(self, source: SceneQuestions, sample: Sample, setting: str, *, look: bool) -> tuple[Segment, ...]:
        look = look and setting == "tool"
        turns = source.demonstration(sample, look=look or setting == "full")
        if setting == "full":
            turns = turns[1:]
        views = [self._view(1, f"{sample.id}-{'full' if setting == 'full' else 'first'}")]
        protocol = Protocol()
        messages = list(protocol.opening(sample, views, self.tools if setting == "tool" else ()))
        segments = self.codec.encode_opening(messages, views) + self._said(turns[0])
        if look:
            views.append(self._view(2, f"{sample.id}-full"))
            record = ToolRecord(ToolCall("resize_image", {}), views=(2,))
            messages += [Message("assistant", (turns[0],)), protocol.tool_message(record, views[1:])]
            segments += self.codec.encode_next(segments, messages, views) + self._said(turns[1])
        return segments

    def _said(self, text: str) -> tuple[Segment, ...]:
        ids = self.codec.encode_text(text) + self.codec.stop_ids[:1]
        return (TextSegment(ids, sampled=True, logprobs=(0.0,) * len(ids)),)

    def _view(self, index: int, name: str) -> View:
        size = self.sizes[name]
        return View(index, name, name, Affine(), size, size, self.codec.vision.tokens(size), "first_view")


def train_lessons(
    model: Any,
    lessons: Lessons,
    *,
    steps: int,
    easy_steps: int,
    batch: int = 32,
    lr: float = 1.2e-3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Train the language model on lessons, the first `easy_steps` of `steps` easy; the vision tower keeps its weights."""
    rng = np.random.default_rng(seed)
    weights = [p for name, p in model.named_parameters() if "visual" not in name]
    optimizer = torch.optim.AdamW(weights, lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    for step in range(steps):
        logits_NV, targets_N = _forward(model, lessons, lessons.draw(model, rng, batch, easy=step < easy_steps))
        loss = F.cross_entropy(logits_NV, targets_N)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            right = (logits_NV.argmax(-1) == targets_N).float().mean().item()
            log(f"lessons {step:4d}  loss a token {loss.item():.4f}  tokens right {right:.3f}")


def _rate(step: int, steps: int, *, warm_up: int = 30) -> float:
    """Share of the learning rate: a rise, a plateau, and a fall over the last half."""
    return min(1.0, (step + 1) / warm_up, max(0.01, 2 * (steps - step) / steps))


def _forward(model: Any, lessons: Lessons, ledgers: Sequence[tuple[Segment, ...]]) -> tuple[Tensor, Tensor]:
    """Logits (N, V) and targets (N,) of the tokens to learn."""
    codec = lessons.codec
    length = max(len(sampled_mask(ledger)) for ledger in ledgers)
    ids_BT = torch.zeros(len(ledgers), length, dtype=torch.long)
    mask_BT = torch.zeros(len(ledgers), length, dtype=torch.bool)
    positions_3BT = torch.zeros(3, len(ledgers), length, dtype=torch.long)
    slots, pieces = [], []
    for b, ledger in enumerate(ledgers):
        ids = trainer_ids(ledger, codec.image_token_id)
        ids_BT[b, : len(ids)] = torch.tensor(ids)
        mask_BT[b, : len(ids)] = torch.tensor(sampled_mask(ledger))
        positions_3BT[:, b, : len(ids)] = mrope_positions(ledger, merge=codec.vision.merge).ids
        at = b * length
        for segment in ledger:
            if isinstance(segment, ImageSegment):
                slots += range(at, at + segment.tokens)
                pieces.append(lessons.features[segment.image])
            at += segment.tokens if isinstance(segment, ImageSegment) else len(segment.ids)
    embeds_BTD = model.get_input_embeddings()(ids_BT)
    flat = embeds_BTD.flatten(0, 1).index_copy(0, torch.tensor(slots), torch.cat(pieces).to(embeds_BTD.dtype))
    hidden_BTD = model.model.language_model(
        inputs_embeds=flat.view_as(embeds_BTD), position_ids=positions_3BT, use_cache=False
    ).last_hidden_state
    learn_BT = mask_BT[:, 1:]
    return model.lm_head(hidden_BTD[:, :-1][learn_BT]), ids_BT[:, 1:][learn_BT]
