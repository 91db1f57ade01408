"""What an engine that has taken new weights must say: the probe's turn, from them alone and as the trainer's module scores it.

Digests prove that each tensor arrived (`sync.py`); this proves that the engine computes with them and with nothing older.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from agentvision.engine.probe import LOW_PRECISION_GAP, MEAN_GAP, Probe
from agentvision.engine.ranks import in_thread
from agentvision.engine.sync import Weights, is_sharded
from agentvision.engine.types import Control, Sampled, SyncError


class Proof:
    """For the engines of one policy; `dtype` is that of the weights they compute with."""

    def __init__(self, probe: Probe, dtype: Callable[[], torch.dtype]) -> None:
        self.probe = probe
        self._dtype = dtype
        self._proven: tuple[int, Sampled | None] = (-1, None)
        """The turn of an engine whose answer the module agreed with, and the version."""

    async def check(self, weights: Weights, control: Control, model: nn.Module | None) -> None:
        """Ask an engine that has taken these weights, and is still paused. Raises `SyncError` when it has not got them.

        `model` is the module that they are of, where it still is.
        """
        try:
            sampled = await control.sample_alone(self.probe.ask(adapter=weights.adapter is not None))
        except ValueError as error:  # of a server of the user's: for others `from_pretrained` sees to it
            raise SyncError(
                f"version {weights.version}: the fixed turn that shows new weights cannot be asked: {error}; raise "
                "sampling.context_tokens, or the server's --max-model-len"
            ) from error
        if sampled.cached_tokens:
            raise SyncError(
                f"version {weights.version}: the engine found {sampled.cached_tokens} tokens of a prompt in its prefix cache, "
                "which was to be reset"
            )
        if any(span.version != weights.version for span in sampled.versions):
            raise SyncError(
                f"the engine says that {sampled.versions!r} sampled, after version {weights.version} was sent"
            )
        gap = await self._gap(weights, sampled, model)
        limit = MEAN_GAP.get(self._dtype(), LOW_PRECISION_GAP)
        if gap is not None and not gap <= limit:
            raise SyncError(
                f"version {weights.version}: every tensor arrived, but what the engine says is not what the trainer's module "
                f"computes: mean |Δ log-prob| {gap:.2g}, more than {limit:g}"
            )
        self._proven = weights.version, sampled

    async def _gap(self, weights: Weights, sampled: Sampled, model: nn.Module | None) -> float | None:
        """Mean |Δ log-prob| of the probe: to the module, or where that has moved on to the engine that was proven with it.

        None where there is neither: shards that only all ranks together can compute with.
        """
        if model is not None and not is_sharded(model):
            return (await in_thread(lambda: self.probe.gap(model, sampled))).mean
        version, proven = self._proven
        if version != weights.version or proven is None:
            return None
        same = next((k for k, (a, b) in enumerate(zip(sampled.ids, proven.ids)) if a != b), len(proven.ids) - 1)
        pairs = list(zip(sampled.logprobs[: same + 1], proven.logprobs[: same + 1]))
        # Where they part, each has drawn its own id: nothing to compare there but before.
        pairs = pairs[:same] or pairs
        return sum(abs(a - b) for a, b in pairs) / len(pairs)
