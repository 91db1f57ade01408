"""One fixed turn that shows whether an engine computes with the trainer's weights: asked of it, and scored by the module.

Digests show that tensors arrived; this shows what was made of them. The prompt has an image, so that the tower takes part,
and is longer than a block of keys and values, so that a prefix that was kept from old weights is found again and seen.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import nn

from agentvision.engine.types import Ask, Sampled
from agentvision.images import ImageStore
from agentvision.tokens import Codec, token_count
from agentvision.train.batch import Example, micro_batches
from agentvision.train.forward import SampledTokens
from agentvision.types import ImageSegment, Segment, TextSegment

_WORDS = 160
"""Tokens of text in the prompt at least: more than vLLM's largest default block (128, on a CPU)."""
_TURN_TOKENS = 16
_PASS_TOKENS = 8192
"""Tokens of one forward pass of the trainer's module."""
MEAN_GAP = {torch.float32: 1e-4}
"""Mean |Δ log-prob| up to which two float32 computations are the same."""
LOW_PRECISION_GAP = 0.1
"""The same for types of lower precision: far above their rounding, far below what other weights make."""


@dataclass(frozen=True, slots=True)
class Gap:
    """|Δ log-prob| over sampled tokens: what the engine said and what the module computes."""

    tokens: int
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class Probe:
    """The turn, for a codec. The same for each call: only the weights may change the answer."""

    codec: Codec
    store: ImageStore
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, codec: Codec) -> Probe:
        draw = random.Random(0)
        unit = codec.vision.patch * codec.vision.merge
        side = unit
        while side * side < codec.vision.min_pixels:
            side += unit
        picture = Image.frombytes("RGB", (2 * side, side), draw.randbytes(6 * side * side))
        store = ImageStore()
        name = store.add(picture)
        grid = codec.vision.grid(picture.size)
        tokens = grid[0] * grid[1] * grid[2] // codec.vision.merge**2
        text: list[int] = []
        while len(text) < _WORDS:
            text += codec.encode_text(f" {draw.randrange(1000)}")
        return cls(
            codec, store, (TextSegment(tuple(text)), ImageSegment(1, name, grid, tokens), TextSegment(tuple(text[:8])))
        )

    @property
    def tokens(self) -> int:
        """What an engine's context must hold."""
        return token_count(self.segments) + _TURN_TOKENS

    def ask(self, *, adapter: bool = False) -> Ask:
        return Ask(
            session="agentvision-probe",
            group="agentvision-probe",
            turn=0,
            segments=self.segments,
            store=self.store,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_tokens=_TURN_TOKENS,
            seed=0,
            stop_ids=(),  # all of its tokens, whatever they are
            banned_ids=self.codec.banned_ids,
            adapter=adapter,
        )

    def gap(self, model: nn.Module, sampled: Sampled) -> Gap:
        turn = TextSegment(sampled.ids, sampled=True, logprobs=sampled.logprobs)
        return gap_of(model, self.codec, [Example((*self.segments, turn), advantage=0.0)], self.store)


@torch.no_grad()
def gap_of(
    model: nn.Module, codec: Codec, examples: list[Example], store: ImageStore, *, temperature: float = 1.0
) -> Gap:
    """Score what was sampled with the module, as an update does. The module keeps its mode and its gradients."""
    scorer = SampledTokens(model, temperature=temperature, banned_ids=codec.banned_ids)
    config: Any = model.config
    device = next(model.parameters()).device
    deltas = [torch.zeros(0)]
    batches = micro_batches(
        examples,
        max_tokens=_PASS_TOKENS,
        merge=codec.vision.merge,
        share=config._attn_implementation in ("sdpa", "eager"),
        hidden=config.get_text_config().hidden_size,
    )
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            there = batch.to(device)
            deltas.append((scorer(there, partial(codec.pixels, store)).logprobs - there.recorded).abs().float().cpu())
    finally:
        model.train(was_training)
    delta_N = torch.cat(deltas)
    if not len(delta_N):
        return Gap(0, 0.0, 0.0)
    return Gap(len(delta_N), float(delta_N.mean()), float(delta_N.max()))
