"""An engine whose weights are spoilt on their way, or which keeps what old weights computed."""

from __future__ import annotations

import random
from typing import Any

import torch

FAULTS = ("dropped", "flipped", "reordered", "stale prefixes", "stale features")


class Faulty:
    """Everything is the engine's, but for one fault, once: `spoil` arms it, `spoilt` says what was done."""

    def __init__(self, engine: Any, *, seed: int = 0) -> None:
        self._engine = engine
        self._random = random.Random(seed)
        self._fault: str | None = None
        self.spoilt = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def spoil(self, fault: str) -> None:
        self._fault, self.spoilt = fault, ""

    async def update_weights(self, info: dict[str, Any]) -> None:
        tensors = list(info["tensors"])
        if self._fault in FAULTS[:3]:
            tensors, self.spoilt = getattr(self, f"_{self._fault}")(tensors), self._fault or ""
            self._fault = None
        await self._engine.update_weights({"tensors": tensors})

    async def reset_caches(self) -> None:
        core = self._engine._engine
        if self._fault == "stale prefixes":
            self._fault, self.spoilt = None, "stale prefixes"
            # The features are forgotten: the next turn computes an image again, beside a prefix that is kept.
            await self._engine._do(
                lambda: (self._engine._put_back(), core.reset_mm_cache(), core.reset_encoder_cache())
            )
        elif self._fault == "stale features":
            self._fault, self.spoilt = None, "stale features"
            await self._engine._do(lambda: (self._engine._put_back(), core.reset_prefix_cache()))
        else:
            await self._engine.reset_caches()

    def _dropped(self, tensors):
        del tensors[self._random.randrange(len(tensors))]
        return tensors

    def _flipped(self, tensors):
        at = self._random.randrange(len(tensors))
        name, tensor = tensors[at]
        bits = tensor.detach().clone().contiguous()
        flat = bits.view(torch.uint8).flatten()
        flat[self._random.randrange(len(flat))] ^= 1 << self._random.randrange(8)
        tensors[at] = (name, bits)
        return tensors

    def _reordered(self, tensors):
        """Two tensors of one shape under each other's names; they differ, or it would be no fault."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for at, (_, tensor) in enumerate(tensors):
            by_shape.setdefault(tuple(tensor.shape), []).append(at)
        pairs = [
            (a, b)
            for group in by_shape.values()
            for a in group
            for b in group
            if a < b and not torch.equal(tensors[a][1], tensors[b][1])
        ]
        a, b = self._random.choice(pairs)
        tensors[a], tensors[b] = (tensors[a][0], tensors[b][1]), (tensors[b][0], tensors[a][1])
        return tensors
