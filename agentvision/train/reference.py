"""The reference of the KL: log-probs under the weights that training started from.

Weights that are trained need a frozen copy. With an adapter there is none: the model is still there, under it. Where the
adapter itself began with something (a supervised stage), its tensors of then are kept and put in its place for a forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, cast

from torch import Tensor, nn

from agentvision.errors import ModelError
from agentvision.lora import adapter_off, adapter_parameters
from agentvision.shards import is_shard
from agentvision.train.batch import MicroBatch
from agentvision.train.forward import PixelSource, SampledTokens, TokenStats
from agentvision.types import ImageHash


class Reference(Protocol):
    """What an update compares with. Called without gradients."""

    def __call__(
        self, batch: MicroBatch, pixels: PixelSource, features: Mapping[ImageHash, Tensor] | None = None
    ) -> TokenStats: ...

    def take(self, model: nn.Module) -> None:
        """Be this model's weights as they are now."""
        ...


class CopiedReference:
    """A frozen copy of what is about to be trained."""

    def __init__(self, scorer: SampledTokens) -> None:
        self.scorer = cast("SampledTokens", copy.deepcopy(scorer).eval().requires_grad_(False))

    def __call__(
        self, batch: MicroBatch, pixels: PixelSource, features: Mapping[ImageHash, Tensor] | None = None
    ) -> TokenStats:
        return self.scorer(batch, pixels, features)

    def take(self, model: nn.Module) -> None:
        self.scorer.model.load_state_dict(model.state_dict())


@dataclass(slots=True)
class AdapterReference:
    """The trained module itself, with its adapter as it was taken: `kept`, by peft's names; empty is off.

    `scorer` is the prepared (DDP, FSDP) module around `model`'s `SampledTokens`.
    """

    scorer: nn.Module
    model: nn.Module
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __call__(
        self, batch: MicroBatch, pixels: PixelSource, features: Mapping[ImageHash, Tensor] | None = None
    ) -> TokenStats:
        was_training = self.scorer.training
        self.scorer.eval()
        try:
            with self._then():
                return self.scorer(batch, pixels, features)
        finally:
            self.scorer.train(was_training)

    @contextmanager
    def _then(self) -> Iterator[None]:
        if not self.kept:
            with adapter_off(self.model):
                yield
            return
        now = {name: parameter.data for name, parameter in adapter_parameters(self.model)}
        try:
            self._put(self.kept)
            yield
        finally:
            self._put(now)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in adapter_parameters(self.model):
            parameter.data = tensors[name]

    def take(self, model: nn.Module) -> None:
        tensors = {name: parameter.detach().clone() for name, parameter in adapter_parameters(model)}
        self.start_from(tensors)

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Be the model with this adapter. Raises `ModelError` for shards (FSDP), which cannot be put in another's place."""
        own = dict(adapter_parameters(self.model))
        if any(is_shard(parameter) for parameter in own.values()):
            raise ModelError(
                "a supervised stage, an adapter and algorithm.kl together cannot be sharded (FSDP): the reference is that "
                "stage's adapter; take DDP, or algorithm.kl.coef=0"
            )
        self.kept = {name: tensors[name].to(parameter) for name, parameter in own.items()}
