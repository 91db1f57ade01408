"""One optimizer update: examples in, weights moved, numbers out.

The update is normalised by counts over all micro-batches and ranks, so how it is cut changes memory and speed and not the
gradient. The old log-probs of the ratio are those recorded at sampling: they belong to the distribution that drew the
tokens, whatever happened to the weights since, so the first update of a step measures the mismatch between engine and
trainer, and later ones (several mini-batches, several epochs) are clipped against the same old policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from agentvision.recipe.schema import Algorithm
from agentvision.train.batch import Example, MicroBatch, micro_batches
from agentvision.train.forward import PixelSource, SampledTokens, image_features
from agentvision.train.losses import (
    LossCounts,
    LossNorm,
    grpo_loss,
    is_clipped,
    mismatch,
    supervised_loss,
    token_weights,
)
from agentvision.types import ImageHash, TextSegment

_NOTHING = Example((TextSegment((0,)), TextSegment((0,), sampled=True, logprobs=(0.0,))), advantage=0.0)
"""What a rank computes that has not even a spare example: every episode of its own failed before a token was sampled."""


@dataclass(slots=True)
class UpdateStats:
    """Sums over the micro-batches of one update, of all ranks; `loss`, `kl` and `entropy` are already weighted means.

    `kl` is nan where there is no reference to measure it against.
    """

    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    clipped: int = 0
    logprob_diff_sum: float = 0.0
    logprob_diff_max: float = 0.0
    ratio_max: float = 1.0
    grad_norm: float = 0.0
    finite: bool = True
    """False: the update was skipped and no weight touched."""


@dataclass(slots=True)
class Updater:
    """What an update needs. `scorer` is the prepared (DDP, FSDP) module around `SampledTokens`."""

    accelerator: Accelerator
    scorer: nn.Module
    optimizer: torch.optim.Optimizer
    algorithm: Algorithm
    grad_clip: float
    micro_batch_tokens: int
    max_tokens: int
    """Tokens a turn may have: the length of the norm "constant"."""
    merge: int = 2
    reference: SampledTokens | None = None
    _features: dict[ImageHash, Tensor] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        return cast("SampledTokens", self.accelerator.unwrap_model(self.scorer)).model

    def begin_step(self) -> None:
        """Forget the features of a frozen tower: the images of the next step are others."""
        self._features.clear()

    def reinforce(
        self, examples: Sequence[Example], pixels: PixelSource, *, spare: Example | None = None
    ) -> UpdateStats:
        """One GRPO update on these examples of this rank (VisionThink, Eq. 3). `spare` keeps a rank without any in step."""
        batches, counts = self._plan(examples, spare)
        stats = UpdateStats(kl=math.nan if self.reference is None else 0.0)
        algorithm = self.algorithm
        clip_high = algorithm.clip if algorithm.clip_high is None else algorithm.clip_high
        self._start()
        for index, batch in enumerate(batches):
            features = self._frozen_features(batch, pixels)
            with self._sync(last=index == len(batches) - 1):
                reference_N = self._reference_logprobs(batch, pixels, features)
                scored = self.scorer(batch, pixels, features)
                parts = grpo_loss(
                    scored.logprobs,
                    scored.entropy,
                    old_logprobs_N=batch.recorded,
                    reference_N=reference_N,
                    advantages_N=batch.advantages,
                    weights_N=self._weights(
                        batch, counts, algorithm.loss_norm, spare=index >= len(batches) - counts.spare
                    ),
                    clip_low=algorithm.clip,
                    clip_high=clip_high,
                    kl_coef=algorithm.kl.coef,
                    kl_estimator=algorithm.kl.estimator,
                    entropy_coef=algorithm.entropy,
                )
                self._backward(parts.loss)
            if index >= len(batches) - counts.spare:
                continue
            clipped_N = is_clipped(
                scored.logprobs.detach(), batch.recorded, batch.advantages, clip_low=algorithm.clip, clip_high=clip_high
            )
            measured = mismatch(scored.logprobs, batch.recorded)
            stats.loss += parts.loss.item()
            stats.kl += parts.kl.item()
            stats.entropy += parts.entropy.item()
            stats.tokens += batch.tokens
            stats.clipped += int(clipped_N.sum())
            stats.logprob_diff_sum += measured.sum
            stats.logprob_diff_max = max(stats.logprob_diff_max, measured.max)
            stats.ratio_max = max(stats.ratio_max, measured.ratio_max)
        return self._step(stats)

    def imitate(self, examples: Sequence[Example], pixels: PixelSource, *, spare: Example | None = None) -> UpdateStats:
        """One supervised update: cross-entropy on the examples' own tokens, a mean over each one's and then over them."""
        batches, counts = self._plan(examples, spare)
        stats = UpdateStats()
        self._start()
        for index, batch in enumerate(batches):
            is_spare = index >= len(batches) - counts.spare
            features = self._frozen_features(batch, pixels)
            with self._sync(last=index == len(batches) - 1):
                scored = self.scorer(batch, pixels, features)
                weights_N = self._weights(batch, counts, "trajectory", spare=is_spare)
                loss = supervised_loss(scored.logprobs, weights_N=weights_N)
                self._backward(loss)
            if not is_spare:
                stats.loss += loss.item()
                stats.entropy += float((weights_N * scored.entropy.detach()).sum())
                stats.tokens += batch.tokens
        return self._step(stats)

    # --- the parts of an update ---------------------------------------------------------------------------------------

    def _plan(self, examples: Sequence[Example], spare: Example | None) -> tuple[list[MicroBatch], _Counts]:
        """This rank's micro-batches, filled up with spare ones to the number that the busiest rank has."""
        device = self.accelerator.device
        config = self.model.config
        options: dict[str, Any] = {
            "max_tokens": self.micro_batch_tokens,
            "merge": self.merge,
            "share": config._attn_implementation in ("sdpa", "eager"),
            "hidden": config.get_text_config().hidden_size,
        }
        batches = micro_batches(examples, **options)
        used = [example for example in examples if example.sampled]
        local = torch.tensor([len(used), sum(e.sampled for e in used)], device=device)
        trajectories, tokens = cast("Tensor", self.accelerator.reduce(local, "sum")).tolist()
        most = int(cast("Tensor", self.accelerator.gather(torch.tensor([len(batches)], device=device))).max())
        missing = most - len(batches)
        if missing:
            filler = batches[0] if batches else micro_batches([spare or _NOTHING], **options)[0]
            batches = [*batches, *[filler] * missing]
        counts = _Counts(LossCounts(trajectories, tokens, self.max_tokens), missing)
        return [batch.to(device) for batch in batches], counts

    def _weights(self, batch: MicroBatch, counts: _Counts, norm: LossNorm, *, spare: bool) -> Tensor:
        weights_N = token_weights(batch.lengths, counts=counts.loss, norm=norm)
        return torch.zeros_like(weights_N) if spare else weights_N

    def _start(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)

    def _sync(self, *, last: bool) -> Any:
        """Gradients travel between ranks once an update, with the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(self.scorer)

    def _backward(self, loss: Tensor) -> None:
        # DDP and FSDP average over ranks; the loss is already each rank's share of the whole.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _step(self, stats: UpdateStats) -> UpdateStats:
        parameters = [p for p in self.scorer.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, self.grad_clip)
        stats.grad_norm = float(norm) if norm is not None else 0.0
        if self.accelerator.num_processes > 1:
            self._sum_over_ranks(stats)
        stats.finite = math.isfinite(stats.loss) and math.isfinite(stats.grad_norm)
        if stats.finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        return stats

    def _sum_over_ranks(self, stats: UpdateStats) -> None:
        """Make each rank's share the whole; a loss that is not finite anywhere is so everywhere."""
        sums = ("loss", "kl", "entropy", "tokens", "clipped", "logprob_diff_sum")
        maxima = ("logprob_diff_max", "ratio_max")
        values = torch.tensor([float(getattr(stats, name)) for name in (*sums, *maxima)], dtype=torch.float64)
        ranks = cast("Tensor", self.accelerator.gather(values.to(self.accelerator.device)[None]))
        for k, name in enumerate((*sums, *maxima)):
            column = ranks[:, k]
            value = float(column.sum() if name in sums else column.max())
            setattr(stats, name, int(value) if name in ("tokens", "clipped") else value)

    def _reference_logprobs(
        self, batch: MicroBatch, pixels: PixelSource, features: dict[ImageHash, Tensor] | None
    ) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad(), self.accelerator.autocast():
            return self.reference(batch, pixels, features).logprobs

    def _frozen_features(self, batch: MicroBatch, pixels: PixelSource) -> dict[ImageHash, Tensor] | None:
        """The features of a tower that is not trained, each image once a step; None where it is trained."""
        if any(p.requires_grad for p in self.model.model.visual.parameters()):
            return None
        missing = [image for image in batch.images if image not in self._features]
        if missing:
            with torch.no_grad(), self.accelerator.autocast():
                self._features.update(image_features(self.model, missing, pixels))
        return self._features


@dataclass(frozen=True, slots=True)
class _Counts:
    loss: LossCounts
    spare: int
    """Micro-batches at the end that only keep this rank in step with the others."""
