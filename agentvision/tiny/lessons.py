"""Stage 2 of the tiny model: the language model alone learns to find in the visual tokens what a question names.

A lesson is one picture and a question about everything on it, one turn each, in the very frames of the recipes: on the first
view, on the original, and on the first view and then the original that the tool delivers. A single question would give a
token or two to learn from; a lesson gives seven times as many, and finding comes that much sooner. The vision tower stays as
it learned to read, so its features are computed once for all lessons.
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

from agentvision.data import glyphs, handwriting
from agentvision.data.glyphs import LOOK
from agentvision.positions import mrope_positions
from agentvision.protocol import Protocol
from agentvision.tiny.reader import SceneData, fast_bfloat16, picture, quarter
from agentvision.tokens import Codec, sampled_mask, trainer_ids
from agentvision.types import (
    Affine,
    ImageSegment,
    Message,
    Sample,
    Segment,
    TextSegment,
    ToolCall,
    ToolRecord,
    View,
)


@dataclass(frozen=True, slots=True)
class Exercise:
    """A question, what is seen when it is asked of the first view, and its answer."""

    question: str
    sees: str
    answer: str

    @property
    def hard(self) -> bool:
        return self.sees.startswith("small")


@dataclass(slots=True)
class Lessons:
    """Writes lessons about pictures of some data sets, each picture once: what is learned must not be the picture."""

    codec: Codec
    data: Sequence[SceneData]
    tools: Sequence[dict[str, Any]]
    features: dict[str, Tensor] = field(default_factory=dict)
    """(tokens, D) of each view, by its name."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def draw(self, model: Any, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Pick pictures as (data set, index) and run the vision tower over both views of each."""
        picks = [(k % len(self.data), int(rng.integers(len(self.data[k % len(self.data)])))) for k in range(count)]
        full = [picture(self.data[d][i]) for d, i in picks]
        self.features.clear()
        self.sizes.clear()
        for kind, shown in (("first", [quarter(p) for p in full]), ("full", full)):
            for (d, i), view, found in zip(picks, shown, self._see(model, shown), strict=True):
                self.features[f"{d}-{i}-{kind}"] = found
                self.sizes[f"{d}-{i}-{kind}"] = view.size
        return picks

    def _see(self, model: Any, pictures: Sequence[Image.Image]) -> Sequence[Tensor]:
        made = self.codec.image_processor(images=list(pictures), return_tensors="pt")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            seen = model.model.get_image_features(made["pixel_values"], made["image_grid_thw"], return_dict=True)
        return [found.float() for found in seen.pooler_output]

    def write(self, d: int, i: int, rng: np.random.Generator, *, whole: bool) -> tuple[Segment, ...]:
        """A lesson on picture `i` of data set `d`: a ledger whose sampled tokens are the turns to learn.

        Not `whole`, it is an episode as the recipes have it: one question, looking and answering at even odds.
        """
        exercises = _exercises(self.data[d], i, rng)[: None if whole else 1]
        setting = rng.choice(["tool", "first", "full"], p=[0.6, 0.1, 0.3])
        views = [self._view(1, f"{d}-{i}-{'full' if setting == 'full' else 'first'}")]
        protocol = Protocol()
        offered = self.tools if setting == "tool" else ()
        messages = list(protocol.opening(Sample("", exercises[0].question), views, offered))
        segments = self.codec.encode_opening(messages, views)
        look_at = int(rng.integers(-3, 3)) // (1 if whole else 3) if setting == "tool" else -1
        clear = setting == "full"
        for k, exercise in enumerate(exercises):
            if k:
                messages.append(Message("user", (exercise.question,)))
                segments += self.codec.encode_next(segments, messages, views)
            if k == look_at:
                text = f"<think>{exercise.sees}</think>\n{LOOK}"
                messages.append(Message("assistant", (text,)))
                segments += self._said(text)
                views.append(self._view(2, f"{d}-{i}-full"))
                record = ToolRecord(ToolCall("resize_image", {}), views=(2,))
                messages.append(protocol.tool_message(record, views[1:]))
                segments += self.codec.encode_next(segments, messages, views)
                clear = True
            segments += self._answer(exercise, clear, messages, rng, learn_guesses=not whole)
        return segments

    def _answer(
        self,
        exercise: Exercise,
        clear: bool,
        messages: list[Message],
        rng: np.random.Generator,
        *,
        learn_guesses: bool,
    ) -> tuple[Segment, ...]:
        sees, answer = exercise.sees, exercise.answer
        guess = exercise.hard and not clear
        if clear:
            sees = sees.replace("small", "clear").replace("large", "clear")
        if guess:
            answer = "".join(str(rng.integers(10)) for _ in answer)
        head, tail = f"<think>{sees}</think>\n<answer>", "</answer>"
        messages.append(Message("assistant", (head + answer + tail,)))
        if learn_guesses or not guess:
            return self._said(head + answer + tail)
        # A random guess teaches nothing but that one is made, and whole lessons have better things to learn.
        return (*self._said(head, end=False), TextSegment(self.codec.encode_text(answer)), *self._said(tail))

    def _said(self, text: str, *, end: bool = True) -> tuple[Segment, ...]:
        ids = self.codec.encode_text(text) + (self.codec.stop_ids[:1] if end else ())
        return (TextSegment(ids, sampled=True, logprobs=(0.0,) * len(ids)),)

    def _view(self, index: int, name: str) -> View:
        size = self.sizes[name]
        return View(index, name, name, Affine(), size, size, self.codec.vision.tokens(size), "first_view")


def _exercises(source: SceneData, i: int, rng: np.random.Generator) -> list[Exercise]:
    """A question about every card and shape of a picture, in random order."""
    scene, scans = source.scene(i), isinstance(source, handwriting.Handwriting)
    phrases, noun = (handwriting.PHRASES, "handwriting") if scans else (glyphs.PHRASES, "type")
    found = []
    for card in scene.cards:
        kinds = ["code", "code", "first", "last"] if len(card.text) > 1 else ["code"]
        kind = kinds[rng.integers(len(kinds))]
        answer = {"code": card.text, "first": card.text[0], "last": card.text[-1]}[kind]
        sees = f"{'large' if card.large else 'small'} {noun}"
        found.append(Exercise(phrases[kind].format(name=f"the {card.colour} card"), sees, answer))
    for shape in scene.shapes:
        found.append(Exercise(f"What colour is the {shape.kind}?", "a shape", shape.colour))
        found.append(Exercise(f"Which shape is {shape.colour}?", "a shape", shape.kind))
    return [found[k] for k in rng.permutation(len(found))]


def train_lessons(
    model: Any,
    lessons: Lessons,
    *,
    steps: int,
    whole: bool,
    batch: int = 32,
    lr: float = 2e-3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Train the language model on lessons; the vision tower keeps its weights."""
    rng = np.random.default_rng([seed, whole])
    weights = [p for name, p in model.named_parameters() if "visual" not in name]
    optimizer = torch.optim.AdamW(weights, lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    model.train()
    for step in range(steps):
        ledgers = [
            lessons.write(d, i, rng, whole=whole and k % 4 < 3)
            for k, (d, i) in enumerate(lessons.draw(model, rng, batch))
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            logits_NV, targets_N = _forward(model, lessons, ledgers)
        loss = F.cross_entropy(logits_NV.float(), targets_N)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            right = (logits_NV.argmax(-1) == targets_N).float().mean().item()
            log(f"lessons {step:4d}  loss a token {loss.item():.4f}  tokens right {right:.3f}")


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
